"""RRHF: the policy learns the order of several texts for one context by their scores, and to write the best of them.

Reference: Yuan et al. 2023, arXiv:2304.05302. There is no reference model and no critic: in memory are the policy and,
where it is trained whole, the stored LM that it was copied from. The loop is transformers' trainer; the loss is ours.
The target is never asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import TrainingArguments

from rlprompt.algorithms.preference_losses import mean_logp, rrhf_loss, weighted_mean
from rlprompt.algorithms.trl.common import Adam, refuse_unused
from rlprompt.algorithms.trl.from_file import FileStage, HeldOutMetrics, fit_file
from rlprompt.algorithms.trl.model import PolicyModel, pad_id
from rlprompt.algorithms.trl.order import Order, OrderedTrainer
from rlprompt.algorithms.trl.preference_data import Ranked, load_ranked
from rlprompt.algorithms.trl.sft import collator, labelled
from rlprompt.types import Json, RunContext

USED = ("rank_weight",)


class PromptRRHF(OrderedTrainer):
    """The loop of transformers over rankings whose order we give."""

    rank_weight: float
    notes: dict[str, float]

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], *_: Any, **__: Any) -> Tensor:
        """Returns the weighted mean of the loss over the contexts of a batch."""
        logp, lengths = placed_logps(model, inputs)
        scores, mask = inputs["scores"], inputs["mask"]
        self.notes = rank_metrics(logp.detach(), lengths, scores, mask)
        return weighted_mean(rrhf_loss(logp, lengths, scores, mask, rank_weight=self.rank_weight), inputs["weights"])

    def metrics(self) -> dict[str, float]:
        """Returns the metrics of the step that ended."""
        return {"loss/total": self.loss, **{f"preference/{name}": value for name, value in self.notes.items()}}


def fit(run: RunContext) -> None:
    """Trains `run.policy` in place on the rankings of the stage.

    Raises:
        ConfigError: the stage names no data, none that the policy may write, or a setting that does not fit.
    """
    refuse_unused(run.config.algorithm, *USED)
    fit_file(run, "rrhf", ("ranked", "pairs"), _build)


def _build(stage: FileStage) -> tuple[PromptRRHF, HeldOutMetrics | None]:
    model, rank_weight = stage.model, stage.run.config.algorithm.rank_weight
    rankings = load_ranked(stage.run, stage.path, model, source=stage.source)
    measure = None
    if stage.held_out is not None:
        kept = load_ranked(stage.run, stage.held_out, model, source=stage.source)
        measure = partial(held_out_metrics, model, kept, stage.rows)
    return make_trainer(model, rankings, stage.order(len(rankings)), stage.adam, stage.shared, rank_weight), measure


def make_trainer(
    model: PolicyModel, rankings: Sequence[Ranked], order: Order, adam: Adam, shared: Json, rank_weight: float
) -> PromptRRHF:
    """Builds the trainer.

    Args:
        model: the policy as a transformers model.
        rankings: at least one.
        order: of the rankings, for all steps.
        adam: over what the model trains.
        shared: what `rlprompt.algorithms.trl.common.arguments` returned.
        rank_weight: weight of the ranking loss.
    """
    trainer = PromptRRHF(
        model=model,
        args=TrainingArguments(**shared),
        train_dataset=Dataset.from_list([_row(ranking) for ranking in rankings]),
        data_collator=_Collator(pad_id(model.policy.tokenizer)),
        optimizers=(adam.optimizer, adam.scheduler),
    )
    trainer.order, trainer.rank_weight, trainer.notes = order, rank_weight, {}
    return trainer


def placed_logps(model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Returns log-probabilities and lengths of the texts of a batch, (C, K); 0 and 1 where a context has fewer texts.

    Args:
        model: the policy.
        inputs: one row for each text, and `mask` (C, K), whose true places are the rows in order.
    """
    mask = inputs["mask"]
    outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=inputs["labels"])
    logp = outputs.log_probs.new_zeros(mask.shape).masked_scatter(mask, outputs.log_probs.sum(dim=1))
    lengths = logp.new_ones(mask.shape).masked_scatter(mask, outputs.label_mask.sum(dim=1).to(logp.dtype))
    return logp, lengths


def rank_metrics(logp: Tensor, lengths: Tensor, scores: Tensor, mask: Tensor) -> dict[str, float]:
    """Returns `margin` and `accuracy`: of the log-probability per token of a better text over that of a worse one.

    Both are means over all pairs of texts of one context whose scores differ; arguments (C, K).
    """
    per_token = mean_logp(logp, lengths)
    better = (scores[:, :, None] > scores[:, None, :]) & mask[:, :, None] & mask[:, None, :]
    ahead = (per_token[:, :, None] - per_token[:, None, :])[better]
    return {"margin": float(ahead.mean()), "accuracy": float((ahead > 0).float().mean())}


@torch.no_grad()
def held_out_metrics(model: PolicyModel, rankings: Sequence[Ranked], rows: int) -> dict[str, float]:
    """Returns `val/margin` and `val/accuracy` of rankings that are not trained on, `rows` of them side by side."""
    collate = _Collator(pad_id(model.policy.tokenizer))
    found: list[tuple[dict[str, float], int]] = []
    for first in range(0, len(rankings), rows):
        batch = collate([_row(ranking) for ranking in rankings[first : first + rows]])
        inputs = {name: value.to(model.device) for name, value in batch.items()}
        scores, mask = inputs["scores"], inputs["mask"]
        compared = (scores[:, :, None] > scores[:, None, :]) & mask[:, :, None] & mask[:, None, :]
        found.append((rank_metrics(*placed_logps(model, inputs), scores, mask), int(compared.sum())))
    total = sum(count for _, count in found)
    return {f"val/{name}": sum(part[name] * count for part, count in found) / total for name in ("margin", "accuracy")}


def _row(ranking: Ranked) -> Json:
    return {
        "context_ids": list(ranking.context_ids),
        "text_ids": [list(ids) for ids in ranking.text_ids],
        "scores": list(ranking.scores),
        "weight": ranking.weight,
    }


class _Collator:
    """Makes batches: one row for each text, scores and mask for each context."""

    def __init__(self, padding: int) -> None:
        self._collate = collator(padding)

    def __call__(self, rows: list[Json]) -> dict[str, Tensor]:
        batch = self._collate([labelled(row["context_ids"], ids) for row in rows for ids in row["text_ids"]])
        widest = max(len(row["scores"]) for row in rows)
        counts = torch.tensor([[len(row["scores"])] for row in rows])
        # Scores that are close together in float64 may tie in float32, so only their order is kept.
        ranks = [[sorted(set(row["scores"])).index(score) for score in row["scores"]] for row in rows]
        return batch | {
            "scores": torch.tensor([[*rank, *[0] * (widest - len(rank))] for rank in ranks]).float(),
            "mask": torch.arange(widest) < counts,
            "weights": torch.tensor([row["weight"] for row in rows]),
        }
