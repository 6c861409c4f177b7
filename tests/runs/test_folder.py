from __future__ import annotations

import multiprocessing
import re
from pathlib import Path

import pytest

from rlprompt.config import RunConfig, parse_config
from rlprompt.errors import ConfigError, RunError
from rlprompt.runs import folder as module
from rlprompt.runs.folder import (
    RunFolder,
    check_writable,
    new_run_folder,
    only_writer,
    read_json,
    runs_folder,
    write_bytes,
    write_json,
)


def make_config(folder: str | None = None, name: str = "tiny") -> RunConfig:
    return parse_config({"name": name, **({} if folder is None else {"run": {"dir": folder}})})


def test_the_environment_variable_wins_over_the_default_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RLPROMPT_RUN_DIR", raising=False)
    assert runs_folder(make_config()) == Path("runs")
    monkeypatch.setenv("RLPROMPT_RUN_DIR", "/elsewhere")
    assert runs_folder(make_config()) == Path("/elsewhere")
    assert runs_folder(make_config("chosen")) == Path("chosen")


def test_run_ids_say_when_what_and_are_unique(tmp_path: Path) -> None:
    folders = [new_run_folder(tmp_path / "tiny", 7, "abcdef0123456789") for _ in range(3)]
    assert len({folder.root for folder in folders}) == 3
    assert re.fullmatch(r"\d{8}T\d{6}Z-s7-abcdef01", folders[0].root.name)
    assert folders[0].root.parent == tmp_path / "tiny"


@pytest.mark.parametrize("name", ["../evil", "a/b", "", ".hidden", "/abs"])
def test_a_name_that_is_no_folder_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no folder name"):
        check_writable(make_config(str(tmp_path), name))


def test_a_folder_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write .*run\.dir or RLPROMPT_RUN_DIR") as caught:
        check_writable(make_config(str(tmp_path / "file")))
    assert "\n" not in str(caught.value)


def test_a_folder_without_permission_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(RunError, match="no permission to write"):
        check_writable(make_config(str(tmp_path)))


def test_nothing_is_made_by_the_check(tmp_path: Path) -> None:
    assert check_writable(make_config(str(tmp_path / "new"))) == tmp_path / "new" / "tiny"
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.json"
    write_json(path, [1])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(RunError, match="No space left on device"):
        write_bytes(path, b"[2]")
    assert read_json(path, "it") == [1]


def test_what_a_killed_process_left_unfinished_is_removed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / ".tmp-1-part-000000.parquet").write_text("x")
    (tmp_path / ".tmp-1-checkpoint-000003" / "policy").mkdir(parents=True)
    assert folder.parts("prompts") == []
    assert folder.checkpoints() == []
    folder.remove_temporary()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["prompts"]


def hold(root: Path, ready: object, release: object) -> None:
    with only_writer(root):
        ready.set()  # type: ignore[attr-defined]
        release.wait(20)  # type: ignore[attr-defined]


def test_a_second_process_may_not_write_the_same_run(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, release = context.Event(), context.Event()
    process = context.Process(target=hold, args=(tmp_path, ready, release))
    process.start()
    try:
        assert ready.wait(20)
        with pytest.raises(RunError, match="another process is writing"), only_writer(tmp_path):
            pass
    finally:
        release.set()
        process.join()
    with only_writer(tmp_path):
        pass
