"""Rewards that spend: on the run's ledger, in the phase of the scoring, and never more than the budget."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from fake_judge import FakeJudge
from reward_sets import NAN, assert_values, fixed, run

from rlprompt.config import BudgetConfig
from rlprompt.errors import BudgetExceededError, ConfigError
from rlprompt.rewards import Component, RewardSet
from rlprompt.rewards.classification import Accuracy
from rlprompt.rewards.judges import Ensemble, LLMJudge
from rlprompt.rewards.spending import Account, JudgeCalls
from rlprompt.scoring import Scorer
from rlprompt.targets.cache import CachedTarget, ResponseCache
from rlprompt.targets.ledger import Ledger, Price
from rlprompt.targets.planted import PlantedTarget
from rlprompt.tasks.planted import planted_task
from rlprompt.types import Failure

PROMPTS = ["w01 w02 w03", "w04 w05 w06"]


def make_scorer(judge: Any, **budget: Any) -> Scorer:
    """Four train rows; the judge reads item and answer, so every pair is a question unless answers are equal."""
    rewards = RewardSet([Component("judge", judge), Component("accuracy", Accuracy(), 0.0)])
    ledger = Ledger(BudgetConfig.model_validate(budget), prices={"target": Price()})
    return Scorer(planted_task(4, 4, 4), PlantedTarget(), rewards, ledger=ledger)


def yes(target: Any = None, **options: Any) -> LLMJudge:
    return LLMJudge(target or FakeJudge(lambda *_: 0.75), "Good?", "yes-no", ask="probabilities", **options)


def test_calls_are_booked_as_the_judges_in_the_phase_of_the_scoring() -> None:
    scorer = make_scorer(yes())
    scorer.score(PROMPTS[:1], scorer.task.train)
    scorer.score(PROMPTS[:1], scorer.task.dev, phase="dev")
    scorer.score(PROMPTS[:1], scorer.task.test, phase="test")
    report = scorer.ledger.snapshot()
    assert report["by_role"]["judge"]["calls"] == report["by_role"]["target"]["calls"] == 8
    assert report["by_role"]["judge"]["tokens"] == 80  # 8 prompt and 2 completion tokens each
    assert {name: meter["calls"] for name, meter in report["by_phase"].items()} == {"train": 8, "dev": 8, "test": 8}
    assert report["used"]["calls"] == 16  # the test is metered apart


def test_an_equal_triple_is_judged_once_a_run() -> None:
    target = FakeJudge(lambda *_: 0.75)
    scorer = make_scorer(yes(target))
    before = scorer.score(PROMPTS[:1], scorer.task.train)
    again = scorer.score(PROMPTS[:1] * 2, scorer.task.train)
    assert target.num_asked == 4
    assert again.rewards[1].tolist() == before.rewards[0].tolist() == [0.75] * 4
    assert scorer.ledger.snapshot()["by_role"]["judge"]["calls"] == 4


def test_a_resumed_run_judges_nothing_again() -> None:
    scorer = make_scorer(yes())
    scorer.score(PROMPTS[:1], scorer.task.train)
    state = json.loads(json.dumps(scorer.state_dict()))
    target = FakeJudge(lambda *_: 0.75)
    resumed = make_scorer(yes(target))
    resumed.load_state_dict(state)
    assert resumed.ledger.snapshot() == scorer.ledger.snapshot()
    assert resumed.score(PROMPTS[:1], resumed.task.train).rewards.tolist() == [[0.75] * 4]
    assert target.num_asked == 0


def test_a_budget_that_a_reward_would_overdraw_stops_the_scoring_and_is_no_failure() -> None:
    scorer = make_scorer(yes(), max_target_calls=7)
    with pytest.raises(BudgetExceededError, match="max_target_calls would be overdrawn: 4 wanted, 4 used"):
        scorer.score(PROMPTS[:1], scorer.task.train)
    assert scorer.ledger.snapshot()["used"]["calls"] == 4
    scorer = make_scorer(yes(), max_target_calls=8)
    assert scorer.score(PROMPTS[:1], scorer.task.train).valid.all()


def test_members_of_an_ensemble_stop_it_as_well() -> None:
    members = [Component("a", yes()), Component("b", yes(FakeJudge(lambda *_: 0.5)))]
    scorer = make_scorer(Ensemble(members), max_target_calls=11)
    with pytest.raises(BudgetExceededError):
        scorer.score(PROMPTS[:1], scorer.task.train)
    assert scorer.ledger.snapshot()["by_role"]["judge"]["calls"] == 4


def test_cached_verdicts_are_used_and_not_paid(tmp_path: Path) -> None:
    def cached(target: FakeJudge) -> LLMJudge:
        return yes(CachedTarget(target, ResponseCache(tmp_path / "answers.sqlite")))

    first, second = FakeJudge(lambda *_: 0.75), FakeJudge(lambda *_: 0.75)
    for target in (first, second):
        scorer = make_scorer(cached(target))
        scorer.score(PROMPTS[:1], scorer.task.train)
        assert scorer.ledger.snapshot()["by_role"]["judge"]["calls"] == 4
    assert (first.num_asked, second.num_asked) == (4, 0)
    assert scorer.ledger.snapshot()["by_role"]["judge"]["paid_calls"] == 0


def test_a_judges_price_is_charged_and_an_unknown_one_is_refused_where_money_is_limited() -> None:
    with pytest.raises(ConfigError, match=r"the price of the judge \(fake-judge\) is unknown"):
        make_scorer(yes(), max_cost_usd=1.0)
    target = FakeJudge(lambda *_: 0.75)
    target.price = Price(1e-6, 2e-6)  # type: ignore[attr-defined]
    scorer = make_scorer(yes(target), max_cost_usd=1.0)
    scorer.score(PROMPTS[:1], scorer.task.train)
    # 4 calls of 8 prompt and 2 completion tokens: 4 * (8e-6 + 4e-6)
    assert scorer.ledger.snapshot()["paid"]["cost_usd"] == pytest.approx(4.8e-5)


def test_a_failed_judge_call_excludes_the_pair_and_is_counted() -> None:
    failure = Failure("target", "timeout", "too slow")
    scorer = make_scorer(yes(FakeJudge(lambda shown, _: failure if shown["input"] == "item 1" else 0.75)))
    scores = scorer.score(PROMPTS[:1], scorer.task.train)
    assert scores.valid.tolist() == [[True, False, True, True]]
    ((row, column, found),) = scores.failures
    assert (row, column, found.where, found.kind) == (0, 1, "reward", "timeout")
    assert found.message == "reward 'judge': the judge's call failed: too slow"


def test_a_silent_judge_abstains_and_nothing_has_failed() -> None:
    scorer = make_scorer(LLMJudge(FakeJudge(lambda *_: "Well, it depends."), "Good?"))
    scores = scorer.score(PROMPTS[:1], scorer.task.train)
    assert not scores.valid.any()
    assert scores.failures == ()
    assert scorer.rewards.metrics() == {"reward/judge/abstained": 4.0, "reward/judge/abstained/prose": 4.0}


def test_calls_add_up_over_components() -> None:
    judge, prompt = yes(), yes(of="prompt")
    rewards = RewardSet([Component("a", judge), Component("b", prompt), Component("c", Accuracy())])
    assert rewards.judge_calls == JudgeCalls(per_pair=1, per_prompt=1)
    assert rewards.judge_calls.most(prompts=3, pairs=12) == 15


# --- what a reward may return beside numbers ---


def test_a_reward_reports_the_failure_of_a_single_pair() -> None:
    result = run(RewardSet([Component("mine", fixed(1.0, Failure("judge", "http", "500", 2), None))]))
    assert_values(result.rewards, [1.0, NAN, NAN])
    assert list(result.failures) == [1]
    assert result.failures[1] == Failure("reward", "http", "reward 'mine': 500", 2)


class Recording:
    also_records = ("length", "none")

    def __init__(self, returned: Any = None) -> None:
        self.returned = returned

    def __call__(self, *, outputs: list[Any], **columns: Any) -> Any:
        lengths = [float(len(output.text)) for output in outputs]
        found = {"reward": [1.0] * len(outputs), "length": lengths, "none": [None] * len(outputs)}
        return found if self.returned is None else self.returned


def test_further_numbers_are_recorded_and_are_no_part_of_the_sum() -> None:
    rewards = RewardSet([Component("mine", Recording(), 2.0)])
    result = run(rewards, texts=["abc", None, "a"])
    assert_values(result.rewards, [2.0, NAN, 2.0])
    assert_values(result.components["mine/length"], [3.0, NAN, 1.0])
    assert all(math.isnan(value) for value in result.components["mine/none"])
    assert tuple(result.components) == rewards.recorded == ("mine", "mine/length", "mine/none")
    assert list(run(rewards, texts=[None]).components) == ["mine", "mine/length", "mine/none"]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({"reward": [1.0] * 3}, "returned reward; it has to be reward, length, none"),
        ({"reward": [1.0] * 3, "length": [1.0], "none": [1.0] * 3}, "returned 1 values for 3 samples"),
    ],
)
def test_further_numbers_that_do_not_fit_fail_every_pair(returned: Any, message: str) -> None:
    result = run(RewardSet([Component("mine", Recording(returned))]))
    assert sorted(result.failures) == [0, 1, 2]
    assert message in result.failures[0].message


def test_a_list_alone_will_do() -> None:
    result = run(RewardSet([Component("mine", Recording([1.0, 2.0, 3.0]))]))
    assert_values(result.rewards, [1.0, 2.0, 3.0])
    assert_values(result.components["mine/length"], [NAN] * 3)


def test_an_account_of_its_own_is_unlimited() -> None:
    account = Account()
    account.check_price(None, "anybody")
    with account.reserve(2, 30, None) as reservation:
        reservation.settle([])
    assert account.ledger.snapshot()["used"]["calls"] == 0
