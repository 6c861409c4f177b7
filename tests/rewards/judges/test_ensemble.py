"""Several judges as one: value, disagreement, abstention."""

import json
import math
from typing import Any

import numpy as np
import pytest
from fake_judge import FakeJudge
from reward_sets import NAN, assert_values, fixed, run

from rlprompt.config import RewardConfig
from rlprompt.errors import CheckpointError, ConfigError
from rlprompt.rewards import Component, RewardSet, load_component
from rlprompt.rewards.judges import Ensemble, LLMJudge
from rlprompt.types import Failure


def member(name: str, *values: Any, weight: float = 1.0) -> Component:
    return Component(name, fixed(*values), weight)


def run_ensemble(*members: Component, **options: Any) -> Any:
    return run(RewardSet([Component("ensemble", Ensemble(members, **options))]))


THREE = (member("a", 0.0, 0.5, 1.0), member("b", 0.2, 0.5, 0.0), member("c", 1.0, 0.5, 0.8))


def test_the_mean_and_the_disagreement_are_recorded() -> None:
    result = run_ensemble(*THREE)
    # means 1.2 / 3, 0.5, 1.8 / 3
    assert result.rewards == pytest.approx([0.4, 0.5, 0.6])
    # variances: (0.16 + 0.04 + 0.36) / 3 = 0.18667; 0; (0.16 + 0.36 + 0.04) / 3
    spread = math.sqrt(0.56 / 3)
    assert result.components["ensemble/disagreement"] == pytest.approx([spread, 0.0, spread])
    assert_values(result.components["ensemble/b"], [0.2, 0.5, 0.0])
    assert result.failures == {}


@pytest.mark.parametrize(("combine", "expected"), [("median", [0.2, 0.5, 0.8]), ("min", [0.0, 0.5, 0.0])])
def test_median_and_minimum(combine: str, expected: list[float]) -> None:
    assert run_ensemble(*THREE, combine=combine).rewards == pytest.approx(expected)


def test_the_mean_is_weighted() -> None:
    heavy = member("a", 1.0, 0.0, 0.0, weight=3.0)
    light = member("b", 0.0, 1.0, 0.0)
    assert run_ensemble(heavy, light).rewards == pytest.approx([0.75, 0.25, 0.0])


def test_it_abstains_where_the_members_disagree_too_much() -> None:
    rewards = RewardSet([Component("ensemble", Ensemble(THREE, max_disagreement=0.3))])
    result = run(rewards)
    assert_values(result.rewards, [NAN, 0.5, NAN])
    assert result.components["ensemble/disagreement"][0] == pytest.approx(math.sqrt(0.56 / 3))
    assert result.failures == {}
    assert rewards.metrics()["reward/ensemble/abstained/disagreement"] == 2


def test_it_abstains_where_too_few_members_have_a_verdict() -> None:
    silent = member("b", None, None, 1.0)
    assert_values(run_ensemble(member("a", 0.0, 1.0, 0.5), silent).rewards, [NAN, NAN, 0.75])
    result = run_ensemble(member("a", 0.0, None, 0.5), silent, at_least=1)
    assert_values(result.rewards, [0.0, NAN, 0.75])
    assert_values(result.components["ensemble/disagreement"], [0.0, NAN, 0.25])


def test_a_member_that_failed_fails_the_pair() -> None:
    failure = Failure("target", "http", "500")
    result = run_ensemble(member("a", 0.0, 1.0, 0.5), member("b", failure, 1.0, NAN), at_least=1)
    assert_values(result.rewards, [NAN, 1.0, NAN])
    assert {index: (found.where, found.kind) for index, found in result.failures.items()} == {
        0: ("reward", "http"),
        2: ("reward", "nan"),
    }


def test_judges_of_a_configuration_are_members_with_names_of_their_own() -> None:
    judge = {"name": "judge", "kwargs": {"target": "planted:separable", "rubric": "Good?", "mode": "yes-no"}}
    config = RewardConfig(name="ensemble", kwargs={"members": [judge, judge, {"name": "length", "weight": 2.0}]})
    component = load_component(config)
    assert component.records == ("disagreement", "judge", "judge#2", "length")
    assert component.judge_calls.per_pair == 2
    assert component.max_abstained_fraction == 0.5


def test_the_state_of_the_members_and_the_counts_are_kept() -> None:
    def make(target: FakeJudge) -> RewardSet:
        first, second = (LLMJudge(target, rubric) for rubric in ("Polite?", "Short?"))
        return RewardSet([Component("ensemble", Ensemble([Component("a", first), Component("b", second)]))])

    rewards = make(FakeJudge(lambda shown, question: "5" if "Polite" in question else "hm"))
    assert np.isnan(run(rewards).rewards).all()
    state = json.loads(json.dumps(rewards.state_dict()))
    target = FakeJudge(lambda *_: "1")
    resumed = make(target)
    resumed.load_state_dict(state)
    assert np.isnan(run(resumed).rewards).all()
    assert target.num_asked == 0
    metrics = resumed.metrics()
    assert (metrics["reward/ensemble/abstained/too-few"], metrics["reward/ensemble/b/abstained/prose"]) == (6, 6)
    del state["ensemble"]["members"]["b"]
    with pytest.raises(CheckpointError, match=r"holds the state of the parts \['a'\]"):
        make(target).load_state_dict(state)


async def later(*, outputs: list[Any], **columns: Any) -> list[float]:
    return [0.0] * len(outputs)


@pytest.mark.parametrize(
    ("members", "options", "message"),
    [
        ([member("a", 1)], {}, "a list of two rewards or more"),
        ([member("a", 1), member("a", 1)], {}, "names of their own, got a, a"),
        ([member("a", 1), member("disagreement", 1)], {}, "names of their own"),
        ([member("a", 1), "judge"], {}, "write a part as"),
        ([member("a", 1), {"name": "x", "nme": 1}], {}, "unknown key 'nme'"),
        ([member("a", 1), {}], {}, "reward 'member': name: Field required"),
        ([member("a", 1), {"name": "gapp"}], {}, "unknown reward 'gapp'"),
        ([member("a", 1), Component("b", later)], {}, "reward 'b' is async"),
        (THREE, {"combine": "max"}, "combine must be mean, median, min"),
        (THREE, {"max_disagreement": -1}, "max_disagreement must be at least 0"),
        (THREE, {"at_least": 4}, "at_least must be from 1 to 3, got 4"),
        ([member("a", 1), member("b", 1, weight=0.0)], {}, "weights of members must be above 0"),
        ([member("a", 1), member("b", 1, weight=2.0)], {"combine": "min"}, "weights are for combine: mean"),
    ],
)
def test_wrong_arguments_are_named(members: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Ensemble(members, **options)
