"""The tables of a run: every scored prompt, and every answer of the target, as Parquet parts.

`prompts/` has a row for each prompt of each scoring, `outputs/` a row for each answer when it was paid for: a pair
that was answered before is not written again. Together they are what a resumed run remembers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlprompt.errors import RunError
from rlprompt.pairs import DEMONSTRATION, sample_indices
from rlprompt.payloads import can_be_kept, payload_text
from rlprompt.runs.folder import write_bytes
from rlprompt.types import Example, Failure, FloatArray, Scores, TargetOutput

if TYPE_CHECKING:
    from rlprompt.scoring import AnswerRecord, Scorer

COMPONENT = "component/"
"""Columns of the reward components begin with this."""


@dataclass(frozen=True, slots=True)
class PromptRecord:
    """One prompt in one scoring."""

    prompt_id: str
    """The same for the same text, in all runs; of a prompt for one input, for the same text and example."""
    prompt: str
    iteration: int
    index: int
    """Its place among the prompts of the scoring."""
    phase: str
    raw_reward: float
    """Mean over the valid examples; NaN without one."""
    components: Mapping[str, float]
    training_reward: float
    """What the algorithm learnt from; NaN outside of training."""
    accuracy: float
    num_examples: int
    num_valid: int
    num_failed: int
    target_calls: int
    """Calls that this scoring needed for it; 0 where all answers were known."""
    target_tokens: int
    example_id: str = ""
    """The example that it was written for; empty where it was written for the task."""
    weight_lag: int = 0
    """How many updates the policy that wrote it was behind the newest one; always 0 with `algorithm.mode: sync`."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of the target (raw, before any calibration), or its failure."""

    prompt: str
    example_id: str
    sample: int
    output: TargetOutput
    paired: bool = False
    """Whether the prompt was written for this example."""


def as_record(answer: Answer) -> AnswerRecord:
    """Returns an answer as the scorer knows it."""
    return answer.prompt, answer.example_id, answer.sample, answer.output


def given_pairs(answers: Iterable[Answer]) -> Iterator[tuple[str, str, int]]:
    """Returns the pairs whose answers are among these; a failure is none, and its pair may have been answered since."""
    return (as_record(answer)[:3] for answer in answers if answer.output.failure is None)


def prompt_id(prompt: str, example_id: str = "") -> str:
    """Returns the id of a prompt's text, or of a text that was written for one example.

    >>> prompt_id("It was")
    '7b42e507dd06b87b'
    """
    text = f"{prompt}\0{example_id}" if example_id else prompt
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


class AnswerBook:
    """Which answers the tables hold already, and which ones a scoring has added.

    Args:
        scorer: the run's scorer.
        basis: examples that calibration asks about beside those of a scoring.
    """

    def __init__(self, scorer: Scorer, basis: Sequence[Example] = ()) -> None:
        self._scorer = scorer
        task = scorer.task
        self._examples = {example.id: example for example in (*task.train, *task.dev, *basis)}
        self._basis = tuple(basis)
        self._known: dict[str, frozenset[str]] = {}
        self._same: dict[frozenset[str], frozenset[str]] = {}
        self._pairs: set[tuple[str, str, int]] = set()

    def add(self, answers: Iterable[Answer]) -> None:
        """Takes note of answers that the tables hold. A failure is no answer: it will be asked again."""
        new: dict[str, set[str]] = {}
        for answer in answers:
            if answer.output.failure is None and answer.paired:
                self._pairs.add((answer.prompt, answer.example_id, answer.sample))
            elif answer.output.failure is None:
                new.setdefault(answer.prompt, set()).add(answer.example_id)
        for prompt, ids in new.items():
            together = self._known.get(prompt, frozenset()) | ids
            # Prompts are mostly scored on the same examples: one set serves them all.
            self._known[prompt] = self._same.setdefault(together, together)

    def collect(self, scores: Scores) -> list[Answer]:
        """Returns the answers that a scoring added, and takes note of them."""
        if scores.row_example_ids is not None:
            return self._collect_pairs(scores, scores.row_example_ids)
        found: list[Answer] = []
        for row, prompt in enumerate(scores.prompts):
            if prompt in scores.prompts[:row]:
                continue
            known = self._known.get(prompt, frozenset())
            for column, example_id in enumerate(scores.example_ids):
                if example_id not in known:
                    output = scores.outputs[row][column]
                    found.append(Answer(prompt, example_id, 0, self._raw(prompt, example_id, output)))
            seen = known.union(scores.example_ids)
            for example in self._basis:
                if example.id not in seen and self._scorer.new_pairs([prompt], [example]) == 0:
                    found.append(Answer(prompt, example.id, 0, self._scorer.answer([prompt], [example])[0][0]))
        self.add(found)
        return found

    def _collect_pairs(self, scores: Scores, example_ids: Sequence[str]) -> list[Answer]:
        found: list[Answer] = []
        taken: set[tuple[str, str, int]] = set()
        for prompt, example_id, outputs in zip(scores.prompts, example_ids, scores.outputs, strict=True):
            derived = self._scorer.known_answer(prompt, example_id, DEMONSTRATION)
            answers = list(zip(sample_indices(len(outputs)), outputs, strict=True))
            for sample, output in [*answers, *([] if derived is None else [(DEMONSTRATION, derived)])]:
                key = (prompt, example_id, sample)
                if key not in self._pairs and key not in taken:
                    taken.add(key)
                    found.append(Answer(prompt, example_id, sample, output, paired=True))
        self.add(found)
        return found

    def _raw(self, prompt: str, example_id: str, output: TargetOutput) -> TargetOutput:
        if self._scorer.calibration == "none" or output.failure is not None:
            return output
        return self._scorer.answer([prompt], [self._examples[example_id]])[0][0]  # known by now: asks nothing


