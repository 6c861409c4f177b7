"""`journal.jsonl`: the target's answers that no checkpoint covers yet, so that a kill never makes a run pay twice.

`judge-journal.jsonl` holds those of judges in the same form.

The answers of a scoring are appended and synced as soon as the target has given them, before the rewards are computed.
A checkpoint removes those that `outputs/` holds by then. What is left when a run is resumed goes back to its scorer,
which charges it to the ledger once a scoring needs it, and does not ask the target. Failures are never written, nor are
answers with a payload that JSON would change.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlprompt.payloads import can_be_kept
from rlprompt.runs.folder import remove, sync_folder, write_bytes, writing_errors
from rlprompt.types import TargetOutput

if TYPE_CHECKING:
    from rlprompt.scoring import AnswerRecord

logger = logging.getLogger(__name__)


class AnswerJournal:
    """Appends answers to a file, each pair once.

    Args:
        path: the file; made when the first answer comes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open: dict[tuple[str, str, int], TargetOutput] = {}
        self._num_lines = 0
        self._warned = False

    @property
    def answers(self) -> list[AnswerRecord]:
        """The answers that were not settled yet, oldest first."""
        return [(*pair, output) for pair, output in self._open.items()]

    def load(self) -> list[AnswerRecord]:
        """Returns what an earlier session left; the file is cut before a line that a kill left half-written."""
        data = self.path.read_bytes() if self.path.exists() else b""
        whole = 0
        for line in data.splitlines(keepends=True):
            record = _read(line)
            if record is None:
                break
            self._open[record[:3]] = record[3]
            whole += len(line)
            self._num_lines += 1
        if whole < len(data):
            logger.warning("%s ends with a line that is not whole; its answer is asked for again", self.path)
            with writing_errors(self.path), self.path.open("rb+") as file:
                file.truncate(whole)
                os.fsync(file.fileno())
        return self.answers

    def append(self, records: Iterable[AnswerRecord]) -> None:
        """Writes answers and waits until the disk has them; failures and pairs that are there already are left out."""
        new = [record for record in records if record[:3] not in self._open and record[3].failure is None]
        new = self._keepable(new)
        if not new:
            return
        exists = self.path.exists()
        with writing_errors(self.path), self.path.open("ab") as file:
            file.write(b"".join(_line(record) for record in new))
            file.flush()
            os.fsync(file.fileno())
            if not exists:
                sync_folder(self.path.parent)
        self._open.update((record[:3], record[3]) for record in new)
        self._num_lines += len(new)

    def _keepable(self, records: list[AnswerRecord]) -> list[AnswerRecord]:
        kept = [record for record in records if can_be_kept(record[3].payload)]
        if len(kept) < len(records) and not self._warned:
            self._warned = True
            logger.warning(
                "the target's payloads are not kept, because JSON would change them: a resumed run asks for them again "
                "and pays again; answer with lists, numbers, texts or names of files"
            )
        return kept

    def settle(self, pairs: Iterable[tuple[str, str, int]] | None = None) -> None:
        """Lets go of pairs that tables or state hold, by default of all; their lines stay in the file until `cut`."""
        for pair in list(self._open) if pairs is None else pairs:
            self._open.pop(pair, None)

    def cut(self) -> None:
        """Removes the lines of settled pairs from the file, or the file where nothing is left."""
        if self._num_lines == len(self._open):
            return
        if self._open:
            write_bytes(self.path, b"".join(_line(record) for record in self.answers))
        else:
            remove(self.path)
        self._num_lines = len(self._open)


def read_journal(path: Path) -> list[AnswerRecord]:
    """Returns the answers of a journal up to a line that is not whole, and leaves the file as it is."""
    found: list[AnswerRecord] = []
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        record = _read(line)
        if record is None:
            break
        found.append(record)
    return found


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


def _read(line: bytes) -> AnswerRecord | None:
    """Returns the answer of a line, or None where the line is not whole."""
    try:
        fields: dict[str, Any] = json.loads(line) if line.endswith(b"\n") else {}
        prompt, example_id, sample = fields.pop("prompt"), fields.pop("example_id"), fields.pop("sample")
        logprobs = fields.pop("choice_logprobs")
        output = TargetOutput(choice_logprobs=None if logprobs is None else tuple(logprobs), **fields)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return prompt, example_id, sample, output
