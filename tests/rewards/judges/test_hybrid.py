"""Verifier first; and what that does to a policy that games its judge."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fake_judge import FakeJudge
from reward_sets import NAN, assert_values, fixed, run

from rlprompt.algorithms.divergence import divergence
from rlprompt.config import RewardConfig
from rlprompt.errors import ConfigError
from rlprompt.rewards import Component, RewardSet, load_component
from rlprompt.rewards.classification import Accuracy
from rlprompt.rewards.judges import Hybrid, LLMJudge
from rlprompt.scoring import Scorer
from rlprompt.seeding import generator
from rlprompt.targets.planted import PlantedTarget
from rlprompt.tasks.planted import planted_task
from rlprompt.types import Failure


def hybrid(verifier: Any, judge: Any, **options: Any) -> RewardSet:
    made = Hybrid(Component("verifier", fixed(*verifier)), Component("judge", judge), **options)
    return RewardSet([Component("hybrid", made)])


class Judge:
    """Values by text; remembers what it was asked."""

    def __init__(self, **values: Any) -> None:
        self.values = values
        self.asked: list[str] = []

    def __call__(self, *, outputs: list[Any], **columns: Any) -> list[Any]:
        self.asked += [output.text for output in outputs]
        return [self.values[output.text] for output in outputs]


def test_the_judge_decides_where_the_verifier_abstains_and_is_asked_nowhere_else() -> None:
    judge = Judge(b=0.4)
    result = run(hybrid([1.0, None, 0.0], judge))
    assert_values(result.rewards, [1.0, 0.4, 0.0])
    assert judge.asked == ["b"]
    assert_values(result.components["hybrid/verifier"], [1.0, NAN, 0.0])
    assert_values(result.components["hybrid/judge"], [NAN, 0.4, NAN])


def test_a_passing_answer_gets_a_bounded_bonus() -> None:
    judge = Judge(a=0.5, b=7.0)
    result = run(hybrid([1.0, 1.0, 0.9], judge, undecided="abstain", bonus=0.2))
    assert result.rewards == pytest.approx([1.1, 1.2, 0.9])  # 1 + 0.2 * 0.5; 7 counts as 1; 0.9 does not pass
    assert judge.asked == ["a", "b"]
    result = run(hybrid([1.0, None, 0.5], Judge(a=-3.0, c=1.0), undecided="abstain", bonus=0.2, passes=0.5))
    assert_values(result.rewards, [1.0, NAN, 0.7])


def test_both_uses_go_together_and_the_scale_is_for_the_judge_alone() -> None:
    result = run(hybrid([200.0, None, -90.0], Judge(a=1.0, b=0.5), bonus=10, passes=100, judge_scale=200))
    assert_values(result.rewards, [210.0, 100.0, -90.0])


def test_a_judge_without_a_verdict_takes_nothing_from_what_the_verifier_says() -> None:
    result = run(hybrid([1.0, None, 0.0], Judge(a=None, b=None), bonus=0.5))
    assert_values(result.rewards, [1.0, NAN, 0.0])
    assert result.failures == {}


def test_failures_of_either_stay_failures() -> None:
    failure = Failure("target", "timeout", "too slow")
    result = run(hybrid([failure, None, 1.0], Judge(b=failure, c=failure), bonus=0.5))
    assert_values(result.rewards, [NAN, NAN, NAN])
    assert [result.failures[index].kind for index in range(3)] == ["timeout"] * 3


def test_it_needs_what_its_parts_need_and_is_ordered_as_its_verifier_is() -> None:
    judge = {"name": "judge", "kwargs": {"target": "planted:separable", "rubric": "Good?", "mode": "yes-no"}}
    config = RewardConfig(name="hybrid", kwargs={"verifier": {"name": "exact-match"}, "judge": judge})
    component = load_component(config)
    assert (component.needs, component.gold_not_ordered, component.judge_calls.per_pair) == ("text", False, 1)
    assert Hybrid({"name": "length"}, judge).gold_not_ordered
    assert Hybrid({"name": "accuracy"}, judge).reads_text


def test_code_beside_the_configuration_can_be_the_verifier(tmp_path: Any) -> None:
    (tmp_path / "hybrid_verifier.py").write_text(
        "def verify(*, outputs, **columns):\n    return [1.0 for _ in outputs]\n"
    )
    parts = {"verifier": {"name": "hybrid_verifier:verify"}, "judge": {"name": "length"}}
    config = RewardConfig(name="hybrid", kwargs=parts)
    assert_values(run(RewardSet([load_component(config, search_path=tmp_path)])).rewards, [1.0, 1.0, 1.0])
    with pytest.raises(ConfigError, match="names code outside"):
        load_component(config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"undecided": "zero"}, "undecided must be judge or abstain"),
        ({"bonus": -1.0}, "bonus must be a finite number of at least 0"),
        ({"judge_scale": float("nan")}, "judge_scale must be a finite number"),
        ({"undecided": "abstain"}, "the judge is never asked; set a bonus"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Hybrid({"name": "accuracy"}, {"name": "length"}, **options)


# --- a rigged judge ---

LENGTH, VOCABULARY, PROMPTS, ITERATIONS = 2, 10, 8, 50
PLANTED = PlantedTarget("separable", length=LENGTH, vocabulary=VOCABULARY)
OPTIMUM = [int(word) for word in re.findall(r"\d+", PLANTED.optimum)]
FLATTERY = next(word for word in range(VOCABULARY) if word not in OPTIMUM)


def rigged() -> LLMJudge:
    """Likes one word, whatever it does to the target: P(yes) = 0.1 + 0.4 for each time it is there."""
    target = FakeJudge(lambda shown, _: 0.1 + 0.4 * shown["text to be judged"].count(f"w{FLATTERY:02d}"))
    return LLMJudge(target, "Is it a good prompt?", "yes-no", of="prompt")


def verifies_half(*, outputs: list[Any], references: list[Any], input: list[str], **columns: Any) -> list[Any]:
    """Right or wrong on every other item; the rest cannot be verified."""
    found = Accuracy()(outputs=outputs, references=references)
    return [None if int(text.split()[1]) % 2 else value for text, value in zip(input, found, strict=True)]


verifies_half.needs = "choices"  # type: ignore[attr-defined]


def learn(reward: Callable[..., Any]) -> tuple[list[float], list[float]]:
    """REINFORCE on a table that begins near the optimum; returns mean reward and mean accuracy of each iteration."""
    scorer = Scorer(planted_task(8, 4, 4), PLANTED, RewardSet([Component("proxy", reward), ACCURACY]))
    table = np.zeros((LENGTH, VOCABULARY))
    table[range(LENGTH), OPTIMUM] = 2.0
    proxy, gold = [], []
    for iteration in range(ITERATIONS):
        chances = np.exp(table) / np.exp(table).sum(axis=1, keepdims=True)
        rng = generator(0, "rigged", iteration)
        tokens = np.array([[rng.choice(VOCABULARY, p=row) for row in chances] for _ in range(PROMPTS)])
        scores = scorer.score([" ".join(f"w{token:02d}" for token in row) for row in tokens], scorer.task.train)
        advantages = scores.mean_rewards - scores.mean_rewards.mean()
        for row, advantage in zip(tokens, advantages, strict=True):
            table -= 0.25 * advantage * chances
            table[range(LENGTH), row] += 0.25 * advantage
        proxy.append(float(scores.mean_rewards.mean()))
        gold.append(float(scores.accuracies.mean()))
    return proxy, gold


ACCURACY = Component("accuracy", Accuracy(), 0.0)


def caught(proxy: list[float], gold: list[float], window: int = 10) -> bool:
    ends = range(window, len(proxy) + 1)
    return any(divergence(proxy[end - window : end], gold[end - window : end]).diverged for end in ends)


def end(series: list[float]) -> float:
    return float(np.mean(series[-5:]))


def test_a_rigged_judge_is_caught_and_an_honest_reward_is_not() -> None:
    proxy, gold = learn(rigged())
    assert end(proxy) > 0.8 > 0.3 > end(gold)
    assert caught(proxy, gold)
    honest, accuracy = learn(Accuracy())
    assert end(accuracy) > gold[0]
    assert not caught(honest, accuracy)


def test_row_30_a_policy_that_learns_from_an_honest_judge_gets_better_by_the_true_metric() -> None:
    target = FakeJudge(lambda shown, _: 0.05 + 0.9 * PLANTED.quality(shown["text to be judged"]))
    proxy, gold = learn(LLMJudge(target, "Is it a good prompt?", "yes-no", of="prompt"))
    assert end(gold) > gold[0] + 0.2
    assert not caught(proxy, gold)


@pytest.mark.parametrize("options", [{}, {"undecided": "abstain", "bonus": 0.2}], ids=["undecided", "bonus"])
def test_row_140_with_a_verifier_first_proxy_and_gold_lie_closer_together(options: dict[str, Any]) -> None:
    proxy, gold = learn(rigged())
    judge_only = end(proxy) - end(gold)
    made = Hybrid(Component("verifier", verifies_half), Component("judge", rigged()), **options)
    proxy, gold = learn(made)
    assert end(proxy) - end(gold) < judge_only - 0.3
    assert end(gold) > 0.7
    assert not caught(proxy, gold)
