"""Outcomes are what the stored answers of a run say, against the task's references."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rlprompt.config import parse_config
from rlprompt.errors import ConfigError, RunError
from rlprompt.pairs import DEMONSTRATION
from rlprompt.runs import load_run, outcomes, train
from rlprompt.runs.outcomes import logged_outcomes
from rlprompt.runs.records import Answer
from rlprompt.types import Example, Failure, TargetOutput


def test_every_stored_answer_of_a_run_is_one_outcome(tmp_path: Path) -> None:
    config = parse_config(
        {
            "task": {"name": "planted", "shots": 2, "dev_shots": 2, "test_limit": 8},
            "target": {"name": "planted:separable"},
            "policy": {"kind": "categorical", "model": "planted-50"},
            "env": {"prompt_length": 3, "num_envs": 4},
            "algorithm": {"name": "random", "iterations": 3},
            "selection": {"top": 2},
            "run": {"dir": str(tmp_path), "tensorboard": False},
        }
    )
    result = train(config, progress=False)
    found = logged_outcomes(result.folder)
    assert len(found) == result.target_calls
    records = [record for record in load_run(result.folder).prompts() if record.phase == "train"]
    assert records
    for record in records:  # the share of right answers on train is the recorded accuracy
        ours = [outcome.right for outcome in found if outcome.prompt == record.prompt][: record.num_examples]
        assert np.mean(ours) == pytest.approx(record.accuracy)
    with pytest.raises(
        ConfigError, match=r"a threshold .* is for tasks scored by token-f1 or rouge or dialogue, got 0\.5"
    ):
        logged_outcomes(result.folder, threshold=0.5)


def saved_run(monkeypatch: pytest.MonkeyPatch, metric: str | None, *answers: Answer) -> None:
    """A run folder in memory, with one example "e" whose reference is "yes sir"."""
    example = Example("e", "ask", 1 if metric is None else "yes sir")
    task = SimpleNamespace(
        name="toy",
        choices=("no", "yes") if metric is None else None,
        metric=metric,
        **{"train": (example,), "dev": (), "test": ()},
    )
    run = SimpleNamespace(config=SimpleNamespace(task=None), answers=lambda: list(answers))
    monkeypatch.setattr(outcomes, "load_run", lambda path: run)
    monkeypatch.setattr(outcomes, "task_from_config", lambda config: task)


def answer(prompt: str, sample: int = 0, example: str = "e", **output: Any) -> Answer:
    return Answer(prompt, example, sample, TargetOutput(**output))


def test_failures_demonstrations_and_unknown_examples_are_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    saved_run(
        monkeypatch,
        None,
        answer("good", choice_logprobs=(-2.0, -0.1)),
        answer("tie", choice_logprobs=(-0.7, -0.7)),
        answer("failed", failure=Failure("target", "timeout", "slow")),
        answer("derived", sample=DEMONSTRATION, choice_logprobs=(-2.0, -0.1)),
        answer("other", example="gone", choice_logprobs=(-2.0, -0.1)),
    )
    assert [(one.prompt, one.right) for one in logged_outcomes("run")] == [("good", True), ("tie", False)]
    assert "1 answers to examples that the task lacks are left out" in caplog.text
    saved_run(monkeypatch, None)
    with pytest.raises(RunError, match="has no answers that are right or wrong"):
        logged_outcomes("run")


def test_texts_are_right_by_the_metric_of_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [answer("a", text="Yes, sir."), answer("b", text="yes"), answer("c", choice_logprobs=(-0.1, -2.0))]
    saved_run(monkeypatch, "exact-match", *texts)
    assert [(one.prompt, one.right) for one in logged_outcomes("run")] == [("a", True), ("b", False)]
    saved_run(monkeypatch, "token-f1", *texts)
    with pytest.raises(ConfigError, match="token-f1 does not say what is right; give a threshold"):
        logged_outcomes("run")
    # "yes" shares one of the two words: F1 = 2 * 1 * 0.5 / 1.5 = 2/3.
    assert [one.right for one in logged_outcomes("run", threshold=0.66)] == [True, True]
    assert [one.right for one in logged_outcomes("run", threshold=0.67)] == [True, False]
