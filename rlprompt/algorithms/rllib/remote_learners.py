"""Learners in processes of their own: each computes gradients of some rows, and the run's process adds them up.

Where a minibatch is cut, and in which order gradients are added, depends on the batch alone. So the number of learners
changes nothing in what is learnt, and one that is lost is started again and asked again: it keeps no state.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from rlprompt.algorithms.chunks import row_chunks
from rlprompt.algorithms.learner_processes import LearnerProcesses, shared_out
from rlprompt.algorithms.rllib.batches import BEFORE, CONTEXT, EPISODE, MASK, PLACE, TOKENS

if TYPE_CHECKING:
    from rlprompt.cluster import RayConfig

OF_ROWS = (CONTEXT, EPISODE, PLACE, BEFORE)
"""Columns that have no token of the prompt's own."""


@dataclass(frozen=True)
class Chunk:
    """Some rows of a minibatch, differentiated at once."""

    columns: dict[str, torch.Tensor]
    of_tokens: torch.Tensor
    """Their share of the minibatch's written tokens."""
    of_rows: torch.Tensor
    """Their share of its rows."""


@dataclass(frozen=True)
class Gradient:
    """What a learner found for one chunk."""

    parts: dict[str, torch.Tensor]
    """Shares of the loss and of its parts."""
    gradients: tuple[torch.Tensor | None, ...]
    """Of the parameters that the policy trains, in their order."""


def gradient_chunks(batch: dict[str, Any], vocabulary_size: int) -> list[Chunk]:
    """Cuts a minibatch of a whole LM into chunks that fit into memory, by lengths alone."""
    columns = {name: batch[name] for name in batch}
    rows_in_all, tokens_in_all = len(columns[TOKENS]), columns[MASK].sum().clamp(min=1)
    found = []
    for rows, width in row_chunks(columns[CONTEXT], columns[TOKENS], vocabulary_size, gradient=True):
        part = {name: value[rows] for name, value in columns.items()}
        part |= {name: value[:, :width] for name, value in part.items() if name not in OF_ROWS}
        share = torch.tensor(len(part[TOKENS]) / rows_in_all)
        found.append(Chunk(part, part[MASK].sum() / tokens_in_all, share))
    return found


class RemoteLearner:
    """Computes gradients; a Ray actor.

    Args:
        config: RLlib's, of the run.
        spec: of all modules.
        threads: that it computes with.
    """

    def __init__(self, config: Any, spec: Any, threads: int) -> None:
        from rlprompt.algorithms.rllib.learner import PromptLearner

        torch.set_num_threads(threads)  # OMP_NUM_THREADS of the node would otherwise go before ours
        self._learner = PromptLearner(config=config, module_spec=spec)
        self._learner.build()

    def differentiate(
        self, module_id: str, state: dict[str, Any], reference: Any, chunks: Sequence[Chunk]
    ) -> list[Gradient]:
        """Returns the gradient of each chunk.

        Args:
            module_id: whose they are.
            state: what the policy trains, and the KL coefficient of now.
            reference: what the policy was at the start of the run.
            chunks: rows.
        """
        module = self._learner.prompt_modules[module_id]
        module.policy.load_reference_state(reference)
        module.policy.load_trainable_state(state["weights"])
        module.kl_coefficient = state["kl_coefficient"]
        parameters = list(module.policy.trainable.parameters())
        found = []
        for chunk in chunks:
            for parameter in parameters:
                parameter.grad = None
            parts = self._learner.differentiate(module_id, chunk)
            found.append(Gradient(parts, tuple(parameter.grad for parameter in parameters)))
        return found


class RemoteLearners(LearnerProcesses):
    """The learners of a run.

    Args:
        config: RLlib's, of the run.
        spec: of all modules.
        settings: the section `ray`.
    """

    def __init__(self, config: Any, spec: Any, settings: RayConfig) -> None:
        import ray

        self._config, self._spec = ray.put(config), ray.put(spec)
        self._references: dict[str, Any] = {}
        super().__init__(settings)

    def _start(self) -> Any:
        import ray

        options = {"num_cpus": self.settings.num_cpus_per_learner}
        return ray.remote(RemoteLearner).options(**options).remote(self._config, self._spec, self.threads)

    def forget(self, module_id: str) -> None:
        """Has a module's reference sent anew: it is another one."""
        self._references.pop(module_id, None)

    def differentiate(self, module_id: str, module: Any, chunks: Sequence[Chunk]) -> Iterator[dict[str, torch.Tensor]]:
        """Adds the chunks' gradients to those of the module's parameters, in order; yields the parts of the loss.

        Raises:
            RunError: learners were lost too often, or do not come back.
        """
        import ray

        policy = module.policy
        if module_id not in self._references:
            self._references[module_id] = ray.put(policy.reference_state())
        state = ray.put({"weights": policy.trainable_state(), "kl_coefficient": module.kl_coefficient})
        orders = [
            (module_id, state, self._references[module_id], share) for share in shared_out(chunks, len(self.actors))
        ]
        parameters = list(policy.trainable.parameters())
        found: list[Gradient]
        for found in self.ask("differentiate", orders):
            for piece in found:
                for parameter, gradient in zip(parameters, piece.gradients, strict=True):
                    if gradient is not None:
                        parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad + gradient
                yield piece.parts
