"""The RLModule around a prompt policy: samples tokens from observations, scores written tokens for the learner."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule

from rlprompt.config import MaskConfig, PolicyConfig
from rlprompt.masks import static_mask, step_mask
from rlprompt.policies import build_policy
from rlprompt.policies.sampling import draw, greedy, write_prompts
from rlprompt.seeding import generator, uniforms

FEATURES = "features"
ALLOWED = "allowed"
LOGITS = "logits"
VALUES = "values"


class PromptModule(TorchRLModule, ValueFunctionAPI):
    """A prompt policy as RLlib sees it.

    `model_config` holds JSON values: `policy` (a `PolicyConfig`), `env` (an `EnvConfig`), `seed` and `code` (where a
    policy of the form my_module:MyPolicy may come from: `allow_modules` and `search_path`). Only the policy's trainable
    head is registered, so weight syncs and checkpoints never carry the frozen LM.

    Observations are the env's dict of `tokens` (B, T), `context` (B, C) and `key` (B, 2) = (iteration, episode). Every
    token is drawn from a generator keyed by (seed, "token", iteration, episode, step): neither the number of workers
    nor a restart changes a draw.
    """

    def setup(self) -> None:
        """Builds the policy and the static mask."""
        env = self.model_config["env"]
        self.seed = int(self.model_config["seed"])
        self.length = int(env["prompt_length"])
        self.sequence = env["action"] == "sequence"
        code = self.model_config.get("code", {})
        search_path = code.get("search_path")
        self.policy = build_policy(
            PolicyConfig.model_validate(self.model_config["policy"]),
            prompt_length=self.length,
            seed=self.seed,
            allow_modules=tuple(code.get("allow_modules", ())),
            search_path=None if search_path is None else Path(search_path),
        )
        mask = MaskConfig.model_validate(env["mask"])
        self.no_repeat = mask.no_repeat
        self.eos_id: int | None = self.policy.tokenizer.eos_token_id if env["eos"] else None
        self.static_mask = static_mask(self.policy.tokenizer, mask, eos=bool(env["eos"]))
        self.seconds = 0.0
        self.forwards = 0

    def allowed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Returns which token may follow the written ones: tokens (B, t), -1 where none, to booleans (B, V)."""
        mask = step_mask(self.static_mask, tokens.cpu().numpy(), eos_id=self.eos_id, no_repeat=self.no_repeat)
        return torch.from_numpy(np.ascontiguousarray(mask)).to(tokens.device)

    def _forward_exploration(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.ACTIONS: self._act(batch[Columns.OBS], explore=True)}

    def _forward_inference(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.ACTIONS: self._act(batch[Columns.OBS], explore=False)}

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        features = batch[FEATURES]
        return {LOGITS: self.policy.logits(features), VALUES: self.policy.values(features)}

    def compute_values(self, batch: dict[str, Any], embeddings: Any | None = None) -> Any:
        """Returns the values (B, T) of written tokens."""
        return self.policy.values(batch[FEATURES])

    def _act(self, observation: dict[str, torch.Tensor], *, explore: bool) -> torch.Tensor:
        started = time.perf_counter()
        tokens, context = observation["tokens"].long(), observation["context"].long()
        iteration, episodes = int(observation["key"][0, 0]), observation["key"][:, 1].tolist()
        with torch.no_grad():
            if self.sequence:
                actions = self._write(context, iteration, episodes, explore)
            else:
                actions = self._next(tokens, context, iteration, episodes, explore)
        self.seconds += time.perf_counter() - started
        self.forwards += 1
        return actions

    def _next(
        self, tokens: torch.Tensor, context: torch.Tensor, iteration: int, episodes: list[int], explore: bool
    ) -> torch.Tensor:
        step = min(int((tokens >= 0).sum(dim=1).max()), self.length - 1)
        written = tokens[:, :step]
        features = self.policy.next_features(context, written)
        logits = self.policy.logits(features)
        logits = self.policy.sampling_logits(features, logits, self.allowed(written))
        return draw(logits, uniforms(self.seed, "token", iteration, episodes, step)) if explore else greedy(logits)

    def _write(self, context: torch.Tensor, iteration: int, episodes: list[int], explore: bool) -> torch.Tensor:
        draws = None
        if explore:
            draws = np.array(
                [
                    [generator(self.seed, "token", iteration, episode, step).random() for step in range(self.length)]
                    for episode in episodes
                ]
            )
        return write_prompts(
            self.policy,
            context,
            static_mask=self.static_mask,
            eos_id=self.eos_id,
            no_repeat=self.no_repeat,
            length=self.length,
            uniforms=draws,
        )
