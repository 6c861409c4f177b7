"""The scored prompts of a run, or of a file of scores for them, as candidates that pairs are built from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from rlprompt.config import RunConfig
from rlprompt.errors import ConfigError, RunError
from rlprompt.preferences import Candidate, json_lines
from rlprompt.rewards.reward_set import component_names
from rlprompt.runs.records import COMPONENT, PromptRecord, prompt_id
from rlprompt.runs.result import SavedRun
from rlprompt.runs.stored import readings, unrecorded_answers
from rlprompt.scoring.originals import original_prompt
from rlprompt.types import Example, Json, TargetOutput

if TYPE_CHECKING:
    from rlprompt.tasks import Task

WEIGHT = "weight/"
"""Columns of a file of scores that hold the weight of a component in the reward begin with this."""
PHASES = ("train", "dev")
_INTEGERS = {"iteration": 0, "index": 0, "num_examples": 1, "num_valid": 1, "num_failed": 0}
_NUMBERS = ("raw_reward", "training_reward", "accuracy")
_FIELDS = frozenset(entry.name for entry in fields(PromptRecord))


@dataclass(frozen=True)
class CandidateSet:
    """Candidates, and what their scores are worth."""

    candidates: tuple[Candidate, ...]
    weights: Mapping[str, float]
    """Of each component in the combined reward."""


@dataclass(frozen=True)
class _Row:
    """One scored prompt with what a file says beside its scores."""

    record: PromptRecord
    where: str
    own: bool
    """Whether it is the run's own, and not of a file."""
    input: str | None
    columns: Mapping[str, Any]


def candidates_of(
    run: SavedRun, *, phase: str = "train", scores: Path | None = None, max_failed_fraction: float = 0.0
) -> CandidateSet:
    """Reads the scored prompts of a run.

    Their columns are "reference" and "draft" where there are any, and of a run that writes for single inputs "response"
    and "naive_response", the target's stored answers to the prompt and to what the policy rewrote.

    Args:
        run: the run.
        phase: "train" or "dev".
        scores: a file of scores (`rlprompt rescore`, or written by hand) that is read in the place of the run's own.
        max_failed_fraction: a prompt of which a larger share of the examples failed is a failed candidate.

    Raises:
        RunError: the run's tables are damaged, or it has an example that its task has not.
        ConfigError: the file of scores cannot be used; the message names the line.
    """
    if phase not in PHASES:
        raise ConfigError(f"phase must be train or dev, got '{phase}'")
    if not 0 <= max_failed_fraction <= 1:
        raise ConfigError(f"the failed share must be between 0 and 1, got {max_failed_fraction:g}")
    names = component_names(run.config.reward)
    weights = {name: config.weight for name, config in zip(names, run.config.reward, strict=True)}
    if scores is None:
        rows = [_Row(record, str(run.folder.root), True, None, {}) for record in run.prompts()]
    else:
        rows, weights = _rows_of(scores, phase)
    rows = [row for row in rows if row.record.phase == phase]
    described = _Describer(run)
    return CandidateSet(tuple(described(row, max_failed_fraction) for row in rows), weights)


class _Describer:
    """Makes candidates of rows: finds the example, what the policy read, and the stored answers."""

    def __init__(self, run: SavedRun) -> None:
        config = run.config
        if config.env.dialogue:
            raise ConfigError(
                f"{run.folder.root} is a run of dialogues, which keeps what was written last, not every turn; for "
                "demonstrations play dialogues with rlprompt.search.dialogues.play"
            )
        self._config: RunConfig = config
        self._task: Task | None = None
        self._examples: dict[str, Example] = {}
        if config.env.kind != "token-prompt":
            from rlprompt.tasks import task_from_config

            self._task = task_from_config(config.task)
            self._examples = {example.id: example for example in (*self._task.train, *self._task.dev)}
        self._read = readings(config, self._task)
        self._answers = stored_texts(run) if config.env.per_input else {}

    def __call__(self, row: _Row, max_failed_fraction: float) -> Candidate:
        record = row.record
        example = self._example(row)
        return Candidate(
            record.prompt,
            record.components,
            record.raw_reward,
            example_id=record.example_id,
            input="" if example is None else example.input,
            context=self._read(example),
            iteration=record.iteration,
            index=record.index,
            failed=record.num_failed > max_failed_fraction * record.num_examples,
            count=record.num_valid,
            columns={**self._columns(record.prompt, example), **row.columns},
        )

    def _example(self, row: _Row) -> Example | None:
        name = row.record.example_id
        known = self._examples.get(name)
        if row.input is not None:
            return Example(name, row.input) if known is None else replace(known, input=row.input)
        if known is not None:
            return known
        if not self._config.env.per_input and not name:
            return None
        if not name:
            raise ConfigError(f"{row.where}: the run writes for single inputs, so give example_id or input")
        kind = RunError if row.own else ConfigError
        raise kind(
            f"{row.where}: example '{name}' is not in the run's task; name one that is, or give the input itself"
        )

    def _columns(self, prompt: str, example: Example | None) -> Json:
        found: Json = {"draft": self._config.env.draft} if self._config.env.draft else {}
        if example is None or self._task is None:
            return found
        if example.reference is not None:
            from rlprompt.envs.contexts import reference_text

            holder: Any = SimpleNamespace(task=self._task)
            found["reference"] = reference_text(holder, example)
        env = self._config.env
        shown = "input" in self._task.template.fields
        naive = original_prompt(env.compose, example, env.draft, shows_input=shown)
        for column, text in (("response", prompt), ("naive_response", naive)):
            if (text, example.id) in self._answers:
                found[column] = self._answers[text, example.id]
        return found


