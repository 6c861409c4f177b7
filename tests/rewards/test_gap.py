"""The gap over the original prompt: as a reward, and through the scorer that asks for the original's answers."""

import json
from typing import Any

import numpy as np
import pytest

from rlprompt.config import RewardConfig, parse_config
from rlprompt.errors import BudgetExceededError, CheckpointError, ConfigError
from rlprompt.rewards import Component, RewardSet, check_rewards
from rlprompt.rewards.gap import GapOverOriginal
from rlprompt.rewards.metrics import metric_correct, metric_score
from rlprompt.scoring import Scorer, build_scorer
from rlprompt.tasks import Task, Template
from rlprompt.types import Example, Failure, TargetOutput, TargetRequest


def texts(*values: str) -> list[TargetOutput]:
    return [TargetOutput(text=value) for value in values]


def test_it_is_the_difference_of_the_two_rewards() -> None:
    # F1 of "red car" and "red": 2 * 1 / (2 + 1) = 2/3; of "blue": 0; of "red": 1
    values = GapOverOriginal("token-f1")(
        prompts=[""] * 3,
        completions=["new"] * 3,
        outputs=texts("red car", "blue", "red"),
        references=["red"] * 3,
        original_prompts=["old"] * 3,
        originals=texts("blue", "red", "red"),
    )
    assert values == pytest.approx([2 / 3, -1.0, 0.0])


def test_it_abstains_where_either_value_is_missing() -> None:
    failed = TargetOutput(failure=Failure("target", "timeout", "too slow"))
    probabilities = TargetOutput(choice_logprobs=(0.0, -1.0))
    values = GapOverOriginal("exact-match")(
        completions=["new"] * 4,
        outputs=texts("red", "red", "red", "red"),
        references=["red", None, "red", "red"],
        original_prompts=["old"] * 4,
        originals=[failed, *texts("red"), probabilities, *texts("red")],
    )
    assert values == [None, None, None, 0.0]


def test_rewards_of_the_prompt_get_the_original_one() -> None:
    values = GapOverOriginal("length")(
        completions=["one two three"], outputs=texts("x"), original_prompts=["one"], originals=texts("x")
    )
    assert values == [-2.0]


def test_it_takes_over_what_the_reward_needs() -> None:
    assert GapOverOriginal("token-f1").needs == "text"
    assert GapOverOriginal("accuracy").needs == "choices"
    assert GapOverOriginal("accuracy").reads_text
    assert GapOverOriginal("length").gold_not_ordered
    assert GapOverOriginal("gap", {"correct": 1.0}).needs == "choices"
    for name in ("gap-over-original", "no-such-reward", "my_module:mine"):
        kwargs = {"reward": "length"} if name == "gap-over-original" else None
        with pytest.raises(ConfigError):
            GapOverOriginal(name, kwargs)


TASK = Task(
    "colours",
    tuple(Example(f"train/{index}", f"item {index}", colour) for index, colour in enumerate(["red", "blue", "green"])),
    (Example("dev/0", "item d", "red"),),
    (Example("test/0", "item t", "red"),),
    None,
    "exact-match",
    Template("{prompt}: {input}"),
)


class Parrot:
    """Answers with the last word of the prompt; sampled answers get their number behind it."""

    def __init__(self, fails: str = "") -> None:
        self.identity: dict[str, Any] = {"kind": "planted"}
        self.asked: list[str] = []
        self.fails = fails

    def run(self, requests: list[TargetRequest]) -> list[TargetOutput]:
        self.asked += [request.rendered.text or "" for request in requests]
        return [self.answer(request) for request in requests]

    def answer(self, request: TargetRequest) -> TargetOutput:
        text = request.rendered.text or ""
        if self.fails and text.startswith(self.fails):
            return TargetOutput(failure=Failure("target", "http", "500"))
        word = text.split(":")[0].split()[-1] if text.split(":")[0].split() else ""
        return TargetOutput(text=f"{word} {request.sample}" if request.temperature else word, completion_tokens=1)

    def count_tokens(self, requests: list[TargetRequest]) -> list[int]:
        return [1] * len(requests)


def make_scorer(target: Parrot, task: Task = TASK, reward: Any = None, **sections: Any) -> Scorer:
    inner = reward or {"name": "gap-over-original", "kwargs": {"reward": "exact-match"}}
    env = {"kind": "rewrite", "draft": "Say red", **sections.pop("env", {})}
    config = parse_config({"reward": [inner], "env": env, **sections})
    return build_scorer(config, task=task, target=target)


