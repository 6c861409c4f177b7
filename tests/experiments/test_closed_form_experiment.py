"""The closed-form experiment: its limits against numbers computed by hand, its table, and that it can be stopped."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from rlprompt.evaluation.closed_form import optimal_probabilities

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # experiments/ is no package that is installed

from experiments import closed_form  # noqa: E402


def listed(prompts: list[list[int]], start: list[float], rewards: list[float]) -> closed_form.Listed:
    made = closed_form.Listed.__new__(closed_form.Listed)
    made.prompts = np.array(prompts)
    made.start, made.rewards = np.array(start), np.array(rewards)
    made.optimum = optimal_probabilities(np.log(made.start), made.rewards, closed_form.COEFFICIENT)
    return made


def test_the_limit_of_the_kl_in_the_loss_is_the_optimum_for_one_token() -> None:
    toy = listed([[0], [1], [2]], [0.5, 0.25, 0.25], [0.0, 1.0, 0.5])
    np.testing.assert_allclose(toy.loss_limit(), toy.optimum)


def test_the_limit_of_the_kl_in_the_loss_for_two_tokens_is_computed_by_hand() -> None:
    # Behind token 0: odds 1 : e^(1 / 0.5), mean reward e^2 / (1 + e^2) = 0.8808. Behind token 1 EOS only, reward 0.
    toy = listed([[0, 0], [0, 1], [1, 2]], [0.25, 0.25, 0.5], [0.0, 1.0, 0.0])
    second = np.exp(2) / (1 + np.exp(2))
    first = np.exp(second / 0.5) / (1 + np.exp(second / 0.5))
    np.testing.assert_allclose(toy.loss_limit(), [first * (1 - second), first * second, 1 - first])
    exact = np.array([0.25, 0.25 * np.exp(2), 0.5])
    np.testing.assert_allclose(toy.optimum, exact / exact.sum())


def test_the_word_s_value_is_its_reward() -> None:
    values = closed_form.word_value(completions=["w00", "w05", ""])
    assert values == [closed_form.WORD_VALUES[0], closed_form.WORD_VALUES[5], None]


@pytest.mark.parametrize("toy", closed_form.TOYS)
@pytest.mark.parametrize("setting", closed_form.SETTINGS)
def test_every_cell_is_a_valid_configuration(toy: str, setting: str) -> None:
    config = closed_form.cell_config(toy, setting, 4)
    assert (config.seed, config.algorithm.kl_coeff) == (4, closed_form.COEFFICIENT)
    assert bool(config.stabilisers) == (config.algorithm.name == "ppo")


@pytest.mark.parametrize(("toy", "prompts"), [("one word", 6), ("separable", 20)])
def test_a_short_training_moves_towards_the_closed_form(toy: str, prompts: int) -> None:
    cell = closed_form.run_cell(toy, "RLOO (KL in the reward)", 0, iterations=4)
    assert cell["prompts"] == prompts
    assert cell["end"] < cell["start"]
    assert (cell["loss_limit"] > 0.1) == (toy == "separable")


def test_cells_that_are_there_are_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[str] = []

    def cell(toy: str, setting: str, seed: int, iterations: int | None) -> dict[str, Any]:
        trained.append(toy)
        if len(trained) == 3:
            raise KeyboardInterrupt
        return {"start": 0.5, "end": seed / 10, "loss_limit": 0.0, "prompts": 6, "seconds": 60.0, "machine": "here"}

    monkeypatch.setattr(closed_form, "run_cell", cell)
    path = tmp_path / "results" / "cells.json"
    with pytest.raises(KeyboardInterrupt):
        closed_form.run_cells(path, [1, 3], Console(quiet=True))
    assert len(json.loads(path.read_text(encoding="utf-8"))) == 2
    cells = closed_form.run_cells(path, [1, 3], Console(quiet=True))
    assert len(trained) == 1 + len(cells) == 1 + 2 * len(closed_form.TOYS) * len(closed_form.SETTINGS)
    lines = closed_form.table(cells, [1, 3]).splitlines()
    assert "0.5, mean ± standard deviation over the seeds 1, 3; here; 48 minutes in all." in lines[0]
    assert "| no training | 0.500 ± 0.000 | 0.500 ± 0.000 | 0.500 ± 0.000 |" in lines
    assert "| PPO, KL in the loss | 0.200 ± 0.141 | 0.200 ± 0.141 | 0.200 ± 0.141 |" in lines
