"""The LM adaptor: a frozen LM with a small trainable network between its last hidden state and its output layer.

Reference: RLPrompt, Deng et al. 2022, arXiv:2205.12548, section 2.2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor

from rlprompt.policies.base import Decoding, FeaturePolicy, linear, parse_settings
from rlprompt.policies.frozen import FrozenLM, Reading, shared_frozen_lm
from rlprompt.policies.sampling import FORBIDDEN, filter_top_k
from rlprompt.seeding import integer_seed

if TYPE_CHECKING:
    from rlprompt.config import PolicyConfig

WEIGHT_GAIN = 1e-4
BIAS_START = -1e-4


class AdaptorSettings(Decoding):
    """Arguments of `lm-adaptor`."""

    mode: Literal["replace", "residual"] = "replace"
    """"replace": logits = LM head(MLP(h)), as published; starts close to uniform over the vocabulary. "residual":
    logits = LM head(h + MLP(h)); starts at the LM's own distribution."""
    hidden: int = Field(2048, ge=1, le=65536)
    """Width of the MLP (RLPrompt: 2048)."""
    top_k: int | None = Field(256, ge=1)
    """As in `Decoding` (RLPrompt: 256 for classification, 50 for style transfer)."""
    fluent_top_k: int | None = Field(None, ge=1)
    """Sampling keeps only tokens that are among the k most probable allowed ones of the plain LM (RLPrompt's fluent
    mode: 20)."""


class AdaptorHead(torch.nn.Module):
    """The trainable part: Linear(d, hidden), ReLU, Linear(hidden, d), and a linear value of the normalised state.

    Weights start Xavier-uniform with gain 1e-4 and biases at -1e-4, as published; the value head starts at 0.

    Args:
        size: d, size of a hidden state of the LM.
        hidden: width of the MLP.
        seed: of the starting weights.
    """

    def __init__(self, size: int, hidden: int, seed: int) -> None:
        super().__init__()
        self.expand = linear(size, hidden)
        self.contract = linear(hidden, size)
        self.value = linear(size, 1)
        generator = torch.Generator().manual_seed(seed)
        for layer in (self.expand, self.contract):
            torch.nn.init.xavier_uniform_(layer.weight, gain=WEIGHT_GAIN, generator=generator)
            torch.nn.init.constant_(layer.bias, BIAS_START)
        torch.nn.init.zeros_(self.value.weight)
        torch.nn.init.zeros_(self.value.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps hidden states (..., d) to what the LM head reads in their place (or added to them), (..., d)."""
        adapted: Tensor = self.contract(torch.relu(self.expand(hidden)))
        return adapted

    def values(self, hidden: Tensor) -> Tensor:
        """Maps hidden states (..., d) to values (...)."""
        # Some LMs have hidden states with entries in the hundreds; normalised, one learning rate fits all.
        normalised = torch.nn.functional.layer_norm(hidden, hidden.shape[-1:])
        value: Tensor = self.value(normalised)
        return value.squeeze(-1)


class LMAdaptorPolicy(FeaturePolicy):
    """A frozen causal LM with a trainable adaptor before its output layer.

    Features are hidden states of the frozen LM, float32, also where the LM computes in bfloat16. The context's keys
    and values are computed once and kept; sampling continues from the previous call's.

    Args:
        config: `kwargs` are those of `AdaptorSettings`.
        prompt_length: the most tokens of a prompt.
        seed: the run's seed; decides the starting weights.

    Raises:
        ModelNotFoundError: the LM cannot be found, or is no causal LM.
        ConfigError: an argument is unknown or out of range.
    """

    kind: ClassVar[str] = "lm-adaptor"
    shared_by_copies: ClassVar[frozenset[str]] = frozenset({"tokenizer", "frozen"})

    def __init__(self, config: PolicyConfig, *, prompt_length: int, seed: int = 0) -> None:
        settings = parse_settings(self.kind, AdaptorSettings, config.kwargs)
        super().__init__(config, prompt_length=prompt_length, settings=settings)
        self.adaptor_settings = settings
        self.frozen = self._frozen_lm(torch.device("cpu"))
        self.head = AdaptorHead(self.frozen.hidden_size, settings.hidden, integer_seed(seed, "policy"))
        self.freeze_reference()
        self._reading: Reading | None = None

    def features(self, context: Tensor, tokens: Tensor) -> Tensor:
        """Returns hidden states (B, T, d): one forward pass over the tokens, none over a context read before."""
        reading = self.frozen.start(self.context_rows(context))
        first = reading.last.unsqueeze(1)
        following = self.frozen.read(reading, tokens[:, :-1].to(self.frozen.device))
        return torch.cat([first, following], dim=1).to(self.device)

    def next_features(self, context: Tensor, tokens: Tensor) -> Tensor:
        """Returns the hidden state (B, d) after the last token; computes only what the previous call had not."""
        contexts = self.context_rows(context)
        tokens = tokens.to(self.frozen.device)
        reading = self._continued(contexts, tokens)
        if reading is None:
            reading = self.frozen.start(contexts)
        self._reading = None  # a failed forward pass must not leave half a cache behind
        self.frozen.read(reading, tokens[:, reading.tokens.shape[1] :])
        self._reading = reading
        return reading.last.to(self.device)

    def forget(self) -> None:
        """Drops the contexts that the frozen LM has kept."""
        self._reading = None
        self.frozen.forget()

    def logits(self, features: Tensor, head: torch.nn.Module | None = None) -> Tensor:
        """Returns the output layer's logits of the adapted hidden states, with temperature and bias."""
        adapted = (head if head is not None else self.head)(features)
        if self.adaptor_settings.mode == "residual":
            adapted = features + adapted
        return self._softened(self.frozen.project(adapted))

    def values(self, features: Tensor, head: torch.nn.Module | None = None) -> Tensor:
        """Returns the value head's output; it does not share layers with the policy."""
        return cast(AdaptorHead, head if head is not None else self.head).values(features)

    def sampling_logits(self, features: Tensor, logits: Tensor, mask: Tensor) -> Tensor:
        """Masks, keeps what is fluent under the plain LM where asked for, then truncates."""
        if self.adaptor_settings.fluent_top_k is not None:
            plain = self.frozen.project(features).masked_fill(~mask, FORBIDDEN)
            mask = mask & (filter_top_k(plain, self.adaptor_settings.fluent_top_k) > FORBIDDEN)
        return super().sampling_logits(features, logits, mask)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LMAdaptorPolicy:
        """Moves the head (`to`, `cuda`, ...); the frozen LM follows to its device, but keeps its number type."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # untyped there
        if self.device != self.frozen.device and self.device.type != "meta":
            self.frozen = self._frozen_lm(self.device)
            self._reading = None
        return self

    def _frozen_lm(self, device: torch.device) -> FrozenLM:
        return shared_frozen_lm(
            self.config.model,
            revision=self.config.revision,
            dtype=self.config.dtype,
            device=device,
            vocabulary_size=self.vocabulary_size,
        )

    def _continued(self, contexts: list[tuple[int, ...]], tokens: Tensor) -> Reading | None:
        """Returns the previous call's reading where its rows are the beginning of these."""
        reading = self._reading
        if reading is None or reading.contexts != contexts:
            return None
        count = reading.tokens.shape[1]
        if count > tokens.shape[1] or not torch.equal(reading.tokens, tokens[:, :count]):
            return None
        return reading
