"""Runs the code blocks of docs/write-a-reward.md."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from rlprompt.config import RunConfig, parse_config
from rlprompt.registry import BUILT_IN
from rlprompt.rewards import RewardResult, RewardSet, check_rewards
from rlprompt.tasks import Task, Template
from rlprompt.types import Example, TargetOutput

PAGE = (Path(__file__).parents[2] / "docs" / "write-a-reward.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(python|yaml)\n# (\S+)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files of the page."""
    for _, name, text in BLOCKS:
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def make_task(choices: bool = True) -> Task:
    golds: list[Any] = [0, 1, 1] if choices else ["Paris, France", "Rome", "Oslo"]
    rows = {
        split: tuple(Example(f"{split}/{index}", f"{split} {index}", gold) for index, gold in enumerate(golds))
        for split in ("train", "dev", "test")
    }
    template = Template("{input} {prompt}")
    if choices:
        return Task("toy", rows["train"], rows["dev"], rows["test"], (" bad", " good"), None, template)
    return Task("toy", rows["train"], rows["dev"], rows["test"], None, "exact-match", template)


def load(folder: Path, *names: str) -> RewardSet:
    config = parse_config({"reward": [{"name": name} for name in names]})
    return RewardSet.from_config(config.reward, search_path=folder)


def run(rewards: RewardSet, outputs: list[TargetOutput], references: list[Any], prompts: list[str]) -> RewardResult:
    blank = [""] * len(outputs)
    return rewards(prompts=blank, completions=prompts, outputs=outputs, references=references, columns={"input": blank})


def test_every_python_and_yaml_block_of_the_page_has_a_file_name() -> None:
    assert len(BLOCKS) == len(re.findall(r"^```(?:python|yaml)$", PAGE, flags=re.MULTILINE)) == 8


def test_the_first_reward_has_five_lines() -> None:
    first = next(text for _, name, text in BLOCKS if name == "my_rewards.py")
    assert len(first.strip().splitlines()) == 5


@pytest.mark.parametrize("name", ["my-run.yaml", "novel-run.yaml"])
def test_the_configurations_of_the_page_pass_the_check(folder: Path, name: str) -> None:
    config: RunConfig = parse_config(yaml.safe_load((folder / name).read_text()))
    rewards = RewardSet.from_config(config.reward, search_path=folder)
    assert len(check_rewards(rewards, make_task())) == 2


def test_the_first_reward_is_the_probability_of_the_right_choice(folder: Path) -> None:
    outputs = [TargetOutput(choice_logprobs=(math.log(0.3), math.log(0.7)))] * 2
    result = run(load(folder, "my_rewards:sure"), outputs, [0, 1], ["", ""])
    assert result.rewards == pytest.approx([0.3, 0.7])


def test_the_reward_that_abstains_leaves_samples_out(folder: Path) -> None:
    rewards = load(folder, "partial_rewards:same_first_word")
    check_rewards(rewards, make_task(choices=False))
    outputs = [TargetOutput(text="Paris it is"), TargetOutput(text="")] * 2
    result = run(rewards, outputs, ["Paris, France", "Rome", None, "Rome"], [""] * 4)
    np.testing.assert_array_equal(result.rewards, [0.0, 0.0, np.nan, 0.0])
    assert result.failures == {}


def test_the_reward_with_a_state_goes_on_where_it_was(folder: Path) -> None:
    rewards, resumed = load(folder, "novelty:Novelty"), load(folder, "novelty:Novelty")
    outputs = [TargetOutput(text="")] * 2
    assert run(rewards, outputs, [0, 0], ["new", "new"]).rewards.tolist() == [1.0, 1.0]
    resumed.load_state_dict(rewards.state_dict())
    assert run(resumed, outputs, [0, 0], ["new", "other"]).rewards == pytest.approx([2**-0.5, 1.0])


def test_the_async_reward_is_awaited(folder: Path) -> None:
    rewards = load(folder, "judged:judged")
    assert rewards.components[0].timeout_seconds == 60
    check_rewards(rewards, make_task())
    outputs = [TargetOutput(text="")] * 2
    assert run(rewards, outputs, [0, 0], ["short", "long" * 20]).rewards.tolist() == [1.0, 0.0]


def test_the_reward_with_further_numbers_has_them_recorded(folder: Path) -> None:
    rewards = load(folder, "wordy:wordy")
    check_rewards(rewards, make_task())
    result = run(rewards, [TargetOutput(text="")] * 2, [0, 0], ["one two three", "a b c d e f"])
    assert result.rewards.tolist() == [-2.0, -1.0]
    assert result.components["wordy:wordy/length"].tolist() == [3.0, 6.0]


@pytest.mark.parametrize("name", ["metrics:same_answer", "metrics:compute_score"])
def test_the_metrics_of_other_frameworks_work_as_they_are(folder: Path, name: str) -> None:
    rewards = load(folder, name)
    assert check_rewards(rewards, make_task())[0].gold == 1.0
    assert check_rewards(rewards, make_task(choices=False))[0].wrong == 0.0


def test_the_table_names_every_built_in_reward() -> None:
    table = PAGE.split("## Built-in rewards")[1]
    assert set(re.findall(r"^\| `([a-z0-9-]+)` \|", table, flags=re.MULTILINE)) == set(BUILT_IN["rewards"])
