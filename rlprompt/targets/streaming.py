"""Targets that hand over each answer as it arrives, and tell of each call before it is sent.

A process can be killed in the middle of a batch. What it has paid for by then must be on the disk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias, runtime_checkable

from rlprompt.targets.ledger import Reservation
from rlprompt.types import Target, TargetOutput, TargetRequest

OnAnswer: TypeAlias = Callable[[int, TargetOutput], None]
"""(index of the request, its answer or failure)."""
OnCall: TypeAlias = Callable[[int, bool], None]
"""(index of the request, True just before a call for it is sent, False when the call has failed)."""
Key: TypeAlias = tuple[str, str, int]
"""(prompt, example id, sample), or what else names a request in a run."""


@runtime_checkable
class StreamingTarget(Protocol):
    """A target that hands over each answer as it arrives."""

    def run_streaming(
        self, requests: Sequence[TargetRequest], on_answer: OnAnswer | None, on_call: OnCall | None = None
    ) -> list[TargetOutput]:
        """Answers as `Target.run` does and tells of each answer and call; perhaps on another thread."""


class CallLog(Protocol):
    """Where a run writes down what it pays for; see `rlprompt.runs.journal.AnswerJournal`."""

    def sending(self, key: Key, reservation: Reservation, index: int) -> None:
        """A call is sent now; `index` is its place in the reservation."""

    def returned(self, key: Key) -> None:
        """A call has failed, so that it is in flight no more."""

    def answered(self, key: Key, output: TargetOutput) -> None:
        """An answer of a batch that goes on: it survives the death of this process."""

    def append(self, records: Sequence[tuple[str, str, int, TargetOutput]]) -> None:
        """The answers of a whole batch: they survive the death of the machine, too."""


def run_streaming(
    target: Target, requests: Sequence[TargetRequest], on_answer: OnAnswer | None, on_call: OnCall | None
) -> list[TargetOutput]:
    """Asks any target; one that does not stream tells of its answers at the end, and of no call."""
    if isinstance(target, StreamingTarget):
        return target.run_streaming(requests, on_answer, on_call)
    outputs = target.run(requests)
    if on_answer is not None:
        for index, output in enumerate(outputs):
            on_answer(index, output)
    return outputs


def run_logged(
    target: Target,
    requests: Sequence[TargetRequest],
    keys: Sequence[Key],
    log: CallLog | None,
    reservation: Reservation,
    places: Sequence[int],
) -> list[TargetOutput]:
    """Asks a target with every call and answer written down.

    Args:
        target: who is asked.
        requests: N of them.
        keys: what they are called in the log, (N,).
        log: None writes nothing.
        reservation: that the calls belong to.
        places: of the requests in the reservation, (N,).
    """
    if log is None or not requests:
        return target.run(requests) if requests else []

    def on_call(index: int, in_flight: bool) -> None:
        if in_flight:
            log.sending(keys[index], reservation, places[index])
        else:
            log.returned(keys[index])

    def on_answer(index: int, output: TargetOutput) -> None:
        if output.failure is None:
            log.answered(keys[index], output)
        else:
            log.returned(keys[index])

    # Of a target that answers whole batches nothing is known before the batch is there.
    if isinstance(target, StreamingTarget):
        outputs = target.run_streaming(requests, on_answer, on_call)
    else:
        outputs = target.run(requests)
    log.append([(*key, output) for key, output in zip(keys, outputs, strict=True) if output.failure is None])
    return outputs
