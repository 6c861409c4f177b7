"""What every prompt policy is: frozen features, a trainable head, logits and values.

Shapes: B prompts, T prompt length, C context length, d features, V vocabulary.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from rlprompt.config import Section, describe
from rlprompt.errors import CheckpointError, ConfigError
from rlprompt.masks import context_ids
from rlprompt.models import load_tokenizer
from rlprompt.policies.sampling import FORBIDDEN, filter_top_k, filter_top_p
from rlprompt.types import Json

if TYPE_CHECKING:
    from rlprompt.config import PolicyConfig


class Decoding(Section):
    """Arguments that all policies share: how logits become a distribution to sample from."""

    top_k: int | None = Field(None, ge=1)
    """Sampling keeps the k most probable tokens; None keeps all. The losses see the untruncated logits."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Nucleus sampling; used only where `top_k` is None."""
    temperature: float = Field(1.0, gt=0)
    """Divides the logits, for sampling and losses alike, so that both mean the same distribution."""
    logit_bias: float = 0.0
    """Added to all logits. It changes no probability but lowers or lifts soft Q-learning's V = logsumexp."""


SettingsType = TypeVar("SettingsType", bound=Section)


class PromptPolicy(torch.nn.Module, ABC):
    """A policy that writes prompts token by token.

    Only `head` is registered as a submodule: `state_dict`, optimisers, `deepcopy` and checkpoints never see the frozen
    LM. `logits` and `values` take another head of the same shape, so that a target or reference network is a
    `deepcopy` of `head` and shares the features.

    Args:
        config: the policy's section of the configuration.
        prompt_length: the most tokens of a prompt, 1 to 4096.
        settings: the checked arguments of the kind.
    """

    kind: ClassVar[str]
    """The name in the registry."""
    head: torch.nn.Module
    """Everything that is trained: parameters and value head."""
    shared_by_copies: ClassVar[frozenset[str]] = frozenset({"tokenizer"})
    """Attributes that a `deepcopy` of the policy shares with it."""

    def __init__(self, config: PolicyConfig, *, prompt_length: int, settings: Decoding) -> None:
        super().__init__()
        if not 1 <= prompt_length <= 4096:
            raise ConfigError(f"prompt_length must be from 1 to 4096, got {prompt_length}")
        self.config = config
        self.settings = settings
        self.prompt_length = prompt_length
        self.tokenizer: Any = load_tokenizer(config.model, config.revision)
        self.vocabulary_size: int = len(self.tokenizer)

    @property
    def device(self) -> torch.device:
        """Where the head is; results are there too."""
        return next(self.head.parameters()).device

    def context_ids(self, text: str) -> list[int]:
        """Returns the token ids that the policy reads; an empty text is the tokenizer's BOS, else its EOS token.

        Raises:
            ConfigError: the text is empty and the tokenizer has neither token.
        """
        return context_ids(self.tokenizer, text)

    @abstractmethod
    def features(self, context: Tensor, tokens: Tensor) -> Tensor:
        """Returns what predicts each token of given prompts, without gradient.

        Args:
            context: (B, C) token ids, -1 at padding on the right.
            tokens: (B, T) token ids, -1 where not written; the last column is never read.

        Returns:
            (B, T, d); position t has seen the context and tokens[:, :t].
        """

    @abstractmethod
    def next_features(self, context: Tensor, tokens: Tensor) -> Tensor:
        """Returns what predicts the token after `tokens` (B, t), 0 <= t < T, as (B, d), without gradient."""

    @abstractmethod
    def logits(self, features: Tensor, head: torch.nn.Module | None = None) -> Tensor:
        """Returns logits (..., V) in float32 from features (..., d); `head` replaces the policy's own."""

    @abstractmethod
    def values(self, features: Tensor, head: torch.nn.Module | None = None) -> Tensor:
        """Returns values (...) in float32 from features (..., d): the reward that is still expected."""

    def sampling_logits(self, features: Tensor, logits: Tensor, mask: Tensor) -> Tensor:
        """Returns the logits to sample from: -inf at what the mask forbids and at what is truncated.

        Args:
            features: (..., d) of the logits.
            logits: (..., V).
            mask: booleans (..., V), True where a token may be written.
        """
        logits = logits.masked_fill(~mask, FORBIDDEN)
        if self.settings.top_k is not None:
            return filter_top_k(logits, self.settings.top_k)
        if self.settings.top_p is not None:
            return filter_top_p(logits, self.settings.top_p)
        return logits

    def trainable_state(self) -> dict[str, Tensor]:
        """Returns contiguous copies of the head's tensors by name, on the CPU."""
        return {
            name: value.detach().to("cpu", copy=True).contiguous() for name, value in self.head.state_dict().items()
        }

    def load_trainable_state(self, state: dict[str, Tensor]) -> None:
        """Copies what `trainable_state` returned into the head.

        Raises:
            CheckpointError: names, shapes or number types differ.
        """
        own = self.head.state_dict()
        if set(own) != set(state):
            wrong = sorted(set(own) ^ set(state))
            raise CheckpointError(f"weights do not fit the policy: {', '.join(wrong)} missing or not expected")
        for name, value in own.items():
            if value.shape != state[name].shape or value.dtype != state[name].dtype:
                raise CheckpointError(
                    f"weights do not fit the policy: {name} must be {value.dtype} {tuple(value.shape)}, "
                    f"got {state[name].dtype} {tuple(state[name].shape)}"
                )
        self.head.load_state_dict(state)

    def save(self, folder: str | Path, extra: Json | None = None) -> None:
        """Writes the policy into a folder: weights and `policy.json`; see `rlprompt.policies.saving`."""
        from rlprompt.policies.saving import save_policy

        save_policy(self, Path(folder), extra)

    def __deepcopy__(self, memo: dict[int, Any]) -> PromptPolicy:
        """Copies the head; what is frozen is shared."""
        twin = self.__class__.__new__(self.__class__)
        memo[id(self)] = twin
        for name, value in self.__dict__.items():
            twin.__dict__[name] = value if name in self.shared_by_copies else copy.deepcopy(value, memo)
        return twin

    def _softened(self, logits: Tensor) -> Tensor:
        """Applies temperature and bias."""
        if self.settings.temperature != 1.0:
            logits = logits / self.settings.temperature
        return logits + self.settings.logit_bias if self.settings.logit_bias else logits


def parse_settings(kind: str, model: type[SettingsType], kwargs: dict[str, Any]) -> SettingsType:
    """Checks `policy.kwargs`.

    Raises:
        ConfigError: an argument is unknown or out of range.
    """
    try:
        return model.model_validate(kwargs)
    except ValidationError as error:
        raise ConfigError(f"policy.kwargs of '{kind}': {describe(error, model)}") from error


def linear(inputs: int, outputs: int) -> torch.nn.Linear:
    """Returns a layer whose weights are not set yet: PyTorch's own start would draw from the global generator."""
    layer: torch.nn.Linear = torch.nn.utils.skip_init(  # type: ignore[no-untyped-call]
        torch.nn.Linear, inputs, outputs, dtype=torch.float32
    )
    return layer
