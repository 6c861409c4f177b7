"""Tasks: what is checked when they are made, few-shot sampling, columns."""

import dataclasses
from collections import Counter
from typing import Any

import pytest

from rlprompt.errors import TaskError
from rlprompt.tasks import Task, Template
from rlprompt.types import Example


def rows(split: str, number: int, classes: int = 2, **columns: Any) -> tuple[Example, ...]:
    return tuple(Example(f"{split}/{row}", f"{split} {row}", row % classes, columns) for row in range(number))


def make_task(**overrides: Any) -> Task:
    values: dict[str, Any] = {
        "name": "toy",
        "train": rows("train", 40),
        "dev": rows("dev", 20),
        "test": rows("test", 10),
        "choices": (" no", " yes"),
        "metric": None,
        "template": Template("{input} {prompt}"),
        **overrides,
    }
    return Task(**values)


def test_few_shot_draws_the_asked_number_of_each_class_in_turn() -> None:
    task = make_task().few_shot(4, 3, seed=0)
    assert [example.reference for example in task.train] == [0, 1] * 4
    assert [example.reference for example in task.dev] == [0, 1] * 3
    assert len({example.id for example in task.train}) == 8
    assert task.test == make_task().test
    assert task.warnings == ()


def test_few_shot_depends_on_the_seed_alone() -> None:
    task = make_task()
    assert task.few_shot(4, 4, 7) == task.few_shot(4, 4, 7)
    assert task.few_shot(4, 4, 7).train != task.few_shot(4, 4, 8).train
    # Asking for more dev rows, or shorter train, changes nothing in what was drawn.
    assert task.few_shot(4, 9, 7).train == task.few_shot(4, 4, 7).train
    assert task.few_shot(2, 4, 7).train == task.few_shot(4, 4, 7).train[:4]


def test_few_shot_seeds_reach_every_row() -> None:
    counts: Counter[str] = Counter()
    for seed in range(200):
        counts.update(example.id for example in make_task().few_shot(4, None, seed).train)
    # 40 rows, 8 drawn: each is expected 200 * 8 / 40 = 40 times with standard deviation sqrt(200 * .2 * .8) = 5.7.
    assert len(counts) == 40
    assert max(abs(count - 40) for count in counts.values()) < 5 * 5.7


def test_none_takes_the_whole_split() -> None:
    task = make_task().few_shot(None, None, 0)
    assert (task.train, task.dev) == (make_task().train, make_task().dev)


def test_a_class_that_runs_short_gives_all_its_rows_and_a_warning() -> None:
    task = make_task().few_shot(16, 32, 0)
    assert len(task.train) == 32
    assert len(task.dev) == 20
    assert task.warnings == (
        "dev has 10 rows of class ' no', fewer than the 32 asked",
        "dev has 10 rows of class ' yes', fewer than the 32 asked",
    )


def test_without_choices_shots_count_in_all() -> None:
    def answers(split: str, number: int) -> tuple[Example, ...]:
        return tuple(Example(f"{split}/{row}", f"{split} {row}", f"answer {row}") for row in range(number))

    task = make_task(
        choices=None,
        metric="exact-match",
        train=answers("train", 9),
        dev=answers("dev", 2),
        test=answers("test", 2),
    )
    drawn = task.few_shot(4, 3, 0)
    assert len(drawn.train) == 4
    assert drawn.warnings == ("dev has 2 rows of class any, fewer than the 3 asked",)
    assert "choices" not in drawn.columns(drawn.train)
    with pytest.raises(TaskError, match="has no choices to replace"):
        task.with_choices([" a", " b"])


def test_limit_test_takes_the_first_rows_in_order_and_warns_of_a_lost_class() -> None:
    task = make_task()
    assert [example.id for example in task.limit_test(3).test] == ["test/0", "test/1", "test/2"]
    assert task.limit_test(3).warnings == ()
    assert task.limit_test(None) is task
    assert task.limit_test(99) is task
    assert task.limit_test(1).warnings == ("the first 1 test rows have none of class ' yes'",)
    with pytest.raises(TaskError, match="must be at least 1, got 0"):
        task.limit_test(0)


