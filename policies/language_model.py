"""What the policies that are whole LMs share: adapter or full training, values, the reference, writing, files.

The LM's modules are the policy's own and are not registered with it; frozen tensors are the process's one copy of
`rlprompt.models`, which target and other policies read too. Registered is `head` alone: the trained tensors.

Shapes: B rows, C context length, T tokens, d hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import model_validator
from torch import Tensor

from rlprompt.errors import CheckpointError, ConfigError
from rlprompt.model_files import quiet
from rlprompt.models import Head, load_config, load_frozen, resolve_model
from rlprompt.policies.base import Decoding, PromptPolicy, Writer, check_fits, copies, linear, parse_settings
from rlprompt.policies.lora import LoRASettings, Task, saved_name, with_lora
from rlprompt.policies.network import Network

if TYPE_CHECKING:
    from rlprompt.config import PolicyConfig

ADAPTER, FULL, VALUE = "adapter_model.safetensors", "model.safetensors", "value_head.safetensors"


class LMSettings(Decoding):
    """Arguments of `causal-lm` and `seq2seq-lm`."""

    lora: LoRASettings | None = LoRASettings()
    """The adapter that is trained; null trains the whole LM, in float32."""
    value_head: bool = True
    """Whether there is a trained value; without it all values are 0 (algorithm.baseline must be "none")."""
    gradient_checkpointing: bool = False
    """Computes layers again in the backward pass: less memory, about a third more time, no shared contexts."""

    @model_validator(mode="after")
    def _repeatable(self) -> LMSettings:
        if self.gradient_checkpointing and self.lora is not None and self.lora.dropout > 0:
            raise ValueError("gradient_checkpointing cannot draw dropout twice alike; set lora.dropout to 0")
        return self


class LMHead(torch.nn.Module):
    """What is trained: tensors of the LM under their own names in `lm`, and the value head.

    A value is a linear map of the normalised hidden state. It does not train the LM, and starts at 0.
    """

    def __init__(self, model: Any, size: int, *, value: bool) -> None:
        super().__init__()
        self.lm = torch.nn.Module()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                _put(self.lm, name, parameter)
        self.value = linear(size, 1) if value else None
        if self.value is not None:
            torch.nn.init.zeros_(self.value.weight)
            torch.nn.init.zeros_(self.value.bias)

    def values(self, hidden: Tensor) -> Tensor:
        """Maps hidden states (..., d) to values (...)."""
        if self.value is None:
            return hidden.new_zeros(hidden.shape[:-1])
        normalised = torch.nn.functional.layer_norm(hidden.detach(), hidden.shape[-1:])
        value: Tensor = self.value(normalised)
        return value.squeeze(-1)


class LanguageModelPolicy(PromptPolicy):
    """A policy that is an LM, adapted by LoRA or trained whole; see `CausalLMPolicy` and `Seq2SeqLMPolicy`."""

    frozen_features: ClassVar[bool] = False
    shared_by_copies: ClassVar[frozenset[str]] = frozenset({"tokenizer", "_start", "_reference"})
    model_head: ClassVar[Head]
    peft_task: ClassVar[Task]
    network_class: ClassVar[type[Network]]
    head: LMHead
    network: Network
    """Not registered: it holds what is frozen."""

    def __init__(self, config: PolicyConfig, *, prompt_length: int, seed: int = 0) -> None:
        settings = parse_settings(self.kind, LMSettings, config.kwargs)
        super().__init__(config, prompt_length=prompt_length, settings=settings)
        self.lm_settings = settings
        self._check_architecture()
        if settings.lora is None and config.dtype in ("bfloat16", "float16"):
            raise ConfigError(f"policy.dtype is {config.dtype}, but lora: null trains in float32; use auto or float32")
        model: Any = self._stored(torch.device("cpu"))
        if settings.lora is not None:
            model = with_lora(model, settings.lora, task=self.peft_task, name=self._plain_name(), seed=seed)
        else:
            for parameter in model.parameters():
                parameter.data = parameter.data.clone()
                parameter.requires_grad_(True)
        network = self.network_class(model, self.vocabulary_size)
        if settings.gradient_checkpointing:
            network.recompute()
        self.__dict__["network"] = network  # past Module.__setattr__, which would register what is frozen
        self.head = LMHead(model, network.lm.config.get_text_config().hidden_size, value=settings.value_head)
        self._reference: dict[str, Tensor] | None = None  # replaced, but never changed
        self._start: dict[str, Tensor] | None = None
        self._surrounding = _surrounding(self.tokenizer, behind=self.model_head == "seq2seq")
        self._session: _Session | None = None

    @property
    def hf_model(self) -> Any:
        """The `PeftModel`, or without LoRA the transformers model; its trained tensors are those of `trainable`."""
        return self.network.model

    def context_rows(self, context: Tensor) -> list[tuple[int, ...]]:
        """As in the base class, with the special tokens around it that the tokenizer gives every text.

        A decoder-only LM gets the one in front (Gemma's BOS), an encoder both (T5's EOS).
        """
        front, behind = self._surrounding
        return [_surround(row, front, behind) for row in super().context_rows(context)]

    def evaluate(self, context: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Scores prompts; logits and values are 0 at positions that were not written.

        Raises:
            ConfigError: context and prompt are longer than the LM can read.
        """
        self.network.ready(dropout=self.training and torch.is_grad_enabled())
        logits, hidden = self.network(self._checked(context, tokens.shape[1]), tokens.to(self.device))
        values = self.head.values(hidden).masked_fill(tokens.to(self.device) < 0, 0.0)
        return self._softened(logits), values

    @torch.no_grad()
    def reference_logits(self, context: Tensor, tokens: Tensor) -> Tensor:
        """Scores prompts with the adapter off, or with the tensors that `freeze_reference` kept."""
        self.network.ready(dropout=False)
        arguments = (self._checked(context, tokens.shape[1]), tokens.to(self.device))
        kept = self._reference
        if kept is None and self.lm_settings.lora is None:
            kept = self._start_tensors()
        with self.network.model.disable_adapter() if kept is None else nullcontext():
            replaced = {f"model.{name}": value for name, value in (kept or {}).items()}
            logits, _ = torch.func.functional_call(self.network, replaced, arguments)
        return self._softened(logits)

    def freeze_reference(self) -> None:
        """Keeps a copy of the LM's trained tensors as they are now."""
        self._reference = {name: value.detach().clone() for name, value in self.head.lm.state_dict().items()}

    def reference_state(self) -> dict[str, Tensor]:
        """Returns the kept tensors; nothing where the reference is the plain LM."""
        return copies(self._reference or {})

    def load_reference_state(self, state: dict[str, Tensor]) -> None:
        """Replaces the kept tensors; an empty state makes the plain LM the reference."""
        if state:
            check_fits(self.head.lm.state_dict(), state)
        self._reference = {name: value.to(self.device, copy=True) for name, value in state.items()} or None

    def writer(self, context: Tensor) -> Writer:
        """Begins prompts; keys and values of what was read are kept until the writer is dropped."""
        return _LMWriter(self, self._checked(context, self.prompt_length))

    def next_logits(self, context: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Continues the writer of the call before where tokens and weights are those that it knows, else begins."""
        weights = sum(parameter._version for parameter in self.head.parameters())
        session = self._session
        fits = (
            session is not None
            and session.weights == weights
            and session.tokens.shape[1] == tokens.shape[1] - 1
            and torch.equal(session.context, context)
            and torch.equal(session.tokens, tokens[:, :-1])
        )
        if session is None or not fits:
            session = _Session(self.writer(context), context.clone(), tokens[:, :0], weights)
        self._session = None  # a failed forward pass must not leave half a cache behind
        logits = session.writer.next_logits()
        for column in range(session.tokens.shape[1], tokens.shape[1]):
            logits = session.writer.next_logits(tokens[:, column])
        session.tokens = tokens.clone()
        self._session = session
        return session.writer.sampling_logits(logits, mask)

    def load_trainable_state(self, state: dict[str, Tensor]) -> None:
        """As in the base class; what was being written is forgotten."""
        super().load_trainable_state(state)
        self._session = None

    def write_weights(self, folder: Path) -> None:
        """Writes the adapter as PEFT does, or the LM as transformers does; and the value head."""
        from safetensors.torch import save_file

        state = copies(self.head.lm.state_dict())
        if self.lm_settings.lora is not None:
            # PEFT's own function would add a README and the place of the LM on this machine.
            self.hf_model.peft_config["default"].save_pretrained(str(folder))
            tensors = {saved_name(name): value for name, value in state.items()}
            save_file(tensors, folder / ADAPTER, metadata={"format": "pt"})
        else:
            with quiet():
                self.hf_model.save_pretrained(str(folder), max_shard_size="1000GB")
                if hasattr(self.tokenizer, "save_pretrained"):
                    self.tokenizer.save_pretrained(str(folder))
        if self.head.value is not None:
            save_file(copies(self.head.value.state_dict()), folder / VALUE)

    def read_weights(self, files: dict[str, dict[str, Tensor]]) -> None:
        """Takes over the tensors of the adapter or of the LM, and of the value head."""
        wanted = [FULL if self.lm_settings.lora is None else ADAPTER] + [VALUE] * self.lm_settings.value_head
        for name in wanted:
            if name not in files:
                raise CheckpointError(f"the policy's weights cannot be read: no {name}")
        found = files[wanted[0]]
        own = {saved_name(name): name for name in self.head.lm.state_dict()}
        state = {f"lm.{own.get(name, name)}": value for name, value in found.items()}
        self.load_trainable_state(state | {f"value.{name}": value for name, value in files.get(VALUE, {}).items()})

    def __deepcopy__(self, memo: dict[int, Any]) -> PromptPolicy:
        """Copies what is trained, and the modules around it; frozen tensors are shared."""
        trained = {id(parameter) for parameter in self.head.parameters()}
        for parameter in self.network.parameters():
            if id(parameter) not in trained:
                memo[id(parameter)] = torch.nn.Parameter(parameter.detach(), requires_grad=False)
        memo |= {id(buffer): buffer for buffer in self.network.buffers()}
        memo |= {id(tensor): tensor for tensor in self.network.held}
        memo[id(self._session)] = None
        return super().__deepcopy__(memo)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LanguageModelPolicy:
        """Moves what is trained (`to`, `cuda`, ...); what is frozen follows to its device, in its own number type."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # untyped there
        self._session = None
        if self.device != self.network.device and self.device.type != "meta":
            self._follow()
            self.load_reference_state(self._reference or {})
            self._start = None
        return self

    def _follow(self) -> None:
        stored = dict(self._stored(self.device).named_parameters())
        trained = {id(parameter) for parameter in self.head.parameters()}
        for name, parameter in self.network.lm.named_parameters():
            if id(parameter) not in trained:
                parameter.data = stored[name.replace(".base_layer.", ".")].data
        for module in self.network.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(self.device))

    def _start_tensors(self) -> dict[str, Tensor]:
        """The stored tensors that full training started from; others in the process read them too."""
        if self._start is None:
            stored = self._stored(self.device).named_parameters()
            self._start = {name: parameter.detach() for name, parameter in stored}
        return self._start

    def _stored(self, device: torch.device) -> torch.nn.Module:
        """Returns modules of one's own on the process's one copy of the LM's tensors."""
        dtype = "float32" if self.lm_settings.lora is None else self.config.dtype
        return load_frozen(
            self.config.model, revision=self.config.revision, dtype=dtype, device=str(device), head=self.model_head
        )

    def _checked(self, context: Tensor, count: int) -> list[tuple[int, ...]]:
        contexts = self.context_rows(context)
        self.network.check_length(contexts, count)
        return contexts

    def _check_architecture(self) -> None:
        encoder = bool(getattr(load_config(self.config.model, self.config.revision), "is_encoder_decoder", False))
        if encoder and self.model_head == "causal":
            raise ConfigError(f"model '{self.config.model}' has an encoder; use policy.kind=seq2seq-lm")
        if not encoder and self.model_head == "seq2seq":
            raise ConfigError(f"model '{self.config.model}' has no encoder; use policy.kind=causal-lm")

    def _plain_name(self) -> str:
        """The LM's name without a path."""
        reference = resolve_model(self.config.model, self.config.revision)
        return Path(reference.path).name if reference.source == "folder" else reference.name