def prompt_records(
    scores: Scores,
    answers: Sequence[Answer],
    *,
    iteration: int,
    phase: str,
    training_rewards: FloatArray | None = None,
) -> list[PromptRecord]:
    """Returns one record per scored prompt.

    Args:
        scores: P prompts.
        answers: what the scoring added; a prompt that occurs twice has the cost at its first place.
        iteration: the iteration that it belongs to.
        phase: "train" or "dev".
        training_rewards: (P,), or None.
    """
    calls: dict[str, int] = {}
    tokens: dict[str, int] = {}
    for answer in answers:
        key = _answer_id(answer)
        calls[key] = calls.get(key, 0) + 1
        used = answer.output.prompt_tokens + answer.output.completion_tokens
        tokens[key] = tokens.get(key, 0) + used
    own = scores.row_example_ids if scores.row_example_ids is not None else ("",) * len(scores.prompts)
    ids = [prompt_id(prompt, example_id) for prompt, example_id in zip(scores.prompts, own, strict=True)]
    failed = np.bincount([index for index, _, _ in scores.failures], minlength=len(scores.prompts))
    means, accuracies = scores.mean_rewards, scores.accuracies
    components = {name: _means(values) for name, values in scores.components.items()}
    return [
        PromptRecord(
            prompt_id=ids[index],
            prompt=prompt,
            iteration=iteration,
            index=index,
            phase=phase,
            raw_reward=float(means[index]),
            components={name: float(values[index]) for name, values in components.items()},
            training_reward=float("nan") if training_rewards is None else float(training_rewards[index]),
            accuracy=float(accuracies[index]),
            num_examples=len(scores.example_ids),
            num_valid=int(scores.valid[index].sum()),
            num_failed=int(failed[index]),
            target_calls=calls.pop(ids[index], 0),
            target_tokens=tokens.pop(ids[index], 0),
            example_id=own[index],
        )
        for index, prompt in enumerate(scores.prompts)
    ]


def _answer_id(answer: Answer) -> str:
    return prompt_id(answer.prompt, answer.example_id if answer.paired else "")


