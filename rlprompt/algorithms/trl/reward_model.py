"""Trains a reward model on preference pairs: TRL's trainer, our batches, optimiser and checkpoints.

The loss of a pair is -w log sigmoid(r(chosen) - r(rejected) - s m), with its weight w and its margin m: Bradley-Terry
(arXiv:2203.02155, eq. 1), with s = 0 unless a margin is wanted (arXiv:2307.09288, eq. 2).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
from datasets import Dataset
from pydantic import Field
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, TrainerCallback
from trl import RewardConfig as TrainingArguments
from trl import RewardTrainer

from rlprompt import models
from rlprompt.algorithms.trl.common import Adam, arguments, drive, isolated
from rlprompt.algorithms.trl.model import TokenizerView, pad_id
from rlprompt.algorithms.trl.order import Order, OrderedTrainer
from rlprompt.config import AlgorithmConfig, RunConfig, Section
from rlprompt.errors import CheckpointError, ConfigError
from rlprompt.policies.lora import LoRASettings, with_lora
from rlprompt.preference_pairs import PreferencePair
from rlprompt.rewards.learned import files
from rlprompt.rewards.learned.bradley_terry import PairAccuracy, model_accuracy
from rlprompt.rewards.learned.language_model import (
    Reading,
    RewardModel,
    RewardNetwork,
    adapter_settings,
    describe_base,
    unfrozen,
)
from rlprompt.rewards.learned.pairs import hold_out, what_is_read
from rlprompt.types import Json

CHECKPOINT = "checkpoint"
"""Folder of an unfinished training, in the folder of the reward model."""


class RewardModelConfig(Section):
    """How a reward model is trained."""

    model: str = "smollm2-135m-instruct"
    """The causal LM under the head (see `rlprompt.models`)."""
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the frozen LM; what is trained is float32."""
    device: str = "auto"
    lora: LoRASettings | None = LoRASettings()
    """The adapter; null trains the whole LM, in float32."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the pairs; InstructGPT makes one, more overfit (arXiv:2203.02155, appendix C.2)."""
    batch_size: int = Field(default=8, ge=1)
    """Pairs of one step."""
    lr: float = Field(default=1e-4, gt=0)
    """Adam's learning rate (TRL's default for reward models)."""
    grad_clip: float = Field(default=1.0, gt=0)
    max_tokens: int = Field(default=512, ge=8)
    """Of context and text together; a longer row loses its beginning."""
    chat: bool = True
    """Whether an input goes through the LM's chat template, where it has one."""
    margin_scale: float = Field(default=0.0, ge=0)
    """s above; with more than 0 every pair needs a margin."""
    held_out: float = Field(default=0.2, ge=0, lt=1)
    """Share of the contexts whose pairs are kept for the accuracy."""
    seed: int = Field(default=0, ge=0)
    checkpoint_every: int | None = Field(default=None, ge=1)
    """Steps between two checkpoints; None makes none."""


@dataclass(frozen=True)
class RewardModelTraining:
    """A trained reward model and how good it is."""

    model: RewardModel
    held_out: PairAccuracy
    num_pairs: int
    """That it learnt from."""
    losses: tuple[float, ...]
    """Of every step of this session, before the step."""


def bradley_terry_loss(chosen: Tensor, rejected: Tensor, weight: Tensor, margin: Tensor) -> Tensor:
    """Returns the mean of -weight log sigmoid(chosen - rejected - margin) over B pairs; all arguments are (B,).

    >>> zero, one = torch.zeros(2), torch.ones(2)
    >>> round(float(bradley_terry_loss(torch.tensor([0.0, 2.0]), torch.tensor([0.0, 1.0]), one, zero)), 4)
    0.5032
    """
    return -(weight * torch.nn.functional.logsigmoid(chosen - rejected - margin)).mean()


def train_reward_model(
    pairs: Sequence[PreferencePair],
    folder: str | Path | None = None,
    config: RewardModelConfig | None = None,
    *,
    resume: bool = False,
) -> RewardModelTraining:
    """Trains a reward model; the same pairs, settings and machine give the same bytes.

    Args:
        pairs: that all read an input, or all a context.
        folder: where the model is saved; None keeps it in memory.
        config: how; all defaults where it is None.
        resume: goes on from the checkpoint in the folder, where there is one. The result is that of an uninterrupted
            training.

    Raises:
        ConfigError: pairs or a setting that cannot be used.
        ModelNotFoundError: the LM is not on this machine.
        CheckpointError: the checkpoint is damaged, or of other pairs or settings.
        RunError: the folder cannot be written.
    """
    settings = RewardModelConfig() if config is None else config
    if folder is None and (resume or settings.checkpoint_every is not None):
        raise ConfigError("checkpoints need a folder; give one, or leave resume and checkpoint_every out")
    learnt, rest = hold_out(pairs, settings.held_out, settings.seed)
    model = _untrained(settings, what_is_read(pairs))
    rows, cut = _rows(model, learnt, settings)
    losses = _fit(model, rows, settings, None if folder is None else Path(folder) / CHECKPOINT, resume=resume)
    held_out = model_accuracy(model, rest)
    model.facts = {
        "training": settings.model_dump(mode="json", exclude=_NOT_TOLD),
        "pairs": len(learnt),
        "cut_pairs": cut,
        "held_out": held_out.to_json(),
    }
    if folder is not None:
        model.save(folder)
        shutil.rmtree(Path(folder) / CHECKPOINT, ignore_errors=True)
    return RewardModelTraining(model, held_out, len(learnt), tuple(losses))


