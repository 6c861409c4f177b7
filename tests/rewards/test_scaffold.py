import subprocess
import sys
from pathlib import Path

import pytest

from rlprompt.config import RewardConfig
from rlprompt.errors import ConfigError, RunError
from rlprompt.rewards import RewardSet
from rlprompt.rewards.scaffold import write_reward


def test_the_written_test_passes_and_fails_when_the_reward_is_broken(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    assert write_reward("polite_answers", folder) == [
        folder / "polite_answers.py",
        folder / "test_polite_answers.py",
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout
    file = folder / "polite_answers.py"
    file.write_text(file.read_text().replace("return float(", "return -float("))
    broken = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert broken.returncode == 1
    assert "1 failed, 2 passed" in broken.stdout


def test_the_written_reward_passes_the_check(tmp_path: Path) -> None:
    from rlprompt.rewards import check_rewards
    from rlprompt.tasks import load_task

    write_reward("written_reward", tmp_path)
    rewards = RewardSet.from_config([RewardConfig(name="written_reward:written_reward")], search_path=tmp_path)
    (check,) = check_rewards(rewards, load_task("planted"))
    assert check.gold is not None
    assert check.wrong is not None
    assert check.gold > check.wrong


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "test_kept_reward.py").write_text("mine")
    with pytest.raises(ConfigError, match=r"test_kept_reward\.py is there already"):
        write_reward("kept_reward", tmp_path)
    assert not (tmp_path / "kept_reward.py").exists()
    assert (tmp_path / "test_kept_reward.py").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("my-reward", "cannot be the name of a Python function; use for example my_reward"),
        ("../up", "use for example up"),
        ("", "use for example my_reward"),
        ("2nd", "use for example my_reward"),
        ("class", "use for example my_reward"),
        ("json", "'json' is the name of an installed module; use for example json_reward"),
        ("rlprompt", "is the name of an installed module"),
        ("__main__", "is the name of an installed module"),
    ],
)
def test_a_name_that_cannot_be_used_is_refused(tmp_path: Path, name: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        write_reward(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write into .*choose another --folder"):
        write_reward("some_reward", tmp_path / "file")