def test_an_identity_rewrite_scores_exactly_zero_and_asks_nothing_more() -> None:
    target = Parrot()
    scorer = make_scorer(target)
    scores = scorer.score(["Say red", "Say blue"], TASK.train)
    assert scores.rewards.tolist() == [[0.0, 0.0, 0.0], [-1.0, 1.0, 0.0]]
    assert len(target.asked) == 6  # the original is one of the two prompts


def test_the_original_is_asked_once_per_example_in_the_same_call_and_charged() -> None:
    target = Parrot()
    scorer = make_scorer(target)
    assert scorer.score(["Say blue"], TASK.train[:2]).rewards.tolist() == [[-1.0, 1.0]]
    assert len(target.asked) == 4
    scorer.score(["Say green"], TASK.train)
    assert len(target.asked) == 4 + 3 + 1  # three new pairs, and the original on the third example
    assert scorer.ledger.snapshot()["used"]["calls"] == 8


def test_scores_do_not_show_the_original() -> None:
    scores = make_scorer(Parrot()).score(["Say blue"], TASK.train)
    assert scores.prompts == ("Say blue",)
    assert scores.rewards.shape == scores.correct.shape == scores.valid.shape == (1, 3)
    assert len(scores.outputs) == 1


def test_other_rewards_ask_for_no_original() -> None:
    target = Parrot()
    make_scorer(target, reward={"name": "exact-match"}).score(["Say blue"], TASK.train)
    assert len(target.asked) == 3


def test_the_budget_holds_for_the_original_as_well() -> None:
    scorer = make_scorer(Parrot(), budget={"max_target_calls": 5})
    with pytest.raises(BudgetExceededError):
        scorer.score(["Say blue"], TASK.train)
    assert scorer.ledger.snapshot()["used"]["calls"] == 0


def test_a_failed_original_excludes_its_pairs_and_is_counted() -> None:
    scorer = make_scorer(Parrot(fails="Say red"))
    scores = scorer.score(["Say blue"], TASK.train)
    assert not scores.valid.any()
    assert [(row, column, failure.where) for row, column, failure in scores.failures] == [
        (0, 0, "target"),
        (0, 1, "target"),
        (0, 2, "target"),
    ]
    assert scores.mean_rewards.tolist() == pytest.approx([np.nan], nan_ok=True)


def test_an_original_of_its_own_replaces_the_draft() -> None:
    reward = {"name": "gap-over-original", "kwargs": {"reward": "exact-match", "original": "Say blue"}}
    scores = make_scorer(Parrot(), reward=reward).score(["Say blue", "Say red"], TASK.train[:1])
    assert scores.rewards.tolist() == [[0.0], [1.0]]
    with pytest.raises(ConfigError, match="name different original prompts; name one"):
        RewardSet([Component(name, GapOverOriginal("length", original=name)) for name in ("a", "b")])


def test_at_instance_level_the_original_is_the_input_or_nothing() -> None:
    rewriting = Task("words", TASK.train, TASK.dev, TASK.test, None, "exact-match", Template("{prompt}"))
    target = Parrot()
    scorer = make_scorer(target, rewriting, env={"level": "instance", "draft": ""})
    examples = [TASK.train[0], TASK.train[1]]
    scores = scorer.score_pairs(["item 0", "Say blue"], examples)
    assert scores.rewards.tolist() == [[0.0], [1.0]]  # the identity, and "blue" against the answer to "item 1"
    assert target.asked == ["item 0", "Say blue", "item 1"]
    target = Parrot()
    scorer = make_scorer(target, rewriting, env={"level": "instance", "draft": "", "compose": "append"})
    assert scorer.score_pairs(["", "Say blue"], examples).rewards.tolist() == [[0.0], [1.0]]
    assert target.asked == ["item 0", "item 1\nSay blue", "item 1"]


def test_samples_are_compared_with_samples_of_the_original() -> None:
    target = Parrot()
    scorer = make_scorer(target, env={"level": "instance", "samples": 2})
    scores = scorer.score_pairs(["Say red", "red"], [TASK.train[0]] * 2, samples=2)
    assert scores.rewards.tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert len(target.asked) == 4
    assert scores.outputs[0][0].text == "red 1"


