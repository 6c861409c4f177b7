"""The rewriter's own process: reads requests from a pipe, writes for all that wait at once, and answers.

A line in is one request, a line out one answer, both JSON. The first line out says what was loaded. The process ends
with its input.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING, Any

from rlprompt.errors import RLPromptError
from rlprompt.types import Json

if TYPE_CHECKING:
    from rlprompt.serving.rewriter import Rewriter, RewriteResult


class Worker:
    """Answers requests with a rewriter.

    Args:
        rewriter: of the run.
        out: where the answers go.
        max_batch: most texts that are written for at once.
        columns: values of the template's other fields.
        compares: whether answers tell the cosine similarity of text and rewrite.
    """

    def __init__(
        self,
        rewriter: Rewriter,
        out: IO[str],
        *,
        max_batch: int,
        columns: Json,
        compares: bool = False,
    ) -> None:
        self._rewriter, self._out, self._max_batch, self._columns = rewriter, out, max_batch, columns
        self._waiting: queue.Queue[Json | None] = queue.Queue()
        self._encoder: Any = None
        if compares:
            from rlprompt.rewards.encoder import DEFAULT_ENCODER, Encoder

            self._encoder = Encoder(DEFAULT_ENCODER)

    def run(self, lines: IO[str]) -> None:
        """Answers until the input ends."""
        threading.Thread(target=self._read, args=(lines,), daemon=True).start()
        while (batch := self._next()) is not None:
            now = time.monotonic()
            for request in batch:
                if request["until"] <= now:  # whoever asked has gone on without it
                    self._say({"id": request["id"], "expired": True})
            alive = [request for request in batch if request["until"] > now]
            if alive:
                self._answer(alive)

    def _read(self, lines: IO[str]) -> None:
        for line in lines:
            request = json.loads(line)
            request["until"] = time.monotonic() + request.pop("seconds")
            self._waiting.put(request)
        self._waiting.put(None)

    def _next(self) -> list[Json] | None:
        """Waits for a request; returns it with all that have come since the last batch."""
        first = self._waiting.get()
        if first is None:
            return None
        found = [first]
        while len(found) < self._max_batch:
            try:
                request = self._waiting.get_nowait()
            except queue.Empty:
                break
            if request is None:
                self._waiting.put(None)
                break
            found.append(request)
        return found

    def _answer(self, requests: Sequence[Json]) -> None:
        try:
            results = self._rewriter.results([request["text"] for request in requests], columns=self._columns)
            similarities = [self._compared(result, of) for result, of in zip(results, requests, strict=True)]
        except Exception as error:  # one text must not end the process for all others
            reason = f"failed: {type(error).__name__}"
            for request in requests:
                self._say({"id": request["id"], "failed": reason})
            return
        for request, result, similarity in zip(requests, results, similarities, strict=True):
            self._say(
                {
                    "id": request["id"],
                    "text": result.text,
                    "rewritten": result.rewritten,
                    "reason": result.reason,
                    "similarity": similarity,
                }
            )

    def _compared(self, result: RewriteResult, request: Json) -> float | None:
        if self._encoder is None or not result.rewritten:
            return None
        one, other = self._encoder([request["text"], result.text])
        return float(one @ other)

    def _say(self, answer: Json) -> None:
        self._out.write(json.dumps(answer) + "\n")
        self._out.flush()


def main() -> int:
    """Loads what the arguments name and answers until the input ends; returns the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("settings", help="JSON: run, model, device, columns, max_batch, compares, meta_prompt")
    settings = json.loads(parser.parse_args().settings)
    # What a library prints would be taken for an answer.
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def say(first: Json) -> None:
        out.write(json.dumps(first) + "\n")
        out.flush()

    try:
        from rlprompt.serving.rewriter import Rewriter

        rewriter = Rewriter.load(
            settings["run"], model=settings["model"], device=settings["device"], meta_prompt=settings["meta_prompt"]
        )
        rewriter.results(["warm"], columns=settings["columns"])  # an error of the settings is one of the start
        worker = Worker(
            rewriter,
            out,
            max_batch=settings["max_batch"],
            columns=settings["columns"],
            compares=settings["compares"],
        )
    except RLPromptError as error:
        say({"error": str(error)})
        return 2
    except ImportError as error:
        say({"error": f"the rewriter needs a package that is not here: {error}; install it"})
        return 2
    say({"ready": True})
    worker.run(sys.stdin)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
