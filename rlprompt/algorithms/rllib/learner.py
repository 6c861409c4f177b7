"""The learner: one gradient step per minibatch on the loss of PPO, soft Q-learning or REINFORCE."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch

from rlprompt.algorithms.losses import (
    categorical_kl,
    masked_entropy,
    polyak_,
    ppo_policy_loss,
    reinforce_loss,
    shape_rewards,
    sql_loss,
    value_loss,
)
from rlprompt.algorithms.rllib.batches import (
    ADVANTAGES,
    MASK,
    OLD_LOGP,
    RETURNS,
    REWARDS,
    TOKENS,
    masked_logits,
    token_logp,
)
from rlprompt.algorithms.rllib.module import ALLOWED, FEATURES, LOGITS, VALUES, PromptModule
from rlprompt.config import AlgorithmConfig
from rlprompt.seeding import generator


class PromptLearner(TorchLearner):
    """Minimises the configured loss.

    `config.learner_config_dict` holds `algorithm` (an `AlgorithmConfig` as JSON) and `seed`. Besides the module it
    keeps two frozen copies of the head: the starting policy (KL penalty) and SQL's target network.
    """

    def build(self) -> None:
        """Builds module and optimiser, then copies the starting head."""
        super().build()
        self.settings = AlgorithmConfig.model_validate(self.config.learner_config_dict["algorithm"])
        self.seed = int(self.config.learner_config_dict["seed"])
        self.iteration = 0
        self.seconds = 0.0
        self.diagnostics: dict[str, float] = {}
        head = self._prompt_module.policy.head
        self.reference = copy.deepcopy(head).requires_grad_(False)
        self.target = copy.deepcopy(head).requires_grad_(False)

    @property
    def _prompt_module(self) -> PromptModule:
        module: PromptModule = self.module[DEFAULT_MODULE_ID].unwrapped()
        return module

    def _create_iterator_if_necessary(
        self,
        *,
        training_data: Any,
        num_epochs: int = 1,
        minibatch_size: int | None = None,
        **kwargs: Any,
    ) -> Iterable[MultiAgentBatch]:
        """Yields every episode exactly once per epoch.

        RLlib's own iterator takes env steps for rows: with whole episodes as rows it would repeat them to fill a
        minibatch. The order is keyed by (seed, iteration, epoch).
        """
        batch = self._make_batch_if_necessary(training_data=training_data)
        columns = dict(batch.policy_batches[DEFAULT_MODULE_ID])
        return self._minibatches(columns, num_epochs, minibatch_size)

    def _minibatches(
        self, columns: dict[str, torch.Tensor], num_epochs: int, size: int | None
    ) -> Iterator[MultiAgentBatch]:
        rows = len(columns[TOKENS])
        size = min(size or rows, rows)
        for epoch in range(num_epochs):
            order = torch.arange(rows)
            if size < rows:
                order = torch.from_numpy(generator(self.seed, "rows", self.iteration, epoch).permutation(rows))
            for start in range(0, rows, size):
                chosen = order[start : start + size]
                part = columns if size == rows else {name: value[chosen] for name, value in columns.items()}
                yield MultiAgentBatch({DEFAULT_MODULE_ID: SampleBatch(part)}, env_steps=len(chosen))

    def _update(self, batch: dict[str, Any], **kwargs: Any) -> tuple[Any, Any, Any]:
        started = time.perf_counter()
        if self.settings.name == "sql":  # polyak comes before the forward pass, as published
            polyak_(self.target, self._prompt_module.policy.head, self.settings.polyak)
        result: tuple[Any, Any, Any] = super()._update(batch, **kwargs)
        self.seconds += time.perf_counter() - started
        return result

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Any]
    ) -> torch.Tensor:
        """Returns the scalar loss; its parts go to `diagnostics` under `loss/`."""
        logits = masked_logits(fwd_out[LOGITS], batch[ALLOWED])
        entropy = masked_entropy(logits, batch[MASK])
        parts = {"entropy": entropy}
        if self.settings.name == "sql":
            loss = self._soft_q(batch, logits)
        else:
            loss, more = self._policy_gradient(batch, fwd_out)
            parts |= more
        settings = self.settings
        if settings.kl_coeff > 0:
            reference = masked_logits(
                self._prompt_module.policy.logits(batch[FEATURES], head=self.reference), batch[ALLOWED]
            )
            kl = categorical_kl(logits, reference, batch[MASK])
            loss = loss + settings.kl_coeff * kl
            parts["kl"] = kl
        loss = loss - settings.entropy_coeff * entropy
        parts["total"] = loss
        self.diagnostics |= {f"loss/{name}": float(value.detach()) for name, value in parts.items()}
        return loss

    def _policy_gradient(
        self, batch: dict[str, Any], fwd_out: dict[str, Any]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        logp = token_logp(fwd_out[LOGITS], batch[TOKENS], batch[ALLOWED])
        if self.settings.name == "reinforce":
            loss = reinforce_loss(logp, batch[REWARDS].sum(dim=1), batch[MASK])
            return loss, {"policy": loss}
        loss, stats = ppo_policy_loss(logp, batch[OLD_LOGP], batch[ADVANTAGES], batch[MASK], clip=self.settings.clip)
        parts = {"policy": loss, **{name: torch.as_tensor(value) for name, value in stats.items()}}
        if self.settings.baseline == "critic":
            critic = value_loss(fwd_out[VALUES], batch[RETURNS], batch[MASK])
            loss = loss + self.settings.vf_coeff * critic
            parts["value"] = critic
        return loss, parts

    def _soft_q(self, batch: dict[str, Any], logits: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            target = masked_logits(self._prompt_module.policy.logits(batch[FEATURES], head=self.target), batch[ALLOWED])
        old, new = self.settings.reward_shaping
        rewards = shape_rewards(batch[REWARDS].sum(dim=1), old, new)
        return sql_loss(
            logits, target, batch[TOKENS].clamp(min=0), rewards, batch[MASK], variant=self.settings.sql_variant
        )

    def prompt_state(self) -> dict[str, Any]:
        """Returns everything that training needs to go on: head, its two copies, optimiser; tensors and JSON values."""
        optimizer = self.get_optimizer(DEFAULT_MODULE_ID)
        return {
            "head": _copies(self._prompt_module.policy.head),
            "reference": _copies(self.reference),
            "target": _copies(self.target),
            "optimizer": [
                {name: torch.as_tensor(value).clone() for name, value in optimizer.state.get(param, {}).items()}
                for group in optimizer.param_groups
                for param in group["params"]
            ],
        }

    def load_prompt_state(self, state: dict[str, Any]) -> None:
        """Restores what `prompt_state` returned."""
        self._prompt_module.policy.head.load_state_dict(state["head"])
        self.reference.load_state_dict(state["reference"])
        self.target.load_state_dict(state["target"])
        optimizer = self.get_optimizer(DEFAULT_MODULE_ID)
        params = [param for group in optimizer.param_groups for param in group["params"]]
        for param, saved in zip(params, state["optimizer"], strict=True):
            if saved:
                optimizer.state[param] = {name: torch.as_tensor(value).clone() for name, value in saved.items()}


def _copies(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}
