"""What the single environments share: one prompt, one token a step."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium
import numpy as np

from rlprompt.envs.writing import PromptWriting, iteration_from
from rlprompt.types import IntArray


class WritingEnv(gymnasium.Env[dict[str, IntArray], Any]):
    """An environment in which one prompt is written; what it means is in `PromptWriting`.

    Args:
        writing: the rules, with a batch of one.
        seed: seed of `action_space.sample()`.
        action_mask_in_info: whether infos hold `action_mask`.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}  # type: ignore[misc]  # Gymnasium declares no ClassVar

    def __init__(self, writing: PromptWriting, *, seed: int, action_mask_in_info: bool) -> None:
        self.writing = writing
        self.action_mask_in_info = action_mask_in_info
        self.observation_space = writing.observation_space()
        self.action_space = gymnasium.spaces.Discrete(writing.vocabulary_size, seed=seed)
        self._next_iteration = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, IntArray], dict[str, Any]]:
        """Begins an empty prompt; see `TokenPromptEnv` for `seed` and `options`."""
        super().reset(seed=seed)
        chosen = iteration_from(options, ("iteration", "episode"))
        if seed is not None:
            self._next_iteration = 0
        iteration = int(chosen.get("iteration", self._next_iteration))
        self._next_iteration = iteration + 1
        self.writing.start(iteration, np.array([chosen.get("episode", 0)]))
        return self._observation(), self._info(masked=False)

    def step(self, action: Any) -> tuple[dict[str, IntArray], float, bool, bool, dict[str, Any]]:
        """Writes one token."""
        written = self.writing.write(np.asarray(action).reshape(-1))
        info = self._info(masked=bool(written.masked[0]))
        if written.finals is not None:
            info |= written.finals[0]
        return (
            self._observation(),
            float(written.rewards[0]),
            bool(written.terminated[0]),
            bool(written.truncated[0]),
            info,
        )

    def _observation(self) -> dict[str, IntArray]:
        return {name: values[0] for name, values in self.writing.observations().items()}

    def _info(self, *, masked: bool) -> dict[str, Any]:
        info: dict[str, Any] = {"masked_action": masked}
        if self.writing.turns.most > 1:
            info |= {"turn": self.writing.turns.number, "waiting": bool(self.writing.turns.waiting[0])}
        if self.action_mask_in_info:
            info["action_mask"] = self.writing.allowed[0].astype(np.int8)
        return info
