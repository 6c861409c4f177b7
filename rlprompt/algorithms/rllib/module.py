"""The RLModule around a prompt policy: samples tokens from observations, scores written tokens for the learner."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule

from rlprompt.agents import TeamConfig, settled
from rlprompt.algorithms.rllib.nlpo import MaskingPolicy
from rlprompt.config import AlgorithmConfig, EnvConfig, PolicyConfig
from rlprompt.masks import static_mask, step_mask
from rlprompt.policies import FeaturePolicy, PromptPolicy, build_policy
from rlprompt.policies.roles import RolePolicy
from rlprompt.policies.sampling import draw, greedy, write_prompts
from rlprompt.policies.team import build_member
from rlprompt.seeding import generator, uniforms
from rlprompt.segments import end_token, segment_mask
from rlprompt.types import BoolArray

FEATURES = "features"
ALLOWED = "allowed"
LOGITS = "logits"
VALUES = "values"


@dataclass(frozen=True)
class Rules:
    """What may be written in one place: by a policy that writes alone, or by one agent of a game."""

    length: int
    eos_id: int | None
    """What ends it early."""
    static_mask: BoolArray
    """(V,)"""
    offset: int = 0
    """Tokens that the segments before it have at most."""


class PromptModule(TorchRLModule, ValueFunctionAPI):
    """A prompt policy as RLlib sees it.

    `model_config` holds JSON values: `policy` (a `PolicyConfig`), `env` (an `EnvConfig`), `algorithm` (an
    `AlgorithmConfig`), `seed` and `code` (where a policy of the form my_module:MyPolicy may come from: `allow_modules`
    and `search_path`); in a game of several agents also `team` (a `TeamConfig`) and `places`, the agents that the
    module is. Only what the policy trains is registered, so weight syncs and checkpoints never carry the
    frozen LM.

    Observations are the env's dict of `tokens` (B, T), `context` (B, C) and `key` (B, 2) = (iteration, episode). Every
    token is drawn from a generator keyed by (seed, "token", iteration, episode, step): neither the number of workers
    nor a restart changes a draw.
    """

    def setup(self) -> None:
        """Builds the policy and the static mask."""
        self.seed = int(self.model_config["seed"])
        env = EnvConfig.model_validate(self.model_config["env"])
        self.sequence = env.action == "sequence"
        self.no_repeat = env.mask.no_repeat
        self.rules: dict[int, Rules] = {}
        """By place; a policy that writes alone has place 0."""
        self.policy = self._alone(env) if env.kind != "multi" else self._in_a_team(env)
        self.views: dict[int, PromptPolicy] = {
            place: self.policy.at(place) if isinstance(self.policy, RolePolicy) else self.policy for place in self.rules
        }
        """The policy as it writes in each place."""
        algorithm = AlgorithmConfig.model_validate(self.model_config["algorithm"])
        self.kl_coefficient = algorithm.kl_coeff
        self.masking: MaskingPolicy | None = None
        if algorithm.nlpo_top_p is not None:
            # Past Module.__setattr__: nothing in it is trained, and no weight sync may carry it.
            self.__dict__["masking"] = MaskingPolicy(self.policy, algorithm.nlpo_top_p)
        self.learns = True
        """Whether the learner changes it in this iteration; agents of a game may be frozen."""
        self.behaviour: dict[str, torch.Tensor] | None = None
        """What the policy trains, as it was when the newest prompts were written; None: as it is now."""
        self.seconds = 0.0
        self.forwards = 0

    def _alone(self, env: EnvConfig) -> PromptPolicy:
        policy = build_policy(
            PolicyConfig.model_validate(self.model_config["policy"]),
            prompt_length=env.prompt_length,
            seed=self.seed,
            **self._code(),
        )
        eos_id = policy.tokenizer.eos_token_id if env.ends_with_eos else None
        mask = static_mask(policy.tokenizer, env.mask, eos=env.ends_with_eos)
        self.rules[0] = Rules(env.prompt_length, eos_id, mask)
        return policy

    def _in_a_team(self, env: EnvConfig) -> PromptPolicy:
        config = PolicyConfig.model_validate(self.model_config["policy"])
        agents = settled(env.agents, per_input=env.per_input, model=config.model)
        team = TeamConfig.model_validate(self.model_config["team"])
        places = [int(place) for place in self.model_config["places"]]
        policy = build_member(config, agents, team, places[0], seed=self.seed, **self._code())
        for place in places:
            agent, tokenizer = agents[place], policy.tokenizer
            self.rules[place] = Rules(
                agent.length,
                end_token(tokenizer, agent),
                segment_mask(tokenizer, agent, env.mask),
                sum(earlier.length for earlier in agents[:place]),
            )
        return policy

    def _code(self) -> dict[str, Any]:
        code = self.model_config.get("code", {})
        search_path = code.get("search_path")
        return {
            "allow_modules": tuple(code.get("allow_modules", ())),
            "search_path": None if search_path is None else Path(search_path),
        }

    def allowed(self, tokens: torch.Tensor, place: int = 0, before: torch.Tensor | None = None) -> torch.Tensor:
        """Returns which token may follow the written ones, as booleans (B, V).

        Args:
            tokens: (B, t), -1 where none.
            place: whose they are.
            before: (B, P) the prefix of other agents' segments, or more of it; None where nobody wrote before.
        """
        rules = self.rules[place]
        mask = step_mask(
            rules.static_mask,
            tokens.cpu().numpy(),
            eos_id=rules.eos_id,
            no_repeat=self.no_repeat,
            before=before[:, : rules.offset].cpu().numpy() if self.no_repeat and before is not None else None,
        )
        return torch.from_numpy(np.ascontiguousarray(mask)).to(tokens.device)

    def allowed_each(self, tokens: torch.Tensor, place: int = 0, before: torch.Tensor | None = None) -> torch.Tensor:
        """Returns which token might have been written at each place of prompts (B, T), as booleans (B, T, V)."""
        steps = range(tokens.shape[1])
        return torch.stack([self.allowed(tokens[:, :step], place, before) for step in steps], dim=1)

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
        place, before = 0, None
        if "agent" in observation:  # a game is at the same turn in all of its copies
            place, before = int(observation["agent"][0, 0]), observation["prefix"].long()
        with torch.no_grad():
            if self.sequence:
                actions = self._write(context, iteration, episodes, explore, place, before)
            else:
                actions = self._next(tokens, context, iteration, episodes, explore, place, before)
        self.seconds += time.perf_counter() - started
        self.forwards += 1
        return actions

    def _next(
        self,
        tokens: torch.Tensor,
        context: torch.Tensor,
        iteration: int,
        episodes: list[int],
        explore: bool,
        place: int,
        before: torch.Tensor | None,
    ) -> torch.Tensor:
        step = min(int((tokens >= 0).sum(dim=1).max()), self.rules[place].length - 1)
        written = tokens[:, :step]
        allowed = self.allowed(written, place, before)
        if self.masking is not None:
            allowed = self.masking.next_allowed(context, written, allowed)
        logits = self.views[place].next_logits(context, written, allowed)
        return draw(logits, uniforms(self.seed, "token", iteration, episodes, step)) if explore else greedy(logits)

    def _write(
        self,
        context: torch.Tensor,
        iteration: int,
        episodes: list[int],
        explore: bool,
        place: int,
        before: torch.Tensor | None,
    ) -> torch.Tensor:
        rules = self.rules[place]
        draws = None
        if explore:
            draws = np.array(
                [
                    [generator(self.seed, "token", iteration, episode, step).random() for step in range(rules.length)]
                    for episode in episodes
                ]
            )
        policy = self.views[place]
        return write_prompts(
            policy if self.masking is None else self.masking.masked(policy),
            context,
            static_mask=rules.static_mask,
            eos_id=rules.eos_id,
            no_repeat=self.no_repeat,
            before=None if before is None else before[:, : rules.offset],
            length=rules.length,
            uniforms=draws,
        )
