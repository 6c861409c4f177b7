"""T4 for targets behind HTTP: what a killed run has paid for, on the server's own count.

The server never deduplicates. A call whose answer is stored is not sent again; calls in flight at a kill are charged as
spent, counted as unknown, and are as many as the concurrency at most.
"""

import os
import random
import signal
import subprocess
import sys
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from mock_server import MockServer, last_text

from rlprompt.runs import load_run
from rlprompt.runs.events import comparable
from rlprompt.runs.folder import RunFolder, read_json
from rlprompt.runs.journal import AnswerJournal
from rlprompt.targets.ledger import Ledger, Price
from rlprompt.types import TargetOutput

HERE = Path(__file__).parent
CONCURRENCY = 6
KILLS_AFTER = (9, 24, 50, 80)
"""Calls that the server has seen."""


def session(folder: Path, server: MockServer) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, str(HERE / "in_flight_driver.py"), str(folder), server.url, str(CONCURRENCY)],
        env={**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(folder: Path, server: MockServer) -> Path:
    process = session(folder, server)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    (run,) = (folder / "tiny").iterdir()
    return run


def found(run: Path) -> tuple[Any, ...]:
    saved = load_run(run)
    result = read_json(RunFolder(run).result, "the result")
    records = [repr((record.prompt, record.phase, record.iteration, record.raw_reward)) for record in saved.prompts()]
    return [comparable(event) for event in saved.events()], records, result["best_prompt"], result["ledger"]["used"]


def answer(body: dict[str, Any]) -> str:
    return ("no", "yes")[zlib.crc32(last_text(body).encode()) % 2]


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_t4_killed_with_calls_in_flight_no_stored_answer_is_asked_again(tmp_path: Path) -> None:
    rng = random.Random(0)
    with MockServer(answer=answer, delay_s=0.02) as server:
        alone = finish(tmp_path / "alone", server)
        once = Counter(last_text(call.body) for call in server.calls)
        server.calls.clear()
        for least in KILLS_AFTER:
            process = session(tmp_path / "killed", server)
            while len(server.calls) < least:
                assert process.poll() is None, process.stderr.read() if process.stderr else ""
                time.sleep(0.001)
            time.sleep(rng.uniform(0.0, 0.03))
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
            time.sleep(0.1)  # what was sent is counted
        run = finish(tmp_path / "killed", server)
        asked = Counter(last_text(call.body) for call in server.calls)
    assert set(once.values()) == {1}
    assert len(once) > 100
    assert found(run) == found(alone)
    assert asked.keys() == once.keys()
    ledger = read_json(RunFolder(run).result, "the result")["ledger"]
    repeated = sum(asked.values()) - len(asked)
    assert 0 < repeated <= ledger["unknown"] <= CONCURRENCY * len(KILLS_AFTER)
    # What was paid covers all that the server has seen; by no more than calls that were never sent or not answered.
    assert sum(asked.values()) <= ledger["paid"]["calls"] == len(once) + ledger["unknown"]


def test_a_call_in_flight_is_unknown_in_all_later_sessions_until_a_checkpoint_has_it(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    reservation = Ledger(prices={"target": Price(1e-6, 2e-6)}).reserve(3, [10, 20, 30], phase="dev")
    journal = AnswerJournal(path)
    for index in range(3):
        journal.sending(("w01", f"train/{index}", 0), reservation, index)
    journal.answered(("w01", "train/0", 0), TargetOutput(text="yes"))
    journal.returned(("w01", "train/1", 0))
    journal.returned(("w01", "dev/9", 0))  # never sent: it was cached, say
    for _ in range(3):  # killed again and again before any checkpoint
        later = AnswerJournal(path)
        assert [record[1] for record in later.load()] == ["train/0"]
        (charge,) = later.unknown
        assert (charge.role, charge.phase, charge.tokens, charge.cost_pico) == ("target", "dev", 30, 60_000_000)
        later.cut()
    later.settle([("w01", "train/0", 0)])
    later.unknown = []
    later.cut()
    assert not path.exists()


def test_unknown_calls_are_paid_and_not_used() -> None:
    ledger = Ledger(prices={"target": Price(1e-6, 2e-6)})
    ledger.charge_unknown([ledger.reserve(1, 30).charge(0), Ledger().reserve(1, 5).charge(0)])
    snapshot = ledger.snapshot()
    assert snapshot["used"] == {"calls": 0, "tokens": 0}
    assert snapshot["paid"] == {"calls": 2, "tokens": 35, "cost_usd": 6e-5, "unpriced_calls": 1}
    assert snapshot["unknown"] == 2
    again = Ledger()
    again.load_state_dict(ledger.state_dict())
    assert again.snapshot()["unknown"] == 2
