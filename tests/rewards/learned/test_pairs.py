import json
from pathlib import Path
from typing import Any

import pytest
from preference_pairs import count_of, planted_texts, ruled_pairs, write_pairs

from rlprompt.errors import ConfigError
from rlprompt.rewards.learned.pairs import PreferencePair, read_pairs, split_pairs, what_is_read

ROW = {"id": "a", "input": "in", "chosen": "good", "rejected": "bad"}


def written(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    pairs = ruled_pairs(planted_texts, count_of("w03"), 5)
    assert read_pairs(write_pairs(tmp_path / "pairs.jsonl", pairs)) == pairs


def test_margin_and_weight_have_defaults_and_other_columns_are_ignored(tmp_path: Path) -> None:
    row = {**ROW, "id": 7, "chosen_scores": {"gap": 1.0}, "example_id": "train/3", "margin": None}
    context = {"id": "b", "context": "Rewrite: in", "chosen": "x", "rejected": "", "margin": -1, "weight": 0}
    first, second = read_pairs(written(tmp_path / "pairs.jsonl", row, "", context))
    assert first == PreferencePair("7", "in", "good", "bad", "input", None, 1.0)
    assert second == PreferencePair("b", "Rewrite: in", "x", "", "context", -1.0, 0.0)
    assert what_is_read([first]) == "input"
    with pytest.raises(ConfigError, match="some pairs have 'input' and others 'context'"):
        what_is_read([first, second])
    with pytest.raises(ConfigError, match="there are no pairs to learn from"):
        what_is_read([])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds no pair; where all scores are tied no pairs are made"),
        (["", "  "], "holds no pair"),
        (["{"], "line 1 is not JSON"),
        ([[1]], "line 1 must be a JSON object, got list"),
        ([{**ROW, "id": "b"}, {"id": "a", "chosen": "x"}], "line 2 lacks 'rejected'; each line needs id, chosen"),
        ([{"input": "x"}], "lacks 'id', 'chosen', 'rejected'"),
        ([{key: ROW[key] for key in ("id", "chosen", "rejected")}], "lacks 'input' or 'context'"),
        ([{**ROW, "context": "c"}], "has both 'input' and 'context'"),
        ([ROW, ROW], "line 2: the id 'a' is that of line 1; give each pair its own"),
        ([{**ROW, "chosen": 3}], "'chosen' must be a text, got int"),
        ([{**ROW, "rejected": "good"}], "chosen and rejected are the same text"),
        ([{**ROW, "weight": -1}], "'weight' must be a finite number from 0, got -1"),
        ([{**ROW, "margin": "1"}], "'margin' must be a finite number, got '1'"),
        ([{**ROW, "margin": True}], "'margin' must be a finite number, got True"),
    ],
)
def test_a_broken_file_is_one_line_that_names_the_place(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_pairs(written(tmp_path / "pairs.jsonl", *rows))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"cannot read the pairs in nowhere\.jsonl"):
        read_pairs("nowhere.jsonl")


def test_no_context_is_on_both_sides_of_a_split() -> None:
    pairs = ruled_pairs(planted_texts, count_of("w03"), 150)  # 100 contexts, some with two pairs
    learnt, rest = split_pairs(pairs, 0.25, seed=1)
    assert {pair.context for pair in learnt} & {pair.context for pair in rest} == set()
    assert len({pair.context for pair in rest}) == 25
    assert sorted(pair.id for pair in learnt + rest) == sorted(pair.id for pair in pairs)
    assert split_pairs(pairs, 0.25, seed=1) == (learnt, rest)
    assert split_pairs(pairs, 0.25, seed=2)[1] != rest
    assert split_pairs(pairs[::-1], 0.25, seed=1)[1] == rest[::-1]  # whatever the order of the file


def test_pairs_of_one_context_are_drawn_one_by_one() -> None:
    pairs = [PreferencePair(str(number), "same", "a", "b") for number in range(10)]
    learnt, rest = split_pairs(pairs, 0.2, seed=0)
    assert (len(learnt), len(rest)) == (8, 2)
    assert split_pairs(pairs, 0.0, seed=0) == (pairs, [])
    with pytest.raises(ConfigError, match=r"held_out 0.2 of 1 contexts leaves none to learn from"):
        split_pairs(pairs[:1], 0.2, seed=0)
    with pytest.raises(ConfigError, match=r"held_out must be in \[0, 1\), got 1"):
        split_pairs(pairs, 1, seed=0)