_NOT_TOLD = {"model", "revision", "dtype", "lora", "device", "checkpoint_every"}
"""Settings that stand elsewhere in the description, or change nothing."""


class NetworkModel(PreTrainedModel):  # type: ignore[no-untyped-call]  # untyped there
    """A reward network as TRL sees it; only what is trained is registered.

    Args:
        network: what is trained.
        ids: `pad_token_id` and `eos_token_id` of its tokenizer.
    """

    config_class = PretrainedConfig
    main_input_name = "input_ids"

    def __init__(self, network: RewardNetwork, ids: Json) -> None:
        config: Any = PretrainedConfig
        super().__init__(config(num_labels=1, **ids))
        self.trained = torch.nn.ParameterList(network.trained().values())
        self._network = [network]  # in a list, so that torch does not register the frozen LM

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return self._network[0].device

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> SimpleNamespace:
        """Returns `logits` (B, 1), the rewards of rows (B, L)."""
        return SimpleNamespace(logits=self._network[0](input_ids, attention_mask).unsqueeze(-1))

    def floating_point_ops(self, *_: Any, **__: Any) -> int:
        """Nobody reads it."""
        return 0


class PairTrainer(OrderedTrainer, RewardTrainer):  # type: ignore[misc]  # untyped there
    """TRL's trainer over pairs whose order we give, with weights."""

    losses: list[float]

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Computes the weighted loss; TRL's own loss knows no weights, and is not used."""
        weight = inputs.pop("weight")
        _, outputs = super().compute_loss(model, inputs, return_outputs=True)
        chosen, rejected = outputs.logits.squeeze(-1).chunk(2)
        loss = bradley_terry_loss(chosen, rejected, weight, inputs["margin"])
        self.losses.append(float(loss.detach()))
        return (loss, outputs) if return_outputs else loss


class _View(TokenizerView):
    """TRL looks the padding token up in the vocabulary, and sets it."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Nothing special happens: transformers would look the token up in tables that a view does not have."""
        object.__setattr__(self, name, value)

    def get_vocab(self) -> dict[str, int]:
        """Returns the one token that TRL asks for."""
        return {self.pad_token: self.pad_token_id}


class _Checkpoints(TrainerCallback):  # type: ignore[misc]  # untyped there
    """Saves what a resumed training needs, every few steps."""

    def __init__(self, save: Callable[[int], None], first: int, every: int | None) -> None:
        self._save, self._first, self._every = save, first, every

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        done = self._first + int(state.global_step)
        if self._every is not None and done % self._every == 0:
            self._save(done)


def _untrained(config: RewardModelConfig, reads: str) -> RewardModel:
    device = models.pick_device(config.device)
    if config.lora is None and config.dtype in ("bfloat16", "float16"):
        raise ConfigError(f"dtype is {config.dtype}, but without an adapter the LM trains in float32; use auto")
    if config.lora is not None and config.lora.dropout > 0:
        raise ConfigError(f"lora.dropout is {config.lora.dropout}, but reward models train without; set it to 0")
    dtype = str(models.pick_dtype("float32" if config.lora is None else config.dtype, device)).removeprefix("torch.")
    base = describe_base(config.model, config.revision)
    lm: Any = models.load_frozen(config.model, revision=config.revision, dtype=dtype, device=str(device))
    if config.lora is None:
        network = RewardNetwork(unfrozen(lm))
    else:
        network = RewardNetwork(with_lora(lm, config.lora, task="CAUSAL_LM", name=base["name"], seed=config.seed))
    positions = getattr(lm.config.get_text_config(), "max_position_embeddings", None) or config.max_tokens
    return RewardModel(
        network,
        models.load_tokenizer(config.model, config.revision),
        Reading(reads, config.chat, min(config.max_tokens, int(positions))),
        base,
        dtype,
        None if config.lora is None else adapter_settings(network.model),
    )


def _rows(model: RewardModel, pairs: Sequence[PreferencePair], config: RewardModelConfig) -> tuple[list[Json], int]:
    """Returns the rows of TRL's data set, and how many pairs lost the beginning of a row."""
    rows, cut = [], 0
    for pair in pairs:
        if config.margin_scale > 0 and pair.known_margin is None:
            raise ConfigError(
                f"pair '{pair.id}' has no margin above 0, but margin_scale is {config.margin_scale}; set it to 0"
            )
        ids = [model.reading.ids(model.tokenizer, pair.reading, text) for text in (pair.chosen, pair.rejected)]
        # Longer rows were cut to this length; a row that has it exactly counts as well.
        cut += max(map(len, ids)) >= model.reading.max_tokens
        margin = config.margin_scale * (pair.known_margin or 0.0)
        rows.append({"chosen_ids": ids[0], "rejected_ids": ids[1], "margin": margin, "weight": pair.weight})
    return rows, cut


