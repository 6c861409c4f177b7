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

from rlprompt.agents import CRITIC, TeamConfig
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
    BEFORE,
    CONTEXT,
    LOG_RATIO,
    MASK,
    OLD_LOGP,
    PLACE,
    RETURNS,
    REWARDS,
    TOKENS,
    masked_logits,
    token_logp,
)
from rlprompt.algorithms.rllib.module import ALLOWED, FEATURES, LOGITS, VALUES, PromptModule
from rlprompt.algorithms.rllib.remote_learners import Chunk, RemoteLearners, gradient_chunks
from rlprompt.config import AlgorithmConfig
from rlprompt.errors import ConfigError
from rlprompt.policies import FeaturePolicy, PromptPolicy
from rlprompt.policies.base import copies
from rlprompt.seeding import generator


class PromptLearner(TorchLearner):
    """Minimises the configured loss of each module: one for a policy that writes alone, several in a game.

    `config.learner_config_dict` holds `algorithm` (an `AlgorithmConfig` as JSON) and `seed`; in a game also `team` (a
    `TeamConfig`). For policies with frozen features it keeps two frozen copies of the head besides the module: the
    starting policy (KL penalty) and SQL's target network. A whole LM knows its starting policy itself.
    """

    def build(self) -> None:
        """Builds module and optimiser, then copies the starting head."""
        super().build()
        self.settings = AlgorithmConfig.model_validate(self.config.learner_config_dict["algorithm"])
        self.seed = int(self.config.learner_config_dict["seed"])
        self.iteration = 0
        self.seconds = 0.0
        self.diagnostics: dict[str, float] = {}
        self._observed: dict[str, tuple[float, int]] = {}
        self.references: dict[str, torch.nn.Module] = {}
        self.targets: dict[str, torch.nn.Module] = {}
        self.remote: RemoteLearners | None = None
        """Processes that compute the gradients of whole LMs; None: this one does."""
        for module_id in self.prompt_modules:
            self._copy_start(module_id)

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """Registers Adam; the central critic has a learning rate of its own."""
        if module_id != CRITIC:
            super().configure_optimizers_for_module(module_id, config)
            return
        params = self.get_parameters(self.module[module_id])
        self.register_optimizer(
            module_id=module_id,
            optimizer=torch.optim.Adam(params),
            params=params,
            lr_or_lr_schedule=TeamConfig.model_validate(self.config.learner_config_dict["team"]).critic_lr,
        )

    @property
    def prompt_modules(self) -> dict[str, PromptModule]:
        """The modules that write, by their ids; not the critic."""
        return {name: module.unwrapped() for name, module in self.module.items() if name != CRITIC}

    def start_from(self, policy: PromptPolicy, module_id: str = DEFAULT_MODULE_ID) -> None:
        """Takes over the weights of a policy, and its reference, before the first iteration."""
        own = self.prompt_modules[module_id].policy
        own.load_trainable_state(policy.trainable_state())
        own.load_reference_state(policy.reference_state())
        if self.remote is not None:
            self.remote.forget(module_id)
        self._copy_start(module_id)

    def _copy_start(self, module_id: str) -> None:
        policy = self.prompt_modules[module_id].policy
        if policy.frozen_features:
            self.references[module_id] = copy.deepcopy(policy.head).requires_grad_(False)
            self.targets[module_id] = copy.deepcopy(policy.head).requires_grad_(False)

    @property
    def _prompt_module(self) -> PromptModule:
        return self.prompt_modules[DEFAULT_MODULE_ID]

    def _named(self, name: str, module_id: str) -> str:
        """The name of a number; in a game with the module's."""
        return name if module_id == DEFAULT_MODULE_ID else f"{name}/{module_id}"

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
        columns = {module_id: dict(part) for module_id, part in batch.policy_batches.items()}
        for module_id, part in columns.items():
            if LOG_RATIO in part:
                ratios = part.pop(LOG_RATIO)
                kl, coefficient = float(ratios.sum(dim=1).mean()), self.prompt_modules[module_id].kl_coefficient
                self._observed[module_id] = (kl, len(ratios))
                self.diagnostics |= {
                    self._named("kl/prompt", module_id): kl,
                    self._named("kl/coefficient", module_id): coefficient,
                }
        return self._minibatches(columns, num_epochs, minibatch_size)

    def _minibatches(
        self, columns: dict[str, dict[str, torch.Tensor]], num_epochs: int, size: int | None
    ) -> Iterator[MultiAgentBatch]:
        """Yields minibatches of `size` episodes; a module that is several agents has as many rows for each."""
        rows = {module_id: len(part[MASK]) for module_id, part in columns.items()}
        episodes = min(rows.values())
        size = min(size or episodes, episodes)
        for epoch in range(num_epochs):
            orders = {module_id: torch.arange(count) for module_id, count in rows.items()}
            if size < episodes:
                for module_id, count in rows.items():
                    drawn = generator(self.seed, "rows", self.iteration, epoch).permutation(count)
                    orders[module_id] = torch.from_numpy(drawn)
            for start in range(0, episodes, size):
                parts: dict[str, SampleBatch] = {}
                for module_id, part in columns.items():
                    times = rows[module_id] // episodes
                    chosen = orders[module_id][start * times : (start + size) * times]
                    whole = size == episodes
                    parts[module_id] = SampleBatch(
                        part if whole else {name: value[chosen] for name, value in part.items()}
                    )
                yield MultiAgentBatch(parts, env_steps=min(size, episodes - start))

    def _update(self, batch: dict[str, Any], **kwargs: Any) -> tuple[Any, Any, Any]:
        started = time.perf_counter()
        if self.settings.name == "sql":  # polyak comes before the forward pass, as published
            polyak_(self.targets[DEFAULT_MODULE_ID], self._prompt_module.policy.head, self.settings.polyak)
        result: tuple[Any, Any, Any] = super()._update(batch, **kwargs)
        self.seconds += time.perf_counter() - started
        return result

    def _uncompiled_update(self, batch: dict[str, Any], **kwargs: Any) -> tuple[Any, Any, Any]:
        whole = {name for name, module in self.prompt_modules.items() if not module.policy.frozen_features}
        if not whole & set(batch):
            result: tuple[Any, Any, Any] = super()._uncompiled_update(batch, **kwargs)
            return result
        for optimizer in self._optimizer_parameters:
            optimizer.zero_grad(set_to_none=True)
        losses: dict[str, torch.Tensor] = {}
        for module_id, part in batch.items():
            if module_id in whole:
                losses[module_id] = self._add_gradients_in_chunks(module_id, part)
                continue
            outputs = self.module[module_id].forward_train(part)
            loss = self.compute_loss_for_module(module_id=module_id, config=None, batch=part, fwd_out=outputs)
            loss.backward()  # type: ignore[no-untyped-call]  # untyped there
            losses[module_id] = loss.detach()
        self.apply_gradients(self.postprocess_gradients(self._present_gradients()))
        return {}, losses, {}

    def compute_gradients(self, loss_per_module: dict[str, Any], **kwargs: Any) -> dict[Any, torch.Tensor]:
        """Returns the gradients of what took part: an agent that is frozen now has none."""
        super().compute_gradients(loss_per_module, **kwargs)
        return self._present_gradients()

    def _present_gradients(self) -> dict[Any, torch.Tensor]:
        return {name: parameter.grad for name, parameter in self._params.items() if parameter.grad is not None}

    def _add_gradients_in_chunks(self, module_id: str, batch: dict[str, Any]) -> torch.Tensor:
        """Adds up the gradients of chunks, each weighted by its share: the gradient of the whole batch.

        Who computes one, this process or another one, does not matter: they are added up in the order of the rows.
        """
        total: dict[str, torch.Tensor] = {}
        chunks = gradient_chunks(batch, self.prompt_modules[module_id].policy.vocabulary_size)
        found: Iterator[dict[str, torch.Tensor]]
        if self.remote is None:
            found = (self.differentiate(module_id, chunk) for chunk in chunks)
        else:
            found = self.remote.differentiate(module_id, self.prompt_modules[module_id], chunks)
        for weighted in found:
            for name, value in weighted.items():
                total[name] = total.get(name, torch.zeros_like(value)) + value
        self._note(module_id, total)
        return total["total"]

    def differentiate(self, module_id: str, chunk: Chunk) -> dict[str, torch.Tensor]:
        """Adds a chunk's gradient to those of the module's parameters; returns its share of the loss and its parts."""
        module, part = self.prompt_modules[module_id], dict(chunk.columns)
        module.eval()  # dropout would make the first ratio differ from 1, and draw from a global generator
        logits, values = module.policy.evaluate(part[CONTEXT], part[TOKENS])
        part.setdefault(ALLOWED, allowed_rows(module, part))
        parts = self._parts(module_id, part, logits, values)
        shares = dict.fromkeys(parts, chunk.of_tokens)  # all parts are means over tokens, but for one
        if self.settings.name == "reinforce":
            shares["policy"] = chunk.of_rows
        weighted = {name: value * shares[name] for name, value in parts.items()}
        weighted["total"] = self._total(module_id, weighted)
        weighted["total"].backward()  # type: ignore[no-untyped-call]  # untyped there
        return {name: value.detach() for name, value in weighted.items()}

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Any]
    ) -> torch.Tensor:
        """Returns the scalar loss; its parts go to `diagnostics` under `loss/`."""
        if module_id == CRITIC:
            loss = value_loss(fwd_out[VALUES], batch[RETURNS], batch[MASK])
            self.diagnostics |= {"loss/critic": float(loss.detach())}
            return loss
        parts = self._parts(module_id, batch, fwd_out[LOGITS], fwd_out[VALUES])
        parts["total"] = self._total(module_id, parts)
        self._note(module_id, parts)
        return parts["total"]

    def _parts(
        self, module_id: str, batch: dict[str, Any], logits: torch.Tensor, values: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Returns the loss of the policy, what is added to it, and statistics; before any weight."""
        masked = masked_logits(logits, batch[ALLOWED])
        parts = {"entropy": masked_entropy(masked, batch[MASK])}
        if self.settings.name == "sql":
            parts["policy"] = self._soft_q(batch, masked)
        else:
            parts |= self._policy_gradient(batch, logits, values)
        if self.settings.kl_in == "loss" and self.prompt_modules[module_id].kl_coefficient > 0:
            reference = masked_logits(self._reference_logits(module_id, batch), batch[ALLOWED])
            parts["kl"] = categorical_kl(masked, reference, batch[MASK])
        return parts

    def _total(self, module_id: str, parts: dict[str, torch.Tensor]) -> torch.Tensor:
        loss = parts["policy"]
        if "value" in parts:
            loss = loss + self.settings.vf_coeff * parts["value"]
        if "kl" in parts:
            loss = loss + self.prompt_modules[module_id].kl_coefficient * parts["kl"]
        return loss - self.settings.entropy_coeff * parts["entropy"]

    def _note(self, module_id: str, parts: dict[str, torch.Tensor]) -> None:
        named = {self._named(f"loss/{name}", module_id): float(value.detach()) for name, value in parts.items()}
        self.diagnostics |= named

    def _policy_gradient(
        self, batch: dict[str, Any], logits: torch.Tensor, values: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        logp = token_logp(logits, batch[TOKENS], batch[ALLOWED])
        if self.settings.name == "reinforce":
            return {"policy": reinforce_loss(logp, batch[REWARDS].sum(dim=1), batch[MASK])}
        loss, stats = ppo_policy_loss(logp, batch[OLD_LOGP], batch[ADVANTAGES], batch[MASK], clip=self.settings.clip)
        parts = {"policy": loss, **{name: torch.as_tensor(value) for name, value in stats.items()}}
        if self.settings.baseline == "critic" and CRITIC not in self.module:  # values of its own
            parts["value"] = value_loss(values, batch[RETURNS], batch[MASK])
        return parts

    def _reference_logits(self, module_id: str, batch: dict[str, Any]) -> torch.Tensor:
        policy = self.prompt_modules[module_id].policy
        if isinstance(policy, FeaturePolicy):
            return policy.logits(batch[FEATURES], head=self.references[module_id])
        return policy.reference_logits(batch[CONTEXT], batch[TOKENS])

    def _soft_q(self, batch: dict[str, Any], logits: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            policy = self._prompt_module.policy
            if not isinstance(policy, FeaturePolicy):
                raise ConfigError("sql trains lm-adaptor and categorical policies; set algorithm.name to ppo")
            target = masked_logits(policy.logits(batch[FEATURES], head=self.targets[DEFAULT_MODULE_ID]), batch[ALLOWED])
        old, new = self.settings.reward_shaping
        rewards = shape_rewards(batch[REWARDS].sum(dim=1), old, new)
        return sql_loss(
            logits, target, batch[TOKENS].clamp(min=0), rewards, batch[MASK], variant=self.settings.sql_variant
        )

    def end_iteration(self) -> None:
        """Moves an adaptive KL coefficient by the KL that the iteration's batch had."""
        observed, self._observed = self._observed, {}
        if self.settings.kl_target is None:
            return
        for module_id, (kl, prompts) in observed.items():
            module = self.prompt_modules[module_id]
            module.kl_coefficient = next_kl_coefficient(
                module.kl_coefficient,
                kl,
                target=self.settings.kl_target,
                prompts=prompts,
                horizon=self.settings.kl_horizon,
            )

    def optimizer_state(self, module_id: str) -> list[dict[str, torch.Tensor]]:
        """Returns what Adam knows of each parameter of a module, in order."""
        optimizer = self.get_optimizer(module_id)
        return [
            {name: torch.as_tensor(value).clone() for name, value in optimizer.state.get(param, {}).items()}
            for group in optimizer.param_groups
            for param in group["params"]
        ]

    def load_optimizer_state(self, module_id: str, state: list[dict[str, torch.Tensor]]) -> None:
        """Restores what `optimizer_state` returned."""
        optimizer = self.get_optimizer(module_id)
        params = [param for group in optimizer.param_groups for param in group["params"]]
        for param, saved in zip(params, state, strict=True):
            if saved:
                optimizer.state[param] = {name: torch.as_tensor(value).clone() for name, value in saved.items()}

    def prompt_state(self, module_id: str = DEFAULT_MODULE_ID) -> dict[str, Any]:
        """Returns everything that training of a module needs to go on, as tensors and JSON values.

        What is trained, the optimiser and the KL coefficient; with frozen features the two copies of the head; NLPO's
        masking weights. The reference of a whole LM is not among them: it comes with the run's policy.
        """
        module = self.prompt_modules[module_id]
        state: dict[str, Any] = {
            "head": copies(module.policy.trainable.state_dict()),
            "optimizer": self.optimizer_state(module_id),
            "kl_coefficient": module.kl_coefficient,
        }
        if module.policy.frozen_features:
            state |= {
                "reference": copies(self.references[module_id].state_dict()),
                "target": copies(self.targets[module_id].state_dict()),
            }
        if module.masking is not None:
            state["masking"] = module.masking.policy.trainable_state()
        return state

    def load_prompt_state(self, state: dict[str, Any], module_id: str = DEFAULT_MODULE_ID) -> None:
        """Restores what `prompt_state` returned."""
        module = self.prompt_modules[module_id]
        module.policy.load_trainable_state(state["head"])
        module.kl_coefficient = float(state["kl_coefficient"])
        if module.policy.frozen_features:
            self.references[module_id].load_state_dict(state["reference"])
            self.targets[module_id].load_state_dict(state["target"])
        if module.masking is not None:
            module.masking.load(state["masking"])
        self.load_optimizer_state(module_id, state["optimizer"])


def allowed_rows(module: PromptModule, columns: dict[str, torch.Tensor]) -> torch.Tensor:
    """Returns which token might have been written at each place of prompts (B, T), by one agent or several."""
    tokens, places = columns[TOKENS], columns.get(PLACE)
    if places is None:
        return module.allowed_each(tokens)
    found = torch.zeros((*tokens.shape, module.policy.vocabulary_size), dtype=torch.bool)
    for place in sorted(set(places.tolist())):
        rows = places == place
        found[rows] = module.allowed_each(tokens[rows], place, columns[BEFORE][rows])
    return found
