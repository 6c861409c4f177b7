"""Evaluates texts that were written for single rows: each row is answered with the text that was written for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from rlprompt.errors import ConfigError
from rlprompt.evaluation.evaluate import Evaluation, Part, ask, grade, request_for, rows_of, summarise
from rlprompt.pairs import compose_prompt
from rlprompt.scoring.originals import original_prompt
from rlprompt.targets.ledger import Ledger
from rlprompt.tasks import Task
from rlprompt.types import Example, Target, TargetOutput, TargetRequest


def evaluate_written(
    task: Task,
    target: Target,
    written: Mapping[str, Sequence[str | None]],
    *,
    split: str = "test",
    limit: int | None = None,
    compose: str = "replace",
    draft: str = "",
    keep_outputs: bool = False,
    ledger: Ledger | None = None,
    phase: str = "test",
    chunk: int = 64,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Evaluation]:
    """Evaluates methods that write a text for each row, on the first rows of a split, in file order.

    All methods are asked about a chunk of rows in one batched call ("demonstration" takes two).

    Args:
        task: the rows, the template and the choices or metric.
        target: the frozen LLM.
        written: method -> what it wrote for each of the E rows. None where the row is left as it is: the draft, or
            the row's own input, then stands where the text would (as a rewriter that refuses a text leaves it).
        split: "train", "dev" or "test".
        limit: how many rows; None takes all.
        compose: how text and input become the template's `{prompt}` (see `rlprompt.pairs.compose_prompt`).
        draft: the draft instruction.
        keep_outputs: whether each `Evaluation` holds the answers.
        ledger: meters every call; a fresh unlimited one by default.
        phase: where the calls are booked.
        chunk: rows per target call.
        on_progress: called with (rows done, rows in all) after every call.

    Returns:
        method -> its `Evaluation`, whose `prompt` is the method's name. A failed row is excluded and counted.

    Raises:
        ConfigError: unknown split, no row, or a method with another number of texts than rows.
        BudgetExceededError: the ledger is limited and the calls do not fit.
    """
    rows = rows_of(task, split, limit)
    _check(written, len(rows))
    ledger = ledger if ledger is not None else Ledger()
    parts: dict[str, list[Part]] = {name: [] for name in written}
    answers: dict[str, list[TargetOutput]] = {name: [] for name in written}
    for start in range(0, len(rows), chunk):
        piece = rows[start : start + chunk]
        asked = {name: entries[start : start + chunk] for name, entries in written.items()}
        for name, outputs in _answers(task, target, asked, piece, compose, draft, ledger, phase).items():
            parts[name].append(grade(task, name, piece, outputs))
            answers[name] += outputs if keep_outputs else []
        if on_progress is not None:
            on_progress(start + len(piece), len(rows))
    return {
        name: replace(summarise(task, name, split, "none", rows, found), outputs=tuple(answers[name]))
        for name, found in parts.items()
    }


def _check(written: Mapping[str, Sequence[str | None]], rows: int) -> None:
    if not written:
        raise ConfigError("written must hold at least one method")
    for name, texts in written.items():
        if len(texts) != rows:
            raise ConfigError(f"'{name}' has {len(texts)} texts for {rows} rows; give one for each (or None)")


def _answers(
    task: Task,
    target: Target,
    texts: Mapping[str, Sequence[str | None]],
    rows: Sequence[Example],
    compose: str,
    draft: str,
    ledger: Ledger,
    phase: str,
) -> dict[str, list[TargetOutput]]:
    """The answers of all methods to some rows, by one call (and one before it for derived prompts)."""
    pairs = [(name, text, row) for name, entries in texts.items() for text, row in zip(entries, rows, strict=True)]
    shown = "input" in task.template.fields
    derived: list[TargetOutput | None] = [None] * len(pairs)
    if compose == "demonstration":
        asked = [place for place, (_, text, _) in enumerate(pairs) if text]
        questions = [
            TargetRequest(
                task.template.render(pairs[place][1] or "", pairs[place][2]), max_tokens=task.max_tokens, stop=task.stop
            )
            for place in asked
        ]
        for place, output in zip(asked, ask(target, questions, ledger, phase) if questions else [], strict=True):
            derived[place] = output
    requests = []
    for (_, text, row), before in zip(pairs, derived, strict=True):
        prompt = original_prompt(compose, row, draft, shows_input=shown) if text is None else text
        answer = "" if before is None else before.text or ""
        requests.append(request_for(task, compose_prompt(compose, prompt, row, draft, answer=answer), row))
    outputs = [
        replace(output, failure=before.failure) if before is not None and before.failure is not None else output
        for output, before in zip(ask(target, requests, ledger, phase), derived, strict=True)
    ]
    return {name: outputs[at * len(rows) : (at + 1) * len(rows)] for at, name in enumerate(texts)}
