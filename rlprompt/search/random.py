"""Random search: samples of the untrained policy, scored like any other; the baseline at equal budget."""

from __future__ import annotations

import time

import numpy as np
import torch

from rlprompt.masks import decode, static_mask
from rlprompt.policies.sampling import write_prompts
from rlprompt.seeding import generator
from rlprompt.types import RunContext


def fit(run: RunContext) -> None:
    """Samples `env.num_envs` prompts per iteration from the untrained policy and scores them; learns nothing.

    The draws have the stream of the training runs, so the first iteration's prompts equal those of a trained run with
    the same seed and policy.
    """
    config, policy = run.config, run.policy
    env = config.env
    eos_id = policy.tokenizer.eos_token_id if env.eos else None
    allowed = static_mask(policy.tokenizer, env.mask, eos=env.eos)
    context = torch.tensor([policy.context_ids(config.policy.context)] * env.num_envs, dtype=torch.long)
    restored = run.restored_state()
    for iteration in range(0 if restored is None else restored[0], config.algorithm.iterations):
        if run.stop_reason() is not None:
            return
        started = time.perf_counter()
        draws = np.array(
            [
                [
                    generator(config.seed, "token", iteration, episode, step).random()
                    for step in range(env.prompt_length)
                ]
                for episode in range(env.num_envs)
            ]
        )
        tokens = write_prompts(
            policy,
            context,
            static_mask=allowed,
            eos_id=eos_id,
            no_repeat=env.mask.no_repeat,
            length=env.prompt_length,
            uniforms=draws,
        )
        prompts = [decode(policy.tokenizer, row) for row in tokens.tolist()]
        examples = run.scorer.minibatch(iteration, env.examples_per_step)
        scores = run.scorer.score(prompts, examples, contexts=[config.policy.context] * len(prompts))
        metrics = {
            "reward/mean": float(np.nanmean(scores.mean_rewards)) if scores.valid.any() else float("nan"),
            "unique_prompt_rate": len(set(prompts)) / len(prompts),
            "time/iteration_s": time.perf_counter() - started,
        }
        run.end_iteration(iteration, scores=scores, metrics=metrics, state=dict)
