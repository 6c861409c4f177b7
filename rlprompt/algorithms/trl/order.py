"""Training on given rows in an order that the run's seed alone decides."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils.data import Sampler
from transformers import Trainer

from rlprompt.seeding import generator


class Order(Sampler[int]):
    """The pairs of the steps from `first` on: one keyed permutation per epoch, one epoch behind the other.

    Args:
        num_pairs: how many there are.
        batch_size: pairs of one step.
        seed: the run's seed.
        first: the first step, from 0.
        last: the step behind the last one.
        round_number: the round whose pairs they are; None where one file serves the whole run.
    """

    def __init__(
        self, num_pairs: int, batch_size: int, *, seed: int, first: int, last: int, round_number: int | None = None
    ) -> None:
        self._num_pairs, self._seed = num_pairs, seed
        self._keys = () if round_number is None else (round_number,)
        self._places = range(first * batch_size, last * batch_size)

    def __len__(self) -> int:
        """Returns the number of pairs, repeated ones counted each time."""
        return len(self._places)

    def __iter__(self) -> Iterator[int]:
        """Yields the numbers of the pairs."""
        epoch, order = -1, None
        for place in self._places:
            if place // self._num_pairs != epoch or order is None:
                epoch = place // self._num_pairs
                order = generator(self._seed, "pairs", *self._keys, epoch).permutation(self._num_pairs)
            yield int(order[place % self._num_pairs])


class OrderedTrainer(Trainer):  # type: ignore[misc]  # untyped there
    """Base, beside a trainer of TRL or alone, of trainers over rows whose order we give."""

    order: Order
    loss: float = float("nan")
    """Of the newest step."""

    def _send_telemetry(self) -> None:
        """Says nothing: TRL would count its users."""

    def _get_train_sampler(self, *_: Any) -> Order:
        return self.order

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One gradient; the loss is kept for the report."""
        loss: Tensor = super().training_step(*args, **kwargs)
        self.loss = float(loss)
        return loss
