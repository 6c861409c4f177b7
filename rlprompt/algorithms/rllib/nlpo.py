"""NLPO: the policy may only write what a copy of it, refreshed now and then, holds probable.

Reference: Ramamurthy et al. 2022, arXiv:2210.01241, section 4. Shapes: B prompts, C context length, T tokens, V
vocabulary.
"""

from __future__ import annotations

import copy
from typing import cast

import torch

from rlprompt.errors import RunError
from rlprompt.policies import PromptPolicy, Writer


class MaskingPolicy:
    """The copy whose nucleus is the action space.

    Args:
        policy: the policy in training; the copy shares what is frozen.
        top_p: the nucleus holds the fewest most probable allowed tokens whose probabilities add up to this or more.
    """

    def __init__(self, policy: PromptPolicy, top_p: float) -> None:
        self.top_p = top_p
        self.policy = copy.deepcopy(policy).requires_grad_(False)
        self.policy.settings = policy.settings.model_copy(update={"top_k": None, "top_p": top_p})

    def refresh(self, policy: PromptPolicy) -> None:
        """Takes over the policy's weights as they are now."""
        self.load(policy.trainable_state())

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Takes over weights of `PromptPolicy.trainable_state`."""
        self.policy.load_trainable_state(state)

    def next_allowed(self, context: torch.Tensor, tokens: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
        """Restricts the tokens (B, V) that may follow `tokens` (B, t) to the copy's nucleus."""
        return allowed & (self.policy.next_logits(context, tokens, allowed) > float("-inf"))

    def masked(self, policy: PromptPolicy) -> PromptPolicy:
        """Returns something that writes as `policy` does, within the copy's nucleus; only `writer` may be used."""
        return cast(PromptPolicy, _Within(policy, self.policy))


class _Within:
    """Stands for a policy before `write_prompts`, which asks it for a writer and nothing else."""

    def __init__(self, policy: PromptPolicy, masking: PromptPolicy) -> None:
        self.policy = policy
        self.masking = masking

    def writer(self, context: torch.Tensor) -> Writer:
        """Begins prompts with both policies."""
        return _WithinWriter(self.policy.writer(context), self.masking.writer(context))


class _WithinWriter(Writer):
    def __init__(self, writer: Writer, masking: Writer) -> None:
        self.writer = writer
        self.masking = masking
        self.masking_logits: torch.Tensor | None = None

    def next_logits(self, last_tokens: torch.Tensor | None = None) -> torch.Tensor:
        self.masking_logits = self.masking.next_logits(last_tokens)
        return self.writer.next_logits(last_tokens)

    def sampling_logits(self, logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if self.masking_logits is None:
            raise RunError("NLPO's writer was asked for its mask before its first token; call next_logits first")
        nucleus = self.masking.sampling_logits(self.masking_logits, mask) > float("-inf")
        return self.writer.sampling_logits(logits, mask & nucleus)
