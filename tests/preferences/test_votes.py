"""The file of votes: only appended to, repaired after a kill, held by one process, and strict about what it holds."""

import json
from pathlib import Path
from typing import Any

import pytest

from rlprompt.errors import ConfigError, RunError
from rlprompt.preferences import Candidate, Vote, VoteFile, VoteHeader, check_annotator, read_votes
from rlprompt.preferences.comparisons import Comparison, Shown

HEADER = VoteHeader("run", "id", "ann")


def _vote(number: int, choice: Any = "a") -> Vote:
    a, b = (Shown(Candidate(f"{number}{side} \ud800\u2028"), "shown") for side in "ab")
    return Vote.on(Comparison("outputs", "train/0", "", a, b), choice, left="b", annotator="ann")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "votes" / "ann.jsonl"


def test_votes_and_undos_are_read_again_and_no_byte_is_ever_changed(path: Path) -> None:
    seen = b""
    with VoteFile(path, HEADER) as file:
        for act in (
            lambda: file.append([_vote(1), _vote(2, "tie")]),
            lambda: file.undo(2),
            lambda: file.append([_vote(2, "skip")]),
        ):
            act()
            now = path.read_bytes()
            assert now.startswith(seen)
            seen = now
        standing = file.votes
    assert [(number, vote.choice) for number, vote in standing.items()] == [(1, "a"), (4, "skip")]
    log = read_votes(path)
    assert (dict(log.votes), log.num_records, log.header) == (dict(standing), 4, HEADER)
    with VoteFile(path, HEADER) as again:
        assert again.votes == standing
        assert again.undo(4) == standing[4]  # also what an earlier session recorded
    assert list(read_votes(path).votes) == [1]
    assert len(seen.splitlines()) == 5  # header, vote, vote, undo, vote


@pytest.mark.parametrize("keep", [0, 1, 40])
def test_a_line_that_a_kill_cut_short_is_left_out_and_then_cut_off(path: Path, keep: int) -> None:
    with VoteFile(path, HEADER) as file:
        file.append([_vote(1)])
        whole = path.read_bytes()
        file.append([_vote(2)])
    line = path.read_bytes()[len(whole) :]
    path.write_bytes(whole + line[:-1][: keep or None])  # 0: all but the end of the line
    assert list(read_votes(path).votes) == [1]
    with VoteFile(path, HEADER) as file:
        assert path.read_bytes() == whole
        file.append([_vote(2)])
    assert [vote.comparison for vote in read_votes(path).votes.values()] == [_vote(1).comparison, _vote(2).comparison]


def test_a_header_that_was_cut_short_begins_anew(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b'{"record": "hea')
    assert read_votes(path).header is None
    with VoteFile(path, HEADER):
        assert read_votes(path).header == HEADER


def test_one_comparison_has_one_vote_and_only_a_standing_vote_is_undone(path: Path) -> None:
    with VoteFile(path, HEADER) as file:
        file.append([_vote(1)])
        before = path.read_bytes()
        with pytest.raises(ConfigError, match="a comparison has a vote already"):
            file.append([_vote(1, "b")])
        with pytest.raises(ConfigError, match="vote 2 does not stand"):
            file.undo(2)
        assert path.read_bytes() == before


def test_two_processes_do_not_write_one_file(path: Path) -> None:
    with VoteFile(path, HEADER), pytest.raises(RunError, match=r"another process records votes in .*ann\.jsonl; stop"):
        VoteFile(path, HEADER)
    VoteFile(path, HEADER).close()


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (VoteHeader("other", "id2", "ann"), "holds votes on another run, run; give that run"),
        (VoteHeader("run", "id", "bob"), "holds the votes of 'ann', not of 'bob'"),
        (VoteHeader("run", "id", "ann", {"noise": 0.1}), "a person's, not simulated with noise 0.1; give another name"),
    ],
)
def test_votes_of_another_run_or_another_annotator_are_refused(path: Path, header: VoteHeader, message: str) -> None:
    VoteFile(path, HEADER).close()
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=message):
        VoteFile(path, header)
    assert path.read_bytes() == before


def _rows() -> list[dict[str, Any]]:
    return [HEADER.to_json(), *({"record": "vote", "number": n, **_vote(n).to_json()} for n in (1, 2))]


@pytest.mark.parametrize(
    ("line", "change", "message"),
    [
        (1, {"record": "vote"}, "line 1 is no record of votes: the file begins with one header"),
        (1, {"version": 2}, "line 1 is no record of votes: version 2 is not known"),
        (1, {"run_id": None}, "the header names run, run_id and annotator"),
        (2, {"record": "header"}, "line 2 is no record of votes: the file begins with one header"),
        (2, {"choice": "best"}, "a vote is a, b, tie or skip with a or b left, got 'best'"),
        (2, {"left": None}, "a vote is a, b, tie or skip with a or b left"),
        (2, {"a": 3}, "a vote needs the text 'a', got 3"),
        (2, {"a": "another"}, "names other prompts than that comparison has"),
        (2, {"simulated": 1}, "'simulated' must say by and noise, got 1"),
        (3, {"number": 5}, "line 3 is no record of votes: expected the vote or undo with number 2"),
        (3, {**_vote(1).to_json()}, "line 3 is no record of votes: a second vote on"),
        (3, {"record": "undo", "undoes": 7}, "it undoes vote 7, which does not stand"),
    ],
)
def test_a_damaged_line_is_named(path: Path, line: int, change: dict[str, Any], message: str) -> None:
    rows = _rows()
    rows[line - 1] |= change
    path.parent.mkdir()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ConfigError) as error:
        read_votes(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_json_or_not_there_is_told_of(path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the votes"):
        read_votes(path)
    path.parent.mkdir()
    path.write_bytes(b"\xff\n")
    with pytest.raises(ConfigError, match="line 1 is no record of votes"):
        read_votes(path)
    path.write_text("[1]\n")
    with pytest.raises(ConfigError, match="line 1 is no record of votes"):
        read_votes(path)


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "x" * 65, "a\nb"])
def test_a_name_that_is_no_file_name_is_refused(name: str) -> None:
    assert check_annotator("Ann-2 b.c") == "Ann-2 b.c"
    with pytest.raises(ConfigError, match="is no plain name"):
        check_annotator(name)
