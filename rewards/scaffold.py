"""Writes the first version of a reward of one's own, with a test that passes."""

from __future__ import annotations

import importlib.util
import keyword
import re
import sys
from pathlib import Path

from rlprompt.errors import ConfigError, RunError

_REWARD = '''\
"""The reward `{name}`. Name it in a configuration beside this file:  reward: [{{name: "{name}:{name}"}}]"""

import math


def {name}(*, outputs, references, **columns):
    """Returns one number per sample, higher is better; None leaves the sample out."""
    return [_score(output, reference) for output, reference in zip(outputs, references, strict=True)]


def _score(output, reference):
    """Scores one answer of the target. This is the part to change."""
    if reference is None:
        return None
    if output.choice_logprobs is not None:  # a task with choices: the reference is the index of the right one
        return math.exp(output.choice_logprobs[reference])
    return float(str(reference).lower() in output.text.lower())
'''

_TEST = '''\
"""Tests of the reward `{name}`; run them with pytest."""

import math
from pathlib import Path

import pytest

from rlprompt.config import RewardConfig
from rlprompt.rewards import RewardSet
from rlprompt.types import TargetOutput


def run(outputs, references, **columns):
    """Runs the reward as a training run does; returns its values."""
    rewards = RewardSet.from_config([RewardConfig(name="{name}:{name}")], search_path=Path(__file__).parent)
    blank = [""] * len(outputs)
    result = rewards(
        prompts=blank,
        completions=blank,
        outputs=outputs,
        references=references,
        columns={{"input": blank, **columns}},
    )
    assert result.failures == {{}}
    return result.rewards.tolist()


def test_a_right_text_scores_above_a_wrong_one():
    gold, wrong, empty = (TargetOutput(text=text) for text in ("It is Paris.", "Rome", ""))
    assert run([gold, wrong, empty], ["Paris"] * 3) == [1.0, 0.0, 0.0]


def test_a_likely_choice_scores_above_an_unlikely_one():
    likely = TargetOutput(choice_logprobs=(math.log(0.1), math.log(0.9)))
    assert run([likely, likely], [1, 0]) == pytest.approx([0.9, 0.1])


def test_a_sample_without_a_reference_is_left_out():
    values = run([TargetOutput(text="Paris")], [None])
    assert math.isnan(values[0])
'''


def write_reward(name: str, folder: str | Path) -> list[Path]:
    """Writes `NAME.py` with a reward function of that name, and `test_NAME.py`.

    Args:
        name: a Python identifier that is not the name of another module.
        folder: where to; made if it does not exist.

    Returns:
        The two files.

    Raises:
        ConfigError: the name cannot be used, or one of the files is there already.
        RunError: the folder cannot be written.
    """
    if not name.isidentifier() or keyword.iskeyword(name):
        usable = re.sub(r"\W+", "_", name).strip("_").lower()
        usable = usable if usable.isidentifier() and not keyword.iskeyword(usable) else "my_reward"
        raise ConfigError(f"'{name}' cannot be the name of a Python function; use for example {usable}")
    target = Path(folder)
    texts = {target / f"{name}.py": _REWARD, target / f"test_{name}.py": _TEST}
    for path in texts:
        if path.exists():
            raise ConfigError(f"{path} is there already; choose another name or remove the file")
    if _is_module(name):
        raise ConfigError(f"'{name}' is the name of an installed module; use for example {name}_reward")
    try:
        target.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            path.write_text(text.format(name=name), encoding="utf-8")
    except OSError as error:
        raise RunError(f"cannot write into {target}: {error.strerror}; choose another --folder") from error
    return list(texts)


def _is_module(name: str) -> bool:
    if name in sys.stdlib_module_names or name in sys.modules:
        return True
    return importlib.util.find_spec(name) is not None