def _fit(
    model: RewardModel, rows: list[Json], config: RewardModelConfig, checkpoint: Path | None, *, resume: bool
) -> list[float]:
    """Trains in place; returns the losses."""
    steps = -(-config.epochs * len(rows) // config.batch_size)
    settings = RunConfig(seed=config.seed, algorithm=AlgorithmConfig(lr=config.lr, grad_clip=config.grad_clip))
    identity = _identity(config, rows)
    first, state = _read_checkpoint(model, checkpoint, identity) if resume and checkpoint is not None else (0, None)
    if first >= steps:
        return []
    adam = Adam(model.network.trained(), settings.algorithm, state)
    device = model.network.device
    with isolated() as scratch:
        shared = arguments(settings, scratch, device, rows=config.batch_size, steps=steps - first)
        padding = pad_id(model.tokenizer)
        trainer = PairTrainer(
            model=NetworkModel(model.network, {"pad_token_id": padding, "eos_token_id": model.tokenizer.eos_token_id}),
            args=TrainingArguments(**shared, max_length=None, disable_dropout=False),
            train_dataset=Dataset.from_list(rows),
            data_collator=collator(padding),
            processing_class=_View(model.tokenizer),
            optimizers=(adam.optimizer, adam.scheduler),
        )
        trainer.order = Order(len(rows), config.batch_size, seed=config.seed, first=first, last=steps)
        trainer.losses = []

        def save(step: int) -> None:
            if checkpoint is not None:
                _write_checkpoint(model, checkpoint, identity, step, adam)

        drive(trainer, _Checkpoints(save, first, config.checkpoint_every))
    return list(trainer.losses)


def collator(padding: int) -> Callable[[list[Json]], dict[str, Tensor]]:
    """Returns what makes a batch of B pairs: rows (2 B, L), the chosen ones first, filled up on the right."""

    def collate(pairs: list[Json]) -> dict[str, Tensor]:
        rows = [pair["chosen_ids"] for pair in pairs] + [pair["rejected_ids"] for pair in pairs]
        longest = max(map(len, rows))
        lengths = torch.tensor([[len(row)] for row in rows])
        return {
            "input_ids": torch.tensor([[*row, *[padding] * (longest - len(row))] for row in rows]),
            "attention_mask": (torch.arange(longest) < lengths).long(),
            "margin": torch.tensor([pair["margin"] for pair in pairs], dtype=torch.float32),
            "weight": torch.tensor([pair["weight"] for pair in pairs], dtype=torch.float32),
        }

    return collate


def _identity(config: RewardModelConfig, rows: list[Json]) -> str:
    """What a checkpoint is of: all that changes the result."""
    what = {"config": config.model_dump(mode="json", exclude={"checkpoint_every"}), "rows": rows}
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


_DONE = "checkpoint.json"
_TENSORS = "checkpoint.safetensors"


def _write_checkpoint(model: RewardModel, folder: Path, identity: str, step: int, adam: Adam) -> None:
    from safetensors.torch import save

    state = adam.state_dict()
    tensors = {f"trained/{name}": value.detach().cpu().contiguous() for name, value in model.network.trained().items()}
    for name, entries in state["optimizer"].items():
        tensors |= {f"adam/{key}/{name}": value.cpu().contiguous() for key, value in entries.items()}
    values = {"step": step, "identity": identity, "scheduler": state["scheduler"]}
    files.save_folder(folder, _DONE, values, {_TENSORS: save(tensors)})


def _read_checkpoint(model: RewardModel, folder: Path, identity: str) -> tuple[int, Json | None]:
    """Fills the network in; returns (steps done, state of Adam), (0, None) where there is no checkpoint."""
    if not (folder / _DONE).is_file():
        return 0, None
    values, contents = files.read_folder(folder, _DONE, "checkpoint")
    if values.get("identity") != identity:
        raise CheckpointError(f"{folder} is of other pairs or settings; delete it, or train with those again")
    tensors = files.tensors_of(contents.get(_TENSORS, b""), str(folder / _TENSORS))
    optimizer: dict[str, Json] = {}
    for name, value in tensors.items():
        part, _, rest = name.partition("/")
        if part == "adam":
            key, _, owner = rest.partition("/")
            optimizer.setdefault(owner, {})[key] = value.to(model.network.device) if value.ndim else value
    try:
        with torch.no_grad():
            for name, own in model.network.trained().items():
                own.copy_(tensors[f"trained/{name}"])
        return int(values["step"]), {"optimizer": optimizer, "scheduler": values["scheduler"]}
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{folder} cannot be read: {' '.join(str(error).split())}; delete it") from error
