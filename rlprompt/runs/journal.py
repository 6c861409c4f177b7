"""`journal.jsonl`: the target's answers that no checkpoint covers yet, so that a kill never makes a run pay twice.

`judge-journal.jsonl` holds those of judges in the same form. An answer is written as soon as the target has given it
(where it answers whole batches, with its batch), before the rewards are computed. A checkpoint removes those that
`outputs/` or its state holds by then. What is left when a run is resumed goes back to its scorer, which charges it to
the ledger once a scoring needs it, and does not ask the target. Failures are never written, nor are answers with a
payload that JSON would change.

A call to a target behind HTTP is written before it is sent. One that was in flight when the process was killed may have
been answered, and billed: the resumed run charges it as spent, counts it as unknown, and asks again.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from rlprompt.payloads import can_be_kept
from rlprompt.runs.folder import RunFolder, remove, sync_folder, write_bytes, writing_errors
from rlprompt.targets.ledger import Charge, Reservation
from rlprompt.types import TargetOutput

if TYPE_CHECKING:
    from rlprompt.scoring import AnswerRecord, Scorer

logger = logging.getLogger(__name__)

_Pair: TypeAlias = tuple[str, str, int]
_ANSWER, _SENT, _FAILED, _UNKNOWN = "answer", "sent", "failed", "unknown"


class AnswerJournal:
    """Appends answers to a file, each pair once, and the calls that are on their way.

    Safe between threads: answers arrive on that of the connection. What is written call by call survives the death of
    the process; a whole batch, once `append` has returned, that of the machine, too.

    Args:
        path: the file; made when the first line comes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.unknown: list[Charge] = []
        """Calls that were in flight when an earlier session ended, and that no checkpoint has in its ledger."""
        self._open: dict[_Pair, TargetOutput] = {}
        self._flying: dict[_Pair, Charge] = {}
        self._num_lines = 0
        self._is_synced = True
        self._warned = False
        self._lock = threading.Lock()

    @property
    def answers(self) -> list[AnswerRecord]:
        """The answers that were not settled yet, oldest first."""
        return [(*pair, output) for pair, output in self._open.items()]

    def load(self) -> list[AnswerRecord]:
        """Returns what an earlier session left; the file is cut before a line that a kill left half-written.

        Calls that were in flight are `unknown` from now on, in this session and in those that follow.
        """
        data = self.path.read_bytes() if self.path.exists() else b""
        whole = 0
        for line in data.splitlines(keepends=True):
            found = _read(line)
            if found is None:
                break
            self._take(*found)
            whole += len(line)
            self._num_lines += 1
        if whole < len(data):
            logger.warning("%s ends with a line that is not whole; its answer is asked for again", self.path)
            with writing_errors(self.path), self.path.open("rb+") as file:
                file.truncate(whole)
                os.fsync(file.fileno())
        if self._flying:
            lost, self._flying = self._flying, {}
            self.unknown += lost.values()
            self._write([_call_line(_UNKNOWN, pair, charge) for pair, charge in lost.items()], sync=True)
        return self.answers

    def sending(self, pair: _Pair, reservation: Reservation, index: int) -> None:
        """Writes that a call is sent now; `index` is its place in the reservation."""
        charge = reservation.charge(index)
        with self._lock:
            self._flying[pair] = charge
            self._write([_call_line(_SENT, pair, charge)])

    def returned(self, pair: _Pair) -> None:
        """Writes that a call has failed; one that was never sent is left out."""
        with self._lock:
            if self._flying.pop(pair, None) is not None:
                self._write([_call_line(_FAILED, pair)])

    def answered(self, pair: _Pair, output: TargetOutput) -> None:
        """Writes one answer of a batch that goes on."""
        with self._lock:
            self._append([(*pair, output)])

    def append(self, records: Iterable[AnswerRecord]) -> None:
        """Writes answers and waits until the disk has all of them; failures and pairs that are there are left out."""
        with self._lock:
            self._append(records)
            if not self._is_synced:
                self._write([], sync=True)

    def settle(self, pairs: Iterable[_Pair]) -> None:
        """Lets go of pairs that tables or state hold; their lines stay in the file until `cut`."""
        for pair in list(pairs):
            self._open.pop(pair, None)

    def cut(self) -> None:
        """Removes the lines of what is settled from the file, or the file where nothing is left."""
        with self._lock:
            lines = [_line(record) for record in self.answers]
            lines += [_call_line(_SENT, pair, charge) for pair, charge in self._flying.items()]
            lines += [_call_line(_UNKNOWN, ("", "", 0), charge) for charge in self.unknown]
            if self._num_lines == len(lines):
                return
            if lines:
                write_bytes(self.path, b"".join(lines))
            else:
                remove(self.path)
            self._num_lines = len(lines)

    def _take(self, kind: str, pair: _Pair, value: Any) -> None:
        if kind == _ANSWER:
            self._open[pair] = value
        if kind == _SENT:
            self._flying[pair] = value
        else:
            self._flying.pop(pair, None)
        if kind == _UNKNOWN:
            self.unknown.append(value)

    def _append(self, records: Iterable[AnswerRecord]) -> None:
        new = [record for record in records if record[:3] not in self._open and record[3].failure is None]
        kept = self._keepable(new)
        for record in new:
            self._flying.pop(record[:3], None)
        if kept:
            self._write([_line(record) for record in kept])
            self._open.update((record[:3], record[3]) for record in kept)

    def _write(self, lines: list[bytes], *, sync: bool = False) -> None:
        exists = self.path.exists()
        with writing_errors(self.path), self.path.open("ab") as file:
            file.write(b"".join(lines))
            file.flush()
            if sync:
                os.fsync(file.fileno())
            if not exists:
                sync_folder(self.path.parent)
        self._num_lines += len(lines)
        self._is_synced = sync

    def _keepable(self, records: list[AnswerRecord]) -> list[AnswerRecord]:
        kept = [record for record in records if can_be_kept(record[3].payload)]
        if len(kept) < len(records) and not self._warned:
            self._warned = True
            logger.warning(
                "the target's payloads are not kept, because JSON would change them: a resumed run asks for them again "
                "and pays again; answer with lists, numbers, texts or names of files"
            )
        return kept


