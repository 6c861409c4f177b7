"""`rlprompt label`: simulated annotators, export, mistakes, and a real server that is killed."""

import json
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from label_server import LabelServer
from planted_runs import INPUTS, finished
from stored_runs import stored_run

from rlprompt.cli.main import main
from rlprompt.evaluation.statistics import wilson_interval
from rlprompt.preferences import Vote, read_pairs, read_votes

WORDS = {f"w{number:02d}": float(number) for number in range(10)}
PLACES = ("train/0", "train/4", "train/11", "train/14", "train/24", "train/27", "train/31", "train/46")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """8 inputs with 10 rewrites each: 360 comparisons; the reward is the number of the word."""
    return stored_run(tmp_path / "run", dict.fromkeys(PLACES, WORDS))


def _report(arguments: list[Any], capfd: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capfd.readouterr()
    assert main([*map(str, arguments), "--json"]) == 0
    report = json.loads(capfd.readouterr().out)
    assert isinstance(report, dict)
    return report


def _fails(arguments: list[Any], code: int, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    assert main([*map(str, arguments)]) == code
    captured = capfd.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    assert message in captured.err


def _flips(votes: list[Vote]) -> int:
    """Votes for the word with the smaller number."""
    return sum({"a": vote.a, "b": vote.b}[vote.choice] == min(vote.a, vote.b) for vote in votes)


def test_the_planted_noise_is_recovered_and_counted_as_the_votes_say(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shares = {}
    for noise in (0.0, 0.25):
        base = ["label", run, "--simulate", f"n{noise:g}", "--noise", noise, "--pairs", 400]
        shares[noise] = _report(base, capfd)
    votes = list(read_votes(run / "votes" / "simulated-n0.25.jsonl").votes.values())
    assert len(votes) == 360
    assert all(vote.simulated == {"by": "reward", "noise": 0.25, "seed": 3} for vote in votes)  # the run's seed
    assert shares[0.0]["against"]["part"] == 0
    assert shares[0.25]["against"]["part"] == _flips(votes)
    assert shares[0.25]["against"]["share"] == pytest.approx(0.25, abs=0.09)  # standard deviation 0.023
    found = _report(["label", run, "--export", tmp_path / "p.jsonl"], capfd)
    noisy, exact = found["annotators"]  # in the order of the files' names
    low, high = wilson_interval(_flips(votes), 360)
    assert noisy["simulated"]["noise"] == 0.25
    assert noisy["against"] == {
        "part": _flips(votes), "whole": 360, "share": _flips(votes) / 360, "low": low, "high": high,
    }  # fmt: skip
    assert exact["against"]["part"] == 0
    (couple,) = found["couples"]
    assert couple["same"]["part"] == 360 - _flips(votes)
    # where the second one is wrong the votes are even, and otherwise both say the same
    assert (found["even"], found["pairs"]) == (_flips(votes), 360 - _flips(votes))
    for pair in read_pairs(tmp_path / "p.jsonl"):
        assert pair.chosen_scores["reward"] > pair.rejected_scores["reward"]
        assert (pair.weight, pair.margin) == (1.0, 1.0)


def test_a_component_can_be_voted_by_and_more_pairs_are_added_to_the_same_file(
    run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    base = ["label", run, "--simulate", "x", "--noise", "0.1", "--by", "gap", "--pairs"]
    assert _report([*base, 20], capfd)["new_votes"] == 20
    first = (run / "votes" / "simulated-x.jsonl").read_bytes()
    assert _report([*base, 30], capfd)["new_votes"] == 10
    assert (run / "votes" / "simulated-x.jsonl").read_bytes().startswith(first)
    _fails(["label", run, "--simulate", "x", "--noise", "0.2", "--by", "gap"], 2, "give another name", capfd)


def test_people_get_a_report_and_one_builder_says_what_is_compared(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("x", "y"):
        assert main(["label", str(run), "--simulate", name, "--builder", "best-worst"]) == 0
    assert main(["label", str(run), "--export", str(tmp_path / "p.jsonl")]) == 0
    out = capfd.readouterr().out
    assert "stated noise    0.25, by reward" in out
    assert "simulated-x and simulated-y: same vote on " in out
    for pair in read_pairs(tmp_path / "p.jsonl"):
        assert {pair.chosen, pair.rejected} == {"w00", "w09"}


def test_an_answered_vote_outlives_a_kill_and_one_server_at_a_time_takes_votes(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = run / "votes" / "ann.jsonl"
    base = ["--annotator", "ann", "--pairs", "20", "--seed", "5"]
    server = LabelServer(run, *base)
    answered = []
    try:
        with httpx.Client(base_url=server.url) as client:
            state = client.get("state").json()
            for choice in ("left", "right", "tie", "skip", "left"):
                answered.append(state["comparison"]["id"])
                state = client.post("vote", json={"comparison": answered[-1], "choice": choice}).json()
            state = client.post("undo", json={"vote": state["last"]}).json()
        _fails(["label", run, *base], 1, "another process records votes in", capfd)
        port = server.url.split(":")[2].split("/")[0]
        taken = ["label", run, "--annotator", "bob", "--no-open", "--port", port]
        _fails(taken, 2, f"cannot listen on 127.0.0.1 port {port}: Address already in use", capfd)
    finally:
        server.kill()
    assert [vote.comparison for vote in read_votes(file).votes.values()] == answered[:4]
    with file.open("ab") as torn:  # what a kill in the midst of writing leaves
        torn.write(b'{"record": "vote", "number": 7, "compa')
    again = LabelServer(run, *base)
    try:
        assert again.lines["comparisons"] == "20 of prompts, 4 of them judged already"
        with httpx.Client(base_url=again.url) as client:
            now = client.get("state").json()
            assert (now["comparison"]["id"], now["last"], now["total"]) == (answered[4], 4, 20)
            assert client.post("vote", json={"comparison": answered[4], "choice": "right"}).status_code == 200
            lines = [json.loads(line) for line in client.get("pairs.jsonl").text.splitlines()]
    finally:
        code, out = again.interrupt()
    assert (code, out) == (0, "judged       5 of 20\n")
    report = _report(["label", run, "--export", tmp_path / "p.jsonl"], capfd)
    assert (report["votes"], report["skips"], report["even"], report["pairs"]) == (4, 1, 1, 3)
    assert [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()] == lines


def test_votes_train_a_policy(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _report(["label", run, "--simulate", "x", "--noise", "0", "--builder", "best-worst"], capfd)
    pairs = tmp_path / "p.jsonl"
    assert _report(["label", run, "--export", pairs], capfd)["pairs"] == 8
    stage = {
        "name": "prefer",
        "algorithm": {"name": "dpo", "iterations": 4, "lr": 0.05, "minibatch_size": 4},
        "data": {"pairs": str(pairs)},
    }
    trained = finished(tmp_path, {**INPUTS, "env": {**INPUTS["env"], "mask": {}}}, stages=[stage])  # type: ignore[dict-item]
    events = [json.loads(line) for line in (trained / "events.jsonl").read_text().splitlines()]
    margins = [event["metrics"].get("preference/margin") for event in events if event["event"] == "iteration"]
    assert margins[0] == pytest.approx(0.0, abs=1e-6)
    assert margins[3] > 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--what", "texts"], 2, "--what must be outputs or prompts, got 'texts'"),
        (["--what", "outputs"], 2, "has stored no two texts of the target"),
        (["--simulate", "x", "--export", "p"], 2, "--simulate and --export are two steps"),
        (["--noise", "0.1"], 2, "--noise is for --simulate NAME"),
        (["--simulate", "x", "--noise", "0.7"], 2, "--noise is a probability of wrong votes from 0 to 0.5, got 0.7"),
        (["--simulate", "x", "--by", "gab"], 2, "unknown score 'gab'; did you mean 'gap'"),
        (["--simulate", "../x"], 2, "annotator '../x' is no plain name"),
        (["--simulate", "x", "--annotator", "y"], 2, "--simulate NAME names the annotator"),
        (["--annotator", "a/b"], 2, "annotator 'a/b' is no plain name"),
        (["--annotator", "simulated-x"], 2, "names that begin with simulated- are for --simulate"),
        (["--json"], 2, "--json is for --simulate and --export"),
        (["--votes", "a", "--votes", "b"], 2, "votes go to one file; give --votes once"),
        (["--host", "no.such.host.invalid"], 2, "cannot listen on no.such.host.invalid"),
        (["--builder", "best"], 2, "unknown pair builder 'best'"),
        (["--arg", "n"], 2, "--arg takes KEY=VALUE, got 'n'"),
        (["--phase", "test"], 2, "phase must be train or dev, got 'test'"),
        (["--phase", "dev"], 1, "has no scored prompt of phase 'dev'"),
        (["--pairs", "0"], 2, "Invalid value for '--pairs'"),
        (["--export", "{tmp}/p.jsonl"], 2, "has no votes; record some with rlprompt label RUN first"),
        (["--export", "{tmp}/p.jsonl", "--votes", "{tmp}/none.jsonl"], 2, "cannot read the votes"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], code: int, message: str, run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    _fails(["label", run, *given], code, message, capfd)
    assert not (tmp_path / "p.jsonl").exists()


def test_votes_of_another_run_and_votes_without_a_pair_are_told_of(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = stored_run(tmp_path / "other", {"": WORDS})
    _report(["label", other, "--simulate", "x", "--pairs", "1"], capfd)
    votes = ["--votes", other / "votes" / "simulated-x.jsonl"]
    _fails(["label", run, "--export", tmp_path / "p.jsonl", *votes], 2, "holds votes on another run, other", capfd)
    _fails(["label", run, "--simulate", "x", *votes], 2, "holds votes on another run, other", capfd)
    tied = stored_run(tmp_path / "tied", {"train/0": {"w01": 1.0, "w02": 1.0}})
    _report(["label", tied, "--simulate", "x"], capfd)
    capfd.readouterr()
    assert main(["label", str(tied), "--export", str(tmp_path / "p.jsonl")]) == 1
    assert "no pairs, so nothing is written: 1 votes, 0 skips, 1 couples" in capfd.readouterr().err
    assert not (tmp_path / "p.jsonl").exists()
    twice = ["--votes", tied / "votes" / "simulated-x.jsonl", "--votes", tied / "votes" / "simulated-x.jsonl"]
    _fails(["label", tied, "--export", tmp_path / "p.jsonl", *twice], 2, "give each annotator once", capfd)


def test_without_the_extra_the_command_says_what_to_install(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("rlprompt.labelling")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    _fails(["label", run], 2, "install them with pip install 'rlprompt[label]'", capfd)
    assert not (run / "votes").exists()
