"""Scores a run's stored prompts and stored answers with other rewards; the target is not built and not asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlprompt.config import BudgetConfig, RewardConfig, RunConfig
from rlprompt.errors import ConfigError, RunError
from rlprompt.pairs import sample_indices
from rlprompt.preferences import write_json_lines
from rlprompt.runs.candidates import WEIGHT
from rlprompt.runs.folder import write_bytes
from rlprompt.runs.records import COMPONENT, Answer, PromptRecord, as_record, prompt_records
from rlprompt.runs.result import SavedRun
from rlprompt.runs.stored import readings, unrecorded_answers
from rlprompt.scoring import Scorer, build_scorer
from rlprompt.scoring.originals import original_prompt
from rlprompt.tasks import task_from_config
from rlprompt.types import Example, Failure, Json, Scores, TargetOutput, TargetRequest

if TYPE_CHECKING:
    from rlprompt.tasks import Task

_ROWS = 64
"""Prompts of one call of the rewards, which have a time-out."""
_NOT_STORED = Failure("target", "unsupported", "the run stored no answer for this, and rescoring asks for none", 0)


class StoredAnswers:
    """Stands where a scorer has its target: whatever is not stored already fails, and nothing is ever asked."""

    @property
    def identity(self) -> Json:
        """Names the kind."""
        return {"kind": "stored"}

    def run(self, requests: Sequence[TargetRequest]) -> list[TargetOutput]:
        """Returns a failure for each request."""
        return [TargetOutput(failure=_NOT_STORED)] * len(requests)

    def count_tokens(self, requests: Sequence[TargetRequest]) -> list[int]:
        """Returns 0 for each request."""
        return [0] * len(requests)


@dataclass(frozen=True)
class Rescored:
    """The run's scored prompts with their new scores."""

    records: tuple[PromptRecord, ...]
    """As many as the run has, in their order; each on all stored answers to its prompt in its phase."""
    weights: Mapping[str, float]
    """Of the new components."""
    num_answers: int
    """Stored answers that were scored, failed ones included, each once."""
    num_failed: int
    num_abstained: int
    failures: Mapping[str, int]
    """Failed answers by message."""

    @property
    def num_scored(self) -> int:
        """Records with a reward."""
        return sum(record.num_valid > 0 for record in self.records)


def rescore(
    run: SavedRun,
    rewards: Sequence[RewardConfig],
    *,
    allow_modules: Sequence[str] = (),
    search_path: str | Path | None = None,
) -> Rescored:
    """Scores a run again with other rewards.

    A prompt that the run scored several times, on other minibatches, has the same new scores each time: those on all
    answers that are stored for it.

    Args:
        run: the run.
        rewards: the new components.
        allow_modules: modules that rewards of the form my_module:my_name may come from.
        search_path: a folder that they may come from as well.

    Raises:
        ConfigError: a reward cannot be loaded, or needs answers of a kind that the run did not store.
        RunError: the run has scored no prompt, or its tables are damaged or do not fit its task.
    """
    records, answers = run.prompts(), run.answers()
    if not records:
        raise RunError(f"{run.folder.root} has no scored prompt yet; there is nothing to score again")
    task = task_from_config(run.config.task)
    config = run.config.model_copy(update={"reward": list(rewards), "stabilisers": [], "budget": BudgetConfig()})
    scorer = build_scorer(
        config, allow_modules=allow_modules, search_path=search_path, task=task, target=StoredAnswers()
    )
    _check_kind(scorer, answers)
    scorer.remember(unrecorded_answers(run.folder))
    scorer.remember(map(as_record, answers))
    jobs = list(_pair_jobs(records, task, config) if config.env.per_input else _task_jobs(records, answers, task))
    if scorer.rewards.needs_original:
        _check_originals(scorer, config, jobs)
    read = readings(config, task)
    found: dict[tuple[str, str, str], PromptRecord] = {}
    answered = failed = valid = 0
    failures: Counter[str] = Counter()
    for job in jobs:
        scores = job.score(scorer, read)
        for record in prompt_records(scores, (), iteration=0, phase=job.phase):
            found[record.prompt, record.example_id, job.phase] = record
        answered, failed = answered + scores.valid.size, failed + len(scores.failures)
        valid += int(scores.valid.sum())
        failures.update(failure.message for _, _, failure in scores.failures)
    return Rescored(
        records=tuple(_merged(record, found[record.prompt, record.example_id, record.phase]) for record in records),
        weights={component.name: component.weight for component in scorer.rewards.components},
        num_answers=answered,
        num_failed=failed,
        num_abstained=answered - failed - valid,
        failures=dict(failures.most_common()),
    )


def write_scores(path: Path, rescored: Rescored) -> None:
    """Writes what `rlprompt pairs RUN --scores FILE` reads: JSONL, or Parquet where the name ends so.

    The columns are those of a run's `prompts/`, and "weight/NAME" for each component.

    Raises:
        RunError: the file cannot be written.
    """
    rows = [_row(record, rescored.weights) for record in rescored.records]
    if path.suffix != ".parquet":
        write_json_lines(path, rows)
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    scores = ("raw_reward", "training_reward", "accuracy", *(name for name in rows[0] if "/" in name))
    table = pa.Table.from_pylist(rows)
    for name in scores:  # a column of nulls has no type of its own
        place = table.schema.get_field_index(name)
        table = table.set_column(place, name, table.column(name).cast(pa.float64()))
    pq.write_table(table, sink)
    write_bytes(path, sink.getvalue().to_pybytes())


