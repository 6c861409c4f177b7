"""One iteration outside TRL: what the policy reads, what it writes, and what the run's scorer says of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from rlprompt.algorithms.learner_processes import check_learners, join_ray
from rlprompt.algorithms.trl.model import PolicyModel
from rlprompt.algorithms.trl.remote_models import RemoteModels
from rlprompt.config import RunConfig
from rlprompt.envs.contexts import MetaContexts, MetaSettings, PlainContext, context_limit, reference_text
from rlprompt.envs.keywords import KeywordReward
from rlprompt.masks import NOT_WRITTEN, decode, static_mask
from rlprompt.policies import PromptPolicy
from rlprompt.policies.sampling import write_prompts
from rlprompt.seeding import generator
from rlprompt.types import Example, FloatArray, IntArray, Json, RunContext, Scores

WRITTEN_AT_ONCE = 64
"""Prompts that are written side by side; what is kept of the tokens read so far bounds the memory."""


@dataclass(frozen=True)
class Readings:
    """What the policy reads in one iteration, prompt by prompt, B of them; those of one input stand side by side."""

    texts: list[str]
    ids: IntArray
    """(B, C), -1 at padding on the right."""
    inputs: list[Example] | None
    """Instance level: the example that each prompt is written for."""


class Rollout:
    """Writes and scores the prompts of an iteration, with the masks, draws and calls of the other algorithms.

    Args:
        run: the run that it works for.
    """

    readings: Readings
    """Of the newest iteration, as the next three."""
    scores: Scores
    training_rewards: FloatArray
    rewards: list[float | None]
    """What TRL got."""

    def __init__(self, run: RunContext) -> None:
        self.run = run
        config: RunConfig = run.config
        self.config = config
        self.policy: PromptPolicy = run.policy
        env = config.env
        self.eos_id: int | None = self.policy.tokenizer.eos_token_id if env.ends_with_eos else None
        self.allowed = static_mask(self.policy.tokenizer, env.mask, eos=env.ends_with_eos)
        self.contexts = contexts_of(run)
        self.seconds = {"policy": 0.0, "target": 0.0}
        self.kl_coeff = 0.0
        """Weight of log(policy / reference) of a whole prompt in the reward that TRL gets; 0 where TRL adds the KL."""
        self.kl: float | None = None
        """KL(policy || reference) of the newest prompts in nats per prompt, where it is measured here."""
        self.learners: RemoteModels | None = None
        """Processes that compute gradients, where the run has some; see `opened`."""

    @property
    def group_size(self) -> int:
        """Prompts that are compared with each other: those that were written after the same reading."""
        env = self.config.env
        return env.rewrites_per_input if env.per_input else env.num_envs

    def model(self, *, reference: bool = False) -> PolicyModel:
        """Returns the policy (or its reference) as TRL sees it, under the masks of the env."""
        model = PolicyModel(self.policy, **self.masks(), reference=reference)
        model.learners = self.learners
        return model

    def masks(self) -> Json:
        """Returns what may be written, as arguments of `PolicyModel`."""
        return {"allowed": self.allowed, "eos_id": self.eos_id, "no_repeat": self.config.env.mask.no_repeat}

    def write(
        self, iteration: int, chosen: Sequence[tuple[int, Example | None]] | None = None
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Writes the prompts of an iteration; returns the ids read and the ids written, EOS included.

        Every token is drawn by the uniform of (seed, "token", iteration, episode, step), as everywhere.

        Args:
            iteration: its number.
            chosen: the episodes to write and the example of each; by default all of the iteration, for its inputs.
        """
        started = time.perf_counter()
        env = self.config.env
        if chosen is None:
            episodes = list(range(env.num_envs))
            inputs = self.contexts.inputs(iteration, np.arange(env.num_envs))
        else:
            episodes = [episode for episode, _ in chosen]
            inputs = [example for _, example in chosen if example is not None] or None
        texts, ids = self.contexts.read(inputs, [""] * len(episodes))
        self.readings = Readings(texts, ids, inputs)
        draws = np.array(
            [
                [
                    generator(self.config.seed, "token", iteration, episode, step).random()
                    for step in range(env.prompt_length)
                ]
                for episode in episodes
            ]
        )
        tokens: list[list[int]] = []
        for first in range(0, len(episodes), WRITTEN_AT_ONCE):
            part = slice(first, first + WRITTEN_AT_ONCE)
            tokens += write_prompts(
                self.policy,
                torch.from_numpy(ids[part]).to(self.policy.device),
                static_mask=self.allowed,
                eos_id=self.eos_id,
                no_repeat=env.mask.no_repeat,
                length=env.prompt_length,
                uniforms=draws[part],
            ).tolist()
        self.seconds["policy"] = time.perf_counter() - started
        read = [[token for token in row if token != NOT_WRITTEN] for row in ids.tolist()]
        return read, [_until_eos(row, self.eos_id) for row in tokens]

    def score(self, iteration: int, written: list[list[int]]) -> list[float | None]:
        """Scores the prompts in one call; returns the stabilised rewards, None for a prompt without a valid pair.

        Raises:
            BudgetExceededError: the calls do not fit into the budget; nothing was spent.
        """
        before = self.run.scorer.target_seconds
        prompts = [decode(self.policy.tokenizer, row) for row in written]
        self.scores = self.ask(iteration, prompts)
        self.training_rewards = np.asarray(self.run.scorer.stabilise(self.scores), dtype=np.float64)
        self.seconds["target"] = self.run.scorer.target_seconds - before
        rewards = self.training_rewards + self.keywords(prompts)
        if self.kl_coeff > 0:
            ratios = self._log_ratio(written)
            rewards = rewards - self.kl_coeff * ratios
            self.kl = float(ratios.mean())
        self.rewards = [
            float(reward) if valid else None for reward, valid in zip(rewards, self.scores.prompt_valid, strict=True)
        ]
        return self.rewards

    def ask(self, iteration: int, prompts: list[str]) -> Scores:
        """Scores the prompts of the newest readings in one call.

        Raises:
            BudgetExceededError: the calls do not fit into the budget; nothing was spent.
        """
        scorer, env, readings = self.run.scorer, self.config.env, self.readings
        scores: Scores
        if readings.inputs is None:
            examples = scorer.minibatch(iteration, env.examples_per_step)
            scores = scorer.score(prompts, examples, contexts=readings.texts)
        else:
            scores = scorer.score_pairs(prompts, readings.inputs, samples=env.samples, contexts=readings.texts)
        return scores

    def keywords(self, prompts: list[str]) -> FloatArray:
        """Returns the keyword rewards of all steps together, (P,): here a prompt has one reward."""
        weight = self.config.env.hint_reward
        if not weight or self.readings.inputs is None:
            return np.zeros(len(prompts))
        references = [reference_text(self.run.scorer, example) for example in self.readings.inputs]
        return KeywordReward(weight, references).step(prompts, np.ones(len(prompts), dtype=np.bool_))

    def _log_ratio(self, written: list[list[int]]) -> FloatArray:
        """log(policy / reference) of each prompt, (P,)."""
        context = torch.from_numpy(self.readings.ids).to(self.policy.device)
        tokens = padded(written, self.policy.device)
        own, start = (self.model(reference=reference).prompt_logp(context, tokens) for reference in (False, True))
        ratio: FloatArray = (own - start).double().cpu().numpy()
        return ratio


