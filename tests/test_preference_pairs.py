"""The pairs file, what SFT reads of it, and the validation split."""

import json
from pathlib import Path
from typing import Any

import pytest

from rlprompt.errors import ConfigError, RunError
from rlprompt.preferences import (
    PreferencePair,
    read_pairs,
    sft_rows,
    split_pairs,
    write_json_lines,
    write_pairs,
)

LINE = {"id": "a", "input": "Why?", "chosen": "Why is it so?", "rejected": "Hm"}


def _pair(**changes: Any) -> PreferencePair:
    return PreferencePair(**{**LINE, **changes})


def _file(folder: Path, *lines: Any) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def test_what_is_written_is_read_back_with_every_field(tmp_path: Path) -> None:
    pairs = [
        _pair(
            chosen_scores={"reward": 0.9, "gap": 12.5},
            rejected_scores={"reward": 0.1},
            margin=0.8,
            weight=1.5,
            source="best-worst",
            example_id="train/3",
            columns={"iteration": 4, "tags": ["x"]},
        ),
        PreferencePair(id="b", chosen="two\nlines", rejected="", context="Improve: Wozu\N{LINE SEPARATOR}?"),
        _pair(id="c", input="", chosen="\ud800 alone"),
    ]
    path = tmp_path / "deep" / "pairs.jsonl"
    write_pairs(path, pairs)
    assert read_pairs(path) == pairs
    assert [file.name for file in path.parent.iterdir()] == ["pairs.jsonl"]  # no temporary file is left
    first = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    assert first == {
        "id": "a",
        "chosen": "Why is it so?",
        "rejected": "Hm",
        "input": "Why?",
        "chosen_scores": {"reward": 0.9, "gap": 12.5},
        "rejected_scores": {"reward": 0.1},
        "margin": 0.8,
        "weight": 1.5,
        "source": "best-worst",
        "example_id": "train/3",
        "iteration": 4,
        "tags": ["x"],
    }


def test_a_pair_says_what_was_read_and_whether_its_margin_is_known() -> None:
    first, second = _pair(margin=0.5), PreferencePair(id="b", chosen="x", rejected="", context="Rewrite: Why?")
    assert (first.reads, first.reading, first.known_margin) == ("input", "Why?", 0.5)
    assert (second.reads, second.reading, second.known_margin) == ("context", "Rewrite: Why?", None)
    assert (_pair(input="").reading, _pair(margin=-0.5).known_margin) == ("", None)


def test_a_line_needs_four_columns_and_the_rest_has_defaults(tmp_path: Path) -> None:
    (pair,) = read_pairs(_file(tmp_path, LINE, ""))
    assert (pair.margin, pair.weight, pair.source, pair.example_id) == (0.0, 1.0, "", "")
    assert (pair.chosen_scores, pair.rejected_scores, pair.columns, pair.context) == ({}, {}, {}, None)
    (noted,) = read_pairs(_file(tmp_path, {**LINE, "weight": None, "note": "mine"}))
    assert (noted.weight, noted.columns) == (1.0, {"note": "mine"})


