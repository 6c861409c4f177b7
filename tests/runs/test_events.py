from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlprompt.errors import RunError
from rlprompt.runs.events import VOLATILE, EventLog, comparable, read_events


def test_an_event_is_one_line_of_json_with_its_time(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.append("iteration", {"iteration": 0, "loss": float("nan"), "time": {"target_s": 0.5}})
    log.append("end", {"prompt": "naïve\nline"})
    lines = (tmp_path / "events.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == log.num_events == 2
    first = json.loads(lines[0])
    assert first["loss"] is None  # JSON has no NaN
    assert first["time"]["target_s"] == 0.5
    assert first["time"]["at"].endswith("+00:00")
    assert json.loads(lines[1])["prompt"] == "naïve\nline"


def test_volatile_fields_are_left_out_of_comparisons() -> None:
    assert {"time", "duration_s", "rate", "pid", "host"} == VOLATILE
    assert comparable({"event": "end", "time": 1, "duration_s": 2, "rate": 3, "pid": 4, "host": 5}) == {"event": "end"}


def test_a_line_that_a_kill_cut_short_is_not_read_and_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    for iteration in range(3):
        log.append("iteration", {"iteration": iteration})
    with path.open("ab") as file:
        file.write(b'{"event": "itera')
    assert [event["iteration"] for event in read_events(path)] == [0, 1, 2]
    EventLog(path).cut(2)
    assert [event["iteration"] for event in read_events(path)] == [0, 1]


def test_a_file_with_fewer_events_than_the_checkpoint_is_an_error(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.append("start", {})
    with pytest.raises(RunError, match="has 1 events but the checkpoint was written after 4"):
        log.cut(4)


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "start"}\nnonsense\n{"event": "end"}\n')
    with pytest.raises(RunError, match="line 2"):
        read_events(path)
