"""Scores a run's stored prompts and stored answers with other rewards; the target is not built and not asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlprompt.config import BudgetConfig, RewardConfig, RunConfig
from rlprompt.errors import BudgetExceededError, CheckpointError, ConfigError, RunError
from rlprompt.pairs import sample_indices
from rlprompt.preferences import write_json_lines
from rlprompt.rewards.component import Component
from rlprompt.rewards.spending import JudgeCalls
from rlprompt.runs.candidates import WEIGHT
from rlprompt.runs.folder import write_bytes
from rlprompt.runs.records import COMPONENT, Answer, PromptRecord, as_record, prompt_records
from rlprompt.runs.result import SavedRun
from rlprompt.runs.stored import readings, unrecorded_answers
from rlprompt.scoring import Scorer, build_scorer
from rlprompt.scoring.originals import original_prompt
from rlprompt.targets.ledger import Ledger
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
    """Those of the run in their order, without the ones that are left; each on all stored answers to its prompt in its
    phase."""
    weights: Mapping[str, float]
    """Of the new components."""
    num_answers: int
    """Stored answers that were scored, failed ones included, each once."""
    num_failed: int
    num_abstained: int
    failures: Mapping[str, int]
    """Failed answers by message."""
    num_left: int = 0
    """Records that the budget of the judges did not hold for."""
    judge_calls: int = 0
    """Calls of judges that this rescoring made."""
    verdicts: Json = field(default_factory=dict)
    """What the judges said so far: the state of the rewards that ask some."""

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
    max_judge_calls: int | None = None,
    verdicts: Mapping[str, Any] | None = None,
) -> Rescored:
    """Scores a run again with other rewards.

    A prompt that the run scored several times, on other minibatches, has the same new scores each time: those on all
    answers that are stored for it.

    Args:
        run: the run.
        rewards: the new components.
        allow_modules: modules that rewards of the form my_module:my_name may come from.
        search_path: a folder that they may come from as well.
        max_judge_calls: the most calls that judges among them may make; the records that it does not hold for are left.
        verdicts: those of an earlier rescoring with the same rewards, which are not asked for again.

    Raises:
        ConfigError: a reward cannot be loaded, or needs answers of a kind that the run did not store.
        CheckpointError: the verdicts are those of other rewards.
        RunError: the run has scored no prompt, or its tables are damaged or do not fit its task.
    """
    records, answers = run.prompts(), run.answers()
    if not records:
        raise RunError(f"{run.folder.root} has no scored prompt yet; there is nothing to score again")
    config = run.config.model_copy(update={"reward": list(rewards), "stabilisers": [], "budget": BudgetConfig()})
    scorer = build_scorer(config, allow_modules=allow_modules, search_path=search_path, target=StoredAnswers())
    ledger = _start_judges(scorer, max_judge_calls, verdicts or {})
    _check_kind(scorer, answers)
    scorer.remember(unrecorded_answers(run.folder))
    scorer.remember(map(as_record, answers))
    jobs = _jobs(records, answers, scorer.task, config)
    if scorer.rewards.needs_original:
        _check_originals(scorer, config, jobs)
    found: dict[tuple[str, str, str], PromptRecord] = {}
    answered = failed = valid = 0
    failures: Counter[str] = Counter()
    for job, scores in _affordable(jobs, scorer, readings(config, scorer.task)):
        for record in prompt_records(scores, (), iteration=0, phase=job.phase):
            found[record.prompt, record.example_id, job.phase] = record
        answered, failed = answered + scores.valid.size, failed + len(scores.failures)
        valid += int(scores.valid.sum())
        failures.update(failure.message for _, _, failure in scores.failures)
    merged = _merged(records, found)
    return Rescored(
        records=merged,
        weights={component.name: component.weight for component in scorer.rewards.components},
        num_answers=answered,
        num_failed=failed,
        num_abstained=answered - failed - valid,
        failures=dict(failures.most_common()),
        num_left=len(records) - len(merged),
        judge_calls=ledger.snapshot()["used"]["calls"],
        verdicts={component.name: component.state_dict() for component in _judging(scorer)},
    )


def _judging(scorer: Scorer) -> list[Component]:
    return [component for component in scorer.rewards.components if component.judge_calls != JudgeCalls()]


def _start_judges(scorer: Scorer, max_calls: int | None, verdicts: Mapping[str, Any]) -> Ledger:
    """Gives the judges their verdicts so far and a ledger of their own: in the scorer's, missing answers are calls."""
    ledger = Ledger(BudgetConfig(max_target_calls=max_calls))
    scorer.rewards.attach(ledger)
    judging = {component.name: component for component in _judging(scorer)}
    if not set(verdicts) <= set(judging):
        raise CheckpointError(f"the verdicts are of {sorted(verdicts)}, but the judges here are {sorted(judging)}")
    for name, state in verdicts.items():
        judging[name].load_state_dict(state)
    return ledger


def _affordable(jobs: Iterable[_Job], scorer: Scorer, read: Any) -> Iterator[tuple[_Job, Scores]]:
    """Scores the jobs in order, those that the budget does not hold for in halves, as long as it holds for a prompt."""
    waiting = list(jobs)[::-1]
    while waiting:
        job = waiting.pop()
        try:
            yield job, job.score(scorer, read)
        except BudgetExceededError:
            if len(job.prompts) == 1:
                return
            waiting += job.halves()[::-1]


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

    def halves(self) -> list[_Job]:
        """Returns the first and the second half of its prompts."""
        middle = len(self.prompts) // 2
        own = self.samples is not None  # each prompt on its own example
        return [
            replace(self, prompts=self.prompts[part], examples=self.examples[part] if own else self.examples)
            for part in (slice(None, middle), slice(middle, None))
        ]

    def score(self, scorer: Scorer, read: Any) -> Scores:
        if self.samples is None:
            contexts = [read(None)] * len(self.prompts)
            return scorer.score(self.prompts, self.examples, phase=self.phase, contexts=contexts)
        contexts = [read(example) for example in self.examples]
        return scorer.score_pairs(
            self.prompts, self.examples, samples=self.samples, phase=self.phase, contexts=contexts
        )


def _jobs(records: Sequence[PromptRecord], answers: Sequence[Answer], task: Task, config: RunConfig) -> list[_Job]:
    return list(_pair_jobs(records, task, config) if config.env.per_input else _task_jobs(records, answers, task))


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
    stored = "logprob" if any(output.logprob is not None for output in good) else "text"
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


def _merged(
    records: Sequence[PromptRecord], found: Mapping[tuple[str, str, str], PromptRecord]
) -> tuple[PromptRecord, ...]:
    """The new scores at the places of the old ones; records without any are left out."""
    keys = [(record.prompt, record.example_id, record.phase) for record in records]
    return tuple(
        replace(found[key], iteration=old.iteration, index=old.index, phase=old.phase, target_calls=0, target_tokens=0)
        for old, key in zip(records, keys, strict=True)
        if key in found
    )


def _row(record: PromptRecord, weights: Mapping[str, float]) -> Json:
    plain = {name: _known(getattr(record, name)) for name in record.__dataclass_fields__ if name != "components"}
    scores = {COMPONENT + name: _known(value) for name, value in record.components.items()}
    return {**plain, **scores, **{WEIGHT + name: weight for name, weight in weights.items()}}


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and value != value else value
