"""Task cards over local files: bytes are kept, and every mistake names its file and row."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlprompt.errors import TaskError
from rlprompt.tasks import Task, load_task

# Twenty rows: quotes in every position, Unicode (combining, right-to-left, emoji, line separator), an empty input.
ROWS = [
    ('"a fine film"', 1),
    ('"unbalanced at the start', 0),
    ('unbalanced at the end"', 1),
    ('in "the" middle', 0),
    ('""', 1),
    ("it's", 0),
    ("'single'", 1),
    ("café naïve", 0),
    ("cafe\u0301 combining", 1),
    ("日本語の映画", 0),
    ("فيلم رائع", 1),
    ("😀 👩\u200d👩\u200d👧", 0),
    ("", 1),
    (" leading and trailing ", 0),
    ("line\u2028separator and next\u0085line", 1),
    ("back\\slash \\n \\t", 0),
    ("{prompt} {input} {0} {x.y}", 1),
    ("comma, semicolon; pipe|", 0),
    ("null NA nan None", 1),
    ("\ufeffbom inside and no-break\u00a0space", 0),
]
TSV = "sentence\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in ROWS)
CARD: dict[str, Any] = {
    "name": "my-task",
    "splits": {"train": "train.tsv", "dev": "dev.tsv", "test": "test.tsv"},
    "columns": {"input": "sentence", "reference": "label"},
    "choices": [" terrible", " great"],
    "template": "{input} {prompt}",
}


def write_card(folder: Path, files: dict[str, str] | None = None, **overrides: Any) -> Path:
    written = {
        "train.tsv": "sentence\tlabel\none\t0\ntwo\t1\n",
        "dev.tsv": "sentence\tlabel\nthree\t0\n",
        "test.tsv": TSV,
        **(files or {}),
    }
    for name, text in written.items():
        (folder / name).write_bytes(text.encode())
    values = {key: value for key, value in {**CARD, **overrides}.items() if value is not None}
    card = folder / "card.yaml"
    card.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    return card


def load(folder: Path, files: dict[str, str] | None = None, **overrides: Any) -> Task:
    return load_task(write_card(folder, files, **overrides))


def test_a_tsv_of_quotes_unicode_and_an_empty_field_is_kept_exactly(tmp_path: Path) -> None:
    task = load(tmp_path)
    assert [(example.input, example.reference) for example in task.test] == ROWS
    assert [example.id for example in task.test] == [f"test/{row}" for row in range(20)]
    assert task.template.render("It was", task.test[12]).text == " It was"
    assert task.template.render("", task.test[0]).text == '"a fine film"'


def test_all_file_kinds_give_the_same_examples(tmp_path: Path) -> None:
    expected = load(tmp_path).test
    quoted = "".join('"' + text.replace('"', '""') + f'",{label}\r\n' for text, label in ROWS)
    lines = "".join(json.dumps({"sentence": text, "label": label}) + "\n" for text, label in ROWS)
    files = {"test.csv": "sentence,label\r\n" + quoted, "test.jsonl": lines}
    for name in files:
        assert load(tmp_path, files, splits={**CARD["splits"], "test": name}).test == expected


def test_windows_line_ends_a_byte_order_mark_and_no_last_line_feed_are_read(tmp_path: Path) -> None:
    task = load(tmp_path, {"train.tsv": "\ufeffsentence\tlabel\r\none\t0\r\ntwo\t1"})
    assert [(example.input, example.reference) for example in task.train] == [("one", 0), ("two", 1)]


def test_labels_may_be_names_or_indices(tmp_path: Path) -> None:
    files = {"train.tsv": "sentence\tlabel\none\tneg\ntwo\tpos\nfour\t1\n"}
    task = load(tmp_path, files, labels=["neg", "pos"])
    assert [example.reference for example in task.train] == [0, 1, 1]


def test_a_name_that_is_a_number_wins_over_an_index(tmp_path: Path) -> None:
    files = {
        "train.tsv": "sentence\tlabel\none\t1\ntwo\t2\n",
        "dev.tsv": "sentence\tlabel\nthree\t2\n",
        "test.tsv": "sentence\tlabel\nfive\t1\n",
    }
    task = load(tmp_path, files, labels=[1, 2])
    assert [example.reference for example in task.train] == [0, 1]


def test_truth_values_of_jsonl_are_labels(tmp_path: Path) -> None:
    files = {"train.jsonl": '{"sentence": "one", "label": true}\n{"sentence": "two", "label": false}\n'}
    splits = {**CARD["splits"], "train": "train.jsonl"}
    assert [row.reference for row in load(tmp_path, files, splits=splits).train] == [1, 0]
    task = load(tmp_path, files, splits=splits, labels=["true", "false"])
    assert [row.reference for row in task.train] == [0, 1]


def test_further_columns_are_kept_renamed_and_joined(tmp_path: Path) -> None:
    header = "title\tbody\tlabel\tyear\tchoices\n"
    files = {
        f"{split}.tsv": header + f"{split}\tone\t0\t1999\tx\n{split}\ttwo\t1\t2000\ty\n"
        for split in ("train", "dev", "test")
    }
    columns = {"input": ["title", "body"], "reference": "label", "given": "choices"}
    task = load(tmp_path, files, columns=columns, template="{year}: {input} {prompt}")
    assert task.test[1].input == "test two"
    assert task.test[1].columns == {"year": "2000", "given": "y"}
    assert task.template.render("ok", task.test[1]).text == "2000: test two ok"
    with pytest.raises(TaskError, match="may not be called 'choices'"):
        load(tmp_path, files, columns={"input": "body", "reference": "label"}, allow_overlap=True)


def test_a_generation_task_has_texts_as_references(tmp_path: Path) -> None:
    lines = ['{"sentence": "1 + 1", "label": 2}', '{"sentence": "1 + 2", "label": "three"}']
    files = {"train.jsonl": "\n".join(lines)}
    splits = {**CARD["splits"], "train": "train.jsonl"}
    task = load(tmp_path, files, splits=splits, choices=None, metric="exact-match", max_tokens=5, stop=["."])
    assert [row.reference for row in task.train] == ["2", "three"]
    assert (task.max_tokens, task.stop, task.choices) == (5, (".",), None)


def test_carve_cuts_fixed_splits_out_of_train_without_a_leak(tmp_path: Path) -> None:
    lines = "".join(f"row {row % 40}\t{int(row % 40 >= 30)}\n" for row in range(50))  # ten rows stand twice
    files = {"train.tsv": "sentence\tlabel\n" + lines}
    task = load(tmp_path, files, splits={"train": "train.tsv"}, carve={"dev": 8, "test": 12})
    # 40 different rows, 30 of class 0 and 10 of class 1: three quarters of each split are of class 0.
    assert Counter(row.reference for row in task.dev) == {0: 6, 1: 2}
    assert Counter(row.reference for row in task.test) == {0: 9, 1: 3}
    assert [row.reference for row in task.dev[:4]] == [0, 1, 0, 1]
    texts = [row.input for row in (*task.train, *task.dev, *task.test)]
    assert len(texts) == len(set(texts)) == 40
    for row in (*task.train, *task.dev, *task.test):
        assert row.input == f"row {row.id.split('/')[1]}"  # ids keep the row number; the first of a pair is kept
    balanced = load(tmp_path, files, splits={"train": "train.tsv"}, carve={"dev": 4, "test": 9, "balanced": True})
    assert Counter(row.reference for row in balanced.test) == {0: 5, 1: 4}


def test_the_carved_rows_never_change(tmp_path: Path) -> None:
    lines = "".join(f"row {row}\t{row % 2}\n" for row in range(12))
    task = load(
        tmp_path,
        {"train.tsv": "sentence\tlabel\n" + lines},
        splits={"train": "train.tsv"},
        carve={"dev": 2, "test": 4},
    )
    # A change here changes every published number: the order is by SHA-256 of "carve/test/<index>".
    assert [row.id for row in task.test] == CARVED_TEST
    assert [row.id for row in task.dev] == CARVED_DEV


CARVED_TEST = ["test/10", "test/7", "test/0", "test/1"]
CARVED_DEV = ["dev/8", "dev/3"]


@pytest.mark.parametrize(
    ("files", "overrides", "message"),
    [
        ({"train.tsv": "sentence\tlabel\none\t0\ntwo\t2\n"}, {}, r"train\.tsv, row 1: label '2' has no choice"),
        ({"train.tsv": "sentence\tlabel\none\tgood\n"}, {}, r"row 0: label 'good' has no choice; labels are 0 to 1$"),
        ({"train.tsv": "sentence\tlabel\none\t\n"}, {}, r"row 0: label '' has no choice"),
        ({"train.tsv": "sentence\tlabel\none\t-1\n"}, {}, "label '-1' has no choice"),
        ({"train.tsv": "sentence\tlabel\none\t1_0\n"}, {}, "label '1_0' has no choice"),
        (
            {"train.tsv": "sentence\tlabel\none\tposs\n"},
            {"labels": ["neg", "pos"]},
            "labels are 0 to 1 or one of neg, pos",
        ),
        ({"train.tsv": "sentence\tlabel\none\t0\textra\n"}, {}, r"row 0: has 3 cells, the header names 2"),
        ({"train.tsv": "sentence\tlabel\none\t0\n\ntwo\t1\n"}, {}, r"row 1: has 1 cells"),
        ({"train.tsv": "sentence\tlabel\n"}, {}, r"train\.tsv: split 'train' has no rows"),
        ({"train.tsv": ""}, {}, r"train\.tsv is empty"),
        ({"train.tsv": "text\tlabel\none\t0\n"}, {}, r"train\.tsv has no column 'sentence'"),
        ({"train.tsv": "label\tlabel\none\t0\n"}, {}, "two columns have the same name"),
        ({"train.tsv": "sentence\tlabel\ncafé naïve\t0\n"}, {}, "test row 7 repeats train row 0"),
        ({}, {"splits": {**CARD["splits"], "dev": "dve.tsv"}}, r"data file not found: .*dve\.tsv"),
        ({}, {"splits": {"train": "train.tsv", "test": "test.tsv"}}, "split 'dev' has no rows"),
        ({}, {"splits": {**CARD["splits"], "dev": "dev.xlsx"}}, r"data files end in \.tsv, \.csv, \.jsonl"),
        ({"dev.csv": 'sentence,label\n"a"b,0\n'}, {"splits": {**CARD["splits"], "dev": "dev.csv"}}, "line 2: not CSV"),
        ({"dev.jsonl": "{}\n{"}, {"splits": {**CARD["splits"], "dev": "dev.jsonl"}}, r"dev\.jsonl, row 1: not JSON"),
        ({"dev.jsonl": "[1]\n"}, {"splits": {**CARD["splits"], "dev": "dev.jsonl"}}, "row 0: must be a JSON object"),
        (
            {"dev.jsonl": '{"sentence": "x", "label": 0}\n{"label": 0}\n'},
            {"splits": {**CARD["splits"], "dev": "dev.jsonl"}},
            r"dev\.jsonl, row 1: no column 'sentence'",
        ),
        (
            {"dev.jsonl": '{"sentence": 5, "label": 0}\n'},
            {"splits": {**CARD["splits"], "dev": "dev.jsonl"}},
            "row 0: the input must be text, got int",
        ),
        ({}, {"columns": {"input": "sentence"}}, r"row 0: no label; .*reference"),
        ({}, {"template": "{inputt} {prompt}"}, r"\{inputt\}; did you mean 'input'"),
        ({}, {"template": "{input}"}, r"task 'my-task': template .* has 0 \{prompt\} fields"),
        ({}, {"splits": {"train": "train.tsv"}, "carve": {"dev": 5, "test": 1}}, "carve.test is 1|carve.dev is 5"),
        ({}, {"carve": {"dev": 1}}, "the source has a split 'dev'"),
    ],
)
def test_a_mistake_names_its_place(
    tmp_path: Path, files: dict[str, str], overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(TaskError, match=message) as caught:
        load(tmp_path, files, **overrides)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_utf_8_are_refused(tmp_path: Path) -> None:
    card = write_card(tmp_path)
    (tmp_path / "dev.tsv").write_bytes(b"sentence\tlabel\ncaf\xe9\t0\n")
    with pytest.raises(TaskError, match=r"dev\.tsv is not UTF-8 \(byte 18\)"):
        load_task(card)


def test_overlap_is_a_warning_where_the_card_allows_it(tmp_path: Path) -> None:
    files = {"train.tsv": "sentence\tlabel\nit's\t0\ntwo\t1\n"}
    task = load(tmp_path, files, allow_overlap=True)
    assert task.warnings == ("1 row of test also in train (first: test row 5 repeats train row 0)",)
