"""The policy of a run in several processes: each scores and differentiates the tokens of some rows.

TRL's trainers, their losses and the optimiser stay in the run's own process; see
`rlprompt.algorithms.trl.token_scores`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlprompt.algorithms.learner_processes import LearnerProcesses, shared_out
from rlprompt.algorithms.trl.model import PolicyModel
from rlprompt.algorithms.trl.token_scores import Outer, Rows, Scored, ScoredHere, Scorer, TokenScores, added
from rlprompt.config import PolicyConfig, RunConfig
from rlprompt.policies import build_policy
from rlprompt.types import Json

if TYPE_CHECKING:
    from rlprompt.algorithms.trl.rollout import Rollout


@dataclass(frozen=True)
class Recipe:
    """What a process builds its copy of the policy from."""

    policy: Json
    prompt_length: int
    seed: int
    code: Json
    """Where the user's modules come from: `allow_modules` and `search_path`."""
    masks: Json
    """Arguments of `PolicyModel`."""
    reference: dict[str, Tensor]


@dataclass(frozen=True)
class Pass:
    """What a forward pass is of."""

    number: int
    """Of the passes of the run."""
    reference: bool
    gradient: bool
    """Whether it may be differentiated."""
    entropy_gradient: bool


class RemoteModel:
    """A copy of the policy; a Ray actor.

    It keeps the graphs of the newest pass that may be differentiated. One that does not have them, since it is new,
    makes the pass again.

    Args:
        recipe: what it is built from.
        threads: that it computes with.
    """

    def __init__(self, recipe: Recipe, threads: int) -> None:
        torch.set_num_threads(threads)  # OMP_NUM_THREADS of the node would otherwise go before ours
        search_path = recipe.code.get("search_path")
        policy = build_policy(
            PolicyConfig.model_validate(recipe.policy),
            prompt_length=recipe.prompt_length,
            seed=recipe.seed,
            allow_modules=tuple(recipe.code.get("allow_modules", ())),
            search_path=None if search_path is None else Path(search_path),
        )
        policy.load_reference_state(recipe.reference)
        policy.eval()
        self._policy = policy
        self._models = {of: PolicyModel(policy, **recipe.masks, reference=of) for of in (False, True)}
        self._newest: tuple[int, ScoredHere] | None = None

    def score(self, of: Pass, weights: dict[str, Tensor], chunks: Sequence[Rows]) -> list[TokenScores]:
        """Returns the scores of each chunk."""
        self._newest = None  # its graphs are freed before there are others
        found = self._pass(of, weights, chunks)
        if of.gradient:
            self._newest = (of.number, found)
        return found.values()

    def gradients(
        self, of: Pass, weights: dict[str, Tensor], chunks: Sequence[Rows], outer: Sequence[Outer]
    ) -> list[list[Tensor | None]]:
        """Returns for each chunk the gradients of what is trained; see `products`."""
        newest, self._newest = self._newest, None
        scored = newest[1] if newest is not None and newest[0] == of.number else self._pass(of, weights, chunks)
        return list(scored.by_chunk(outer))

    def _pass(self, of: Pass, weights: dict[str, Tensor], chunks: Sequence[Rows]) -> ScoredHere:
        self._policy.load_trainable_state(weights)
        model = self._models[of.reference]
        model.entropy_gradient = of.entropy_gradient
        return model.start(chunks, gradient=of.gradient)


class RemoteModels(LearnerProcesses):
    """The copies of a run's policy.

    Args:
        config: of the run.
        rollout: of the run.
        code: where the copies find the user's modules.
    """

    def __init__(self, config: RunConfig, rollout: Rollout, code: Json) -> None:
        import ray

        self._weights: tuple[int, Any] | None = None
        self._passes = 0
        self._recipe = ray.put(
            Recipe(
                policy=config.policy.model_dump(),
                prompt_length=config.env.prompt_length,
                seed=config.seed,
                code=code,
                masks=rollout.masks(),
                reference=rollout.policy.reference_state(),
            )
        )
        super().__init__(config.ray)

    def _start(self) -> Any:
        import ray

        options = {"num_cpus": self.settings.num_cpus_per_learner}
        return ray.remote(RemoteModel).options(**options).remote(self._recipe, self.threads)

    def scorer(self, model: PolicyModel) -> Scorer:
        """Returns who computes in the place of a model."""
        return _Elsewhere(self, model)

    def next_pass(self, model: PolicyModel, *, gradient: bool) -> Pass:
        """Returns what a forward pass of a model is of."""
        self._passes += 1
        return Pass(self._passes, model.reference, gradient, model.entropy_gradient)

    def weights(self, model: PolicyModel) -> Any:
        """Returns Ray's reference to the weights of now, which are sent once for each change."""
        import ray

        version = sum(parameter._version for parameter in model.policy.trainable.parameters())
        if self._weights is None or self._weights[0] != version:
            self._weights = (version, ray.put(model.policy.trainable_state()))
        return self._weights[1]


@dataclass
class _Elsewhere:
    """Computes chunks in the learners' processes."""

    learners: RemoteModels
    model: PolicyModel

    def start(self, chunks: Sequence[Rows], *, gradient: bool) -> Scored:
        """Scores chunks; with `gradient` they can be differentiated afterwards."""
        of, weights = self.learners.next_pass(self.model, gradient=gradient), self.learners.weights(self.model)
        shares = shared_out(chunks, len(self.learners.actors))
        answers = self.learners.ask("score", [(of, weights, share) for share in shares])
        return _ScoredElsewhere(self.learners, of, weights, shares, [one for found in answers for one in found])


@dataclass
class _ScoredElsewhere:
    learners: RemoteModels
    of: Pass
    weights: Any
    shares: list[Sequence[Rows]]
    found: list[TokenScores]

    def values(self) -> list[TokenScores]:
        return self.found

    def gradients(self, outer: Sequence[Outer]) -> list[Tensor | None]:
        orders, first = [], 0
        for share in self.shares:
            orders.append((self.of, self.weights, share, list(outer[first : first + len(share)])))
            first += len(share)
        return added(found for answer in self.learners.ask("gradients", orders) for found in answer)
