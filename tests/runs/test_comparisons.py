"""Comparisons of what runs have stored: rewrites of one input, prompts of a task, and what the target made of them."""

from pathlib import Path

import pytest
from stored_runs import stored_run

from rlprompt.errors import ConfigError, RunError
from rlprompt.preferences import VoteFile
from rlprompt.runs import load_run
from rlprompt.runs.comparisons import LabelledRun

TEXTS = {"w01": 3.0, "w02": 1.0, "w03": 2.0}


def _labelled(path: Path, phase: str = "train") -> LabelledRun:
    return LabelledRun(load_run(path), phase=phase)


def test_rewrites_are_compared_with_others_of_the_same_input(tmp_path: Path) -> None:
    run = stored_run(tmp_path, {"train/0": TEXTS, "train/4": {"w01": 1.0, "w04": 0.0}})
    queue = _labelled(run).queue(100, seed=0)
    assert queue.what == "prompts"  # the target chose among choices, so there is no text to show
    found = {(c.example_id, c.input, c.a.text, c.b.text) for c in queue.comparisons}
    assert found == {
        ("train/0", "item 0", "w01", "w02"),
        ("train/0", "item 0", "w01", "w03"),
        ("train/0", "item 0", "w02", "w03"),
        ("train/4", "item 4", "w01", "w04"),
    }


def test_outputs_are_shown_where_there_are_any(tmp_path: Path) -> None:
    answers = {("w01", "train/0"): "yes", ("w02", "train/0"): "no", ("w01", "train/4"): "yes"}
    run = stored_run(tmp_path, {"train/0": TEXTS, "train/4": {"w01": 1.0, "w04": 0.0}}, answers)
    labelled = _labelled(run)
    queue = labelled.queue(100, seed=0)
    assert queue.what == "outputs"
    assert [(c.a.candidate.text, c.a.text, c.b.candidate.text, c.b.text) for c in queue.comparisons] == [
        ("w01", "yes", "w02", "no")  # the other texts have no answer stored
    ]
    assert len(labelled.queue(100, seed=0, what="prompts").comparisons) == 4


def test_prompts_of_the_task_are_shown_by_their_outputs_on_one_example(tmp_path: Path) -> None:
    answers = {(text, f"train/{n}"): f"{text} on {n}" for text in TEXTS for n in (0, 2)}
    run = stored_run(tmp_path, {"": TEXTS}, {**answers, ("w01", "dev/0"): "x", ("w02", "dev/0"): "y"})
    labelled = _labelled(run)
    shown = {entry.example_id for entry in labelled.queue(100, seed=0).comparisons}
    assert shown <= {"train/0", "train/2"}  # dev examples are not those of the phase
    assert shown
    for entry in labelled.queue(100, seed=0).comparisons:
        number = entry.example_id.removeprefix("train/")
        assert entry.input == f"item {number}"
        assert (entry.a.text, entry.b.text) == tuple(
            f"{side.candidate.text} on {number}" for side in (entry.a, entry.b)
        )
    prompts = labelled.queue(100, seed=0, what="prompts").comparisons
    assert {(c.example_id, c.input, c.a.text, c.b.text) for c in prompts} == {
        ("", "", "w01", "w02"),
        ("", "", "w01", "w03"),
        ("", "", "w02", "w03"),
    }


def test_a_pair_builder_says_which_are_compared(tmp_path: Path) -> None:
    labelled = _labelled(stored_run(tmp_path, {"train/0": TEXTS}))
    (best_worst,) = labelled.queue(9, seed=0, builder="best-worst").comparisons
    assert (best_worst.a.text, best_worst.b.text) == ("w01", "w02")
    floors = {"top": 3, "margin": 1.5}
    assert len(labelled.queue(9, seed=0, builder="margin", arguments=floors).comparisons) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"builder": "directive"}, "gives its pairs a context of their own, which no annotator sees"),
        ({"builder": "nothing"}, "unknown pair builder 'nothing'"),
        ({"arguments": {"n": 3}}, "--arg n: 'random' has no arguments; name a --builder"),
        ({"what": "outputs"}, "has stored no two texts of the target for one example; compare prompts"),
        (
            {"builder": "margin", "arguments": {"margin": 9}},
            "no two comparable prompts for one input that 'margin' makes",
        ),
    ],
)
def test_what_cannot_be_compared_is_told_in_one_line(
    arguments: dict[str, object], message: str, tmp_path: Path
) -> None:
    labelled = _labelled(stored_run(tmp_path, {"train/0": {"w01 w02": 1.0, "w03": 2.0}}))
    with pytest.raises(ConfigError) as error:
        labelled.queue(9, seed=0, **arguments)  # type: ignore[arg-type]
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_run_with_one_prompt_or_with_none_cannot_be_labelled(tmp_path: Path) -> None:
    alone = _labelled(stored_run(tmp_path / "a", {"train/0": {"w01": 1.0}, "train/4": {"w01": 1.0}}))
    with pytest.raises(ConfigError, match="has no two comparable prompts for one input; use a run that wrote more"):
        alone.queue(9, seed=0)
    with pytest.raises(RunError, match="has no scored prompt of phase 'dev'; there is nothing to label"):
        _labelled(tmp_path / "a", phase="dev")


def test_votes_are_read_for_the_run_that_they_are_on(tmp_path: Path) -> None:
    one = _labelled(stored_run(tmp_path / "one", {"train/0": TEXTS}))
    other = _labelled(stored_run(tmp_path / "other", {"": TEXTS}))
    file = one.votes_folder() / "ann.jsonl"
    VoteFile(file, one.header("ann")).close()
    header = one.read(file).header
    assert header is not None
    assert (header.run, header.annotator) == ("one", "ann")
    with pytest.raises(ConfigError, match="holds votes on another run, one; give that run"):
        other.read(file)
