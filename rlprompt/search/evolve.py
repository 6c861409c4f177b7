"""Reward-guided evolution of rewrites: the policy reads the best rewrites of an input so far, and writes new ones.

Reference: Prompt-A-Video, Ji et al. 2024, arXiv:2412.15156, whose first stage lets an LLM improve prompts round by
round from the scores of the earlier ones. Nothing is learnt here; what is found are texts for SFT and pairs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from rlprompt.config import RunConfig
from rlprompt.envs.contexts import MetaContexts, MetaSettings, context_limit
from rlprompt.errors import CheckpointError, ConfigError
from rlprompt.masks import decode
from rlprompt.meta_prompts import load_meta_prompt
from rlprompt.search.random import write
from rlprompt.types import Example, Json, RunContext, Scores

Survivors = dict[str, list[tuple[str, float]]]
"""Example id -> (text, score) of its best distinct texts so far, best first."""
FEEDBACK = "Write one that scores higher than these, which stand here after their scores:"


def fit(run: RunContext) -> None:
    """Lets the rewrites of the first iteration's inputs evolve for `algorithm.iterations` rounds.

    In each round the policy writes `env.rewrites_per_input` texts for each input, with the best
    `algorithm.survivors` of all earlier ones and their scores in the slot {feedback}, and the scorer scores them. The
    first round reads an empty slot and has the draws of `random`. Texts that failed do not survive.

    Raises:
        ConfigError: the env does not write for single inputs, or its meta-prompt has no slot {feedback}.
        BudgetExceededError: a round does not fit into the budget; nothing of it was spent.
    """
    config: RunConfig = run.config
    check(config)
    contexts = contexts_of(run)
    inputs = contexts.inputs(0, np.arange(config.env.num_envs)) or []
    restored = run.restored_state()
    survivors: Survivors = {} if restored is None else _read(restored[1], inputs)
    for iteration in range(0 if restored is None else restored[0], config.algorithm.iterations):
        if run.stop_reason() is not None:
            return
        started = time.perf_counter()
        texts, ids = contexts.read(inputs, [feedback(survivors.get(example.id, ())) for example in inputs])
        keys = np.array([(iteration, episode) for episode in range(len(inputs))])
        prompts = [decode(run.policy.tokenizer, row) for row in write(run.policy, config, ids, keys).tolist()]
        scores = run.scorer.score_pairs(prompts, inputs, samples=config.env.samples, contexts=texts)
        before = survivors
        survivors = select(before, inputs, scores, config.algorithm.survivors)
        metrics = {**_metrics(before, survivors, scores), "time/iteration_s": time.perf_counter() - started}
        run.end_iteration(iteration, scores=scores, metrics=metrics, state=partial(dict, survivors=survivors))


def check(config: RunConfig) -> None:
    """Refuses an env that evolution cannot work with.

    Raises:
        ConfigError: it does.
    """
    env = config.env
    if not env.per_input:
        raise ConfigError("evolve writes for single inputs; set env.kind=rewrite and env.level=instance")
    if env.turns > 1 or env.step_reward != "terminal":
        raise ConfigError("evolve has rounds of its own; set env.turns to 1 and env.step_reward to terminal")
    if "feedback" not in load_meta_prompt(env.meta_prompt, per_input=True).slots:
        raise ConfigError(
            "evolve shows the best rewrites so far in the slot {feedback}, but the meta-prompt has none; add it, or "
            "take env.meta_prompt=rewrite-input-feedback"
        )


def contexts_of(run: RunContext) -> MetaContexts:
    """Returns what the policy reads, with room for the survivors."""
    config: RunConfig = run.config
    settings = replace(MetaSettings.from_config(config.env), turns=2)  # keeps the room of {feedback} free
    limit = context_limit(config.policy.model, config.env.prompt_length)
    return MetaContexts(run.policy.tokenizer, settings, limit=limit, scorer=run.scorer, round_size=config.env.num_envs)


def feedback(survivors: Sequence[tuple[str, float]]) -> str:
    r"""Returns what stands in {feedback}: the survivors, best first, so that a cut at its end drops the worst.

    >>> feedback([("Be brief.", 1.5), ("Say it.", -0.25)])
    'Write one that scores higher than these, which stand here after their scores:\n1.50: Be brief.\n-0.25: Say it.'
    >>> feedback([])
    ''
    """
    if not survivors:
        return ""
    return "\n".join([FEEDBACK, *(f"{score:.2f}: {text}" for text, score in survivors)])


def select(survivors: Survivors, inputs: Sequence[Example], scores: Scores, count: int) -> Survivors:
    """Returns the best `count` distinct texts of each input, of equal scores the earlier one.

    Args:
        survivors: of the rounds before.
        inputs: the example of each text of this round, (N,).
        scores: of these texts; those without a valid pair do not survive.
        count: how many stay for each input.
    """
    known = {example.id: dict(survivors.get(example.id, ())) for example in inputs}
    rows = zip(scores.prompts, inputs, scores.mean_rewards.tolist(), scores.prompt_valid.tolist(), strict=True)
    for text, example, score, valid in rows:
        if valid:
            known[example.id].setdefault(text, score)
    return {name: sorted(texts.items(), key=lambda entry: -entry[1])[:count] for name, texts in known.items()}


def _metrics(before: Survivors, after: Survivors, scores: Scores) -> dict[str, float]:
    best = {name: texts[0][1] for name, texts in after.items() if texts}
    improved = [name for name, value in best.items() if not before.get(name) or value > before[name][0][1]]
    return {
        "reward/mean": float(np.nanmean(scores.mean_rewards)) if scores.valid.any() else float("nan"),
        "evolve/best": float(np.mean(list(best.values()))) if best else float("nan"),
        "evolve/improved": len(improved) / max(len(after), 1),
        "unique_prompt_rate": len(set(scores.prompts)) / len(scores.prompts),
    }


def _read(state: Mapping[str, Any], inputs: Sequence[Example]) -> Survivors:
    saved: Json = state["survivors"]
    missing = sorted(set(saved) - {example.id for example in inputs})
    if missing:
        raise CheckpointError(f"the saved survivors are of example '{missing[0]}', which is not drawn; start a new run")
    return {name: [(str(text), float(score)) for text, score in texts] for name, texts in saved.items()}