@pytest.mark.parametrize("missing", ["id", "chosen", "rejected", "input"])
def test_a_missing_column_is_named_with_file_and_line(missing: str, tmp_path: Path) -> None:
    line = {key: value for key, value in LINE.items() if key != missing}
    path = _file(tmp_path, {**LINE, "id": "first"}, line)
    with pytest.raises(ConfigError, match=rf"pairs.jsonl, line 2: there is no '{missing}'.*; a pair has id, chosen"):
        read_pairs(path)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{**LINE, "id": "x"}, LINE, {**LINE, "id": "x"}], "line 3 has the id 'x' of line 1; ids are unique"),
        ([{**LINE, "rejected": LINE["chosen"]}], "line 1: pair 'a': chosen and rejected are the same text"),
        ([LINE, "{broken"], "line 2 is not JSON: "),
        ([LINE, '"a text"'], "line 2: a pair is a JSON object, got str"),
        ([{**LINE, "context": "Improve: Why?"}], "line 1: pair 'a' must have one of input and context"),
        ([{**LINE, "chosen": 3}], "line 1: 'chosen' must be a text, got 3"),
        ([{**LINE, "chosen_scores": [1]}], "line 1: 'chosen_scores' must map names to numbers, got [1]"),
        ([{**LINE, "rejected_scores": {"gap": "high"}}], "rejected_scores.gap must be a finite number, got 'high'"),
        ([{**LINE, "margin": True}], "margin must be a finite number, got True"),
        (['{"id": "a", "input": "", "chosen": "x", "rejected": "y", "margin": NaN}'], "margin must be a finite number"),
        ([{**LINE, "weight": -1}], "weight must be at least 0, got -1"),
        ([{**LINE, "id": ""}], "line 1: a pair has an empty id"),
        (["", "  "], "holds no pair; build some with rlprompt pairs RUN -o"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_a_bad_file_is_one_line(lines: list[Any], message: str, tmp_path: Path) -> None:
    path = _file(tmp_path, *lines)
    with pytest.raises(ConfigError) as caught:
        read_pairs(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the pairs file .*none.jsonl: No such file"):
        read_pairs(tmp_path / "none.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"id": "\xe9"}')
    with pytest.raises(ConfigError, match=r"latin\.jsonl: it is not UTF-8"):
        read_pairs(tmp_path / "latin.jsonl")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write .*pairs.jsonl"):
        write_pairs(tmp_path / "file" / "pairs.jsonl", [_pair()])


def test_nothing_is_written_of_a_set_that_could_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("as it was")
    with pytest.raises(ConfigError, match="two pairs have the id 'a'"):
        write_pairs(path, [_pair(), _pair(rejected="other")])
    with pytest.raises(ConfigError, match="there is no pair to write"):
        write_pairs(path, [])
    assert path.read_text() == "as it was"


def test_free_columns_do_not_take_the_name_of_a_field() -> None:
    with pytest.raises(ConfigError, match="a free column must not be called 'margin'"):
        _pair(columns={"margin": 3})


def test_sft_learns_each_chosen_text_once_per_reading(tmp_path: Path) -> None:
    pairs = [
        _pair(),
        _pair(id="b", rejected="another"),
        _pair(id="c", input="When?"),
        PreferencePair(id="d", chosen="Why is it so?", rejected="x", context="Why?"),
        _pair(id="e", chosen="Why, please?"),
    ]
    rows = sft_rows(pairs)
    assert rows == [
        {"input": "Why?", "target": "Why is it so?"},
        {"input": "When?", "target": "Why is it so?"},
        {"context": "Why?", "target": "Why is it so?"},
        {"input": "Why?", "target": "Why, please?"},
    ]


def test_sft_reads_the_rows_as_its_own_pairs(tmp_path: Path) -> None:
    from rlprompt.algorithms.trl.pairs import _from_file

    rows = sft_rows([_pair(), PreferencePair(id="d", chosen="zwei\N{LINE SEPARATOR}Zeilen", rejected="x", context="C")])
    write_json_lines(tmp_path / "sft.jsonl", rows)
    assert _from_file(tmp_path / "sft.jsonl") == rows


def _many() -> list[PreferencePair]:
    return [_pair(id=f"{number}-{copy}", example_id=f"train/{number}") for number in range(10) for copy in range(3)]


def test_no_example_is_on_both_sides_of_a_split() -> None:
    train, held_out = split_pairs(_many(), 0.3, seed=5)
    assert (len(train), len(held_out)) == (21, 9)
    assert not {pair.example_id for pair in train} & {pair.example_id for pair in held_out}
    assert [pair.id for pair in train] == sorted((pair.id for pair in train), key=lambda name: int(name.split("-")[0]))


def test_a_split_depends_on_the_seed_and_not_on_the_order() -> None:
    first = {pair.id for pair in split_pairs(_many(), 0.3, seed=5)[1]}
    assert {pair.id for pair in split_pairs(_many()[::-1], 0.3, seed=5)[1]} == first
    assert any({pair.id for pair in split_pairs(_many(), 0.3, seed=seed)[1]} != first for seed in range(6, 9))


def test_at_least_one_group_stays_on_either_side() -> None:
    assert len(split_pairs(_many(), 0.01)[1]) == 3
    assert len(split_pairs(_many(), 0.99)[0]) == 3


def test_without_example_ids_the_reading_is_the_group() -> None:
    pairs = [_pair(id=f"{text}-{copy}", input=text) for text in ("A?", "B?") for copy in range(2)]
    train, held_out = split_pairs(pairs, 0.5)
    assert {pair.input for pair in train} != {pair.input for pair in held_out}
    assert (len(train), len(held_out)) == (2, 2)


def test_a_split_that_cannot_be_made() -> None:
    with pytest.raises(ConfigError, match="the validation share must be between 0 and 1, got 1"):
        split_pairs(_many(), 1)
    with pytest.raises(ConfigError, match="needs pairs of at least two examples, got 1; a run that writes one prompt"):
        split_pairs([_pair(input=""), _pair(id="b", input="", rejected="x")], 0.5)
