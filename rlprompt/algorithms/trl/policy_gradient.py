"""`fit` of GRPO and RLOO: TRL's advantages, losses and loop over prompts that we write and score."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset

from rlprompt.algorithms.diagnostics import iteration_metrics
from rlprompt.algorithms.losses import next_kl_coefficient
from rlprompt.algorithms.trl.common import (
    Adam,
    Recorder,
    arguments,
    begin,
    check_dropout,
    check_groups,
    drive,
    mean_metrics,
    surroundings,
)
from rlprompt.algorithms.trl.model import TokenizerView
from rlprompt.algorithms.trl.rollout import Rollout, opened
from rlprompt.config import AlgorithmConfig, RunConfig
from rlprompt.errors import ConfigError
from rlprompt.types import FloatArray, Json, RunContext, Scores

METRICS = {
    "kl": "loss/kl",
    "entropy": "loss/entropy",
    "clip_ratio/region_mean": "loss/clipped",
    "completions/mean_length": "prompt/length",
    "completions/clipped_ratio": "prompt/cut",
}
"""What TRL notes of a step, and the name under which the run keeps it."""


ROUNDING = 1e-6
"""Largest relative error of a group's mean in float32, with room."""


class NoSignal(Exception):  # noqa: N818 - not an error: a step without one valid prompt teaches nothing
    """The step has no valid prompt."""


