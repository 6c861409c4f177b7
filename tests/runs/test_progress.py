from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from rlprompt.runs.progress import ProgressDisplay, progress_line

STATUS: dict[str, Any] = {
    "best": {"prompt": "It [was]", "dev_accuracy": None, "dev_reward": None, "train_reward": 1.5},
    "num_prompts": 16,
    "duration_s": 2.0,
    "calls_left": None,
    "used_calls": 0,
}


def test_a_line_says_what_is_known() -> None:
    line = progress_line(1, 8, STATUS, seconds_left=3700)
    assert line == "iteration 1/8 · 8.0 prompts/s · best train reward 1.500 'It [was]' · 1:01:40 to go"
    nothing = {**STATUS, "best": None, "duration_s": 0.0, "calls_left": 1200}
    assert progress_line(1, 8, nothing, seconds_left=5) == "iteration 1/8 · 1,200 calls left · 0:05 to go"


def test_without_a_terminal_plain_lines_are_written_the_last_one_always() -> None:
    out = io.StringIO()
    display = ProgressDisplay(3, Console(file=out, width=40))
    display.on_start(0)
    for iteration in range(3):
        display.on_iteration(iteration, {}, STATUS)
    display.on_end()
    lines = out.getvalue().splitlines()
    assert "\x1b" not in out.getvalue()
    assert lines[0].startswith("iteration 1/3")
    assert lines[-1].startswith("iteration 3/3")
    assert "'It [was]'" in lines[-1]  # no markup, no wrapping


def test_on_a_terminal_one_line_lives() -> None:
    out = io.StringIO()
    display = ProgressDisplay(3, Console(file=out, force_terminal=True, width=200))
    display.on_start(0)
    display.on_iteration(0, {}, STATUS)
    display.on_iteration(1, {}, STATUS)
    display.on_end()
    assert "iteration 2/3" in out.getvalue()
    assert "\x1b" in out.getvalue()
