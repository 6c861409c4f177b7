"""Loads tasks: a built-in one by name, or a task card by path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from rlprompt.config import TaskConfig
from rlprompt.errors import TaskError
from rlprompt.registry import BUILT_IN
from rlprompt.tasks.cards import Card, Carve, built_in, read_card
from rlprompt.tasks.rows import carved, cut_inputs, drop_overlap, examples_of, fit_columns, sources_of
from rlprompt.tasks.sources import Table, read_file, read_folder, read_hub, read_package
from rlprompt.tasks.task import SPLITS, Task
from rlprompt.tasks.template import Template, TemplateSource
from rlprompt.types import Example

Variant: TypeAlias = Literal["default", "masked", "chat"]


def list_tasks() -> list[str]:
    """Returns the names of the built-in tasks."""
    return sorted([*built_in(), *_generated()])


def load_task(
    name_or_path: str | Path,
    *,
    template: TemplateSource | None = None,
    choices: Sequence[str] | None = None,
    data: str | Path | None = None,
    variant: Variant = "default",
    max_input_words: int | None = None,
) -> Task:
    """Loads a task and checks every row.

    Args:
        name_or_path: a built-in task (see `list_tasks`), or the path of a task card.
        template: replaces the card's template.
        choices: replaces the card's choices (index = label).
        data: a folder with train, dev and test as .tsv, .csv or .jsonl, read instead of the card's source. A
            column has the card's name, or the input is called input, text or sentence, and the label reference or
            label.
        variant: "masked" takes the card's template and choices for masked targets, "chat" those for chat models.
        max_input_words: inputs are cut after so many words; None takes what the card says.

    Raises:
        UnknownNameError: no task has the name.
        TaskError: a card, file or row that does not fit; names the file or split, and the row.
    """
    if variant not in get_args(Variant):
        raise TaskError(f"unknown variant '{variant}'; use one of {', '.join(get_args(Variant))}")
    if max_input_words is not None and max_input_words < 1:
        raise TaskError(f"max_input_words must be at least 1, got {max_input_words}")
    generated = _generated().get(str(name_or_path))
    if generated is not None:
        if data is not None or variant != "default" or max_input_words is not None:
            raise TaskError(f"task '{name_or_path}' is generated; it takes no data, variant or max_input_words")
        return _changed(generated(), template, choices)
    card, file = read_card(name_or_path)
    words = _choices(card, choices, variant)
    source_template = _template(card, file, variant) if template is None else template
    try:
        form = Template(source_template)
    except TaskError as error:
        raise TaskError(f"task '{card.name}': {error}") from error
    splits, source = _splits(card, data, None if words is None else len(words))
    longest = card.max_input_words if max_input_words is None else max_input_words
    if longest is not None:
        splits = cut_inputs(splits, longest)
    return Task(
        name=card.name,
        train=tuple(splits["train"]),
        dev=tuple(splits["dev"]),
        test=tuple(splits["test"]),
        choices=words,
        metric=card.metric,
        template=form,
        max_tokens=card.max_tokens,
        stop=card.stop,
        sampling_temperature=card.sampling_temperature,
        source=source,
        allow_overlap=card.allow_overlap,
    )


def _changed(task: Task, template: TemplateSource | None, choices: Sequence[str] | None) -> Task:
    task = task if template is None else task.with_template(template)
    return task if choices is None else task.with_choices(choices)


def task_from_config(config: TaskConfig) -> Task:
    """Loads the task of a run: `load_task`, then few-shot sampling and the test limit.

    Raises:
        TaskError: as `load_task`.
    """
    task = load_task(
        config.name,
        template=config.template,
        choices=config.choices,
        data=config.data,
        variant=config.variant,
        max_input_words=config.max_input_words,
    )
    return task.few_shot(config.shots, config.dev_shots, config.split_seed).limit_test(config.test_limit)


def _generated() -> dict[str, Callable[[], Task]]:
    """Tasks that are made by code."""
    from rlprompt.tasks.dialogues import dialogue_task
    from rlprompt.tasks.planted import planted_task

    dialogues = {name: partial(dialogue_task, name) for name in BUILT_IN["dialogues"]}
    return {"planted": planted_task, **dialogues}


def _choices(card: Card, choices: Sequence[str] | None, variant: Variant) -> tuple[str, ...] | None:
    if choices is not None:
        if card.choices is None:
            raise TaskError(f"task '{card.name}' generates text ({card.metric}); it has no choices to replace")
        return tuple(choices)
    special = {"masked": card.choices_masked, "chat": card.choices_chat}.get(variant)
    return special or card.choices


def _template(card: Card, file: Path, variant: Variant) -> TemplateSource:
    if variant == "masked":
        if card.template_masked is None:
            raise TaskError(f"{file} has no template_masked; add one with {{mask}}, or give a template")
        return card.template_masked
    if variant == "chat":
        if card.template_chat is None:
            raise TaskError(f"{file} has no template_chat; add one, or give a template of messages")
        return card.template_chat
    return card.template


def _splits(card: Card, data: str | Path | None, num_choices: int | None) -> tuple[dict[str, list[Example]], str]:
    """Reads the examples of every split, and says where they come from."""
    tables, source, carve = _tables(card) if data is None else (read_folder(Path(data)), "files", Carve())
    splits: dict[str, list[Example]] = {}
    for split, table in tables.items():
        own = card.source_columns() or {}
        columns = own if data is None else fit_columns(card.columns or own, table)
        splits[split] = examples_of(table, split, card, columns, num_choices)
    if data is None and card.hub is not None and card.hub.drop_overlap:
        splits = drop_overlap(splits)
    splits = carved(splits, carve)
    for split in SPLITS:
        if not splits.get(split):
            place = tables[split].name if split in tables else f"task '{card.name}'"
            raise TaskError(f"{place}: split '{split}' has no rows; give it a file, or cut it out of train with carve")
    return splits, source


def _tables(card: Card) -> tuple[dict[str, Table], str, Carve]:
    """Reads the card's own source."""
    if card.hub is not None:
        columns = card.source_columns() or {}
        reference = columns.get("reference") if card.labels else None
        decode = reference if isinstance(reference, str) else None
        tables, source = read_hub(card.hub, sources_of(columns), decode=decode)
        return tables, source, card.hub.carve
    if card.package is not None:
        table, source = read_package(card.package)
        return {"train": table}, source, card.package.carve
    files = card.splits.model_dump(exclude_none=True) if card.splits else {}
    return {split: read_file(Path(path)) for split, path in files.items()}, "files", card.carve
