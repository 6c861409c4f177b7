from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from rlprompt.config import SelectionConfig
from rlprompt.errors import BudgetExceededError
from rlprompt.runs.records import PromptRecord, prompt_id
from rlprompt.runs.selection import Candidates, PolicyChoice, mixed_order, most_dev_calls, racing_parts, select
from rlprompt.types import Example

DEV = tuple(Example(id=f"dev/{row}", input="", reference=row // 8) for row in range(16))  # sorted by class


def make_record(
    prompt: str, reward: float, *, phase: str = "train", accuracy: float = math.nan, num_valid: int = 4, size: int = 4
) -> PromptRecord:
    return PromptRecord(
        prompt_id=prompt_id(prompt),
        prompt=prompt,
        iteration=0,
        index=0,
        phase=phase,
        raw_reward=reward,
        components={},
        training_reward=math.nan,
        accuracy=accuracy,
        num_examples=size,
        num_valid=num_valid,
        num_failed=0,
        target_calls=0,
        target_tokens=0,
    )


class Dev:
    """Stands in for the scorer on dev: accuracy and reward by prompt, with a budget of calls."""

    def __init__(self, candidates: Candidates, truth: dict[str, tuple[float, float]], calls: int = 10**6) -> None:
        self.candidates, self.truth, self.calls = candidates, truth, calls
        self.asked: list[tuple[str, int]] = []
        self.answered: set[tuple[str, str]] = set()

    def __call__(self, prompts: Sequence[str], examples: Sequence[Example]) -> list[PromptRecord]:
        new = {(prompt, example.id) for prompt in prompts for example in examples} - self.answered
        if len(new) > self.calls:
            raise BudgetExceededError("no more")
        self.calls -= len(new)
        self.answered |= new
        self.asked += [(prompt, len(examples)) for prompt in prompts]
        records = [
            make_record(prompt, self.truth[prompt][1], phase="dev", accuracy=self.truth[prompt][0], size=len(examples))
            for prompt in prompts
        ]
        self.candidates.add(records)
        return records


def run_selection(
    truth: dict[str, tuple[float, float]],
    *,
    calls: int = 10**6,
    by: str = "accuracy",
    top: int = 4,
    racing: bool = False,
) -> tuple[str | None, Dev]:
    """The prompts are given in the order of their train reward, best first."""
    candidates = Candidates(len(DEV), by)
    candidates.add(make_record(prompt, -float(place)) for place, prompt in enumerate(truth))
    dev = Dev(candidates, truth, calls)
    settings = SelectionConfig.model_validate({"top": top, "by": by, "racing": racing})
    best = select(candidates, DEV, settings, 0, dev)
    return (None if best is None else best.prompt), dev


def test_the_reward_on_train_is_the_mean_over_all_valid_pairs() -> None:
    candidates = Candidates(16)
    candidates.add([make_record("a", 1.0, num_valid=1), make_record("a", 4.0, num_valid=2), make_record("b", 2.5)])
    # a: (1 * 1 + 2 * 4) / 3 = 3
    assert [(found.prompt, found.train_reward) for found in candidates.top(2)] == [("a", 3.0), ("b", 2.5)]


def test_a_prompt_without_a_valid_pair_is_no_candidate() -> None:
    candidates = Candidates(16)
    candidates.add([make_record("a", math.nan, num_valid=0)])
    assert candidates.top(5) == []
    assert candidates.best() is None


def test_the_first_seen_wins_a_tie_on_train() -> None:
    candidates = Candidates(16)
    candidates.add([make_record("b", 1.0), make_record("a", 1.0), make_record("c", 1.0)])
    assert [found.prompt for found in candidates.top(2)] == ["b", "a"]


def test_only_the_top_goes_to_dev_and_dev_decides() -> None:
    best, dev = run_selection({"a": (0.5, 9.0), "b": (0.7, 1.0), "c": (0.9, 0.0)}, top=2)
    assert best == "b"
    assert dev.asked == [("a", 16), ("b", 16)]


@pytest.mark.parametrize(("by", "expected"), [("accuracy", "b"), ("reward", "a")])
def test_the_criterion_decides_and_the_other_one_breaks_ties(by: str, expected: str) -> None:
    truth = {"a": (0.5, 9.0), "b": (0.7, 3.0), "c": (0.7, 1.0), "d": (0.4, 9.0)}
    assert run_selection(truth, by=by)[0] == expected


def test_without_any_accuracy_the_reward_decides() -> None:
    assert run_selection({"a": (math.nan, 1.0), "b": (math.nan, 2.0)})[0] == "b"


def test_equal_on_dev_the_better_on_train_wins() -> None:
    assert run_selection({"a": (0.5, 1.0), "b": (0.5, 1.0)})[0] == "a"


def test_a_budget_that_ends_leaves_the_worse_on_train_out() -> None:
    best, dev = run_selection({"a": (0.5, 1.0), "b": (0.7, 1.0), "c": (0.9, 1.0)}, calls=2 * 16)
    assert best == "b"
    assert dev.asked == [("a", 16), ("b", 16)]


def test_without_any_budget_the_best_on_train_is_kept() -> None:
    assert run_selection({"a": (0.5, 1.0), "b": (0.7, 1.0)}, calls=0)[0] == "a"


def test_racing_halves_the_field_on_growing_parts_of_dev() -> None:
    truth = {"a": (0.5, 1.0), "b": (0.7, 1.0), "c": (0.9, 1.0), "d": (0.6, 1.0)}
    best, dev = run_selection(truth, racing=True)
    assert best == "c"
    # ceil(log2 4) = 2 rounds: 4 prompts on 8 rows, the better 2 on all 16
    assert dev.asked == [("a", 8), ("b", 8), ("c", 8), ("d", 8), ("c", 16), ("b", 16)]
    # 4 * 8 + 2 * 8 = 48 pairs of 4 * 16 = 64
    assert len(dev.answered) == most_dev_calls(SelectionConfig(top=4, racing=True), 9, 16) == 48


@pytest.mark.parametrize("num_prompts", [1, 2, 3, 7, 16])
def test_the_last_round_of_a_race_is_on_the_whole_of_dev(num_prompts: int) -> None:
    parts = racing_parts(num_prompts, 33)
    assert parts[0][0] == num_prompts
    assert parts[-1] == (min(num_prompts, 2), 33)


def test_parts_of_dev_are_balanced_and_seeded() -> None:
    order = mixed_order(DEV, 0)
    assert sorted(example.id for example in order) == sorted(example.id for example in DEV)
    assert [example.reference for example in order[:6]] == [0, 1, 0, 1, 0, 1]
    assert mixed_order(DEV, 0) == order
    assert mixed_order(DEV, 1) != order


def test_the_most_calls_of_a_choice_without_racing() -> None:
    assert most_dev_calls(SelectionConfig(top=16), 100, 64) == 16 * 64
    assert most_dev_calls(SelectionConfig(top=16), 3, 64) == 3 * 64


def test_of_policies_the_one_whose_greedy_prompts_are_best_on_dev_is_kept() -> None:
    def measured(*values: tuple[float, float]) -> list[PromptRecord]:
        return [make_record("p", reward, phase="dev", accuracy=accuracy) for accuracy, reward in values]

    choice = PolicyChoice()
    assert choice.describe() is None
    choice.offer(1, measured((math.nan, math.nan)), {"w": 1})  # all failed: nothing is known
    assert (choice.newest, choice.best) == (1, None)
    choice.offer(2, measured((1.0, 3.0), (0.0, 1.0)), {"w": 2})
    assert choice.describe() == {
        "prompt": None,
        "selected_on": "dev",
        "train_reward": None,
        "dev_accuracy": 0.5,
        "dev_reward": 2.0,
        "iterations": 2,
    }
    choice.offer(3, measured((0.5, 1.0)), {"w": 3})  # as right, less reward
    assert choice.best is not None
    assert choice.best["policy"] == {"w": 2}
    choice.offer(4, measured((0.5, 2.0)), {"w": 4})  # equal in both: the later one
    assert choice.best["policy"] == {"w": 4}
    choice.offer(5, measured((math.nan, 9.0)), {"w": 5})  # not known to be right
    assert choice.best["policy"] == {"w": 4}
    by_reward = PolicyChoice("reward")
    by_reward.offer(1, measured((1.0, 1.0)), {"w": 1})
    by_reward.offer(2, measured((0.0, 2.0)), {"w": 2})
    assert by_reward.best is not None
    assert by_reward.best["policy"] == {"w": 2}
