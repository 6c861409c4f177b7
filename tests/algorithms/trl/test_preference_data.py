"""Files of pairs and rankings: what becomes of a line, what is left out, and which lines are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from toy import ToyRun, make_config, write_lines

from rlprompt.algorithms.trl.preference_data import (
    Preference,
    Ranked,
    check_data,
    load_preferences,
    load_ranked,
    read_lines,
)
from rlprompt.algorithms.trl.rollout import Rollout
from rlprompt.errors import ConfigError

PAIR = {"id": "a", "context": "w00 w01", "chosen": "w01", "rejected": "w02"}
RANKING = {"context": "w00", "texts": ["w00", "w01", "w02"], "scores": [0.5, 2, -1.0]}


def make_run(**sections: Any) -> tuple[ToyRun, Any]:
    run = ToyRun(make_config(**{"algorithm": {"name": "dpo"}, **sections}))
    return run, Rollout(run).model()  # type: ignore[arg-type]


def pairs_of(path: Path, rows: list[dict[str, Any]], **sections: Any) -> list[Preference]:
    run, model = make_run(**sections)
    write_lines(path, rows)
    return load_preferences(run, path, model)  # type: ignore[arg-type]


def test_a_line_becomes_ids_with_its_margin_and_weight(tmp_path: Path) -> None:
    more = {"margin": 0.25, "weight": 2, "chosen_scores": {"gap": 1.0}, "source": "run", "example_id": "train/3"}
    found = pairs_of(tmp_path / "p", [PAIR, {**PAIR, "id": "b", **more}], env={"eos": True})
    assert found[0] == Preference((0, 1), (1, 3), (2, 3))  # 3 is EOS
    assert found[1] == Preference((0, 1), (1, 3), (2, 3), margin=0.25, weight=2.0)


def test_an_empty_input_is_read_as_the_policy_s_own_context(tmp_path: Path) -> None:
    row = {"id": "a", "input": "", "chosen": "w01", "rejected": "w02"}
    found = pairs_of(tmp_path / "p", [row], policy={"context": "w02 w02"})
    assert found[0].context_ids == (2, 2)


def test_an_input_is_read_as_the_env_shows_it(tmp_path: Path) -> None:
    row = {"id": "a", "input": "w02", "chosen": "w01", "rejected": "w02"}
    found = pairs_of(
        tmp_path / "p",
        [row],
        policy={"kind": "causal-lm", "kwargs": {"lora": {"r": 2, "targets": ["c_attn"]}}},
        env={"kind": "rewrite", "meta_prompt": "w00 {draft} w01", "draft": "w02", "chat": False, "prompt_length": 3},
    )
    assert found == [Preference((0, 2, 1), (1, 3), (2, 3))]


def test_a_line_separator_within_a_text_ends_no_line(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({**PAIR, "chosen": "one\u2028two"}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert [line.texts[0] for line in read_lines(path, "pairs")] == ["one\u2028two"]


def test_a_pair_that_a_rule_decided_has_no_known_gap(tmp_path: Path) -> None:
    found = pairs_of(tmp_path / "p", [{**PAIR, "margin": 0.0}, {**PAIR, "id": "b", "margin": -0.5}])
    assert [pair.margin for pair in found] == [None, None]


def test_ties_and_forbidden_texts_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        PAIR,
        {**PAIR, "id": "b", "chosen": "w01 w02 w01 w02 w01", "rejected": "w01 w02 w01 w02 w02"},  # cut alike
        {**PAIR, "id": "c", "chosen": "w01 w02 w01 w02 w02", "rejected": "w01 w02 w01 w02 w01"},
        {**PAIR, "id": "d", "rejected": "w00"},
        {**PAIR, "id": "e", "chosen": ""},
    ]
    found = pairs_of(tmp_path / "p", rows, env={"mask": {"candidates": ["w01", "w02"]}})
    assert found == [Preference((0, 1), (1,), (2,))]
    assert "of 5 pairs in" in caplog.text
    assert "2 tie and 2 hold texts that are empty or that env.mask forbids; they are left out" in caplog.text
    with pytest.raises(ConfigError, match=r"of 1 pairs in .* 1 tie and 0 .*: none is left to learn from"):
        pairs_of(tmp_path / "p", rows[1:2])


def test_rankings_keep_what_may_be_written_and_need_two_scores(tmp_path: Path) -> None:
    run, model = make_run(env={"mask": {"candidates": ["w01", "w02"]}})
    path = tmp_path / "r"
    rows = [RANKING, {**RANKING, "scores": [3, 1, 1]}, {**RANKING, "texts": ["w00", "w00", "w01"]}]
    write_lines(path, [{**row, "weight": 0.5} for row in rows])
    found = load_ranked(run, path, model, source="ranked")  # type: ignore[arg-type]
    assert found == [Ranked((0,), ((1,), (2,)), (2.0, -1.0), 0.5)]


def test_a_pair_is_a_ranking_of_two(tmp_path: Path) -> None:
    run, model = make_run()
    write_lines(tmp_path / "p", [PAIR])
    found = load_ranked(run, tmp_path / "p", model, source="pairs")  # type: ignore[arg-type]
    assert found == [Ranked((0, 1), ((1,), (2,)), (1.0, 0.0))]


@pytest.mark.parametrize(
    ("source", "rows", "message"),
    [
        ("pairs", [{"id": "a", "context": "a", "chosen": "b"}], "line 1: there is no 'rejected'; a pair has id,"),
        ("pairs", [PAIR, {**PAIR, "id": "b"}, PAIR], "line 3 has the id 'a' of line 1; ids are unique"),
        ("pairs", [{**PAIR, "weight": -1}], "line 1: pair 'a': weight must be at least 0, got -1"),
        ("ranked", [{**RANKING, "texts": ["a"]}], "line 1 needs 'texts', a list of two texts or more"),
        ("ranked", [{**RANKING, "scores": [1, 2]}], "line 1 needs 'scores', one number for each of its 3 texts"),
        ("ranked", [{**RANKING, "scores": [1, 2, None]}], "line 1: 'scores' must be a finite number, got None"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, source: str, rows: list[dict[str, Any]], message: str) -> None:
    write_lines(tmp_path / "f", rows)
    with pytest.raises(ConfigError, match=message) as error:
        read_lines(tmp_path / "f", source)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "line 1 is not JSON"), ("[1]", "line 1: a pair is a JSON object"), ("", "holds no pair")],
)
def test_a_broken_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "f").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_lines(tmp_path / "f", "pairs")
    with pytest.raises(ConfigError, match=r"cannot read the pairs file .*nowhere"):
        read_lines(tmp_path / "nowhere", "pairs")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, r"rrhf has no data; give data: \{ranked: FILE or pairs: FILE\} beside its algorithm: or in its stage"),
        ({"rank": "a"}, "data of rrhf: unknown key 'rank'; did you mean 'ranked'"),
        ({"val": "a"}, "data of rrhf needs one of ranked: FILE or pairs: FILE"),
        ({"ranked": "a", "pairs": "b"}, "data of rrhf needs one of"),
        ({"ranked": "a", "val_every": 0}, "data.val_every of rrhf must be a whole number from 1, got 0"),
    ],
)
def test_bad_data_is_refused(data: dict[str, Any] | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_data(data, "rrhf", ("ranked", "pairs"))
