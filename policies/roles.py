"""One policy in several roles: a learnt vector for each role is added to what the head reads.

Shapes: B prompts, T tokens, d features, N roles, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from rlprompt.errors import ConfigError
from rlprompt.policies.base import FeaturePolicy


class RoleHead(torch.nn.Module):
    """A policy's head, and a vector (d,) for each of N roles; all 0 at first, so that all roles are the same policy."""

    def __init__(self, base: torch.nn.Module, roles: int, size: int) -> None:
        super().__init__()
        self.base = base
        self.roles = torch.nn.Parameter(torch.zeros(roles, size))


class RolePolicy(FeaturePolicy):
    """A policy with frozen features in one of N roles; `at` gives the same policy in another one.

    Its features are those of the policy and a one-hot vector of the role, so they never change, and a copy of the head
    (a reference, a target network) knows the roles, too.

    Args:
        base: the policy; its head becomes part of this one's.
        roles: N, at least 1.

    Raises:
        ConfigError: the policy's features are no vectors that something could be added to.
    """

    def __init__(self, base: FeaturePolicy, roles: int) -> None:
        torch.nn.Module.__init__(self)
        size = getattr(getattr(base, "frozen", None), "hidden_size", None)
        if size is None:
            raise ConfigError(
                f"team.weights is 'embedding', which adds to the hidden states of an lm-adaptor, but the policy is "
                f"'{base.kind}'; use policy.kind=lm-adaptor, or team.weights=shared"
            )
        self.kind = base.kind  # type: ignore[misc]  # saved as the policy that it is, with its roles beside it
        self.config, self.settings, self.prompt_length = base.config, base.settings, base.prompt_length
        self.tokenizer, self.vocabulary_size = base.tokenizer, base.vocabulary_size
        self.num_roles = roles
        self.role = 0
        # Past Module.__setattr__: only the head is registered.
        self.__dict__["base"] = base
        self.head = RoleHead(base.head, roles, int(size))
        self.freeze_reference()

    def at(self, role: int) -> RolePolicy:
        """Returns the policy in a role, from 0 to N - 1; what is trained is the same object."""
        view = copy.copy(self)
        view.role = role
        return view

    def features(self, context: Tensor, tokens: Tensor) -> Tensor:
        """Returns the policy's features and the role, (B, T, d + N)."""
        return self._with_role(self._policy.features(context, tokens))

    def next_features(self, context: Tensor, tokens: Tensor) -> Tensor:
        """Returns the next features and the role, (B, d + N)."""
        return self._with_role(self._policy.next_features(context, tokens))

    def logits(self, features: Tensor, head: torch.nn.Module | None = None) -> Tensor:
        """Returns the policy's logits (..., V) in the role of each row."""
        used = self._head(head)
        return self._policy.logits(self._moved(features, used), head=used.base)

    def values(self, features: Tensor, head: torch.nn.Module | None = None) -> Tensor:
        """Returns the policy's values (...) in the role of each row."""
        used = self._head(head)
        return self._policy.values(self._moved(features, used), head=used.base)

    def sampling_logits(self, features: Tensor, logits: Tensor, mask: Tensor) -> Tensor:
        """Returns what the policy samples from."""
        return self._policy.sampling_logits(features[..., : -self.num_roles], logits, mask)

    def forget(self) -> None:
        """Drops what the policy keeps of contexts."""
        self._policy.forget()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RolePolicy:
        """Moves the head (`to`, `cuda`, ...), and with it what the policy has frozen."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # untyped there
        self._policy._apply(fn, recurse)  # type: ignore[no-untyped-call]  # untyped there
        return self

    @property
    def _policy(self) -> FeaturePolicy:
        return cast(FeaturePolicy, self.__dict__["base"])

    def _head(self, head: torch.nn.Module | None) -> RoleHead:
        return cast(RoleHead, head if head is not None else self.head)

    def _with_role(self, features: Tensor) -> Tensor:
        role = features.new_zeros((*features.shape[:-1], self.num_roles))
        role[..., self.role] = 1.0
        return torch.cat([features, role], dim=-1)

    def _moved(self, features: Tensor, head: RoleHead) -> Tensor:
        return features[..., : -self.num_roles] + features[..., -self.num_roles :] @ head.roles
