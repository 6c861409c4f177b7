"""The page docs/write-a-task.md: its files, card and program are run, and its key table is complete."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rlprompt.tasks import load_task
from rlprompt.tasks.cards import Card

PAGE = (Path(__file__).parents[2] / "docs" / "write-a-task.md").read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = re.findall(r"`([\w.-]+)`:\n\n```\w+\n(.*?)```", PAGE, flags=re.DOTALL)
    assert [name for name, _ in files] == ["train.jsonl", "dev.jsonl", "test.jsonl", "restaurants.yaml"]
    for name, text in files:
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_the_card_of_the_page_loads(folder: Path) -> None:
    task = load_task(folder / "restaurants.yaml")
    assert [example.reference for example in task.train] == [0, 1, 0, 1]
    assert task.train[2].input == 'The "fresh" fish was not.'
    assert task.warnings == ()


def test_the_program_of_the_page_prints_what_the_page_says(folder: Path) -> None:
    found = re.search(r"```python\n(.*?)```\n\n```text\n(.*?)```", PAGE, flags=re.DOTALL)
    assert found is not None
    done = subprocess.run(
        [sys.executable, "-c", found[1]], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stderr, done.stdout) == ("", found[2])


def test_every_yaml_piece_of_the_page_fits_a_card() -> None:
    pieces = [piece for piece in re.findall(r"```text\n(.*?)```", PAGE, flags=re.DOTALL) if ": " in piece]
    rest = {"columns": {"input": "x"}, "choices": [" a", " b"], "template": "{prompt}", "name": "x"}
    checked = 0
    for piece in pieces:
        data = yaml.safe_load(piece)
        data.pop("base", None)
        own = {} if {"hub", "package", "splits"} & set(data) else {"splits": {"train": "t.tsv"}}
        Card.model_validate({**rest, **own, **data})
        checked += 1
    assert checked == 4


def test_the_table_has_every_key_of_a_card() -> None:
    table = PAGE.partition("## Keys of a card")[2].partition("An unknown key")[0]
    keys = {
        name for row in re.findall(r"^\| (`.*?) \|", table, flags=re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    }
    assert keys == {*Card.model_fields, "base"}
