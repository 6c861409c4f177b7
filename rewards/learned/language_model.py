"""A reward model: a causal LM that reads a text after its context, and a scalar head on its last hidden state.

Reference: Ouyang et al. 2022, arXiv:2203.02155, section 3.5. It is trained by `rlprompt.algorithms.trl.reward_model`.

Shapes: B rows, L tokens of a row, d hidden.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlprompt import models
from rlprompt.contexts import context_ids, text_ids
from rlprompt.errors import CheckpointError, ConfigError
from rlprompt.rewards.learned import files
from rlprompt.rewards.learned.reading import LearnedReward
from rlprompt.types import FloatArray, Json

DESCRIPTION = "reward-model.json"
WEIGHTS = "reward-model.safetensors"
WHAT = "reward model"
HEAD = "head.weight"

_ROWS = (4, 32)
"""Least and most rows of a batch: one of fewer than four rows may differ from larger ones in the last bits."""
_TOKENS_PER_BATCH = 4096
_BUCKET = 16


class RewardNetwork:
    """The LM, plain or with its adapter, and the head.

    Args:
        model: an LM of transformers, or the `peft.PeftModel` around it.
        head: weights (d,); zeros by default, so that all texts are worth the same at first.
    """

    def __init__(self, model: Any, head: Tensor | None = None) -> None:
        self.model = model.eval()  # nothing drops out: a text has one reward
        size = int(self.lm.config.get_text_config().hidden_size)
        start = torch.zeros(size) if head is None else head
        self.head = torch.nn.Parameter(start.to(self.device, torch.float32))

    @property
    def lm(self) -> Any:
        """The LM of transformers, with its adapter's layers where it has any."""
        return self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model

    @property
    def device(self) -> torch.device:
        """Where the LM is."""
        device: torch.device = next(self.lm.parameters()).device
        return device

    def trained(self) -> dict[str, torch.nn.Parameter]:
        """Returns what is trained, by the names in the file: the head, and the adapter's or the LM's tensors."""
        found = {
            name.replace(".default.", "."): value  # PEFT's name for the adapter, which no file of PEFT has either
            for name, value in self.model.named_parameters()
            if value.requires_grad
        }
        return {HEAD: self.head, **found}

    def __call__(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Returns the rewards (B,) of rows (B, L) of tokens, padded on the right where the mask (B, L) is 0."""
        return last_hidden(self.lm, ids, mask) @ self.head


def last_hidden(lm: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Returns the hidden state of the last token of each row, (B, d) float32; arguments as of `RewardNetwork`."""
    hidden = lm.base_model(input_ids=ids, attention_mask=mask, use_cache=False, return_dict=True)[0]
    last: Tensor = hidden[torch.arange(len(ids), device=hidden.device), mask.sum(dim=1) - 1]
    return last.float()


@dataclass(frozen=True)
class Reading:
    """How a context and a text become the tokens of one row."""

    reads: str
    """What the context is: "input" or "context"."""
    chat: bool
    """Whether an input is the user's message in the chat template of the LM, where it has one; a context never is."""
    max_tokens: int
    """A longer row loses its beginning: the text that is judged stands at the end."""

    def ids(self, tokenizer: Any, context: str, text: str) -> list[int]:
        """Returns the tokens of one row; the last one is EOS, where the tokenizer has one."""
        # A context stands as the policy read it; an input without a turn of its own ends with its line.
        chat = self.chat and self.reads == "input" and bool(getattr(tokenizer, "chat_template", None))
        before = context if self.reads == "context" or chat else f"{context}\n"
        # A word that goes on after text begins with a space; one that begins a turn, a line or a text does not.
        gap = " " if before and not before[-1].isspace() and not chat else ""
        row = [*context_ids(tokenizer, before, chat=chat), *text_ids(tokenizer, gap + text)]
        if tokenizer.eos_token_id is not None:
            row.append(int(tokenizer.eos_token_id))
        front = list(tokenizer.encode("", add_special_tokens=True))[:1]
        if not front or front != [tokenizer.bos_token_id]:
            return row[-self.max_tokens :]
        body = row[1:] if row[:1] == front else row
        return front + body[-(self.max_tokens - 1) :]  # some LMs read nothing well without their BOS


def in_batches(
    rows: Sequence[list[int]], compute: Callable[[Tensor, Tensor], Tensor], device: torch.device, longest: int
) -> FloatArray:
    """Computes something of rows of tokens that does not depend on the rows beside them.

    Args:
        rows: N rows of at least one token.
        compute: (ids (B, L), mask (B, L)) -> (B, ...).
        device: where the ids are wanted.
        longest: most tokens of a row.

    Returns:
        (N, ...) in float64.
    """
    buckets: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        buckets.setdefault(min(-(-len(row) // _BUCKET) * _BUCKET, longest), []).append(index)
    found: dict[int, FloatArray] = {}
    for length, places in sorted(buckets.items()):
        size = min(max(_TOKENS_PER_BATCH // length, _ROWS[0]), _ROWS[1])
        for first in range(0, len(places), size):
            batch = places[first : first + size]
            filled = [rows[index] for index in batch] + [rows[batch[0]]] * max(0, _ROWS[0] - len(batch))
            ids = torch.tensor([row + [0] * (length - len(row)) for row in filled], device=device)
            mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in filled], device=device)
            values = compute(ids, mask)[: len(batch)].double().cpu().numpy()
            found.update(zip(batch, values, strict=True))
    return np.stack([found[index] for index in range(len(rows))]) if rows else np.zeros(0)


@dataclass
class RewardModel:
    """A reward model that scores texts; a text's reward does not depend on the texts beside it."""

    network: RewardNetwork
    tokenizer: Any
    reading: Reading
    base: Json
    """Name, revision, sha256 and source of the LM."""
    dtype: str
    lora: Json | None
    """The adapter's settings as PEFT names them; None where the whole LM was trained."""
    facts: Json = field(default_factory=dict)

    @property
    def reads(self) -> str:
        """What the contexts are: "input" or "context"."""
        return self.reading.reads

    @torch.no_grad()
    def score(self, contexts: Sequence[str], texts: Sequence[str]) -> FloatArray:
        """Returns the reward of N texts, each after its own context, (N,)."""
        rows = [self.reading.ids(self.tokenizer, *pair) for pair in zip(contexts, texts, strict=True)]
        return in_batches(rows, self.network, self.network.device, self.reading.max_tokens)

    def save(self, folder: str | Path) -> None:
        """Writes the trained tensors and `reward-model.json`.

        Raises:
            RunError: the folder cannot be written.
        """
        from safetensors.torch import save

        tensors = {name: value.detach().cpu().contiguous() for name, value in self.network.trained().items()}
        values = {
            "kind": "bradley-terry",
            "base": self.base,
            "dtype": self.dtype,
            "reads": self.reading.reads,
            "chat": self.reading.chat,
            "max_tokens": self.reading.max_tokens,
            "lora": self.lora,
            **self.facts,
        }
        files.save_folder(folder, DESCRIPTION, values, {WEIGHTS: save(tensors)})

    @classmethod
    def load(cls, folder: str | Path, *, base: str | None = None, device: str = "auto") -> RewardModel:
        """Reads what `save` wrote.

        Args:
            folder: where it is.
            base: the LM, where it is not found under the saved name (a local folder, for example).
            device: "auto", "cpu", "cuda", ...

        Raises:
            ConfigError: no reward model is there, or its LM was a local folder and is not given.
            CheckpointError: a file is damaged, or the LM is another one than in training.
            ModelNotFoundError: the LM is not on this machine.
        """
        values, contents = files.read_folder(folder, DESCRIPTION, WHAT)
        where = str(Path(folder) / DESCRIPTION)
        reading = Reading(
            reads=files.field(values, "reads", str, where),
            chat=files.field(values, "chat", bool, where),
            max_tokens=files.field(values, "max_tokens", int, where),
        )
        described = files.field(values, "base", dict, where)
        lora = files.field(values, "lora", (dict, type(None)), where)
        dtype = files.field(values, "dtype", str, where)
        tensors = files.tensors_of(contents.get(WEIGHTS, b""), str(Path(folder) / WEIGHTS))
        name, revision = check_base(described, base, str(folder))
        model: Any = models.load_frozen(name, revision=revision, dtype=dtype, device=device)
        network = RewardNetwork(unfrozen(model) if lora is None else with_adapter(model, lora, where))
        _fill(network, tensors, where)
        facts = {key: value for key, value in values.items() if key not in _OWN}
        tokenizer = models.load_tokenizer(name, revision)
        return cls(network, tokenizer, reading, described, dtype, lora, facts)


_OWN = ("format_version", "kind", "base", "dtype", "reads", "chat", "max_tokens", "lora", "files")


def describe_base(name: str, revision: str | None) -> Json:
    """Returns what a folder says about its LM: no path; as in `policy.json`."""
    reference = models.resolve_model(name, revision)
    return {
        "name": Path(reference.path).name if reference.source == "folder" else reference.name,
        "revision": reference.revision,
        "sha256": reference.sha256,
        "source": reference.source,
    }


def check_base(described: Mapping[str, Any], given: str | None, where: str) -> tuple[str, str | None]:
    """Returns (name, revision) of the LM to load.

    A copy from another source (a folder instead of the hub) cannot be compared; its tensors must then have the shapes.

    Raises:
        ConfigError: it was a local folder, and none is given.
        CheckpointError: the LM here is another one than in training.
    """
    name = described.get("name")
    if not isinstance(name, str):
        raise CheckpointError(f"{where}: 'base.name' is missing or of the wrong type; train it again")
    if described.get("source") == "folder" and given is None:
        raise ConfigError(f"{where}: its LM '{name}' was a local folder; give that folder as base")
    found = name if given is None else given
    revision = described.get("revision") if given is None else None
    here = describe_base(found, revision)
    # A checksum covers the files of its source; a generated LM and one of a hub are known by name and revision.
    keys = ("sha256",) if described.get("sha256") is not None else ("name", "revision")
    same_source = here["source"] == described.get("source")
    differs = same_source and any(here[key] != described.get(key) for key in keys)
    if differs or (not same_source and "generated" in (here["source"], described.get("source"))):
        raise CheckpointError(f"{where} was trained on another LM than '{found}': on '{name}'; give that one as base")
    return found, revision


def with_adapter(model: Any, lora: Mapping[str, Any], where: str) -> Any:
    """Puts an adapter of saved settings into an LM, in place; its tensors are still to be filled in.

    Raises:
        CheckpointError: the settings do not fit the LM.
    """
    import peft

    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **dict(lora)))
    except (TypeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{where}: its adapter does not fit the LM: {' '.join(str(error).split())}") from error
    return adapted


def unfrozen(model: Any) -> Any:
    """Makes an LM trainable, in place, all but an output layer of its own: tensors of its own, with gradients."""
    for parameter in model.base_model.parameters():
        parameter.data = parameter.data.clone()
        parameter.requires_grad_(True)
    return model


def adapter_settings(model: Any) -> Json:
    """Returns what `with_adapter` needs to build the adapter of a `peft.PeftModel` again."""
    settings = model.peft_config["default"]
    targets = settings.target_modules
    return {
        "r": settings.r,
        "lora_alpha": settings.lora_alpha,
        "target_modules": targets if isinstance(targets, str) else sorted(targets),
        "fan_in_fan_out": settings.fan_in_fan_out,
    }


def _fill(network: RewardNetwork, tensors: Mapping[str, Tensor], where: str) -> None:
    own = network.trained()
    wrong = sorted(set(own) ^ set(tensors))
    wrong += [name for name in own if name in tensors and own[name].shape != tensors[name].shape]
    if wrong:
        raise CheckpointError(f"{where}: its weights do not fit its LM: {', '.join(wrong[:3])}; give the right base")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name])


class LanguageModelReward(LearnedReward):
    """The reward of a text under a saved reward model; higher is better, and only differences mean something.

    Args:
        model: its folder.
        of: "prompt" (what the policy wrote) or "output" (what the target answered).
        base: its LM, where it is not found under the saved name (a local folder, for example).
        device: "auto", "cpu", "cuda", ...

    Raises:
        ConfigError: no reward model is there.
        CheckpointError: a damaged one, or one of another LM.
        ModelNotFoundError: its LM is not on this machine.
    """

    def __init__(self, model: str, of: str = "prompt", *, base: str | None = None, device: str = "auto") -> None:
        loaded = RewardModel.load(model, base=base, device=device)
        super().__init__("reward-model", loaded, of, loaded.reads)
