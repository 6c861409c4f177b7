"""From stored rows to examples: columns, labels, and splits that are cut out of train without a leak."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from rlprompt.errors import TaskError, did_you_mean
from rlprompt.tasks.cards import Card, Carve, Columns
from rlprompt.tasks.sources import Table, permutation
from rlprompt.tasks.task import interleave
from rlprompt.types import Example

_INPUTS = ("input", "text", "sentence")
_REFERENCES = ("reference", "label")


def examples_of(table: Table, split: str, card: Card, columns: Columns, num_choices: int | None) -> list[Example]:
    """Turns the rows of one split into examples with the ids "split/row".

    Args:
        table: the rows.
        split: "train", "dev" or "test".
        card: gives the label names.
        columns: our column: the table's column or columns.
        num_choices: number of choices; None for a generation task, whose references are texts.

    Raises:
        TaskError: a missing column, an input that is no text, a label without a choice; names file and row.
    """
    used = set(sources_of(columns))
    for column in used:
        if column not in table.columns and table.rows:
            raise TaskError(
                f"{table.name} has no column '{column}'{did_you_mean(column, table.columns)}; set it under columns"
            )
    further = [column for column in table.columns if column not in used]
    examples = []
    for number, row in table.rows:
        where = f"{table.name}, row {number}"
        values = {ours: _value(where, row, theirs) for ours, theirs in columns.items()}
        text = values.pop("input")
        if not isinstance(text, str):
            raise TaskError(f"{where}: the input must be text, got {type(text).__name__}")
        given = values.pop("reference", None)
        if card.reference_pattern is not None:
            given = _matched(where, given, card.reference_pattern)
        reference = (
            _answer(where, given)
            if num_choices is None
            else _label(where, given, card.labels, num_choices, "reference" in columns)
        )
        kept = {column: row[column] for column in further if column in row}
        examples.append(Example(f"{split}/{number}", text, reference, {**kept, **values}))
    return examples


def sources_of(columns: Columns) -> list[str]:
    """Returns the names of the data's columns that a mapping reads."""
    names = [name for theirs in columns.values() for name in ([theirs] if isinstance(theirs, str) else theirs)]
    return list(dict.fromkeys(names))


def fit_columns(columns: Columns | None, table: Table) -> Columns:
    """Returns the columns for local files of a built-in task.

    The card's names where the file has them; else the usual ones: input from "input", "text" or "sentence",
    reference from "reference" or "label".
    """
    wanted = {} if columns is None else dict(columns)
    fitted: Columns = {}
    for ours, usual in (("input", _INPUTS), ("reference", _REFERENCES)):
        theirs = wanted.pop(ours, None)
        if theirs is not None and set(sources_of({ours: theirs})) <= set(table.columns):
            fitted[ours] = theirs
        else:
            fitted[ours] = next((name for name in usual if name in table.columns), usual[-1])
    return {**fitted, **wanted}


def carved(splits: dict[str, list[Example]], carve: Carve) -> dict[str, list[Example]]:
    """Cuts dev and test out of train where the card says so.

    Of the rows of train with the same input the first is kept; rows that stand in another split are not cut out.
    The choice is fixed (no seed), stratified by class, and goes through the classes in turn. Ids keep the row's
    number in the file of train.

    Raises:
        TaskError: more rows asked for than there are.
    """
    wanted = {split: number for split, number in (("test", carve.test), ("dev", carve.dev)) if number is not None}
    if not wanted:
        return splits
    result = dict(splits)
    train = _without_repeats(splits.get("train", []))
    for split, number in wanted.items():
        if splits.get(split):
            raise TaskError(f"carve.{split} is {number}, but the source has a split '{split}'; remove one of them")
        taken = {example.input for other, rows in splits.items() if other != "train" for example in rows}
        chosen = _stratified([row for row in train if row.input not in taken], split, number, carve)
        ids = {example.id for example in chosen}
        train = [example for example in train if example.id not in ids]
        result[split] = [replace(row, id=f"{split}/{row.id.partition('/')[2]}") for row in chosen]
    return {**result, "train": train}


def drop_overlap(splits: dict[str, list[Example]]) -> dict[str, list[Example]]:
    """Takes rows out of train that stand in dev or test, and rows out of dev that stand in test."""
    later: set[str] = set()
    result: dict[str, list[Example]] = {}
    for split in ("test", "dev", "train"):
        rows = [example for example in splits.get(split, []) if example.input not in later]
        later |= {example.input for example in rows}
        result[split] = rows
    return result


