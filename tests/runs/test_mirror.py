"""A copy of the run folder elsewhere: resumed when the disk is lost, whole whenever the copying stopped."""

import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import yaml
from planted_runs import TASK

from rlprompt.errors import ConfigError, RunError
from rlprompt.runs import RunResult, load_run
from rlprompt.runs.events import comparable
from rlprompt.runs.folder import RunFolder
from rlprompt.runs.mirror import Mirror, check_mirror, restore
from rlprompt.targets.planted import PlantedTarget


@pytest.fixture
def memory() -> Iterator[str]:
    """A file system that is no folder of this machine."""
    yield "memory://mirror"
    fsspec.filesystem("memory").rm("/mirror", recursive=True)


def files_below(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def copied(url: str) -> dict[str, bytes]:
    system, path = fsspec.core.url_to_fs(url)
    return {name.removeprefix(f"{path}/"): system.cat_file(name) for name in system.find(path)}


def copy_of(url: str, result: RunResult) -> str:
    return f"{url}/{result.folder.parent.name}/{result.folder.name}"


def test_the_copy_is_the_run_folder(tmp_path: Path, memory: str, start: Callable[..., RunResult]) -> None:
    result = start(f"run.mirror={memory}", folder=tmp_path)
    assert copied(copy_of(memory, result)) == files_below(result.folder)
    assert any(name.startswith("checkpoint-") for name in files_below(result.folder))


def test_a_run_whose_disk_is_lost_goes_on_from_its_copy_and_asks_for_nothing_twice(
    tmp_path: Path, memory: str, start: Callable[..., RunResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = start(folder=tmp_path / "whole")
    asked: list[str] = []
    run = PlantedTarget.run

    def counting(target: PlantedTarget, requests: Any) -> Any:
        asked.extend(request.rendered.text for request in requests)
        return run(target, requests)

    monkeypatch.setattr(PlantedTarget, "run", counting)
    first = start(f"run.mirror={memory}", "algorithm.iterations=3", "run.checkpoint_every=2", folder=tmp_path / "lost")
    url = copy_of(memory, first)
    system, path = fsspec.core.url_to_fs(url)
    for name in system.find(path):  # as if the machine had died after the third iteration, before its checkpoint
        if "checkpoint-000002" in name or name.endswith(("result.json", "summary.json")):
            system.rm_file(name)
    system.pipe_file(f"{path}/latest", b"checkpoint-000001\n")
    shutil.rmtree(tmp_path / "lost")
    resumed = start(folder=tmp_path / "anew", resume=url)
    assert resumed.folder == tmp_path / "anew" / first.folder.parent.name / first.folder.name
    expected, found = (
        [comparable(event) for event in load_run(result.folder).events() if event["event"] == "iteration"]
        for result in (whole, resumed)
    )
    assert [event["metrics"] for event in found] == [event["metrics"] for event in expected]
    assert resumed.target_calls == whole.target_calls
    on_dev_at_3 = len(asked) - len(set(asked))
    assert on_dev_at_3 == 0


def test_an_iteration_is_copied_before_its_checkpoint(tmp_path: Path, memory: str) -> None:
    folder = RunFolder(tmp_path / "name" / "id")
    for name in ("config.yaml", "prompts/part-000000.parquet", "journal.jsonl", "latest", ".tmp-1-x", "STOP"):
        (folder.root / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.root / name).write_text(name)
    mirror = Mirror(memory, folder)
    mirror.on_iteration(0, {}, {})
    url = f"{memory}/name/id"
    assert sorted(copied(url)) == ["journal.jsonl", "prompts/part-000000.parquet"]
    mirror.on_checkpoint(0)
    assert sorted(copied(url)) == ["config.yaml", "journal.jsonl", "latest", "prompts/part-000000.parquet"]
    folder.journal.unlink()
    folder.latest.write_text("newer")
    mirror.on_end()
    assert sorted(copied(url)) == ["config.yaml", "latest", "prompts/part-000000.parquet"]
    assert copied(url)["latest"] == b"newer"


def test_latest_comes_after_what_it_names_and_deletions_after_both(
    tmp_path: Path, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path / "name" / "id")
    for name in ("checkpoint-000001/state.json", "latest", "outputs/part-000001.parquet", "config.yaml"):
        (folder.root / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.root / name).write_text(name)
    mirror = Mirror(memory, folder)
    mirror.on_start(0)
    system: Any = type(mirror._system)
    done: list[str] = []
    put, remove = system.put_file, system.rm_file
    monkeypatch.setattr(system, "put_file", lambda self, *a, **k: (done.append(a[1]), put(self, *a, **k))[1])
    monkeypatch.setattr(system, "rm_file", lambda self, *a, **k: (done.append(a[0]), remove(self, *a, **k))[1])
    shutil.rmtree(folder.root / "checkpoint-000001")
    for name in ("checkpoint-000002/state.json", "latest"):
        (folder.root / name).parent.mkdir(exist_ok=True)
        (folder.root / name).write_text("new, and longer")
    mirror.on_checkpoint(1)
    assert [name.rpartition("id/")[2] for name in done] == [
        "checkpoint-000002/state.json",
        "latest",
        "checkpoint-000001/state.json",
    ]


def test_a_checkpoint_comes_after_what_it_needs_and_before_the_journals_that_it_cuts(
    tmp_path: Path, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path / "name" / "id")
    names = ["checkpoint-000001/state.json", "config.yaml", "events.jsonl", "journal.jsonl", "latest"]
    names += ["outputs/part-000001.parquet", "stages/one/reference.safetensors", "judge-journal.jsonl"]
    for name in names:
        (folder.root / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.root / name).write_text(name)
    mirror = Mirror(memory, folder)
    system: Any = type(mirror._system)
    sent: list[str] = []
    put = system.put_file
    monkeypatch.setattr(system, "put_file", lambda self, *a, **k: (sent.append(a[1]), put(self, *a, **k))[1])
    mirror.on_checkpoint(1)
    assert [name.rpartition("id/")[2] for name in sent] == [
        "config.yaml",
        "events.jsonl",
        "outputs/part-000001.parquet",
        "stages/one/reference.safetensors",
        "checkpoint-000001/state.json",
        "journal.jsonl",
        "judge-journal.jsonl",
        "latest",
    ]


def test_what_the_run_has_not_dropped_itself_is_never_deleted(tmp_path: Path, memory: str) -> None:
    """Not what an earlier session copied (its local file may be damaged), and nothing when the folder is gone."""
    folder = RunFolder(tmp_path / "name" / "id")
    folder.root.mkdir(parents=True)
    folder.config.write_text("seed: 1")
    fsspec.filesystem("memory").pipe_file("/mirror/name/id/checkpoint-000004/state.json", b"good")
    mirror = Mirror(memory, folder)
    mirror.on_start(0)
    shutil.rmtree(folder.root)
    mirror.on_checkpoint(5)
    assert "is gone" in str(mirror.failed)
    mirror.on_end()
    assert sorted(copied(f"{memory}/name/id")) == ["checkpoint-000004/state.json", "config.yaml"]


def test_a_copy_that_fails_is_told_of_once_and_tried_again(
    tmp_path: Path, memory: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = RunFolder(tmp_path / "name" / "id")
    folder.root.mkdir(parents=True)
    folder.config.write_text("seed: 1")
    mirror = Mirror(memory, folder)

    def refused(*arguments: Any, **keywords: Any) -> None:
        raise PermissionError("the bucket is closed")

    with monkeypatch.context() as patched:
        patched.setattr(type(mirror._system), "put_file", refused)
        with caplog.at_level(logging.WARNING):
            mirror.on_start(0)
            mirror.on_checkpoint(0)
            mirror.on_end()
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR"]
    assert "the bucket is closed" in caplog.text
    assert str(folder.root) in caplog.text
    mirror.on_checkpoint(1)
    assert mirror.failed is None
    assert copied(f"{memory}/name/id") == {"config.yaml": b"seed: 1"}


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nowhere://bucket/runs", "run.mirror: cannot write to nowhere://bucket/runs: Protocol not known"),
        ("ftp://me:secret@host/runs", "run.mirror holds a password"),
        ("simplecache::ftp://me:secret@host/runs", "run.mirror holds a password"),
        ("s3://[x/runs", "run.mirror: s3://.x/runs is no URL"),
    ],
)
def test_a_mirror_that_cannot_be_is_refused_before_the_run(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        check_mirror(url)
    assert "secret" not in str(caught.value)


def test_a_file_in_the_place_of_the_mirror_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write to"):
        check_mirror(f"file://{tmp_path}/file")
    check_mirror(f"file://{tmp_path}/folder")
    assert list((tmp_path / "folder").iterdir()) == []


def test_what_is_no_copy_of_a_run_or_there_already_is_not_fetched(tmp_path: Path, memory: str) -> None:
    with pytest.raises(RunError, match=r"is no copy of a run|cannot read"):
        restore(f"{memory}/name/id", tmp_path)
    fsspec.filesystem("memory").pipe_file("/mirror/name/id/config.yaml", b"seed: 1")
    assert files_below(restore(f"{memory}/name/id", tmp_path)) == {"config.yaml": b"seed: 1"}
    with pytest.raises(RunError, match="is there already; resume that folder"):
        restore(f"{memory}/name/id/", tmp_path)


def test_the_command_line_resumes_a_url(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rlprompt.cli.main import main

    config = tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump({**TASK, "run": {"dir": str(tmp_path / "runs"), "tensorboard": False}}))
    mirror = f"file://{tmp_path}/copies"
    assert main(["train", str(config), f"run.mirror={mirror}", "--quiet"]) == 0
    (run,) = (tmp_path / "runs" / "small").iterdir()
    shutil.rmtree(tmp_path / "runs")
    url = f"{mirror}/small/{run.name}"
    assert main(["train", str(config), "algorithm.iterations=4", "--quiet", "--resume", url]) == 0
    assert load_run(run).result is not None
    assert len({record.iteration for record in load_run(run).prompts() if record.phase == "train"}) == 4
    assert main(["train", str(config), "--resume", f"{mirror}/small/nobody"]) == 1
    assert "nobody is no copy of a run" in " ".join(capsys.readouterr().err.split())
    assert main(["train", str(config), "--resume", "ftp://me:secret@host/small/x"]) == 2
    assert "secret" not in capsys.readouterr().err