class Journals:
    """The journals of a run: of the target's calls, and of the judges'.

    Args:
        folder: of the run.
        scorer: whose calls they are.
    """

    def __init__(self, folder: RunFolder, scorer: Scorer) -> None:
        self._answers = AnswerJournal(folder.journal)
        self._verdicts = AnswerJournal(folder.judge_journal)
        self._scorer = scorer
        self._in_state: set[str] | None = None
        scorer.log, scorer.rewards.account.log = self._answers, self._verdicts

    def load(self, later: Iterable[AnswerRecord]) -> None:
        """Reads what earlier sessions left, and adds answers that are about to be deleted with their parts."""
        self._answers.load()
        self._answers.append(later)
        self._verdicts.load()

    def restore(self, recorded: Iterable[_Pair]) -> None:
        """Hands back what nobody has to be asked for again, and charges what nobody knows of.

        Call it when the ledger has the state of the checkpoint.

        Args:
            recorded: pairs that the tables hold.
        """
        self._answers.settle(recorded)
        self._answers.cut()
        account, ledger = self._scorer.rewards.account, self._scorer.ledger
        self._scorer.remember(self._answers.answers, charged=False)
        account.remember(self._verdicts.answers)
        unknown = [*self._answers.unknown, *self._verdicts.unknown]
        ledger.charge_unknown(unknown)
        if unknown:
            logger.warning("%d calls were in flight when the run was killed; they are charged as spent", len(unknown))

    def hold(self) -> None:
        """From now on verdicts are those of an iteration ahead: until `release` the state does not hold them."""
        self._in_state = set(self._scorer.rewards.account.charged)

    def release(self) -> None:
        """All verdicts are those of the iteration in progress again."""
        self._in_state = None

    def settle(self, recorded: Iterable[_Pair]) -> None:
        """Lets go of what tables and state hold now: those pairs, verdicts, and the charges of unknown calls."""
        self._answers.settle(recorded)
        charged = self._scorer.rewards.account.charged
        in_state = set(charged) if self._in_state is None else self._in_state
        self._verdicts.settle(record[:3] for record in self._verdicts.answers if record[0] in in_state)
        charged -= in_state
        self._answers.unknown, self._verdicts.unknown = [], []

    def cut(self) -> None:
        """Removes what is settled from the files."""
        self._answers.cut()
        self._verdicts.cut()

    def close(self) -> None:
        """Nothing more is written."""
        self._scorer.log = self._scorer.rewards.account.log = None


def read_journal(path: Path) -> list[AnswerRecord]:
    """Returns the answers of a journal up to a line that is not whole, and leaves the file as it is."""
    found: dict[_Pair, TargetOutput] = {}
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        read = _read(line)
        if read is None:
            break
        kind, pair, value = read
        if kind == _ANSWER:
            found[pair] = value
    return [(*pair, output) for pair, output in found.items()]


def _line(record: AnswerRecord) -> bytes:
    prompt, example_id, sample, output = record
    fields = {
        "prompt": prompt,
        "example_id": example_id,
        "sample": sample,
        "text": output.text,
        # float() for targets that answer with NumPy's; repr and back is exact
        "choice_logprobs": None
        if output.choice_logprobs is None
        else [float(value) for value in output.choice_logprobs],
        "logprob": None if output.logprob is None else float(output.logprob),
        "prompt_tokens": output.prompt_tokens,
        "completion_tokens": output.completion_tokens,
        "cached": output.cached,
        **({} if output.payload is None else {"payload": output.payload}),
    }
    # ASCII: a prompt may hold a lone surrogate, which UTF-8 has no bytes for. -Infinity is a log-probability.
    return json.dumps(fields).encode() + b"\n"


def _call_line(kind: str, pair: _Pair, charge: Charge | None = None) -> bytes:
    prompt, example_id, sample = pair
    fields = {"call": kind, "prompt": prompt, "example_id": example_id, "sample": sample}
    return json.dumps({**fields, **({} if charge is None else asdict(charge))}).encode() + b"\n"


def _read(line: bytes) -> tuple[str, _Pair, Any] | None:
    """Returns (kind, pair, answer or charge) of a line, or None where the line is not whole."""
    try:
        fields: dict[str, Any] = json.loads(line) if line.endswith(b"\n") else {}
        kind = fields.pop("call", _ANSWER)
        pair = (fields.pop("prompt"), fields.pop("example_id"), fields.pop("sample"))
        if kind == _ANSWER:
            logprobs = fields.pop("choice_logprobs")
            return kind, pair, TargetOutput(choice_logprobs=None if logprobs is None else tuple(logprobs), **fields)
        return kind, pair, None if kind == _FAILED else Charge(**fields)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