def cut_inputs(splits: dict[str, list[Example]], words: int) -> dict[str, list[Example]]:
    """Cuts every input after so many words; the white space between those that are left stays as it is.

    >>> cut_inputs({"train": [Example("train/0", " a  b c")]}, 2)["train"][0].input
    ' a  b'
    """
    return {
        split: [replace(example, input=_first_words(example.input, words)) for example in examples]
        for split, examples in splits.items()
    }


def _first_words(text: str, number: int) -> str:
    end = len(text)
    for count, word in enumerate(re.finditer(r"\S+", text), start=1):
        if count == number:
            end = word.end()
            break
    return text[:end]


def _matched(where: str, given: Any, pattern: str) -> str:
    found = re.match(pattern, given) if isinstance(given, str) else None
    if found is None or found[1] is None:
        raise TaskError(
            f"{where}: the reference {given!r} does not begin with what reference_pattern asks for: {pattern}"
        )
    return found[1]


def _value(where: str, row: Any, theirs: str | list[str]) -> Any:
    names = [theirs] if isinstance(theirs, str) else theirs
    for name in names:
        if name not in row:
            raise TaskError(f"{where}: no column '{name}'{did_you_mean(name, row)}")
    if isinstance(theirs, str):
        return row[theirs]
    for name in names:
        if not isinstance(row[name], str):
            raise TaskError(f"{where}: column '{name}' must be text to be joined, got {type(row[name]).__name__}")
    return " ".join(row[name] for name in names)


def _answer(where: str, given: Any) -> str | None:
    if given is None or isinstance(given, str):
        return given
    if isinstance(given, (int, float)) and not isinstance(given, bool):
        return str(given)
    raise TaskError(f"{where}: the reference must be text or a number, got {type(given).__name__}")


def _label(where: str, given: Any, names: Sequence[str] | None, num_choices: int, mapped: bool) -> int:
    """A label is one of the names if the card has names and it is one, else an index into the choices."""
    if not mapped:
        raise TaskError(f"{where}: no label; a task with choices needs columns: {{reference: ...}}")
    text = str(given).lower() if isinstance(given, bool) else str(given)
    if names is not None and text in names:
        return names.index(text)
    # Digits only: int() would also read "1_0" and other scripts' digits.
    is_index = isinstance(given, int) or (isinstance(given, str) and given.isascii() and given.strip().isdigit())
    index = int(given) if is_index else -1
    if not 0 <= index < num_choices:
        known = f"0 to {num_choices - 1}" + (f" or one of {', '.join(names)}" if names is not None else "")
        raise TaskError(f"{where}: label {given!r} has no choice; labels are {known}")
    return index


def _without_repeats(examples: Iterable[Example]) -> list[Example]:
    first: dict[str, Example] = {}
    for example in examples:
        first.setdefault(example.input, example)
    return list(first.values())


def _stratified(examples: list[Example], split: str, number: int, carve: Carve) -> tuple[Example, ...]:
    if number >= len(examples):
        raise TaskError(f"carve.{split} is {number}, but train has {len(examples)} different rows; ask for fewer")
    classes: dict[Any, list[Example]] = {}
    for index in permutation(len(examples), f"carve/{split}"):
        # Generation tasks have no classes: their references are answers.
        reference = examples[index].reference
        label = reference if carve.by_reference or isinstance(reference, int) else None
        classes.setdefault(label, []).append(examples[index])
    groups = [rows for _, rows in sorted(classes.items(), key=lambda item: -1 if item[0] is None else item[0])]
    quotas = _quotas([len(rows) for rows in groups], number, carve.balanced)
    if any(quota > len(rows) for quota, rows in zip(quotas, groups, strict=True)):
        raise TaskError(f"carve.{split} is {number} balanced rows, but a class has too few; ask for fewer")
    return interleave([rows[:quota] for rows, quota in zip(groups, quotas, strict=True)])


def _quotas(counts: Sequence[int], number: int, balanced: bool) -> list[int]:
    """Rows of each class, largest remainder first; ties go to the lower label.

    >>> _quotas([30, 10], 8, False), _quotas([30, 10], 9, True)
    ([6, 2], [5, 4])
    """
    shares = [number / len(counts) if balanced else number * count / sum(counts) for count in counts]
    quotas = [int(share) for share in shares]
    order = sorted(range(len(counts)), key=lambda index: (quotas[index] - shares[index], index))
    for index in order[: number - sum(quotas)]:
        quotas[index] += 1
    return quotas
