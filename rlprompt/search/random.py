"""The untrained policy as it is: random search samples it, `greedy` takes its most probable text.

Both write through the run's environment, so they are the baselines of every kind of prompt at equal budget: token
prompts, rewrites (the untrained rewriter) and hints.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch

from rlprompt.config import RunConfig
from rlprompt.envs import configured_env
from rlprompt.envs.contexts import MetaContexts, MetaSettings, PlainContext, context_limit
from rlprompt.masks import decode, static_mask
from rlprompt.policies.sampling import write_prompts
from rlprompt.search.games import greedy_compositions, record, sample_games
from rlprompt.seeding import generator
from rlprompt.types import Example, RunContext


def fit(run: RunContext) -> None:
    """Samples `env.num_envs` prompts per iteration from the untrained policy and scores them; learns nothing.

    The draws have the stream of the training runs, so the first iteration's prompts equal those of a trained run with
    the same seed and policy.
    """
    _search(run, sampled=True)


def greedy(run: RunContext) -> None:
    """Scores the untrained policy's most probable prompt: once at task level, for new inputs in every iteration else.

    At task level one iteration is all there is.
    """
    _search(run, sampled=False)


def _search(run: RunContext, *, sampled: bool) -> None:
    config: RunConfig = run.config
    if config.env.kind == "multi":
        sample_games(run)
        return
    env_id, arguments = configured_env(config, run.scorer.spec)
    env = gymnasium.make_vec(env_id, num_envs=config.env.num_envs, **{**arguments, "action": "sequence"})
    rules: Any = env.unwrapped  # one of ours: it knows iterations and keeps the step's scores
    restored = run.restored_state()
    last = config.algorithm.iterations if sampled or config.env.per_input else 1
    for iteration in range(0 if restored is None else restored[0], last):
        if run.stop_reason() is not None:
            return
        started = time.perf_counter()
        rules.set_iteration(iteration)
        observations, _ = env.reset()
        over = False
        while not over:  # once for each turn
            tokens = write(run.policy, config, observations["context"], observations["key"] if sampled else None)
            observations, _, terminated, truncated, _ = env.step(tokens)
            over = bool((terminated | truncated).all())
        record(run, iteration, rules.last_scores, rules.last_training_rewards, started)


def write(policy: Any, config: RunConfig, context: np.ndarray, keys: np.ndarray | None) -> np.ndarray:
    """Returns the tokens (B, T) that a policy writes after contexts (B, C), padded with -1 on the right.

    Args:
        policy: who writes.
        config: masks, ends and length.
        context: token ids.
        keys: (B, 2), iteration and episode of every draw; None writes the most probable text.
    """
    env = config.env
    draws = None
    if keys is not None:
        draws = np.array(
            [
                [
                    generator(config.seed, "token", int(iteration), int(episode), step).random()
                    for step in range(env.prompt_length)
                ]
                for iteration, episode in keys
            ]
        )
    tokens = write_prompts(
        policy,
        torch.from_numpy(np.ascontiguousarray(context)).to(policy.device),
        static_mask=static_mask(policy.tokenizer, env.mask, eos=env.ends_with_eos),
        eos_id=policy.tokenizer.eos_token_id if env.ends_with_eos else None,
        no_repeat=env.mask.no_repeat,
        length=env.prompt_length,
        uniforms=draws,
    )
    return np.asarray(tokens.cpu().numpy(), dtype=np.int64)


def greedy_prompts(
    policy: Any, config: RunConfig, scorer: Any, examples: Sequence[Example] | None = None, *, rows: int = 32
) -> tuple[list[str], list[str]]:
    """Returns a policy's most probable prompts and what it read for each.

    Args:
        policy: who writes.
        config: of the run.
        scorer: of the run; has the examples that a meta-prompt shows.
        examples: one prompt is written for each; None writes the one prompt of the task.
        rows: prompts that are written at the same time.
    """
    if config.env.kind == "multi":
        return greedy_compositions(policy, config, scorer, examples, rows=rows)
    reader = contexts_of(config, policy.tokenizer, scorer)
    prompts: list[str] = []
    texts: list[str] = []
    count = 1 if examples is None else len(examples)
    for first in range(0, count, rows):
        part = None if examples is None else list(examples[first : first + rows])
        read, ids = reader.read(part, [""] * (1 if part is None else len(part)))
        prompts += [decode(policy.tokenizer, row) for row in write(policy, config, ids, None).tolist()]
        texts += read
    return prompts, texts


def contexts_of(config: RunConfig, tokenizer: Any, scorer: Any) -> PlainContext | MetaContexts:
    """Returns what a run's policy reads, apart from any environment."""
    if config.env.kind == "token-prompt":
        return PlainContext(tokenizer, config.policy.context)
    settings = MetaSettings.from_config(config.env)
    limit = context_limit(config.policy.model, config.env.prompt_length)
    return MetaContexts(tokenizer, settings, limit=limit, scorer=scorer, round_size=config.env.num_envs)
