"""PPO with the KL in the reward ends where the closed form says: reference x exp(mean reward / lambda), normalised."""

from typing import Any

import numpy as np
import pytest

from rlprompt.algorithms.rllib.engine import Engine
from rlprompt.config import RunConfig, parse_config
from rlprompt.evaluation.closed_form import (
    all_prompts,
    optimal_probabilities,
    prompt_log_probabilities,
    total_variation,
)
from rlprompt.masks import decode, static_mask
from rlprompt.policies import build_policy
from rlprompt.scoring import build_scorer

pytestmark = pytest.mark.ray

COEFFICIENT = 0.5


class FakeRun:
    """The part of a run that the engine reads."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.scorer = build_scorer(config)
        self.policy: Any = build_policy(config.policy, prompt_length=config.env.prompt_length, seed=config.seed)


def make_config() -> RunConfig:
    return parse_config(
        {
            "seed": 3,
            "task": {"name": "planted", "shots": 4, "dev_shots": 4},
            "target": {"name": "planted:chained", "kwargs": {"length": 2, "vocabulary": 4}},
            "policy": {"kind": "causal-lm", "model": "planted-4", "context": "w01", "kwargs": {"lora": None}},
            "env": {"prompt_length": 2, "eos": True, "num_envs": 128, "action": "sequence"},
            "reward": [{"name": "log-probability"}],
            "stabilisers": [{"name": "leave-one-out"}],
            "algorithm": {"name": "ppo", "lr": 2e-3, "epochs": 2, "kl_in": "reward", "kl_coeff": COEFFICIENT},
        }
    )


def test_ppo_reaches_the_closed_form_over_all_rewrites() -> None:
    # 4 words, then EOS or one of 4 words: 20 prompts. The second word pays only behind the right first one, so no
    # product of two distributions would do.
    run = FakeRun(make_config())
    tokenizer, eos = run.policy.tokenizer, run.policy.tokenizer.eos_token_id
    mask = static_mask(tokenizer, run.config.env.mask, eos=True)
    prompts = all_prompts(mask, 2, eos_id=eos)
    assert len(prompts) == 20
    texts = [decode(tokenizer, row) for row in prompts]
    rewards = run.scorer.score(texts, run.scorer.minibatch(0, None), contexts=["w01"] * 20).mean_rewards

    def probabilities() -> np.ndarray:
        context = run.policy.context_ids("w01")
        return np.exp(prompt_log_probabilities(run.policy, context, prompts, mask, eos_id=eos))

    start = probabilities()
    optimum = optimal_probabilities(np.log(start), rewards, COEFFICIENT)
    assert total_variation(start, optimum) > 0.5
    engine = Engine(run)  # type: ignore[arg-type]
    for iteration in range(45):
        _, metrics = engine.iterate(iteration)
        if iteration == 0:
            assert metrics["kl/prompt"] == pytest.approx(0.0, abs=1e-6)
    engine.close()
    assert total_variation(probabilities(), optimum) < 0.05
    # The batch's estimate of KL(policy || start) is that of the closed form, give or take its sampling error.
    assert metrics["kl/prompt"] == pytest.approx(float(optimum @ np.log(optimum / start)), abs=0.3)
