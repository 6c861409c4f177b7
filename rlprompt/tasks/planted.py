"""The task that goes with `PlantedTarget`: numbered items with seeded, balanced labels."""

from __future__ import annotations

import functools

from rlprompt.errors import TaskError
from rlprompt.seeding import generator
from rlprompt.tasks.task import Task
from rlprompt.tasks.template import Template
from rlprompt.types import Example

CHOICES = (" no", " yes")
TEMPLATE = "{input} {prompt}"
_FIRST_NUMBER = {"train": 0, "dev": 1_000, "test": 2_000}


def planted_task(num_train: int = 64, num_dev: int = 64, num_test: int = 128) -> Task:
    """Returns the built-in task `planted`: the same examples on every machine.

    Inputs are "item 0", "item 1", ... (dev from 1000, test from 2000); labels are balanced over every two
    neighbours.

    Args:
        num_train: train examples, 1 to 1000; dev and test likewise.
        num_dev: dev examples.
        num_test: test examples.

    Raises:
        TaskError: a number is out of range.
    """
    sizes = {"train": num_train, "dev": num_dev, "test": num_test}
    for split, size in sizes.items():
        if not 1 <= size <= 1_000:
            raise TaskError(f"planted_task(num_{split}=...) must be 1 to 1000, got {size}")
    splits = {split: _examples(split, size) for split, size in sizes.items()}
    return Task(
        name="planted",
        train=splits["train"],
        dev=splits["dev"],
        test=splits["test"],
        choices=CHOICES,
        metric=None,
        template=Template(TEMPLATE),
        source="generated",
    )


@functools.lru_cache(maxsize=4_096)
def planted_label(number: int) -> int:
    """Returns the label (0 or 1) of an item: of 2k and 2k + 1, a seeded coin says which is 1."""
    coin = int(generator(0, "planted-label", number // 2).integers(2))
    return coin ^ (number % 2)


def _examples(split: str, size: int) -> tuple[Example, ...]:
    first = _FIRST_NUMBER[split]
    return tuple(
        Example(id=f"{split}/{row}", input=f"item {first + row}", reference=planted_label(first + row))
        for row in range(size)
    )
