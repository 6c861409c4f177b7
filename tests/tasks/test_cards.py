"""Cards: strict keys, bases, variants, names."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from rlprompt.errors import TaskError, UnknownNameError
from rlprompt.tasks import load_task
from rlprompt.tasks.cards import read_card

CARD: dict[str, Any] = {
    "splits": {"train": "train.tsv", "dev": "dev.tsv", "test": "test.tsv"},
    "columns": {"input": "sentence", "reference": "label"},
    "choices": [" terrible", " great"],
    "template": "{input} {prompt}",
}


def write_data(folder: Path, header: str = "sentence\tlabel") -> None:
    for split in ("train", "dev", "test"):
        (folder / f"{split}.tsv").write_text(f"{header}\n{split} a\t0\n{split} b\t1\n", encoding="utf-8")


def write_card(path: Path, **overrides: Any) -> Path:
    values = {key: value for key, value in {**CARD, **overrides}.items() if value is not None}
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"colums": {}}, "unknown key 'colums'; did you mean 'columns'"),
        ({"splits": {"train": "a.tsv", "tset": "b.tsv"}}, "unknown key 'splits.tset'; did you mean 'test'"),
        ({"splits": None}, "exactly one of splits, hub and package, got none"),
        ({"hub": {"id": "a/b"}}, "got splits and hub"),
        ({"choices": None}, "choices .* or metric"),
        ({"metric": "exact-match"}, "choices .* or metric"),
        ({"labels": ["a"]}, "1 labels but 2 choices"),
        ({"choices": [False, True]}, "put them in quotes"),
        ({"choices": " great"}, "choices"),
        ({"choices_masked": ["x"]}, "choices_masked must be as many"),
        ({"columns": None}, "columns is missing"),
        ({"columns": {"reference": "label"}}, "'input' is missing"),
        ({"columns": {"input": "x", "prompt": "y"}}, "fields of the template already"),
        ({"template": None}, "template: Field required"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"splits": None, "hub": {"id": "../somewhere"}}, "owner/name"),
        ({"splits": None, "hub": {"id": "/etc/passwd"}}, "owner/name"),
        (
            {"splits": None, "package": {"name": "os.path", "file": "x.csv", "install": "", "carve": {}}},
            "top-level package",
        ),
        (
            {"splits": None, "package": {"name": "os", "file": "../x.csv", "install": "", "carve": {}}},
            "inside the package",
        ),
        ({"base": "sst-3"}, "unknown task 'sst-3'; did you mean"),
        ({"base": "card.yaml"}, "does not come back to this one"),
    ],
)
def test_a_card_that_does_not_fit_is_refused_in_one_line(
    tmp_path: Path, overrides: dict[str, Any], message: str
) -> None:
    path = write_card(tmp_path / "card.yaml", **overrides)
    with pytest.raises((TaskError, UnknownNameError), match=message) as caught:
        load_task(path)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "text", ["a: [", "- a\n- b\n", "", "!!python/object/apply:os.system ['touch canary']", "1: x\n"]
)
def test_t3_yaml_that_is_no_mapping_is_refused_and_runs_nothing(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "card.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(TaskError, match=r"card\.yaml"):
        load_task("card.yaml")
    assert not (tmp_path / "canary").exists()


def test_an_unknown_name_offers_close_ones_and_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown task 'rotten-tomato'; did you mean 'rotten-tomatoes'"):
        load_task("rotten-tomato")
    with pytest.raises(TaskError, match="task card not found"):
        load_task(tmp_path / "nothing.yaml")
    with pytest.raises(TaskError, match="task card not found"):
        load_task("nothing.yaml")


def test_the_name_is_the_files_where_the_card_has_none(tmp_path: Path) -> None:
    write_data(tmp_path)
    assert load_task(write_card(tmp_path / "films.yaml")).name == "films"


def test_paths_are_relative_to_the_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep").mkdir()
    write_data(tmp_path / "deep")
    write_card(tmp_path / "deep" / "card.yaml")
    monkeypatch.chdir(tmp_path)
    assert len(load_task("deep/card.yaml").train) == 2


def test_a_base_gives_what_the_card_does_not_say(tmp_path: Path) -> None:
    write_data(tmp_path)
    path = tmp_path / "card.yaml"
    path.write_text("base: sst-2\nsplits: {train: train.tsv, dev: dev.tsv, test: test.tsv}\n", encoding="utf-8")
    task = load_task(path)
    assert (task.name, task.choices, task.source) == ("sst-2", (" terrible", " great"), "files")
    assert [row.reference for row in task.train] == [0, 1]
    assert load_task(path, variant="masked").template.source == "{input} {prompt} {mask} ."


def test_a_base_keeps_its_own_paths_and_a_metric_replaces_choices(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    write_data(tmp_path / "below")
    write_card(tmp_path / "below" / "base.yaml", labels=["neg", "pos"])
    path = tmp_path / "card.yaml"
    path.write_text("base: below/base.yaml\nmetric: token-f1\ntemplate: '{prompt} {input}'\n", encoding="utf-8")
    task = load_task(path)
    assert (task.choices, task.metric, task.train[0].reference) == (None, "token-f1", "0")
    assert task.template.source == "{prompt} {input}"


@pytest.mark.parametrize("header", ["sentence\tlabel", "text\tlabel", "input\treference"])
def test_every_hub_card_reads_a_local_folder(tmp_path: Path, header: str) -> None:
    write_data(tmp_path, header)
    for name in ("sst-2", "sst-5", "mr", "cr", "subj", "trec", "agnews", "dbpedia", "yahoo", "yelp-2", "yelp-5"):
        task = load_task(name, data=tmp_path)
        assert (task.name, len(task.test), task.source) == (name, 2, "files")
        assert load_task(name, data=str(tmp_path), variant="masked").template.has_mask


def test_a_data_folder_must_hold_one_file_for_each_split(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="data folder not found"):
        load_task("sst-2", data=tmp_path / "nowhere")
    write_data(tmp_path)
    (tmp_path / "dev.tsv").unlink()
    with pytest.raises(TaskError, match=r"one dev file .* found none"):
        load_task("sst-2", data=tmp_path)
    for suffix in ("csv", "tsv"):
        (tmp_path / f"dev.{suffix}").write_text("x\n", encoding="utf-8")
    with pytest.raises(TaskError, match=r"found dev\.tsv and dev\.csv"):
        load_task("sst-2", data=tmp_path)


def test_template_and_choices_can_be_replaced(tmp_path: Path) -> None:
    write_data(tmp_path)
    path = write_card(tmp_path / "card.yaml")
    task = load_task(path, template="{prompt}: {input}", choices=[" bad", " good"])
    assert (task.template.source, task.choices) == ("{prompt}: {input}", (" bad", " good"))
    chat = load_task(path, template=[{"role": "user", "content": "{prompt} {input}"}])
    assert chat.template.render("Hi", chat.train[0]).messages == (("user", "Hi train a"),)


def test_a_masked_variant_needs_a_masked_template(tmp_path: Path) -> None:
    write_data(tmp_path)
    path = write_card(tmp_path / "card.yaml", choices_masked=["bad", "good"])
    with pytest.raises(TaskError, match="has no template_masked"):
        load_task(path, variant="masked")
    assert load_task(path, variant="masked", template="{prompt} {input}").choices == ("bad", "good")
    with pytest.raises(TaskError, match="unknown variant 'mlm'"):
        load_task(path, variant="mlm")  # type: ignore[arg-type]


def test_read_card_returns_the_file(tmp_path: Path) -> None:
    card, file = read_card(write_card(tmp_path / "card.yaml"))
    assert file == tmp_path / "card.yaml"
    assert card.splits is not None
    assert card.splits.train == str(tmp_path / "train.tsv")
