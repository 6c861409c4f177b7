"""SFT: the policy learns to write given texts, before anything is learnt from rewards. TRL's loss and loop.

The loss is on the written text only, under the masks of the env: what the policy may not write it is not taught.
Batches are drawn by (seed, "pairs", epoch) alone. The target is never asked.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from rlprompt.algorithms.trl.common import (
    Adam,
    Recorder,
    arguments,
    begin,
    check_dropout,
    drive,
    mean_metrics,
    surroundings,
)
from rlprompt.algorithms.trl.model import IGNORED, PolicyModel, TokenizerView, pad_id
from rlprompt.algorithms.trl.order import Order, OrderedTrainer
from rlprompt.algorithms.trl.pairs import Pair, load_pairs, write_pairs
from rlprompt.algorithms.trl.rollout import Rollout, opened
from rlprompt.config import RunConfig
from rlprompt.errors import ConfigError
from rlprompt.types import Json, RunContext

logger = logging.getLogger(__name__)

METRICS = {"entropy": "loss/entropy", "mean_token_accuracy": "loss/token_accuracy"}


class PromptSFT(OrderedTrainer, SFTTrainer):  # type: ignore[misc]  # untyped there
    """TRL's SFT over pairs whose order we give."""

    def metrics(self) -> dict[str, float]:
        """Returns the metrics of the step that ended."""
        return {"loss/total": self.loss, **mean_metrics(self, METRICS)}

    def report(self) -> tuple[None, None, dict[str, float]]:
        """Returns the metrics of the step that ended; no prompt was scored."""
        return None, None, self.metrics()


def fit(run: RunContext) -> None:
    """Trains `run.policy` in place on the pairs of the stage.

    Raises:
        ConfigError: the stage names no pairs, or none that the policy may write.
    """
    begun = begin(run)
    if begun is None:
        return
    start, state = begun
    config: RunConfig = run.config
    check_dropout(run)
    data = getattr(run, "data", None)
    if not data:
        raise ConfigError(
            "sft has no pairs; make it a stage with stages: [{name: sft, algorithm: ..., data: ...}], or give data: "
            "beside algorithm:"
        )
    rows, last = config.algorithm.minibatch_size or config.env.num_envs, config.algorithm.iterations
    with opened(run) as rollout, surroundings(run) as folder:
        pairs = writable(load_pairs(run, data), rollout)
        write_pairs(run.folder / "stages" / run.name / "pairs.jsonl", pairs)  # type: ignore[attr-defined]  # a stage
        model = rollout.model()
        adam = Adam(dict(model.trainable.named_parameters()), config.algorithm, state)
        shared = arguments(config, folder, rollout.policy.device, rows=rows, steps=last - start)
        order = Order(len(pairs), rows, seed=config.seed, first=start, last=last)
        trainer = make_trainer(model, pairs, order, adam, shared)
        drive(trainer, Recorder(run, start, adam.state_dict, trainer.report))


def make_trainer(model: PolicyModel, pairs: Sequence[Pair], order: Order, adam: Adam, shared: Json) -> PromptSFT:
    """Builds the trainer.

    Args:
        model: the policy as TRL sees it.
        pairs: what is learnt; at least one.
        order: of the pairs, for all steps.
        adam: over what the model trains.
        shared: what `rlprompt.algorithms.trl.common.arguments` returned.
    """
    tokenizer = model.policy.tokenizer
    trainer = PromptSFT(
        model=model,
        args=SFTConfig(
            **shared,
            max_length=None,
            packing=False,
            completion_only_loss=False,  # the labels say what is scored
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        train_dataset=Dataset.from_list([encoded(pair) for pair in pairs]),
        data_collator=collator(pad_id(tokenizer)),
        processing_class=TokenizerView(tokenizer),
        optimizers=(adam.optimizer, adam.scheduler),
    )
    trainer.order = order
    model.__dict__.pop("forward", None)  # TRL put its own in place of ours, which answers already
    return trainer


def writable(pairs: Sequence[Pair], rollout: Rollout) -> list[Pair]:
    """Returns the pairs whose text the policy may write; others are left out and counted in the log.

    Raises:
        ConfigError: none is left.
    """
    model = rollout.model()
    kept = [pair for pair in pairs if can_write(model, pair.target_ids)]
    if not kept:
        raise ConfigError(
            f"of {len(pairs)} pairs none can be written by the policy: texts are empty or hold tokens that env.mask "
            "forbids; loosen env.mask or give other pairs"
        )
    if len(kept) < len(pairs):
        logger.warning(
            "%d of %d pairs are left out: their texts are empty or hold tokens that env.mask forbids",
            len(pairs) - len(kept),
            len(pairs),
        )
    return kept


def can_write(model: PolicyModel, ids: Sequence[int]) -> bool:
    """Returns whether the masks allow a whole text, which is not empty."""
    tokens = np.array(ids, dtype=np.int64)
    if not len(tokens):
        return False
    allowed = np.broadcast_to(model.allowed_tokens(tokens[None])[0], (len(tokens), len(model.allowed)))
    return bool(allowed[np.arange(len(tokens)), tokens].all())


def encoded(pair: Pair) -> Json:
    """Returns one row of TRL's data set: context and text, with the loss on the text only."""
    return labelled(pair.context_ids, pair.target_ids)


def labelled(context: Sequence[int], target: Sequence[int]) -> Json:
    """Returns the ids of a context and a text, and labels that are -100 at the context."""
    return {"input_ids": [*context, *target], "labels": [*[IGNORED] * len(context), *target]}


def collator(padding: int) -> Callable[[list[Json]], dict[str, torch.Tensor]]:
    """Returns what makes a batch of rows: all filled up on the right."""

    def collate(rows: list[Json]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)

        def filled(name: str, filler: int) -> torch.Tensor:
            return torch.tensor([[*row[name], *[filler] * (longest - len(row[name]))] for row in rows])

        ids, labels = filled("input_ids", padding), filled("labels", IGNORED)
        lengths = torch.tensor([[len(row["input_ids"])] for row in rows])
        return {"input_ids": ids, "labels": labels, "attention_mask": (torch.arange(longest) < lengths).long()}

    return collate