@dataclass(frozen=True)
class _Job:
    """Prompts that are scored in one call: each on all examples, or each on its own."""

    phase: str
    prompts: tuple[str, ...]
    examples: tuple[Example, ...]
    samples: int | None = None
    """Of pairs; None: prompts x examples."""

    def score(self, scorer: Scorer, read: Any) -> Scores:
        if self.samples is None:
            contexts = [read(None)] * len(self.prompts)
            return scorer.score(self.prompts, self.examples, phase=self.phase, contexts=contexts)
        contexts = [read(example) for example in self.examples]
        return scorer.score_pairs(
            self.prompts, self.examples, samples=self.samples, phase=self.phase, contexts=contexts
        )


def _pair_jobs(records: Sequence[PromptRecord], task: Task, config: RunConfig) -> Iterator[_Job]:
    examples = {example.id: example for example in (*task.train, *task.dev)}
    for phase in ("train", "dev"):
        keys = dict.fromkeys((r.prompt, r.example_id) for r in records if r.phase == phase)
        unknown = next((name for _, name in keys if name not in examples), None)
        if unknown is not None:
            raise _foreign(unknown)
        for part in _parts(list(keys)):
            yield _Job(
                phase, tuple(text for text, _ in part), tuple(examples[name] for _, name in part), config.env.samples
            )


def _task_jobs(records: Sequence[PromptRecord], answers: Sequence[Answer], task: Task) -> Iterator[_Job]:
    """Train before dev: calibration of the latter uses what was fitted on the former, as in the run."""
    asked: dict[str, set[str]] = {}
    for answer in answers:
        asked.setdefault(answer.prompt, set()).add(answer.example_id)
    for phase, examples in (("train", task.train), ("dev", task.dev)):
        groups: dict[tuple[int, ...], dict[str, None]] = {}
        for record in records:
            if record.phase == phase:
                ids = asked.get(record.prompt, set())
                own = tuple(place for place, example in enumerate(examples) if example.id in ids)
                groups.setdefault(own, {})[record.prompt] = None
        if () in groups:
            raise _foreign(f"{phase}/...")
        for own, prompts in groups.items():
            for part in _parts(list(prompts)):
                yield _Job(phase, tuple(part), tuple(examples[place] for place in own))


def _foreign(example_id: str) -> RunError:
    return RunError(
        f"the run has prompts for example '{example_id}', which its task does not have (any more); give the task its "
        "rows back"
    )


def _parts(entries: list[Any]) -> Iterator[list[Any]]:
    return iter([entries[first : first + _ROWS] for first in range(0, len(entries), _ROWS)])


def _check_kind(scorer: Scorer, answers: Sequence[Answer]) -> None:
    """Refuses rewards of a generation task that need what the target was not asked for in the run."""
    good = [answer.output for answer in answers if answer.output.failure is None]
    if scorer.task.choices is not None or not good:
        return
    stored = "text" if any(output.text is not None for output in good) else "logprob"
    if scorer.rewards.needs == "any":
        scorer.asks = stored
    if scorer.asks != stored:
        names = {"text": "texts", "logprob": "log-likelihoods of the reference"}
        needy = next(c.name for c in scorer.rewards.components if c.needs == scorer.rewards.needs)
        raise ConfigError(
            f"reward '{needy}' needs {names[scorer.asks]}, but the run stored {names[stored]}, and rescoring asks the "
            "target nothing; name another reward, or train a run with this one"
        )


def _check_originals(scorer: Scorer, config: RunConfig, jobs: Sequence[_Job]) -> None:
    """Refuses rewards that compare with the original prompt where the run has no answer to it."""
    shown = "input" in scorer.task.template.fields
    first = sample_indices(config.env.samples if config.env.per_input else 1)[0]
    examples = {example.id: example for job in jobs for example in job.examples}
    known = 0
    for example in examples.values():
        prompt = scorer.rewards.original
        if prompt is None and config.env.per_input:
            prompt = original_prompt(scorer.compose, example, scorer.draft, shows_input=shown)
        prompt = scorer.draft if prompt is None else prompt
        known += scorer.known_answer(prompt, example.id, first) is not None
    if not known:
        needy = next(c.name for c in scorer.rewards.components if c.needs_original)
        raise ConfigError(
            f"reward '{needy}' compares with the target's answers to the original prompt, but the run stored none for "
            f"its {len(examples)} examples, and rescoring asks the target nothing; name another reward, or train a run "
            "with this one"
        )


def _merged(old: PromptRecord, new: PromptRecord) -> PromptRecord:
    """The scores of the one at the place of the other."""
    return replace(new, iteration=old.iteration, index=old.index, phase=old.phase, target_calls=0, target_tokens=0)


def _row(record: PromptRecord, weights: Mapping[str, float]) -> Json:
    plain = {name: _known(getattr(record, name)) for name in record.__dataclass_fields__ if name != "components"}
    scores = {COMPONENT + name: _known(value) for name, value in record.components.items()}
    return {**plain, **scores, **{WEIGHT + name: weight for name, weight in weights.items()}}


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and value != value else value
