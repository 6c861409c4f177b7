"""`rlprompt init reward NAME` writes a reward that passes its own test and its own check."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlprompt.cli.main import main
from rlprompt.config import RewardConfig
from rlprompt.rewards import RewardSet, check_rewards
from rlprompt.tasks import load_task


def test_the_written_reward_passes_its_test_and_the_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "reward", "brevity_bonus", "--folder", str(tmp_path)]) == 0
    written = [Path(line.removeprefix("wrote ")) for line in capsys.readouterr().out.splitlines()[:2]]
    assert all(path.is_file() and path.is_relative_to(tmp_path) for path in written)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout
    name = f"{written[0].stem}:brevity_bonus"
    rewards = RewardSet.from_config([RewardConfig(name=name)], search_path=tmp_path)
    assert check_rewards(rewards, load_task("planted"))


def test_a_file_that_is_there_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "reward", "mine", "--folder", str(tmp_path)]) == 0
    path = next(path for path in tmp_path.rglob("*.py") if "test" not in path.name)
    path.write_text("my work")
    assert main(["init", "reward", "mine", "--folder", str(tmp_path)]) in {1, 2}
    assert path.read_text() == "my work"
    assert capsys.readouterr().err.startswith("error: ")


def test_a_name_that_is_no_identifier_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "reward", "no-name", "--folder", str(tmp_path)]) == 2
    assert "no-name" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_another_kind_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "rewards", "x"]) == 2
    assert "did you mean 'reward'?" in capsys.readouterr().err
