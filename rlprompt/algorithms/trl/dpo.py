"""DPO: the policy learns from pairs of a better and a worse text, without a reward. TRL's losses and loop.

Log-probabilities are those of the masked distribution that the policy writes with, whatever its kind. Those of the
reference are computed once, for all pairs, before the first step, and kept: two numbers per pair in the place of a
second pass through the LM in every step. They are computed in the order of the file, so a resumed run has the same.
The target is never asked.

Stock losses are TRL's own code. With weights the loss of each pair is needed, which TRL does not tell: then it is that
of `rlprompt.algorithms.preference_losses`, which a test holds against TRL's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from rlprompt.algorithms.preference_losses import (
    LENGTH_NORMALISED,
    PAIRWISE,
    gap_weights,
    implicit_reward,
    log_ratio,
    weighted_mean,
)
from rlprompt.algorithms.trl.common import Adam, refuse_unused
from rlprompt.algorithms.trl.from_file import FileStage, HeldOutMetrics, fit_file
from rlprompt.algorithms.trl.model import IGNORED, PolicyModel, TokenizerView, pad_id
from rlprompt.algorithms.trl.order import Order, OrderedTrainer
from rlprompt.algorithms.trl.preference_data import Preference, load_preferences
from rlprompt.algorithms.trl.rollout import Rollout
from rlprompt.algorithms.trl.sft import collator, labelled
from rlprompt.config import AlgorithmConfig
from rlprompt.errors import ConfigError
from rlprompt.types import Json, RunContext

SMOOTHED = frozenset({"robust", "exo_pair", "aot", "aot_unpaired"})
"""Losses that know a share of wrong pairs."""
USED = ("preference_loss", "beta", "label_smoothing", "pair_weights")

References = Sequence[tuple[float, float]]
"""Log-probabilities of the chosen and the rejected text of each pair under the reference."""


class PromptDPO(OrderedTrainer, DPOTrainer):  # type: ignore[misc]  # untyped there
    """TRL's DPO over pairs whose order, weights and reference log-probabilities we give."""

    settings: AlgorithmConfig
    weighted: bool
    notes: dict[str, float]
    """Of the newest step: `margin`, `accuracy`, `chosen_reward` and `rejected_reward`."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset  # it holds ids already

    def _precompute_ref_logps(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset  # it holds them already; TRL would keep them in a cache of the user

    def _compute_loss(self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False) -> Tensor:
        inputs = dict(inputs)
        weights = inputs.pop("weights")

        def scored(**kwargs: Any) -> Any:
            outputs = model(**kwargs)
            self.notes = _metrics(outputs.log_probs.detach().sum(dim=1), inputs, self.settings)
            return outputs

        if not self.weighted:
            loss: Tensor = super()._compute_loss(scored, inputs, return_outputs)
            return loss
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, IGNORED)
        outputs = scored(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=labels)
        settings = self.settings
        chosen, rejected = _halves(outputs.log_probs.sum(dim=1), inputs, settings, log_ratio)
        losses = PAIRWISE[settings.preference_loss](chosen - rejected, settings.beta, settings.label_smoothing)
        return weighted_mean(losses, weights)

    def metrics(self) -> dict[str, float]:
        """Returns the metrics of the step that ended."""
        self._metrics["train"].clear()
        return {"loss/total": self.loss, **{f"preference/{name}": value for name, value in self.notes.items()}}


def fit(run: RunContext) -> None:
    """Trains `run.policy` in place on the pairs of the stage.

    Raises:
        ConfigError: the stage names no pairs, none that the policy may write, or a setting that does not fit.
    """
    settings: AlgorithmConfig = run.config.algorithm
    refuse_unused(settings, *USED)
    check_loss(settings)
    fit_file(run, "dpo", ("pairs",), _build)


def _build(stage: FileStage) -> tuple[PromptDPO, HeldOutMetrics | None]:
    settings, rows = stage.run.config.algorithm, stage.rows
    pairs = load_preferences(stage.run, stage.path, stage.model)
    measure = None
    if stage.held_out is not None:
        kept = load_preferences(stage.run, stage.held_out, stage.model)
        measure = HeldOut(stage.model, kept, reference_logps(stage.rollout, kept, rows), settings, rows).metrics
    references = reference_logps(stage.rollout, pairs, rows)
    order = stage.order(len(pairs))
    return make_trainer(stage.model, pairs, references, order, stage.adam, stage.shared, settings), measure


def check_loss(settings: AlgorithmConfig) -> None:
    """Refuses settings that do not fit the loss.

    Raises:
        ConfigError: one does not.
    """
    loss, smoothing = settings.preference_loss, settings.label_smoothing
    if smoothing and loss not in SMOOTHED:
        raise ConfigError(
            f"algorithm.label_smoothing is {smoothing}, but preference_loss '{loss}' does not use it; remove it, or "
            f"take one of {', '.join(sorted(SMOOTHED))}"
        )
    if loss == "exo_pair" and not smoothing:
        raise ConfigError("preference_loss 'exo_pair' needs algorithm.label_smoothing above 0; its paper has 0.001")


def make_trainer(
    model: PolicyModel,
    pairs: Sequence[Preference],
    references: References,
    order: Order,
    adam: Adam,
    shared: Json,
    settings: AlgorithmConfig,
) -> PromptDPO:
    """Builds the trainer.

    Args:
        model: the policy as TRL sees it.
        pairs: at least one.
        references: of the pairs.
        order: of the pairs, for all steps.
        adam: over what the model trains.
        shared: what `rlprompt.algorithms.trl.common.arguments` returned.
        settings: the loss and its numbers.

    Raises:
        ConfigError: the pairs have weights, and the loss is one that only TRL has; or their margins are not known.
    """
    weights = weights_of(pairs, settings)
    tokenizer = model.policy.tokenizer
    trainer = PromptDPO(
        model=model,
        args=DPOConfig(
            **shared,
            max_length=None,
            loss_type=[settings.preference_loss],
            beta=settings.beta,
            label_smoothing=settings.label_smoothing,
            precompute_ref_log_probs=True,
        ),
        train_dataset=Dataset.from_list(
            [
                {
                    "prompt_ids": list(pair.context_ids),
                    "chosen_ids": list(pair.chosen_ids),
                    "rejected_ids": list(pair.rejected_ids),
                    "ref_chosen_logps": chosen,
                    "ref_rejected_logps": rejected,
                    "weight": weight,
                }
                for pair, (chosen, rejected), weight in zip(pairs, references, weights, strict=True)
            ]
        ),
        data_collator=_Collator(pad_id(tokenizer)),
        processing_class=TokenizerView(tokenizer),
        optimizers=(adam.optimizer, adam.scheduler),
    )
    trainer.order, trainer.settings, trainer.notes = order, settings, {}
    trainer.weighted = any(weight != 1.0 for weight in weights)
    model.__dict__.pop("forward", None)  # TRL put its own in place of ours, which answers already
    return trainer


def weights_of(pairs: Sequence[Preference], settings: AlgorithmConfig) -> list[float]:
    """Returns the weight of each pair.

    Raises:
        ConfigError: there are weights, and the loss is one that only TRL has; or a margin is not known.
    """
    weights = [pair.weight for pair in pairs]
    if settings.pair_weights == "gap":
        margins = [pair.margin for pair in pairs if pair.margin is not None]
        if len(margins) < len(pairs):
            raise ConfigError(
                f"algorithm.pair_weights is gap, but {len(pairs) - len(margins)} of {len(pairs)} pairs have no "
                "'margin'; write it into the file, or set pair_weights to given"
            )
        gaps = gap_weights(torch.tensor(margins, dtype=torch.float64)).tolist()
        weights = [weight * gap for weight, gap in zip(weights, gaps, strict=True)]
    if settings.preference_loss not in PAIRWISE and any(weight != 1.0 for weight in weights):
        raise ConfigError(
            f"pairs have weights, but preference_loss '{settings.preference_loss}' has none; take one of "
            f"{', '.join(sorted(PAIRWISE))}, or leave the weights out"
        )
    return weights


class HeldOut:
    """Pairs that are not trained on.

    Args:
        model: the policy in training.
        pairs: at least one.
        references: of the pairs.
        settings: beta, and whether rewards are per token.
        rows: pairs that are scored side by side.
    """

    def __init__(
        self,
        model: PolicyModel,
        pairs: Sequence[Preference],
        references: References,
        settings: AlgorithmConfig,
        rows: int,
    ) -> None:
        self._model, self._pairs, self._settings, self._rows = model, pairs, settings, rows
        texts = [pair.chosen_ids for pair in pairs] + [pair.rejected_ids for pair in pairs]
        self._texts = list(zip([pair.context_ids for pair in pairs] * 2, texts, strict=True))
        self._inputs = {
            "lengths": torch.tensor([len(text) for text in texts]),
            "ref_chosen_logps": torch.tensor([chosen for chosen, _ in references]),
            "ref_rejected_logps": torch.tensor([rejected for _, rejected in references]),
        }

    def metrics(self) -> dict[str, float]:
        """Returns `val/margin`, `val/accuracy`, `val/chosen_reward` and `val/rejected_reward`."""
        logp = torch.tensor(text_logps(self._model, self._texts, 2 * self._rows))
        return {f"val/{name}": value for name, value in _metrics(logp, self._inputs, self._settings).items()}


def reference_logps(rollout: Rollout, pairs: Sequence[Preference], rows: int) -> list[tuple[float, float]]:
    """Returns the log-probabilities of both texts of each pair under the reference.

    Args:
        rollout: knows policy, reference and masks.
        pairs: the pairs.
        rows: pairs that are scored side by side.
    """
    texts = [(pair.context_ids, ids) for pair in pairs for ids in (pair.chosen_ids, pair.rejected_ids)]
    found = text_logps(rollout.model(reference=True), texts, 2 * rows)
    return list(zip(found[::2], found[1::2], strict=True))


@torch.no_grad()
def text_logps(model: PolicyModel, texts: Sequence[tuple[Sequence[int], Sequence[int]]], at_once: int) -> list[float]:
    """Returns the log-probability of each text behind its context, without gradient.

    Args:
        model: the policy or its reference.
        texts: (ids read, ids written) of each.
        at_once: texts that are scored side by side.
    """
    collate = collator(pad_id(model.policy.tokenizer))
    found: list[float] = []
    for first in range(0, len(texts), at_once):
        batch = collate([labelled(*text) for text in texts[first : first + at_once]])
        found += model(**{name: value.to(model.device) for name, value in batch.items()}).log_probs.sum(dim=1).tolist()
    return found


class _Collator(DataCollatorForPreference):  # type: ignore[misc]  # untyped there
    """TRL's batches, with the weights of the pairs."""

    def torch_call(self, examples: list[Json]) -> dict[str, Tensor]:
        batch: dict[str, Tensor] = super().torch_call(examples)
        return batch | {"weights": torch.tensor([example["weight"] for example in examples])}


