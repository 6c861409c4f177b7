"""Tasks that are dialogues with a scripted partner: numbered scenarios, the same on every machine."""

from __future__ import annotations

from rlprompt.dialogues import METRIC, reference_of
from rlprompt.registry import resolve
from rlprompt.tasks.task import Task
from rlprompt.tasks.template import Template
from rlprompt.types import Example

_SIZES = {"train": 96, "dev": 64, "test": 200}
_FIRST = {"train": 0, "dev": 1_000, "test": 2_000}


def dialogue_task(partner: str) -> Task:
    """Returns the task of a partner's scenarios: train from 0, dev from 1000, test from 2000; equal ones are left out.

    Its metric is the partner's score of the dialogue, in [0, 1].

    Args:
        partner: a registered name of the group "dialogues".
    """
    script = resolve("dialogues", partner)()
    seen: set[str] = set()
    splits: dict[str, tuple[Example, ...]] = {}
    for split, size in _SIZES.items():
        rows: list[Example] = []
        number = _FIRST[split]
        while len(rows) < size:
            text, state = script.scenario(number)
            number += 1
            if text in seen:
                continue
            seen.add(text)
            rows.append(Example(f"{split}/{len(rows)}", text, reference_of(partner, state)))
        splits[split] = tuple(rows)
    return Task(
        name=partner,
        train=splits["train"],
        dev=splits["dev"],
        test=splits["test"],
        choices=None,
        metric=METRIC,
        template=Template(script.template),
        max_tokens=script.max_tokens,
        source="generated",
    )