class PromptTrainer:
    """What our trainers do otherwise than TRL's: they stand before them in the order of inheritance.

    Prompts are written by the policy's own sampler, so that masks and draws are those of the other algorithms. A prompt
    without a valid score leaves the batch before the loss: a mean over the batch, and the KL term, know nothing of it.
    """

    rollout: Rollout
    settings: AlgorithmConfig
    start: int
    coefficient: float
    """Weight of the KL in units of reward per nat; moves where `algorithm.kl_target` is set."""
    seconds: float = 0.0
    loss: float = float("nan")

    @property
    def kl_in_advantages(self) -> bool:
        """Whether TRL itself subtracts the KL from what `Rollout.score` returned."""
        return False

    def begin(self, rollout: Rollout, settings: AlgorithmConfig, start: int, state: Json | None) -> None:
        """Makes the trainer ready; done after TRL's own `__init__`, which would load a reference model by name."""
        self.rollout, self.settings, self.start = rollout, settings, start
        if settings.kl_coeff > 0:
            self.ref_model = rollout.model(reference=True)
        self.penalise(settings.kl_coeff if state is None else float(state["kl_coeff"]))

    def penalise(self, coefficient: float) -> None:
        """Sets the weight of the KL."""
        self.coefficient = coefficient
        self.beta = coefficient

    def state_dict(self, adam: Adam) -> Json:
        """Returns what the next session needs, besides the policy."""
        return {**adam.state_dict(), "kl_coeff": self.coefficient}

    @property
    def iteration(self) -> int:
        """The iteration in progress."""
        return self.start + int(self.state.global_step)  # type: ignore[attr-defined]  # the trainer's

    def _send_telemetry(self) -> None:
        pass

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        contexts, self._written = self.rollout.write(self.iteration)
        return contexts, None, {}

    def _prepare_inputs(self, rows: Any) -> dict[str, torch.Tensor]:
        # One optimisation step per batch, in the order of the episodes: TRL's shuffling would only cost a draw.
        batch: dict[str, torch.Tensor] = self._generate_and_score_completions(rows)  # type: ignore[attr-defined]  # the trainer's
        silence_flat_groups(
            batch["advantages"], self.rollout.rewards, self.rollout.group_size, kl_inside=self.kl_in_advantages
        )
        return without(batch, torch.from_numpy(self.rollout.scores.prompt_valid.copy()))

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One gradient; none at all where every prompt failed, so that Adam leaves the weights alone."""
        started = time.perf_counter()
        self.rollout.seconds = dict.fromkeys(self.rollout.seconds, 0.0)
        try:
            loss: torch.Tensor = super().training_step(*args, **kwargs)  # type: ignore[misc]  # the trainer's
            self.loss = float(loss)
        except NoSignal:
            loss, self.loss = torch.tensor(0.0, device=self.rollout.policy.device), float("nan")
        self.seconds = time.perf_counter() - started - sum(self.rollout.seconds.values())
        return loss

    def _compute_loss(self, model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        if not len(inputs["advantages"]):
            raise NoSignal
        loss: torch.Tensor = super()._compute_loss(model, inputs)  # type: ignore[misc]  # the trainer's
        return loss

    def report(self) -> tuple[Scores | None, FloatArray | None, dict[str, float]]:
        """Returns scores, training rewards and metrics of the step that ended."""
        rollout = self.rollout
        metrics = mean_metrics(self, METRICS)
        metrics["loss/total"] = self.loss
        self._adapt(metrics)
        metrics |= iteration_metrics(rollout.scores, rollout.training_rewards, metrics.get("loss/entropy"))
        spent = {**rollout.seconds, "learner": self.seconds}
        metrics |= {f"time/{name}_s": seconds for name, seconds in spent.items()}
        return rollout.scores, rollout.training_rewards, metrics

    def _adapt(self, metrics: dict[str, float]) -> None:
        """Moves the weight of the KL towards its target, by the KL in nats per prompt."""
        target, kl = self.settings.kl_target, self.rollout.kl
        if kl is None and "loss/kl" in metrics:
            kl = metrics["loss/kl"] * metrics["prompt/length"]
        if self.settings.kl_coeff > 0:
            metrics["kl_coeff"] = self.coefficient
        if target is not None and kl is not None:
            self.penalise(
                next_kl_coefficient(
                    self.coefficient,
                    kl,
                    target=target,
                    prompts=self.rollout.config.env.num_envs,
                    horizon=self.settings.kl_horizon,
                )
            )


def silence_flat_groups(
    advantages: torch.Tensor, rewards: list[float | None], group_size: int, *, kl_inside: bool
) -> None:
    """Sets the advantages of groups whose rewards do not differ to 0, in place.

    In float32 a group's mean differs from its equal rewards by a rounding error, and Adam would make a whole step of
    it.

    Args:
        advantages: (B,), groups side by side.
        rewards: (B,), None where a prompt failed.
        group_size: prompts of a group.
        kl_inside: whether the advantages hold a KL that the rewards do not: then only rounding errors are removed.
    """
    for first in range(0, len(rewards), group_size):
        known = [reward for reward in rewards[first : first + group_size] if reward is not None]
        group = advantages[first : first + group_size]
        if len(set(known)) > 1:
            continue
        if not kl_inside or not known or bool((group.abs() <= ROUNDING * abs(known[0])).all()):
            group.zero_()


def without(batch: dict[str, torch.Tensor], valid: torch.Tensor) -> dict[str, torch.Tensor]:
    """Returns the batch with the valid rows only; numbers per batch are counted again.

    Args:
        batch: TRL's tensors, the first axis is rows (B), or none.
        valid: (B,) False where a prompt failed.
    """
    if bool(valid.all()):
        return batch
    kept = {name: value[valid.to(value.device)] if value.dim() else value for name, value in batch.items()}
    if "num_items_in_batch" in kept:
        kept["num_items_in_batch"] = kept["completion_mask"].sum()
    return kept


def check(config: RunConfig) -> None:
    """Refuses settings that these algorithms have no use for.

    Raises:
        ConfigError: one is set.
    """
    algorithm = config.algorithm
    name = algorithm.name
    unused = {
        "minibatch_size": algorithm.minibatch_size is not None,
        "baseline": algorithm.baseline != "none",
        "nlpo_top_p": algorithm.nlpo_top_p is not None,
        "kl_target": algorithm.kl_target is not None and not algorithm.kl_coeff,
        "entropy_coeff": name == "rloo" and algorithm.entropy_coeff > 0,
    }
    for key, is_set in unused.items():
        if is_set:
            raise ConfigError(f"algorithm.{key} is {getattr(algorithm, key)!r}, but {name} does not use it; remove it")
    if any(entry.name == "leave-one-out" for entry in config.stabilisers):
        raise ConfigError(f"{name} compares the prompts of a group itself; remove the stabiliser 'leave-one-out'")
    check_groups(config)


Make = Callable[[AlgorithmConfig, Json, Json], PromptTrainer]
"""From the algorithm's section, the shared training arguments and the trainer's own arguments to a trainer."""


def train(run: RunContext, make: Make) -> None:
    """Trains `run.policy` in place until the iterations, the budget or the user's patience end.

    Args:
        run: the run.
        make: builds the trainer.

    Raises:
        ConfigError: a setting does not fit the algorithm.
        BudgetExceededError: an iteration does not fit into the budget.
    """
    config: RunConfig = run.config
    check(config)
    check_dropout(run)
    begun = begin(run)
    if begun is None:
        return
    start, state = begun
    steps = config.algorithm.iterations - start
    rows = config.env.num_envs
    with opened(run) as rollout, surroundings(run) as folder:
        model = rollout.model()
        adam = Adam(dict(model.trainable.named_parameters()), config.algorithm, state)
        shared = arguments(config, folder, rollout.policy.device, rows=rows, steps=steps) | {
            "num_generations": rollout.group_size,
            "max_completion_length": config.env.prompt_length,
            "num_iterations": 1,
            "epsilon": config.algorithm.clip,
            "beta": 0.0,  # see `PromptTrainer.begin`
            "shuffle_dataset": False,
            "temperature": 1.0,  # the policy's own temperature is in its logits
        }
        parts = {
            "model": model,
            "reward_funcs": [_reward(rollout, lambda: trainer.iteration)],
            # TRL counts rows to know when to stop; what the policy reads is decided by `Rollout`.
            "train_dataset": Dataset.from_dict({"prompt": [""] * (rows // rollout.group_size * steps)}),
            "processing_class": TokenizerView(rollout.policy.tokenizer),
            "optimizers": (adam.optimizer, adam.scheduler),
        }
        trainer = make(config.algorithm, shared, parts)
        trainer.begin(rollout, config.algorithm, start, state)
        model.__dict__.pop("forward", None)  # TRL put its own in place of ours, which answers already
        drive(trainer, Recorder(run, start, lambda: trainer.state_dict(adam), trainer.report))


def _reward(rollout: Rollout, iteration: Callable[[], int]) -> Callable[..., list[float | None]]:
    def scorer(*, completion_ids: list[list[int]], **_: Any) -> list[float | None]:
        return rollout.score(iteration(), completion_ids)

    return scorer