def _means(values: FloatArray) -> FloatArray:
    known = ~np.isnan(values)
    count = known.sum(axis=1)
    total = np.where(known, values, 0.0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


_ANSWER_COLUMNS = frozenset(
    (
        *("prompt_id", "example_id", "sample", "text", "choice_logprobs", "logprob"),
        *("prompt_tokens", "completion_tokens", "cached", "failure"),
    )
)
"""Those that every part of `outputs/` has; older ones lack payloads."""
_PROMPT_TYPES = {
    "prompt_id": "string",
    "prompt": "string",
    "iteration": "int64",
    "index": "int64",
    "phase": "string",
    "raw_reward": "float64",
    "training_reward": "float64",
    "accuracy": "float64",
    "num_examples": "int64",
    "num_valid": "int64",
    "num_failed": "int64",
    "target_calls": "int64",
    "target_tokens": "int64",
    "example_id": "string",
    "weight_lag": "int64",
}


def write_prompts(path: Path, records: Sequence[PromptRecord]) -> None:
    """Writes a part of `prompts/`; NaN becomes null."""
    import pyarrow as pa

    names = sorted({name for record in records for name in record.components})
    columns = {name: [getattr(record, name) for record in records] for name in _PROMPT_TYPES}
    columns |= {COMPONENT + name: [record.components.get(name) for record in records] for name in names}
    types = _PROMPT_TYPES | {COMPONENT + name: "float64" for name in names}
    _write(
        path,
        pa.table({name: pa.array(values, type=types[name], from_pandas=True) for name, values in columns.items()}),
    )


def write_answers(path: Path, answers: Sequence[Answer]) -> None:
    """Writes a part of `outputs/`, payloads as JSON; answers with one that JSON would change are left out."""
    import pyarrow as pa

    failure = pa.struct(
        [("where", pa.string()), ("kind", pa.string()), ("message", pa.string()), ("attempts", pa.int64())]
    )
    schema = pa.schema(
        [
            ("prompt_id", pa.string()),
            ("example_id", pa.string()),
            ("sample", pa.int64()),
            ("text", pa.string()),
            ("choice_logprobs", pa.list_(pa.float64())),
            ("logprob", pa.float64()),
            ("prompt_tokens", pa.int64()),
            ("completion_tokens", pa.int64()),
            ("cached", pa.bool_()),
            ("payload", pa.string()),
            ("failure", failure),
        ]
    )
    rows = [
        {
            "prompt_id": _answer_id(answer),
            "example_id": answer.example_id,
            "sample": answer.sample,
            "text": answer.output.text,
            "choice_logprobs": answer.output.choice_logprobs,
            "logprob": answer.output.logprob,
            "prompt_tokens": answer.output.prompt_tokens,
            "completion_tokens": answer.output.completion_tokens,
            "cached": answer.output.cached,
            "payload": None if answer.output.payload is None else payload_text(answer.output.payload),
            "failure": None if answer.output.failure is None else _failure_row(answer.output.failure),
        }
        for answer in answers
        if can_be_kept(answer.output.payload)
    ]
    _write(path, pa.Table.from_pylist(rows, schema=schema))


def _failure_row(failure: Failure) -> dict[str, Any]:
    return {
        "where": failure.where,
        "kind": failure.kind,
        "message": failure.message,
        "attempts": failure.attempts,
    }


def read_prompts(path: Path) -> list[PromptRecord]:
    """Reads a part of `prompts/`.

    Raises:
        RunError: the file is damaged.
    """
    rows = _read(path)
    records = []
    for row in rows:
        components = {name.removeprefix(COMPONENT): _number(row[name]) for name in row if name.startswith(COMPONENT)}
        plain = {"example_id": "", "weight_lag": 0, **{name: row[name] for name in _PROMPT_TYPES if name in row}}
        if len(plain) < len(_PROMPT_TYPES):
            raise RunError(f"{path} lacks the columns {sorted(set(_PROMPT_TYPES) - set(plain))}")
        for name in ("raw_reward", "training_reward", "accuracy"):
            plain[name] = _number(plain[name])
        records.append(PromptRecord(components=components, **plain))
    return records


def read_answers(path: Path, prompts: Mapping[str, str]) -> Iterator[Answer]:
    """Reads a part of `outputs/`.

    Args:
        path: the part.
        prompts: prompt_id -> text, from the parts of `prompts/`.

    Raises:
        RunError: the file is damaged, or names a prompt that is not recorded.
    """
    for row in _read(path):
        if row.get("prompt_id") not in prompts:
            raise RunError(f"{path} has an answer for prompt {row.get('prompt_id')}, which prompts/ does not know")
        if missing := _ANSWER_COLUMNS - row.keys():
            raise RunError(f"{path} lacks the columns {sorted(missing)}")
        failure, logprobs, payload = row["failure"], row["choice_logprobs"], row.get("payload")
        output = TargetOutput(
            text=row["text"],
            choice_logprobs=None if logprobs is None else tuple(logprobs),
            logprob=row["logprob"],
            prompt_tokens=row["prompt_tokens"],
            completion_tokens=row["completion_tokens"],
            cached=row["cached"],
            payload=None if payload is None else json.loads(payload),
            failure=None if failure is None else Failure(**failure),
        )
        prompt = prompts[row["prompt_id"]]
        paired = row["prompt_id"] != prompt_id(prompt)
        yield Answer(prompt, row["example_id"], row["sample"], output, paired)


def _write(path: Path, table: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    write_bytes(path, sink.getvalue().to_pybytes())


def _read(path: Path) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: list[dict[str, Any]] = pq.ParquetFile(path).read(use_threads=False).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise RunError(f"cannot read {path}: {' '.join(str(error).split())}") from error
    return rows


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)
