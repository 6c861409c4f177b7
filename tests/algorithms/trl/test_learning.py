"""T15 on TRL: the planted prompt, one of 125,000, is found within a budget at which random search has not begun."""

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
    "online-dpo": {"epochs": 4, "pairs_per_input": 16},
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
def test_t15_the_planted_prompt_is_found_where_random_search_fails(tmp_path: Path, algorithm: str) -> None:
    # 2,500 calls pay for at most 625 prompts: random search finds the one in 125,000 with a probability of 0.5 %.
    assert 1 - (1 - VOCABULARY**-LENGTH) ** (BUDGET // EXAMPLES) < 0.006
    target = PlantedTarget(length=LENGTH, vocabulary=VOCABULARY)
    for seed in SEEDS:
        trained = run(tmp_path, algorithm, seed, **ALGORITHMS[algorithm])
        searched = run(tmp_path, "random", seed)
        assert trained.target_calls <= BUDGET
        assert searched.best_prompt is not None
        assert trained.best_prompt == target.optimum
        assert target.quality(searched.best_prompt) < 1
