"""Learners in processes of their own: each computes the gradients of some rows, and the run's process adds them up.

The cuts between rows, and the order in which gradients are added, depend on the batch alone. So the number of learners
changes nothing in what is learnt, and one that is lost is started again and asked again: it keeps no state.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rlprompt.algorithms.rllib.batches import BEFORE, CONTEXT, EPISODE, MASK, PLACE, TOKENS
from rlprompt.algorithms.rllib.chunks import row_chunks
from rlprompt.errors import RunError

MOST_IN_A_ROW = 8
"""So often a learner is started again for the same rows."""
LONGEST_PAUSE_S = 30.0
COMES_UP_S = 600.0
OF_ROWS = (CONTEXT, EPISODE, PLACE, BEFORE)
"""Columns that have no token of the prompt's own."""


@dataclass(frozen=True)
class GradientRun:
    """Some rows of a minibatch whose gradient is computed at once."""

    columns: dict[str, torch.Tensor]
    of_tokens: torch.Tensor
    """Their share of the minibatch's written tokens."""
    of_rows: torch.Tensor
    """Their share of its rows."""


@dataclass(frozen=True)
class Gradient:
    """What a learner found for one run of rows."""

    parts: dict[str, torch.Tensor]
    """Shares of the loss and of its parts."""
    gradients: tuple[torch.Tensor | None, ...]
    """Of the module's trained parameters, in their order."""


def gradient_runs(batch: dict[str, Any], vocabulary_size: int) -> list[GradientRun]:
    """Cuts a minibatch of a whole LM into runs of rows that fit into memory, by lengths alone."""
    columns = {name: batch[name] for name in batch}
    rows_in_all, tokens_in_all = len(columns[TOKENS]), columns[MASK].sum().clamp(min=1)
    found = []
    for rows, width in row_chunks(columns[CONTEXT], columns[TOKENS], vocabulary_size, gradient=True):
        part = {name: value[rows] for name, value in columns.items()}
        part |= {name: value[:, :width] for name, value in part.items() if name not in OF_ROWS}
        share = torch.tensor(len(part[TOKENS]) / rows_in_all)
        found.append(GradientRun(part, part[MASK].sum() / tokens_in_all, share))
    return found


class Learner:
    """Computes gradients in a process of its own.

    Args:
        config: RLlib's, of the run.
        spec: of all modules.
    """

    def __init__(self, config: Any, spec: Any) -> None:
        from rlprompt.algorithms.rllib.learner import PromptLearner

        self._learner = PromptLearner(config=config, module_spec=spec)
        self._learner.build()

    def differentiate(
        self, module_id: str, state: dict[str, Any], reference: Any, runs: Sequence[GradientRun]
    ) -> list[Gradient]:
        """Returns the gradient of each run.

        Args:
            module_id: whose they are.
            state: what the policy trains, and the KL coefficient of now.
            reference: what it was at the start of the run.
            runs: rows.
        """
        module = self._learner.prompt_modules[module_id]
        module.policy.load_reference_state(reference)
        module.policy.load_trainable_state(state["weights"])
        module.kl_coefficient = state["kl_coefficient"]
        parameters = list(module.policy.trainable.parameters())
        found = []
        for run in runs:
            for parameter in parameters:
                parameter.grad = None
            parts = self._learner.differentiate(module_id, run)
            found.append(Gradient(parts, tuple(parameter.grad for parameter in parameters)))
        return found


class Helpers:
    """The learners of a run.

    Args:
        config: RLlib's, of the run.
        spec: of all modules.
        number: of learners.
        cpus: of each; also, rounded down, the threads that it computes with.
        max_restarts: how often lost ones are started again before the run gives up.
    """

    def __init__(self, config: Any, spec: Any, *, number: int, cpus: float, max_restarts: int) -> None:
        import ray

        self._built_from = (ray.put(config), ray.put(spec))
        self._options = {"num_cpus": cpus}
        self._left = max_restarts
        self._references: dict[str, Any] = {}
        self.actors = [self._start() for _ in range(number)]
        self.restarts = 0
        """Learners that were lost and came back."""

    def _start(self) -> Any:
        import ray

        return ray.remote(Learner).options(**self._options).remote(*self._built_from)

    def forget(self, module_id: str) -> None:
        """Has a module's reference sent anew: it is another one."""
        self._references.pop(module_id, None)

    def differentiate(
        self, module_id: str, module: Any, runs: Sequence[GradientRun]
    ) -> Iterator[dict[str, torch.Tensor]]:
        """Adds the runs' gradients to those of the module's parameters, in order; yields the parts of the loss.

        Raises:
            RunError: learners were lost too often.
        """
        import ray

        policy = module.policy
        if module_id not in self._references:
            self._references[module_id] = ray.put(policy.reference_state())
        state = ray.put({"weights": policy.trainable_state(), "kl_coefficient": module.kl_coefficient})
        size = -(-len(runs) // len(self.actors))
        shares = [runs[first : first + size] for first in range(0, len(runs), size)]
        order = (module_id, state, self._references[module_id])
        asked = [actor.differentiate.remote(*order, share) for actor, share in zip(self.actors, shares, strict=False)]
        parameters = list(policy.trainable.parameters())
        for place, share in enumerate(shares):
            for found in self._answer(place, asked[place], order, share):
                for parameter, gradient in zip(parameters, found.gradients, strict=True):
                    if gradient is not None:
                        parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad + gradient
                yield found.parts

    def _answer(self, place: int, asked: Any, order: tuple[Any, ...], share: Sequence[GradientRun]) -> list[Gradient]:
        import ray
        from ray.exceptions import RayError, RayTaskError

        in_a_row = 0
        while True:
            try:
                found: list[Gradient] = ray.get(asked)
                return found
            except RayTaskError:
                raise
            except RayError as error:  # it died, was killed for memory, or its node is gone
                in_a_row += 1
                self._replace(place, in_a_row, error)
                asked = self.actors[place].differentiate.remote(*order, share)

    def _replace(self, place: int, in_a_row: int, error: Exception) -> None:
        """Starts a lost learner again, later and later where it was lost at once."""
        import ray

        if not self._left or in_a_row > MOST_IN_A_ROW:
            often = (
                f"{in_a_row} times in a row" if self._left else "more often than ray.max_num_learner_restarts allows"
            )
            said = next(iter(str(error).splitlines()), type(error).__name__)
            raise RunError(
                f"learners were lost {often} ({said}); look at the memory of the machines, and resume the run with "
                "--resume"
            ) from error
        time.sleep(min(2.0 ** (in_a_row - 1) - 1, LONGEST_PAUSE_S))
        self._left -= 1
        self.restarts += 1
        self.actors[place] = self._start()
        up, _ = ray.wait([self.actors[place].__ray_ready__.remote()], timeout=COMES_UP_S)
        if not up:
            raise RunError(
                f"a learner that was lost did not come back within {COMES_UP_S:.0f} s; give the cluster room for "
                "ray.num_learners, and resume the run with --resume"
            ) from error

    def close(self) -> None:
        """Ends the learners' processes."""
        import ray

        for actor in self.actors:
            ray.kill(actor)
