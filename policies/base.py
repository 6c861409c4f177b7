"""What every prompt policy is: it writes prompts, scores given ones, and knows the policy it started from.

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
from rlprompt.errors import CheckpointError, ConfigError, RunError
from rlprompt.masks import context_ids
from rlprompt.models import load_tokenizer
from rlprompt.policies.sampling import FORBIDDEN, filter_top_k, filter_top_p
from rlprompt.types import Json

if TYPE_CHECKING:
    from rlprompt.config import PolicyConfig

WEIGHTS = "policy.safetensors"
"""The file of a policy whose trained part is no language model."""


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


class Writer(ABC):
    """A batch of prompts while they are written: what was read so far is kept, each token is read once."""

    @abstractmethod
    def next_logits(self, last_tokens: Tensor | None = None) -> Tensor:
        """Returns the logits (B, V), float32, of the next token, as `PromptPolicy.evaluate` gives them.

        Args:
            last_tokens: (B,) what was written since the last call; None at the first call.
        """

    @abstractmethod
    def sampling_logits(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Returns what to draw from: `next_logits` (B, V), -inf at what the mask (B, V) forbids or is truncated."""


class PromptPolicy(torch.nn.Module, ABC):
    """A policy that writes prompts token by token.

    Only `head` is registered as a submodule: `state_dict`, optimisers, `deepcopy` and checkpoints never see what is
    frozen.

    Args:
        config: the policy's section of the configuration.
        prompt_length: the most tokens of a prompt, 1 to 4096.
        settings: the checked arguments of the kind.
    """

    kind: ClassVar[str]
    """The name in the registry."""
    frozen_features: ClassVar[bool]
    """Whether all that is trained reads features that never change; then the policy is a `FeaturePolicy`."""
    head: torch.nn.Module
    """Everything that is trained, the value head included."""
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

    @property
    def trainable(self) -> torch.nn.Module:
        """What optimisers register: every trained parameter and nothing else."""
        return self.head

    def context_ids(self, text: str) -> list[int]:
        """Returns the token ids that the policy reads; an empty text is the tokenizer's BOS, else its EOS token.

        Raises:
            ConfigError: the text is empty and the tokenizer has neither token.
        """
        return context_ids(self.tokenizer, text)

    def context_rows(self, context: Tensor) -> list[tuple[int, ...]]:
        """Returns the token ids of each row of a context (B, C) without its padding (-1); an empty row as ""."""
        rows = (tuple(token for token in row if token >= 0) for row in context.tolist())
        return [row or tuple(self.context_ids("")) for row in rows]

    @abstractmethod
    def evaluate(self, context: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Scores given prompts in one teacher-forced pass, with gradient.

        Args:
            context: (B, C) token ids, -1 at padding on the right.
            tokens: (B, T) token ids, -1 where not written, on the right; the last column is never read.

        Returns:
            Logits (B, T, V) and values (B, T), float32. Position t has seen the context and tokens[:, :t]. What stands
            at positions that were not written means nothing.
        """

    @abstractmethod
    def reference_logits(self, context: Tensor, tokens: Tensor) -> Tensor:
        """Returns the logits (B, T, V) of the reference policy, without gradient; arguments as of `evaluate`."""

    @abstractmethod
    def freeze_reference(self) -> None:
        """Makes the policy as it is now the reference; at first that is the policy as it was built."""

    @abstractmethod
    def reference_state(self) -> dict[str, Tensor]:
        """Returns copies of the tensors by name, on the CPU, that `load_reference_state` needs to restore it."""

    @abstractmethod
    def load_reference_state(self, state: dict[str, Tensor]) -> None:
        """Restores the reference policy of `reference_state`.

        Raises:
            CheckpointError: names, shapes or number types differ.
        """

    @abstractmethod
    def writer(self, context: Tensor) -> Writer:
        """Begins one prompt for each row of the context (B, C), without gradient."""

    @abstractmethod
    def next_logits(self, context: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Returns what to draw the token after `tokens` from, without gradient; for agents that act token by token.

        Args:
            context: (B, C) as in `evaluate`.
            tokens: (B, t), 0 <= t < T, all written.
            mask: booleans (B, V), True where a token may be written.

        Returns:
            (B, V) as of `Writer.sampling_logits`. A call that adds one token to those of the call before reads that
            token only.
        """

    def forget(self) -> None:
        """Drops what is kept of contexts, where anything is; an engine does so before every iteration."""

    def truncated(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Returns logits (..., V) with -inf at what the mask (..., V) forbids and at what top-k or top-p leave out."""
        logits = logits.masked_fill(~mask, FORBIDDEN)
        if self.settings.top_k is not None:
            return filter_top_k(logits, self.settings.top_k)
        if self.settings.top_p is not None:
            return filter_top_p(logits, self.settings.top_p)
        return logits

    def trainable_state(self) -> dict[str, Tensor]:
        """Returns contiguous copies of the head's tensors by name, on the CPU."""
        return copies(self.head.state_dict())

    def load_trainable_state(self, state: dict[str, Tensor]) -> None:
        """Copies what `trainable_state` returned into the head.

        Raises:
            CheckpointError: names, shapes or number types differ.
        """
        check_fits(self.head.state_dict(), state)
        self.head.load_state_dict(state)

    def save(self, folder: str | Path, extra: Json | None = None) -> None:
        """Writes the policy into a folder: weights and `policy.json`; see `rlprompt.policies.saving`."""
        from rlprompt.policies.saving import save_policy

        save_policy(self, Path(folder), extra)

    def write_weights(self, folder: Path) -> None:
        """Writes everything that was trained into an empty folder."""
        import safetensors.torch

        safetensors.torch.save_file(self.trainable_state(), folder / WEIGHTS)

    def read_weights(self, files: dict[str, dict[str, Tensor]]) -> None:
        """Takes over the tensors of the *.safetensors files that `write_weights` wrote.

        Raises:
            CheckpointError: a file is missing, or names, shapes or number types differ.
        """
        if WEIGHTS not in files:
            raise CheckpointError(f"the policy's weights cannot be read: no {WEIGHTS}")
        self.load_trainable_state(files[WEIGHTS])

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


class FeaturePolicy(PromptPolicy):
    """A policy whose head reads features of a frozen part, which are computed once for every head.

    `logits` and `values` take another head of the same shape, so that a target or reference network is a `deepcopy`
    of `head` and shares the features. A subclass calls `freeze_reference` once its head is built.
    """

    frozen_features: ClassVar[bool] = True
    _reference: torch.nn.Module

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
        return self.truncated(logits, mask)

    def evaluate(self, context: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Computes features, then logits and values of the head."""
        features = self.features(context, tokens)
        return self.logits(features), self.values(features)

    @torch.no_grad()
    def reference_logits(self, context: Tensor, tokens: Tensor) -> Tensor:
        """Computes the same features, then logits of the kept copy of the head."""
        return self.logits(self.features(context, tokens), head=self._reference.to(self.device))

    def freeze_reference(self) -> None:
        """Keeps a copy of the head as it is now."""
        # Past Module.__setattr__, which would register the copy as something to train and to save.
        self.__dict__["_reference"] = copy.deepcopy(self.head).requires_grad_(False)

    def reference_state(self) -> dict[str, Tensor]:
        """Returns the tensors of the kept copy of the head."""
        return copies(self._reference.state_dict())

    def load_reference_state(self, state: dict[str, Tensor]) -> None:
        """Replaces the tensors of the kept copy of the head."""
        check_fits(self._reference.state_dict(), state)
        self._reference.load_state_dict(state)

    def writer(self, context: Tensor) -> Writer:
        """Begins prompts; `next_features` keeps what was read."""
        return _FeatureWriter(self, context)

    @torch.no_grad()
    def next_logits(self, context: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Computes the next features, then what to draw from."""
        features = self.next_features(context, tokens)
        return self.sampling_logits(features, self.logits(features), mask)


class _FeatureWriter(Writer):
    def __init__(self, policy: FeaturePolicy, context: Tensor) -> None:
        self.policy = policy
        self.context = context
        self.tokens = torch.empty((len(context), 0), dtype=torch.long, device=context.device)
        self.features: Tensor | None = None

    @torch.no_grad()
    def next_logits(self, last_tokens: Tensor | None = None) -> Tensor:
        if last_tokens is not None:
            self.tokens = torch.cat([self.tokens, last_tokens.to(self.tokens.device).unsqueeze(1)], dim=1)
        self.features = self.policy.next_features(self.context, self.tokens)
        return self.policy.logits(self.features)

    def sampling_logits(self, logits: Tensor, mask: Tensor) -> Tensor:
        if self.features is None:
            raise RunError("sampling_logits was called before next_logits; call next_logits first")
        return self.policy.sampling_logits(self.features, logits, mask)


def copies(state: dict[str, Any]) -> dict[str, Tensor]:
    """Returns contiguous copies of tensors on the CPU, by the same names."""
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in state.items()}


def check_fits(own: dict[str, Any], state: dict[str, Tensor]) -> None:
    """Checks that a state has the names, shapes and number types of another.

    Raises:
        CheckpointError: it has not.
    """
    if set(own) != set(state):
        wrong = sorted(set(own) ^ set(state))
        raise CheckpointError(f"weights do not fit the policy: {', '.join(wrong)} missing or not expected")
    for name, value in own.items():
        if value.shape != state[name].shape or value.dtype != state[name].dtype:
            raise CheckpointError(
                f"weights do not fit the policy: {name} must be {value.dtype} {tuple(value.shape)}, "
                f"got {state[name].dtype} {tuple(state[name].shape)}"
            )


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
    layer: torch.nn.Linear = torch.nn.utils.skip_init(  # type: ignore[no-untyped-call]  # untyped there
        torch.nn.Linear, inputs, outputs, dtype=torch.float32
    )
    return layer
