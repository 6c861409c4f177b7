"""T15 on TRL: the planted prompt, one of 125,000, is found with calls for 625 of them."""

from pathlib import Path
from typing import Any

import pytest

from rlprompt.config import parse_config
from rlprompt.runs import RunResult, train
from rlprompt.targets.planted import PlantedTarget

VOCABULARY, LENGTH, EXAMPLES = 50, 3, 4
BUDGET = 2_500
"""Target calls; each prompt of training costs four, one for each train example."""
SEEDS = range(3)

ALGORITHMS: dict[str, dict[str, Any]] = {
    "grpo": {"scale_rewards": "batch"},
    "rloo": {},
    "online-dpo": {"iterations": 10, "epochs": 4, "pairs_per_input": 16},
}


def run(folder: Path, algorithm: str, seed: int, **settings: Any) -> RunResult:
    return train(
        parse_config(
            {
                "seed": seed,
                "task": {"name": "planted", "shots": EXAMPLES // 2, "dev_shots": 2},
                "target": {"name": "planted:separable", "kwargs": {"length": LENGTH, "vocabulary": VOCABULARY}},
                "policy": {"kind": "categorical", "model": f"planted-{VOCABULARY}", "kwargs": {"top_k": None}},
                "env": {"prompt_length": LENGTH, "num_envs": 64},
                "algorithm": {"name": algorithm, "lr": 0.3, "iterations": 40, **settings},
                "selection": {"top": 4},
                "budget": {"max_target_calls": BUDGET},
                "run": {"dir": str(folder), "checkpoint_every": 1000, "tensorboard": False},
            }
        ),
        progress=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_t15_the_planted_prompt_is_found(tmp_path: Path, algorithm: str) -> None:
    target = PlantedTarget(length=LENGTH, vocabulary=VOCABULARY)
    for seed in SEEDS:
        result = run(tmp_path, algorithm, seed, **ALGORITHMS[algorithm])
        assert result.target_calls <= BUDGET
        assert result.best_prompt == target.optimum


def test_t15_random_search_does_not_find_it_with_the_same_calls(tmp_path: Path) -> None:
    # They pay for at most 625 prompts, and the probability to find one in 125,000 so is 0.5 %.
    assert 1 - (1 - VOCABULARY**-LENGTH) ** (BUDGET // EXAMPLES) < 0.006
    target = PlantedTarget(length=LENGTH, vocabulary=VOCABULARY)
    for seed in SEEDS:
        best = run(tmp_path, "random", seed).best_prompt
        assert best is not None
        assert target.quality(best) < 1