class _LMWriter(Writer):
    @torch.no_grad()
    def __init__(self, policy: LanguageModelPolicy, contexts: list[tuple[int, ...]]) -> None:
        self.policy = policy
        policy.network.ready(dropout=False)
        self.reading = policy.network.start(contexts)

    @torch.no_grad()
    def next_logits(self, last_tokens: Tensor | None = None) -> Tensor:
        network = self.policy.network
        if last_tokens is not None:
            network.ready(dropout=False)
            network.read(self.reading, last_tokens.to(self.policy.device).unsqueeze(1))
        return self.policy._softened(network.project(self.reading.last))

    def sampling_logits(self, logits: Tensor, mask: Tensor) -> Tensor:
        return self.policy.truncated(logits, mask)


@dataclass
class _Session:
    """A writer that may be continued."""

    writer: Writer
    context: Tensor
    tokens: Tensor
    weights: int
    """Counts changes of the trained tensors."""


def _put(root: torch.nn.Module, name: str, parameter: torch.nn.Parameter) -> None:
    """Registers a parameter under a dotted name, with empty modules on the way."""
    *path, last = name.split(".")
    place = root
    for part in path:
        if part not in place._modules:
            place.add_module(part, torch.nn.Module())
        place = place.get_submodule(part)
    place.register_parameter(last, parameter)


def _surrounding(tokenizer: Any, *, behind: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the ids that the tokenizer puts in front of every text and behind it."""
    whole = tuple(tokenizer.encode("", add_special_tokens=True))
    front = whole[: bool(whole) and whole[0] == tokenizer.bos_token_id]
    return front, whole[len(front) :] if behind else ()


def _surround(row: tuple[int, ...], front: tuple[int, ...], behind: tuple[int, ...]) -> tuple[int, ...]:
    if row[: len(front)] != front:
        row = front + row
    return row if not behind or row[-len(behind) :] == behind else row + behind
