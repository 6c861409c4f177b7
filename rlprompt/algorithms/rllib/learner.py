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
    next_kl_coefficient,
    polyak_,
    ppo_policy_loss,
    reinforce_loss,
    shape_rewards,
    sql_loss,
    value_loss,
)
from rlprompt.algorithms.rllib.batches import (
    ADVANTAGES,
    CONTEXT,
    EPISODE,
    LOG_RATIO,
    MASK,
    OLD_LOGP,
    RETURNS,
    REWARDS,
    TOKENS,
    masked_logits,
    token_logp,
)
from rlprompt.algorithms.rllib.chunks import row_chunks
from rlprompt.algorithms.rllib.module import ALLOWED, FEATURES, LOGITS, VALUES, PromptModule
from rlprompt.config import AlgorithmConfig
from rlprompt.errors import ConfigError
from rlprompt.policies import FeaturePolicy, PromptPolicy
from rlprompt.policies.base import copies
from rlprompt.seeding import generator


class PromptLearner(TorchLearner):
    """Minimises the configured loss.

    `config.learner_config_dict` holds `algorithm` (an `AlgorithmConfig` as JSON) and `seed`. For policies with frozen
    features it keeps two frozen copies of the head besides the module: the starting policy (KL penalty) and SQL's
    target network. A whole LM knows its starting policy itself.
    """

    def build(self) -> None:
        """Builds module and optimiser, then copies the starting head."""
        super().build()
        self.settings = AlgorithmConfig.model_validate(self.config.learner_config_dict["algorithm"])
        self.seed = int(self.config.learner_config_dict["seed"])
        self.iteration = 0
        self.seconds = 0.0
        self.diagnostics: dict[str, float] = {}
        self._observed: tuple[float, int] | None = None
        self._copy_start()

    def start_from(self, policy: PromptPolicy) -> None:
        """Takes over the weights of a policy, and its reference, before the first iteration."""
        own = self._prompt_module.policy
        own.load_trainable_state(policy.trainable_state())
        own.load_reference_state(policy.reference_state())
        self._copy_start()

    def _copy_start(self) -> None:
        policy = self._prompt_module.policy
        if policy.frozen_features:
            self.reference = copy.deepcopy(policy.head).requires_grad_(False)
            self.target = copy.deepcopy(policy.head).requires_grad_(False)

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
        started = time.perf_counter()
        batch = self._make_batch_if_necessary(training_data=training_data)
        self.seconds += time.perf_counter() - started
        columns = dict(batch.policy_batches[DEFAULT_MODULE_ID])
        if LOG_RATIO in columns:
            ratios = columns.pop(LOG_RATIO)
            self._observed = (float(ratios.sum(dim=1).mean()), len(ratios))
            self.diagnostics |= {"kl/prompt": self._observed[0], "kl/coefficient": self._prompt_module.kl_coefficient}
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

    def _uncompiled_update(self, batch: dict[str, Any], **kwargs: Any) -> tuple[Any, Any, Any]:
        if self._prompt_module.policy.frozen_features:
            result: tuple[Any, Any, Any] = super()._uncompiled_update(batch, **kwargs)
            return result
        gradients, loss = self._gradients_in_chunks(batch[DEFAULT_MODULE_ID])
        self.apply_gradients(self.postprocess_gradients(gradients))
        return {}, {DEFAULT_MODULE_ID: loss}, {}

    def _gradients_in_chunks(self, batch: dict[str, Any]) -> tuple[dict[Any, torch.Tensor], torch.Tensor]:
        """Adds up the gradients of runs of rows, each weighted by its share: the gradient of the whole batch."""
        module = self._prompt_module
        module.eval()  # dropout would make the first ratio differ from 1, and draw from a global generator
        for optimizer in self._optimizer_parameters:
            optimizer.zero_grad(set_to_none=True)
        columns = {name: batch[name] for name in batch}
        rows_in_all, tokens_in_all = len(columns[TOKENS]), columns[MASK].sum().clamp(min=1)
        total: dict[str, torch.Tensor] = {}
        for rows, width in row_chunks(columns[CONTEXT], columns[TOKENS], module.policy.vocabulary_size, gradient=True):
            part = {name: value[rows] for name, value in columns.items()}
            part |= {name: value[:, :width] for name, value in part.items() if name not in (CONTEXT, EPISODE)}
            logits, values = module.policy.evaluate(part[CONTEXT], part[TOKENS])
            part.setdefault(ALLOWED, module.allowed_each(part[TOKENS]))
            parts = self._parts(part, logits, values)
            share = part[MASK].sum() / tokens_in_all  # all parts are means over tokens, but for one
            shares = dict.fromkeys(parts, share)
            if self.settings.name == "reinforce":
                shares["policy"] = torch.tensor(len(part[TOKENS]) / rows_in_all)
            weighted = {name: value * shares[name] for name, value in parts.items()}
            weighted["total"] = self._total(weighted)
            weighted["total"].backward()  # type: ignore[no-untyped-call]  # untyped there
            for name, value in weighted.items():
                total[name] = total.get(name, torch.zeros_like(value)) + value.detach()
        self._note(total)
        return {name: parameter.grad for name, parameter in self._params.items()}, total["total"]

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Any]
    ) -> torch.Tensor:
        """Returns the scalar loss; its parts go to `diagnostics` under `loss/`."""
        parts = self._parts(batch, fwd_out[LOGITS], fwd_out[VALUES])
        parts["total"] = self._total(parts)
        self._note(parts)
        return parts["total"]

    def _parts(self, batch: dict[str, Any], logits: torch.Tensor, values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns the loss of the policy, what is added to it, and statistics; before any weight."""
        masked = masked_logits(logits, batch[ALLOWED])
        parts = {"entropy": masked_entropy(masked, batch[MASK])}
        if self.settings.name == "sql":
            parts["policy"] = self._soft_q(batch, masked)
        else:
            parts |= self._policy_gradient(batch, logits, values)
        if self.settings.kl_in == "loss" and self._prompt_module.kl_coefficient > 0:
            reference = masked_logits(self._reference_logits(batch), batch[ALLOWED])
            parts["kl"] = categorical_kl(masked, reference, batch[MASK])
        return parts

    def _total(self, parts: dict[str, torch.Tensor]) -> torch.Tensor:
        loss = parts["policy"]
        if "value" in parts:
            loss = loss + self.settings.vf_coeff * parts["value"]
        if "kl" in parts:
            loss = loss + self._prompt_module.kl_coefficient * parts["kl"]
        return loss - self.settings.entropy_coeff * parts["entropy"]

    def _note(self, parts: dict[str, torch.Tensor]) -> None:
        self.diagnostics |= {f"loss/{name}": float(value.detach()) for name, value in parts.items()}

    def _policy_gradient(
        self, batch: dict[str, Any], logits: torch.Tensor, values: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        logp = token_logp(logits, batch[TOKENS], batch[ALLOWED])
        if self.settings.name == "reinforce":
            return {"policy": reinforce_loss(logp, batch[REWARDS].sum(dim=1), batch[MASK])}
        loss, stats = ppo_policy_loss(logp, batch[OLD_LOGP], batch[ADVANTAGES], batch[MASK], clip=self.settings.clip)
        parts = {"policy": loss, **{name: torch.as_tensor(value) for name, value in stats.items()}}
        if self.settings.baseline == "critic":
            parts["value"] = value_loss(values, batch[RETURNS], batch[MASK])
        return parts

    def _reference_logits(self, batch: dict[str, Any]) -> torch.Tensor:
        policy = self._prompt_module.policy
        if isinstance(policy, FeaturePolicy):
            return policy.logits(batch[FEATURES], head=self.reference)
        return policy.reference_logits(batch[CONTEXT], batch[TOKENS])

    def _soft_q(self, batch: dict[str, Any], logits: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            policy = self._prompt_module.policy
            if not isinstance(policy, FeaturePolicy):
                raise ConfigError("sql trains lm-adaptor and categorical policies; set algorithm.name to ppo")
            target = masked_logits(policy.logits(batch[FEATURES], head=self.target), batch[ALLOWED])
        old, new = self.settings.reward_shaping
        rewards = shape_rewards(batch[REWARDS].sum(dim=1), old, new)
        return sql_loss(
            logits, target, batch[TOKENS].clamp(min=0), rewards, batch[MASK], variant=self.settings.sql_variant
        )

    def end_iteration(self) -> None:
        """Moves an adaptive KL coefficient by the KL that the iteration's batch had."""
        target, observed, self._observed = self.settings.kl_target, self._observed, None
        if target is not None and observed is not None:
            kl, prompts = observed
            self._prompt_module.kl_coefficient = next_kl_coefficient(
                self._prompt_module.kl_coefficient,
                kl,
                target=target,
                prompts=prompts,
                horizon=self.settings.kl_horizon,
            )

    def prompt_state(self) -> dict[str, Any]:
        """Returns everything that training needs to go on, as tensors and JSON values.

        What is trained, the optimiser and the KL coefficient; with frozen features the two copies of the head; NLPO's
        masking weights. The reference of a whole LM is not among them: it comes with the run's policy.
        """
        module = self._prompt_module
        optimizer = self.get_optimizer(DEFAULT_MODULE_ID)
        state: dict[str, Any] = {
            "head": copies(module.policy.trainable.state_dict()),
            "optimizer": [
                {name: torch.as_tensor(value).clone() for name, value in optimizer.state.get(param, {}).items()}
                for group in optimizer.param_groups
                for param in group["params"]
            ],
            "kl_coefficient": module.kl_coefficient,
        }
        if module.policy.frozen_features:
            state |= {"reference": copies(self.reference.state_dict()), "target": copies(self.target.state_dict())}
        if module.masking is not None:
            state["masking"] = module.masking.policy.trainable_state()
        return state

    def load_prompt_state(self, state: dict[str, Any]) -> None:
        """Restores what `prompt_state` returned."""
        module = self._prompt_module
        module.policy.load_trainable_state(state["head"])
        module.kl_coefficient = float(state["kl_coefficient"])
        if module.policy.frozen_features:
            self.reference.load_state_dict(state["reference"])
            self.target.load_state_dict(state["target"])
        if module.masking is not None:
            module.masking.load(state["masking"])
        optimizer = self.get_optimizer(DEFAULT_MODULE_ID)
        params = [param for group in optimizer.param_groups for param in group["params"]]
        for param, saved in zip(params, state["optimizer"], strict=True):
            if saved:
                optimizer.state[param] = {name: torch.as_tensor(value).clone() for name, value in saved.items()}