@contextmanager
def opened(run: RunContext) -> Iterator[Rollout]:
    """Gives the `Rollout` of a run, with learners where `ray.num_learners` asks for some; ends them afterwards.

    Raises:
        ConfigError: there is no work that learners could share, or no cluster.
    """
    rollout = Rollout(run)
    check_learners(run.config, [rollout.policy])
    if run.config.ray.num_learners:
        code = join_ray(run)
        rollout.learners = RemoteModels(run.config, rollout, run.scorer.spec.get("code", {}) if code is None else code)
    try:
        yield rollout
    finally:
        if rollout.learners is not None:
            rollout.learners.close()


def contexts_of(run: RunContext) -> PlainContext | MetaContexts:
    """Returns what says what the policy reads, as the env of the run has it.

    Raises:
        ConfigError: the meta-prompt does not fit the env or the policy.
    """
    config: RunConfig = run.config
    env, tokenizer = config.env, run.policy.tokenizer
    if env.kind == "token-prompt":
        return PlainContext(tokenizer, config.policy.context)
    settings = MetaSettings.from_config(env)
    limit = context_limit(config.policy.model, env.prompt_length, settings.max_context)
    return MetaContexts(tokenizer, settings, limit=limit, scorer=run.scorer, round_size=env.num_envs)


def padded(rows: list[list[int]], device: torch.device) -> torch.Tensor:
    """Returns rows of ids as one tensor (B, longest), -1 behind the shorter ones."""
    longest = max(len(row) for row in rows)
    filled = [[*row, *[NOT_WRITTEN] * (longest - len(row))] for row in rows]
    return torch.tensor(filled, dtype=torch.long, device=device)


def _until_eos(row: list[int], eos_id: int | None) -> list[int]:
    return row[: row.index(eos_id) + 1] if eos_id is not None and eos_id in row else row