def _halves(logp: Tensor, inputs: dict[str, Tensor], settings: AlgorithmConfig, measure: Any) -> tuple[Tensor, Tensor]:
    """Applies `log_ratio` or `implicit_reward` to the chosen and the rejected texts, which are one batch (2B,)."""
    lengths: tuple[Tensor | None, Tensor | None] = (None, None)
    if settings.preference_loss in LENGTH_NORMALISED:
        count = inputs["lengths"] if "lengths" in inputs else inputs["completion_mask"].sum(dim=1)
        first, second = count.chunk(2)
        lengths = (first, second)
    chosen, rejected = logp.chunk(2)
    return (
        measure(chosen, inputs["ref_chosen_logps"], lengths=lengths[0]),
        measure(rejected, inputs["ref_rejected_logps"], lengths=lengths[1]),
    )


def _metrics(logp: Tensor, inputs: dict[str, Tensor], settings: AlgorithmConfig) -> dict[str, float]:
    """Means of the implicit rewards of a batch, their margin, and the share of pairs whose margin is above 0."""

    def reward(*args: Any, **kwargs: Any) -> Tensor:
        return implicit_reward(*args, beta=settings.beta, **kwargs)

    chosen, rejected = _halves(logp, inputs, settings, reward)
    return {
        "margin": float((chosen - rejected).mean()),
        "accuracy": float((chosen > rejected).float().mean()),
        "chosen_reward": float(chosen.mean()),
        "rejected_reward": float(rejected.mean()),
    }
