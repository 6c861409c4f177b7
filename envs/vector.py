"""Real vector environments: many prompts, one scoring call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from gymnasium.spaces import Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from rlprompt.envs.writing import PromptWriting, Written, iteration_from
from rlprompt.errors import ConfigError
from rlprompt.types import BoolArray, FloatArray, IntArray, Scores

if TYPE_CHECKING:
    from rlprompt.scoring import ScoringRules

Observations = dict[str, IntArray]
Step = tuple[Observations, FloatArray, BoolArray, BoolArray, dict[str, Any]]


class WritingVectorEnv(VectorEnv[Any, Any, Any]):
    """An environment in which B prompts are written in lockstep; what it means is in `PromptWriting`.

    Args:
        writing: the rules, with a batch of B.
        first_episode: number of sub-env 0's episode.
        seed: seed of `action_space.sample()`.
        action_mask_in_info: whether infos hold `action_mask`.
    """

    metadata: ClassVar[dict[str, Any]] = {  # type: ignore[misc]  # Gymnasium declares no ClassVar
        "render_modes": [],
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(self, writing: PromptWriting, *, first_episode: int, seed: int, action_mask_in_info: bool) -> None:
        if first_episode < 0:
            raise ConfigError(f"first_episode must be >= 0, got {first_episode}")
        self.writing = writing
        self.num_envs = writing.batch
        self.first_episode = first_episode
        self.action_mask_in_info = action_mask_in_info
        self.single_observation_space = self.writing.observation_space()
        self.observation_space = batch_space(self.single_observation_space, writing.batch)
        self.single_action_space = Discrete(self.writing.vocabulary_size, seed=seed)
        self.action_space = batch_space(self.single_action_space, writing.batch)
        self.action_space.seed(seed)
        self._next_iteration = 0
        self._is_set = False

    @property
    def scorer(self) -> ScoringRules:
        """What scores the finished prompts."""
        return self.writing.scorer

    @property
    def last_scores(self) -> Scores | None:
        """The scores of the newest scoring call; None before the first."""
        return self.writing.last_scores

    @property
    def last_training_rewards(self) -> FloatArray | None:
        """The stabilised rewards (num_envs,) of the newest round; None before it, and with step differences."""
        return self.writing.last_training_rewards

    def set_iteration(self, iteration: int) -> None:
        """Sets the iteration of the episodes that start next."""
        self._next_iteration = int(iteration_from({"iteration": iteration}, ("iteration",))["iteration"])
        self._is_set = True

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """Begins `num_envs` empty prompts; see the class for `seed` and `options`."""
        super().reset(seed=seed)
        chosen = iteration_from(options, ("iteration",))
        if "iteration" in chosen:
            self.set_iteration(chosen["iteration"])
        elif seed is not None and not self._is_set:
            self._next_iteration = 0
        return self._begin()

    def step(self, actions: Any) -> Step:
        """Writes one token in each sub-env, or begins anew after the last step."""
        if self.writing.is_over:
            observations, infos = self._begin()
            never = np.zeros(self.num_envs, dtype=np.bool_)
            return observations, np.zeros(self.num_envs), never, never.copy(), infos
        written = self.writing.write(actions)
        if self.writing.is_over and not self._is_set:
            self._next_iteration = self.writing.iteration + 1
        return (
            self.writing.observations(),
            written.rewards,
            written.terminated,
            written.truncated,
            self._infos(written),
        )

    def _begin(self) -> tuple[Observations, dict[str, Any]]:
        self.writing.start(self._next_iteration, self.first_episode + np.arange(self.num_envs))
        self._is_set = False
        return self.writing.observations(), self._infos(None)

    def _infos(self, written: Written | None) -> dict[str, Any]:
        everyone = np.ones(self.num_envs, dtype=np.bool_)
        masked = np.zeros(self.num_envs, dtype=np.bool_) if written is None else written.masked
        infos: dict[str, Any] = {"masked_action": masked, "_masked_action": everyone}
        turns = self.writing.turns
        if turns.most > 1:
            infos |= {"turn": np.full(self.num_envs, turns.number), "_turn": everyone.copy()}
            infos |= {"waiting": turns.waiting.copy(), "_waiting": everyone.copy()}
        if self.action_mask_in_info:
            allowed = self.writing.first_allowed() if self.writing.is_over else self.writing.allowed
            infos |= {"action_mask": allowed.astype(np.int8), "_action_mask": everyone.copy()}
        if written is not None and written.finals is not None:
            for index, final in enumerate(written.finals):
                infos = self._add_info(infos, final, index)
        return infos


class TokenPromptVectorEnv(WritingVectorEnv):
    """Writes `num_envs` prompts in lockstep and scores all of them in one call.

    Spaces, rewards and infos of a sub-env are those of `TokenPromptEnv`; stabilisers see all prompts of the
    step. All sub-envs end in the same step: a prompt that wrote EOS earlier waits, with reward 0.0 and EOS as
    its only allowed action (whatever comes, EOS is written), until the last has ended. So nothing samples short
    prompts more often than the policy writes them. Where the step after the last one comes, all sub-envs begin
    anew and the actions are ignored (`AutoresetMode.NEXT_STEP`); the mask in the last step's info is therefore
    that of the prompts that come next.

    Sub-env k plays episode `first_episode + k`. A finished round advances the iteration by one, an abandoned
    one is played again; `set_iteration` and `reset(options={"iteration": i})` set it, `reset(seed=...)` sets it
    to 0.

    Args:
        num_envs: prompts per step.
        first_episode: number of sub-env 0's episode.
        scorer: and all that follow: as in `TokenPromptEnv`.
        tokenizer: see there.
        prompt_length: see there.
        eos: see there.
        mask: see there.
        context: see there.
        examples_per_step: see there.
        seed: see there.
        step_reward: see there.
        action_mask_in_info: see there; at a vocabulary of 49,152 a mask takes 48 KB per sub-env and step.
    """

    def __init__(
        self,
        num_envs: int,
        scorer: dict[str, Any],
        tokenizer: str,
        prompt_length: int = 5,
        eos: bool = False,
        mask: dict[str, Any] | None = None,
        context: str = "",
        examples_per_step: int | None = None,
        seed: int = 0,
        step_reward: str = "terminal",
        action_mask_in_info: bool = True,
        first_episode: int = 0,
    ) -> None:
        writing = PromptWriting(
            batch=num_envs,
            scorer=scorer,
            tokenizer=tokenizer,
            prompt_length=prompt_length,
            eos=eos,
            mask=mask,
            context=context,
            examples_per_step=examples_per_step,
            step_reward=step_reward,
        )
        super().__init__(writing, first_episode=first_episode, seed=seed, action_mask_in_info=action_mask_in_info)