def test_a_resumed_run_asks_for_no_original_again() -> None:
    scorer = make_scorer(Parrot())
    scorer.score(["Say blue"], TASK.train)
    state = json.loads(json.dumps(scorer.state_dict()))
    target = Parrot()
    resumed = make_scorer(target)
    resumed.load_state_dict(state)
    assert resumed.score(["Say green"], TASK.train).rewards.tolist() == [[-1.0, 0.0, 1.0]]
    assert len(target.asked) == 3
    del state["originals"][0]["text"]
    with pytest.raises(CheckpointError, match="answers to the original prompt cannot be read"):
        make_scorer(Parrot()).load_state_dict(state)


def test_calibration_shifts_both_answers_alike() -> None:
    config = parse_config(
        {
            "task": {"name": "planted", "shots": 4, "dev_shots": 4},
            "target": {"name": "planted:separable", "kwargs": {"length": 3, "vocabulary": 50}},
            "reward": [{"name": "gap-over-original", "kwargs": {"reward": "gap"}}],
            "env": {"kind": "rewrite", "draft": "w01 w02 w03"},
            "calibration": "median",
        }
    )
    scorer = build_scorer(config)
    scores = scorer.score(["w01 w02 w03", "w04 w05 w06"], scorer.task.train)
    assert not scores.rewards[0].any()
    plain = build_scorer(config.model_copy(update={"reward": [RewardConfig(name="gap")]}))
    before = plain.score(["w01 w02 w03", "w04 w05 w06"], plain.task.train).rewards
    np.testing.assert_allclose(scores.rewards[1], before[1] - before[0])


def test_the_check_tries_it_on_an_original_that_says_nothing() -> None:
    config = RewardConfig(name="gap-over-original", kwargs={"reward": "exact-match"})
    (check,) = check_rewards(RewardSet.from_config([config]), TASK)
    assert (check.gold, check.wrong, check.empty) == (1.0, 0.0, 0.0)


def test_the_training_reward_can_be_the_expected_best_of_the_samples() -> None:
    # answers "word 1" ... "word 4" have lengths that the reward counts: 4, 1, 3, 2 characters below
    rewards = {1: "aaaa", 2: "b", 3: "ccc", 4: "dd"}

    class Sampled(Parrot):
        def answer(self, request: TargetRequest) -> TargetOutput:
            return TargetOutput(text=rewards[request.sample])

    reward = {"name": "length", "weight": -1, "kwargs": {"of": "output", "unit": "characters"}}
    scorer = make_scorer(Sampled(), reward=reward, env={"level": "instance", "samples": 4, "best_of": 2})
    scores = scorer.score_pairs(["x"], [TASK.train[0]], samples=4)
    assert scores.rewards.tolist() == [[4.0, 1.0, 3.0, 2.0]]
    # pairs of 1 2 3 4: 4 is the best of three, 3 of two, 2 of one: (12 + 6 + 2) / 6
    assert scorer.stabilise(scores) == pytest.approx([20 / 6])
    assert scores.mean_rewards == pytest.approx([2.5])
    with pytest.raises(ConfigError, match=r"env.best_of is 2, but env.samples is 1; draw at least as many"):
        scorer.score_pairs(["x"], [TASK.train[0]])


def test_a_tasks_metric_says_what_is_right_and_what_is_reported() -> None:
    def value(reward: Any, text: str, gold: str) -> float:
        return float(reward(prompts=[""], completions=[""], outputs=texts(text), references=[gold])[0])

    assert value(metric_correct("answer-letter"), "The answer is (B).", "B") == 1.0
    assert value(metric_correct("answer-number"), "So 1,000.", "1000") == 1.0
    assert value(metric_correct("rouge"), "a red car", "red car") == 1.0  # exact match without the article
    assert value(metric_score("token-f1"), "red", "red car") == pytest.approx(2 / 3)
    # ROUGE-1 2/3, ROUGE-2 0, ROUGE-L 2/3
    assert value(metric_score("rouge"), "red", "red car") == pytest.approx((2 / 3 + 0 + 2 / 3) / 3)
    assert value(metric_score("answer-letter"), "B", "C") == 0.0
    with pytest.raises(ConfigError, match="unknown metric 'bleu'"):
        metric_score("bleu")
