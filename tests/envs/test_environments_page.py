import re
import runpy
import time
from pathlib import Path

import gymnasium
import pytest

import rlprompt.envs
from rlprompt.envs.multi import ENV_ID

PAGE = Path(__file__).parents[2] / "docs" / "environments.md"


@pytest.fixture
def run_block(tmp_path):
    """Runs a code block of the page as a program; returns its names."""

    def run(number):
        blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert len(blocks) == 3
        script = tmp_path / "block.py"
        script.write_text(blocks[number], encoding="utf-8")
        return blocks[number], runpy.run_path(str(script))

    return run


def test_the_loop_on_the_page_is_short_fast_and_finds_the_planted_prompt(run_block):
    started = time.perf_counter()
    code, names = run_block(0)
    assert time.perf_counter() - started < 10
    assert len(code.splitlines()) <= 30
    scorer = names["env"].unwrapped.writing.scorer
    assert names["best"][1] == scorer.target.optimum
    assert scorer.ledger.snapshot()["used"]["calls"] <= 6_400 * 16  # 32 prompts x 200 steps x 16 examples


def test_the_rewrites_of_the_page_are_those_of_two_turns(run_block, capsys):
    _, names = run_block(1)
    assert capsys.readouterr().out.startswith("[1 1 1 1] [ True False False  True] [0. 0. 0. 0.]")
    best = names["best"]
    assert names["terminated"].all()
    assert names["infos"]["prompt"].tolist() == [best, best, "w01 w02", best]
    assert names["infos"]["accuracy"].tolist() == [1.0, 1.0, 0.0, 1.0]
    assert f'"{best}"' in PAGE.read_text(encoding="utf-8")


def test_the_hint_of_the_page_stands_beside_the_users_text(run_block, capsys):
    _, names = run_block(2)
    text = names["example"].input
    assert capsys.readouterr().out.splitlines() == ["True 'w34 w43' True", repr(f"{text} w34 w43")]


def test_the_page_names_every_registered_id():
    ids = {name for name in gymnasium.registry if name.startswith("rlprompt/")}
    assert ids | {ENV_ID} == set(re.findall(r"`(rlprompt/[A-Za-z]+-v\d)`", PAGE.read_text(encoding="utf-8")))
    assert len(ids) == len(set(rlprompt.envs.configured.ENV_IDS.values()))
