"""The scorer: one call for all, each pair once, failures apart, minibatches by key, calibration on train only."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlprompt.config import parse_config
from rlprompt.errors import BudgetExceededError, ConfigError
from rlprompt.scoring import Scorer, build_scorer, scorer_spec, shared_scorer


def make_scorer(**sections: Any) -> Scorer:
    defaults: dict[str, Any] = {
        "task": {"name": "planted", "shots": 4, "dev_shots": 4},
        "target": {"name": "planted:separable", "kwargs": {"length": 3, "vocabulary": 50}},
    }
    return build_scorer(parse_config({**defaults, **sections}))


def count_calls(scorer: Scorer) -> list[int]:
    sizes: list[int] = []
    answer = scorer.target.run

    def run(requests: Any) -> Any:
        sizes.append(len(requests))
        return answer(requests)

    scorer.target.run = run  # type: ignore[method-assign]
    return sizes


def test_all_new_pairs_go_to_the_target_in_one_call_and_old_ones_never_again() -> None:
    scorer = make_scorer()
    sizes = count_calls(scorer)
    scorer.score(["w01 w02 w03", "w04 w05 w06", "w01 w02 w03"], scorer.task.train)
    scorer.score(["w01 w02 w03", "w07 w08 w09"], scorer.task.train)
    assert sizes == [2 * 8, 8]
    assert scorer.ledger.snapshot()["used"]["calls"] == 24


def test_the_gap_reward_is_that_of_the_outputs() -> None:
    scorer = make_scorer()
    scores = scorer.score(["w01 w02 w03"], scorer.task.train[:2])
    for column, (example, output) in enumerate(zip(scorer.task.train[:2], scores.outputs[0], strict=True)):
        assert output.choice_logprobs is not None
        assert isinstance(example.reference, int)
        right = float(np.exp(output.choice_logprobs[example.reference]))
        gap = right - (1 - right)  # two choices: the other has the rest
        assert scores.rewards[0, column] == pytest.approx(gap * (200 if gap > 0 else 180))
        assert scores.correct[0, column] == float(gap > 0)


def test_failed_pairs_are_excluded_counted_and_asked_again() -> None:
    scorer = make_scorer(
        target={"name": "planted:separable", "kwargs": {"length": 3, "vocabulary": 50, "failure_rate": 0.5}}
    )
    scores = scorer.score(["w01 w02 w03", "w04 w05 w06"], scorer.task.train)
    failed = ~scores.valid
    assert 0 < failed.sum() < failed.size
    assert len(scores.failures) == failed.sum()
    assert np.isnan(scores.correct[failed]).all()
    kept = scores.rewards[0][scores.valid[0]]
    assert scores.mean_rewards[0] == pytest.approx(kept.mean())
    assert scorer.new_pairs(["w01 w02 w03", "w04 w05 w06"], scorer.task.train) == failed.sum()


def test_nothing_is_spent_when_the_budget_is_short() -> None:
    scorer = make_scorer(budget={"max_target_calls": 7})
    sizes = count_calls(scorer)
    with pytest.raises(BudgetExceededError):
        scorer.score(["w01 w02 w03"], scorer.task.train)
    assert sizes == []
    assert scorer.ledger.snapshot()["used"]["calls"] == 0


def test_a_minibatch_depends_on_seed_and_iteration_only_and_is_stratified() -> None:
    scorer = make_scorer(seed=5)
    first = scorer.minibatch(3, 4)
    assert first == make_scorer(seed=5).minibatch(3, 4)
    assert first != scorer.minibatch(4, 4)
    assert sorted(example.reference for example in first) == [0, 0, 1, 1]
    assert scorer.minibatch(0, None) == scorer.task.train


def test_calibrated_scores_balance_the_train_answers_and_cost_no_further_call_on_train() -> None:
    scorer = make_scorer(calibration="median")
    sizes = count_calls(scorer)
    scores = scorer.score(["w01 w02 w03"], scorer.task.train)
    answered = [np.argmax(output.choice_logprobs) for output in scores.outputs[0]]
    assert sorted(answered) == [0, 0, 0, 0, 1, 1, 1, 1]
    assert sizes == [8]
    scorer.score(["w04 w05 w06"], scorer.task.dev, phase="dev")  # needs this prompt's train answers first
    assert sorted(sizes[1:]) == [8, 8]


def test_calibration_needs_choices() -> None:
    scorer = make_scorer()
    with pytest.raises(ConfigError, match="calibration must be one of"):
        Scorer(scorer.task, scorer.target, scorer.rewards, calibration="mean")


def test_a_spec_reaches_the_live_scorer_of_this_process_and_builds_one_elsewhere() -> None:
    scorer = make_scorer()
    assert shared_scorer(scorer.spec) is scorer
    config = parse_config(
        {"task": {"name": "planted", "shots": 2, "dev_shots": 2}, "target": {"name": "planted:pairs"}}
    )
    built = shared_scorer(scorer_spec(config))
    assert built is not scorer
    assert len(built.task.train) == 4


def test_remembered_answers_cost_nothing() -> None:
    first, second = make_scorer(), make_scorer()
    scores = first.score(["w01 w02 w03"], first.task.train)
    second.remember(
        ("w01 w02 w03", example_id, 0, output)
        for example_id, output in zip(scores.example_ids, scores.outputs[0], strict=True)
    )
    sizes = count_calls(second)
    assert (second.score(["w01 w02 w03"], second.task.train).rewards == scores.rewards).all()
    assert sizes == []


def test_the_code_that_a_spec_names_is_not_imported_from_it(tmp_path: Path) -> None:
    (tmp_path / "trap_reward.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\n")
    config = parse_config(
        {
            "task": {"name": "planted", "shots": 4, "dev_shots": 4},
            "target": {"name": "planted:separable", "kwargs": {"length": 3, "vocabulary": 50}},
            "reward": [{"name": "trap_reward:reward"}],
        }
    )
    code = {"allow_modules": ["trap_reward"], "search_path": str(tmp_path)}
    with pytest.raises(ConfigError, match="outside the configuration's folder"):
        shared_scorer({**scorer_spec(config), "code": code})
    assert not (tmp_path / "canary").exists()


class Told:
    """Takes down what whole batches of answers were; the planted target tells of single ones only with its batch."""

    def __init__(self, records: list[Any]) -> None:
        self.append = records.extend

    def sending(self, *_: Any) -> None:
        raise AssertionError("no call leaves this process")

    def returned(self, *_: Any) -> None: ...

    def answered(self, *_: Any) -> None: ...


def test_remembered_answers_that_nobody_charged_are_charged_but_not_asked() -> None:
    prompts = ["w01 w02 w03", "w04 w05 w06"]
    whole, resumed = make_scorer(), make_scorer()
    told: list[Any] = []
    whole.log = resumed.log = Told(told)
    expected = whole.score(prompts, whole.task.train)
    sizes = count_calls(resumed)
    resumed.remember(told[:11], charged=False)
    assert resumed.new_pairs(prompts, resumed.task.train) == 16  # the budget knows nothing of them yet
    scores = resumed.score(prompts, resumed.task.train)
    assert sizes == [5]
    assert len(told) == 16 + 5  # what was remembered is not told again
    assert scores.outputs == expected.outputs
    assert resumed.ledger.snapshot() == whole.ledger.snapshot()
    assert resumed.ledger.snapshot()["paid"]["calls"] == 16
    resumed.score(prompts, resumed.task.train)
    assert resumed.ledger.snapshot() == whole.ledger.snapshot()


def test_answers_are_told_before_the_rewards_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = make_scorer()
    told: list[Any] = []
    scorer.log = Told(told)

    class Broken:
        needs_original = False

        def __call__(self, **_: Any) -> Any:
            raise ZeroDivisionError

    monkeypatch.setattr(scorer, "rewards", Broken())
    with pytest.raises(ZeroDivisionError):
        scorer.score(["w01 w02 w03"], scorer.task.train)
    assert [(prompt, example_id) for prompt, example_id, _, _ in told] == [
        ("w01 w02 w03", example.id) for example in scorer.task.train
    ]
