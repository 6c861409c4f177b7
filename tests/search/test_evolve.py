"""Reward-guided evolution: the best rewrites of each input survive, the policy reads them, a run resumes exactly."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted_runs import INPUTS

from rlprompt.config import RunConfig, parse_config
from rlprompt.errors import ConfigError
from rlprompt.runs import load_run, train
from rlprompt.runs.records import PromptRecord
from rlprompt.search.evolve import feedback, select
from rlprompt.types import Example, Scores


def make_config(folder: Path, *overrides: str, **algorithm: Any) -> RunConfig:
    data = {**INPUTS, "run": {"dir": str(folder), "checkpoint_every": 1, "tensorboard": False}}
    data["env"] = {**INPUTS["env"], "num_envs": 16, "meta_prompt": "w01 {input}\n{feedback}"}
    data["reward"] = [{"name": "log-probability"}]
    data["algorithm"] = {"name": "evolve", "iterations": 3, "survivors": 2, **algorithm}
    return parse_config(data, overrides)


def on_train(folder: Path) -> list[PromptRecord]:
    return [record for record in load_run(folder).prompts() if record.phase == "train"]


def test_the_best_distinct_texts_survive_by_hand() -> None:
    first, second = Example("a", "A"), Example("b", "B")
    scores = Scores(
        prompts=("x", "y", "z", "x", "u", "v"),
        example_ids=("",),
        components={},
        rewards=np.array([[1.0], [3.0], [2.0], [9.0], [5.0], [5.0]]),
        correct=np.full((6, 1), np.nan),
        valid=np.array([[True], [True], [True], [True], [True], [True]]),
        outputs=(),
        failures=(),
        row_example_ids=("a", "a", "a", "b", "b", "b"),
    )
    inputs = [first] * 3 + [second] * 3
    before = {"a": [("old", 2.5), ("x", 1.5)], "b": []}
    assert select(before, inputs, scores, 2) == {"a": [("y", 3.0), ("old", 2.5)], "b": [("x", 9.0), ("u", 5.0)]}
    failed = Scores(**{**vars(scores), "valid": np.array([[True], [False], [True], [False], [False], [False]])})
    assert select(before, inputs, failed, 3) == {"a": [("old", 2.5), ("z", 2.0), ("x", 1.5)], "b": []}


def test_what_the_policy_reads_names_the_best_first() -> None:
    assert feedback([]) == ""
    lines = feedback([("y", 3.0), ("old", 2.5)]).splitlines()
    assert lines[1:] == ["3.00: y", "2.50: old"]


def test_rounds_have_the_same_inputs_and_the_first_one_the_texts_of_random(tmp_path: Path) -> None:
    evolved = train(make_config(tmp_path / "evolve"), progress=False)
    records = on_train(evolved.folder)
    rounds = [[record for record in records if record.iteration == number] for number in range(3)]
    assert [len(found) for found in rounds] == [16, 16, 16]
    assert len({tuple(record.example_id for record in found) for found in rounds}) == 1
    sampled = train(make_config(tmp_path / "random", name="random"), progress=False)
    assert [record.prompt for record in rounds[0]] == [r.prompt for r in on_train(sampled.folder) if r.iteration == 0]
    events = [event["metrics"] for event in load_run(evolved.folder).events() if event["event"] == "iteration"]
    best = [metrics["evolve/best"] for metrics in events]
    expected = []
    for number in range(3):
        tops: dict[str, float] = {}
        for record in (record for found in rounds[: number + 1] for record in found):
            tops[record.example_id] = max(tops.get(record.example_id, -np.inf), record.raw_reward)
        expected.append(np.mean(list(tops.values())))
    assert best == pytest.approx(expected)
    assert events[0]["evolve/improved"] == 1.0
    # 4 inputs x 4 rewrites in 3 rounds, then 4 dev inputs; equal texts are asked about once.
    assert evolved.target_calls <= 3 * 16 + 4


def test_the_policy_reads_the_survivors(tmp_path: Path) -> None:
    one, two = (train(make_config(tmp_path / str(count), survivors=count), progress=False) for count in (1, 3))
    first, second = on_train(one.folder), on_train(two.folder)
    assert [r.prompt for r in first if r.iteration == 0] == [r.prompt for r in second if r.iteration == 0]
    assert [r.prompt for r in first if r.iteration > 0] != [r.prompt for r in second if r.iteration > 0]


def test_a_resumed_run_is_the_run_that_was_not_stopped(tmp_path: Path) -> None:
    whole = train(make_config(tmp_path / "whole"), progress=False)
    part = train(make_config(tmp_path / "part", iterations=2), progress=False)
    resumed = train(make_config(tmp_path / "part"), resume=part.folder, progress=False)
    assert (resumed.target_calls, resumed.dev_reward) == (whole.target_calls, whole.dev_reward)
    one, other = (
        [(record.prompt, record.example_id, record.raw_reward) for record in on_train(run.folder)]
        for run in (whole, resumed)
    )
    assert one == other


def test_a_round_that_does_not_fit_into_the_budget_is_not_begun(tmp_path: Path) -> None:
    result = train(make_config(tmp_path, "budget.max_target_calls=40"), progress=False)
    assert result.stop_reason == "budget"
    assert result.target_calls <= 40
    assert 0 < result.iterations < 3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["env.meta_prompt=w01 {input}"], "evolve shows the best rewrites so far in the slot {feedback}"),
        (["env.turns=2"], "evolve has rounds of its own; set env.turns to 1"),
        (["env.level=task", "env.draft=w01", "env.meta_prompt=w02 {draft}"], "evolve writes for single inputs; set"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(overrides: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message.replace("{", r"\{")) as caught:
        train(make_config(tmp_path, *overrides), progress=False)
    assert "\n" not in str(caught.value)
