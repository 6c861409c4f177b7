"""`environment.json`: its sessions, and the warning where the target has come to compute otherwise."""

import json
import logging
from pathlib import Path

import pytest

from rlprompt.errors import RunError
from rlprompt.runs.environment import record_session
from rlprompt.types import Json


def session(**identity: str) -> Json:
    return {"target": {"kind": "transformers", "model": "m", "device": "cpu", **identity}}


def test_sessions_are_added(tmp_path: Path) -> None:
    path = tmp_path / "environment.json"
    record_session(path, session())
    record_session(path, session())
    assert json.loads(path.read_text()) == {"sessions": [session(), session()]}


def test_a_target_that_computes_otherwise_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "environment.json"
    with caplog.at_level(logging.WARNING):
        record_session(path, session())
        record_session(path, session())
        assert caplog.text == ""
        record_session(path, session(device="cuda", dtype="bfloat16"))
    assert "device was cpu and is cuda, dtype was None and is bfloat16" in caplog.text


def test_a_server_that_has_moved_is_no_reason_for_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "environment.json"
    for url in ("a", "b"):
        record_session(path, {"target": {"kind": "openai", "base_url_sha256": url}})
    assert caplog.text == ""


def test_a_damaged_file_is_told_of(tmp_path: Path) -> None:
    path = tmp_path / "environment.json"
    path.write_text("[]")
    with pytest.raises(RunError, match="holds no sessions; put the file back or delete it"):
        record_session(path, session())