def test_columns_have_one_entry_a_row_and_none_where_a_row_lacks_one() -> None:
    train = (*rows("train", 2), Example("train/9", "last", 1, {"source": "web"}))
    task = make_task(train=train)
    assert task.columns(train[1:]) == {
        "input": ["train 1", "last"],
        "choices": [(" no", " yes"), (" no", " yes")],
        "source": [None, "web"],
    }
    # A batch without such a row has the column too: a reward always gets the same keywords.
    assert task.columns(task.test[:1])["source"] == [None]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"dev": ()}, "task 'toy' has no rows in split 'dev'"),
        ({"metric": "exact-match"}, "got both"),
        ({"choices": None}, "got neither"),
        ({"choices": None, "metric": "token-f"}, "did you mean 'token-f1'"),
        ({"choices": (" no",)}, "two or more different"),
        ({"choices": (" no", " no")}, "two or more different"),
        ({"choices": (" no", "")}, "an empty text cannot be a choice"),
        ({"train": rows("train", 3, classes=3)}, r"train/2: label 2 has no choice; labels are 0 to 1"),
        ({"train": (Example("train/0", "x", None),)}, "train/0: label None has no choice"),
        ({"train": (Example("train/0", "x", True),)}, "train/0: label True has no choice"),
        ({"dev": rows("train", 3)}, "two examples have the id 'train/0'"),
        ({"template": Template("{title} {prompt}")}, r"train/0 has no column .*\{title\}"),
        ({"train": rows("train", 2, prompts="x")}, "rename it under columns, for example 'my_prompts: prompts'"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
    ],
)
def test_a_task_that_does_not_fit_is_refused(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        make_task(**overrides)


def test_a_row_in_two_splits_is_refused_with_both_rows_named() -> None:
    test = (Example("test/0", "new", 0), Example("test/7", "train 5", 0))  # another label, the same input
    with pytest.raises(TaskError, match=r"1 row of test also in train \(first: test row 7 repeats train row 5\)"):
        make_task(test=test)


def test_allowed_overlap_becomes_one_warning_a_pair_of_splits_and_stays_with_the_task() -> None:
    test = (Example("test/0", "train 0", 0), Example("test/1", "train 1", 1), Example("test/2", "dev 4", 0))
    task = make_task(test=test, allow_overlap=True)
    assert task.warnings == (
        "2 rows of test also in train (first: test row 0 repeats train row 0)",
        "1 row of test also in dev (first: test row 2 repeats dev row 4)",
    )
    drawn = task.few_shot(None, 10, 0).with_template("{prompt} {input}").with_choices([" a", " b"])
    assert drawn.warnings == task.warnings


def test_rows_differ_if_another_field_of_the_template_differs() -> None:
    train = (Example("train/0", "Is it?", 0, {"passage": "It is."}),)
    dev = (Example("dev/0", "Is it?", 1, {"passage": "It is not."}),)
    test = (Example("test/0", "Is it so?", 1, {"passage": "It is not."}),)
    splits = {"train": train, "dev": dev, "test": test}
    make_task(**splits, template=Template("{passage} {input} {prompt}"))
    with pytest.raises(TaskError, match="1 row of dev also in train"):
        make_task(**splits)


def test_a_row_twice_in_one_split_is_fine() -> None:
    train = (Example("train/0", "same", 0), Example("train/1", "same", 1))
    assert len(make_task(train=train).train) == 2


def test_replacing_template_or_choices_checks_the_rows_again() -> None:
    task = make_task()
    assert task.with_template("{prompt}: {input}").template.source == "{prompt}: {input}"
    assert task.with_choices([" a", " b", " c"]).choices == (" a", " b", " c")
    with pytest.raises(TaskError, match="two or more"):
        task.with_choices([" a"])
    with pytest.raises(TaskError, match="passage"):
        task.with_template("{passage} {prompt}")
    three = dataclasses.replace(task, train=rows("train", 3, 3), choices=(" a", " b", " c"))
    with pytest.raises(TaskError, match="label 2 has no choice"):
        three.with_choices([" a", " b"])
