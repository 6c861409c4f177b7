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

from rlprompt.algorithms.rllib.nlpo import MaskingPolicy
from rlprompt.config import AlgorithmConfig, MaskConfig, PolicyConfig
from rlprompt.masks import static_mask, step_mask
from rlprompt.policies import FeaturePolicy, build_policy
from rlprompt.policies.sampling import draw, greedy, write_prompts
from rlprompt.seeding import generator, uniforms

FEATURES = "features"
ALLOWED = "allowed"
LOGITS = "logits"
VALUES = "values"


class PromptModule(TorchRLModule, ValueFunctionAPI):
    """A prompt policy as RLlib sees it.

    `model_config` holds JSON values: `policy` (a `PolicyConfig`), `env` (an `EnvConfig`), `algorithm` (an
    `AlgorithmConfig`), `seed` and `code` (where a policy of the form my_module:MyPolicy may come from: `allow_modules`
    and `search_path`). Only what the policy trains is registered, so weight syncs and checkpoints never carry the
    frozen LM.

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
        algorithm = AlgorithmConfig.model_validate(self.model_config["algorithm"])
        self.kl_coefficient = algorithm.kl_coeff
        self.masking: MaskingPolicy | None = None
        if algorithm.nlpo_top_p is not None:
            # Past Module.__setattr__: nothing in it is trained, and no weight sync may carry it.
            self.__dict__["masking"] = MaskingPolicy(self.policy, algorithm.nlpo_top_p)
        mask = MaskConfig.model_validate(env["mask"])
        self.no_repeat = mask.no_repeat
        eos = bool(env["eos"]) or env["kind"] != "token-prompt"  # rewrites and hints always end with EOS
        self.eos_id: int | None = self.policy.tokenizer.eos_token_id if eos else None
        self.static_mask = static_mask(self.policy.tokenizer, mask, eos=eos)
        self.seconds = 0.0
        self.forwards = 0

    def allowed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Returns which token may follow the written ones: tokens (B, t), -1 where none, to booleans (B, V)."""
        mask = step_mask(self.static_mask, tokens.cpu().numpy(), eos_id=self.eos_id, no_repeat=self.no_repeat)
        return torch.from_numpy(np.ascontiguousarray(mask)).to(tokens.device)

    def allowed_each(self, tokens: torch.Tensor) -> torch.Tensor:
        """Returns which token might have been written at each place of prompts (B, T), as booleans (B, T, V)."""
        return torch.stack([self.allowed(tokens[:, :step]) for step in range(tokens.shape[1])], dim=1)

    def _forward_exploration(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.ACTIONS: self._act(batch[Columns.OBS], explore=True)}

    def _forward_inference(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.ACTIONS: self._act(batch[Columns.OBS], explore=False)}

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        if not isinstance(self.policy, FeaturePolicy):  # a whole LM is differentiated in chunks, by the learner
            return {}
        features = batch[FEATURES]
        return {LOGITS: self.policy.logits(features), VALUES: self.policy.values(features)}

    def compute_values(self, batch: dict[str, Any], embeddings: Any | None = None) -> Any:
        """Returns the values (B, T) of written tokens."""
        if isinstance(self.policy, FeaturePolicy):
            return self.policy.values(batch[FEATURES])
        return self.policy.evaluate(batch["context"], batch["tokens"])[1]

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
        allowed = self.allowed(written)
        if self.masking is not None:
            allowed = self.masking.next_allowed(context, written, allowed)
        logits = self.policy.next_logits(context, written, allowed)
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
            self.policy if self.masking is None else self.masking.masked(self.policy),
            context,
            static_mask=self.static_mask,
            eos_id=self.eos_id,
            no_repeat=self.no_repeat,
            length=self.length,
            uniforms=draws,
        )