def stored_texts(run: SavedRun) -> dict[tuple[str, str], str]:
    """Returns the first text that the target wrote for each (prompt, example id) of a run; failures have none."""
    recorded = [(answer.prompt, answer.example_id, answer.sample, answer.output) for answer in run.answers()]
    found: dict[tuple[str, str], tuple[int, str]] = {}
    for prompt, example_id, sample, output in [*recorded, *unrecorded_answers(run.folder)]:
        text = _text(output)
        if text is not None and sample >= 0 and sample < found.get((prompt, example_id), (sample + 1, ""))[0]:
            found[prompt, example_id] = (sample, text)
    return {key: text for key, (_, text) in found.items()}


def _text(output: TargetOutput) -> str | None:
    return None if output.failure is not None else output.text


def _rows_of(path: Path, phase: str) -> tuple[list[_Row], dict[str, float]]:
    """Reads a file of scores: JSONL, or Parquet with the same columns."""
    rows: list[_Row] = []
    weights: dict[str, float] = {}
    for where, values in _file_rows(path):
        if not isinstance(values, dict) or not isinstance(values.get("prompt"), str):
            raise ConfigError(f"{where} has no text 'prompt'; a line has prompt, raw_reward and component/NAME")
        for name in ("phase", "example_id", "input"):
            if not isinstance(values.get(name, ""), str | None):
                raise ConfigError(f"{where}: '{name}' must be a text, got {values[name]!r}")
        scored = {name: _number(values, name, where) for name in values if name.startswith((COMPONENT, WEIGHT))}
        for name, value in scored.items():
            if name.startswith(WEIGHT) and value is not None:
                weights[name.removeprefix(WEIGHT)] = value
        record = _record(values, scored, where, phase, len(rows))
        own = {name: value for name, value in values.items() if name not in _FIELDS and name not in scored}
        rows.append(_Row(record, where, False, own.pop("input", None), own))
    return rows, weights


def _record(
    values: Mapping[str, Any], scored: Mapping[str, float | None], where: str, phase: str, index: int
) -> PromptRecord:
    known: Json = {"example_id": values.get("example_id") or "", "phase": values.get("phase") or phase}
    for name in _NUMBERS:
        known[name] = _nan_for_none(_number(values, name, where))
    for name, default in {**_INTEGERS, "index": index}.items():
        known[name] = _integer(values, name, where, default)
    return PromptRecord(
        prompt_id=prompt_id(values["prompt"], known["example_id"]),
        prompt=values["prompt"],
        components={
            name.removeprefix(COMPONENT): _nan_for_none(value)
            for name, value in scored.items()
            if name.startswith(COMPONENT)
        },
        target_calls=0,
        target_tokens=0,
        **known,
    )


def _file_rows(path: Path) -> Iterator[tuple[str, Any]]:
    if path.suffix != ".parquet":
        yield from ((f"{path}, line {number}", row) for number, row in json_lines(path, "the file of scores"))
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        found = pq.ParquetFile(path).read(use_threads=False).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"cannot read the file of scores {path}: {' '.join(str(error).split())}") from error
    yield from ((f"{path}, row {number}", row) for number, row in enumerate(found, start=1))


def _number(values: Mapping[str, Any], name: str, where: str) -> float | None:
    value = values.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{where}: '{name}' must be a number or null, got {value!r}")
    return float(value)


def _nan_for_none(value: float | None) -> float:
    return float("nan") if value is None else value


def _integer(values: Mapping[str, Any], name: str, where: str, default: int) -> int:
    value = values.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{where}: '{name}' must be an integer, got {value!r}")
    return value
