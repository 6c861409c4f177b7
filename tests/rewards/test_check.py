import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_judge import FakeJudge

from rlprompt.config import RewardConfig
from rlprompt.errors import RewardError
from rlprompt.rewards import Component, RewardSet, check_rewards
from rlprompt.rewards.judges import LLMJudge
from rlprompt.targets.ledger import Ledger
from rlprompt.tasks import Task, Template
from rlprompt.types import Example, Failure, TargetOutput


def make_task(kind: str = "choices") -> Task:
    """Three classes and a column "difficulty", or questions with answers."""
    golds: list[Any] = [0, 0, 0, 1, 1, 2] if kind == "choices" else ["Paris", "Rome", "Oslo", "Bern", "Riga", "Kyiv"]

    def examples(split: str) -> tuple[Example, ...]:
        return tuple(
            Example(f"{split}/{index}", f"{split} {index}", gold, {"difficulty": index})
            for index, gold in enumerate(golds)
        )

    choices = (" bad", " fair", " good") if kind == "choices" else None
    metric = None if kind == "choices" else "exact-match"
    template = Template("{input} {prompt}")
    return Task("toy", examples("train"), examples("dev"), examples("test"), choices, metric, template)


def one(reward: Callable[..., Any], weight: float = 1.0, **options: Any) -> RewardSet:
    return RewardSet([Component("mine", reward, weight, **options)])


def built_in(name: str, **kwargs: Any) -> RewardSet:
    return RewardSet.from_config([RewardConfig(name=name, kwargs=kwargs)])


def test_the_gap_is_checked_with_probability_nine_tenths_on_gold_and_wrong() -> None:
    (check,) = check_rewards(built_in("gap"), make_task())
    # gold 200 * (0.9 - 0.05) = 170; wrong 180 * (0.05 - 0.9) = -153; empty: equal probabilities, gap 0
    assert (check.gold, check.wrong, check.empty) == pytest.approx((170.0, -153.0, 0.0))
    assert (check.name, check.weight, check.num_examples) == ("gap", 1.0, 4)
    assert 0 < check.seconds < 1


def test_generation_is_checked_with_the_reference_another_text_and_no_text() -> None:
    (check,) = check_rewards(built_in("exact-match"), make_task("text"))
    assert (check.gold, check.wrong, check.empty) == (1.0, 0.0, 0.0)


def test_log_likelihood_rewards_are_checked_with_log_likelihoods() -> None:
    (check,) = check_rewards(built_in("log-probability"), make_task("text"))
    assert (check.gold, check.wrong, check.empty) == (-1.0, -10.0, -20.0)


def test_the_examples_come_from_all_classes() -> None:
    seen: list[list[int]] = []

    def look(*, references: list[int], **columns: list[Any]) -> list[float]:
        seen.append(references)
        return [0.0] * len(references)

    check_rewards(one(look), make_task(), num_examples=3)
    assert seen == [[0, 1, 2] * 3]


def test_the_columns_belong_to_the_examples() -> None:
    seen: list[dict[str, list[Any]]] = []

    def look(**given: list[Any]) -> list[float]:
        seen.append(given)
        return [0.0] * len(given["outputs"])

    check_rewards(one(look), make_task("text"), num_examples=2, prompt="Say")
    assert seen[0]["difficulty"] == [0, 1] * 3
    assert seen[0]["input"] == ["train 0", "train 1"] * 3
    assert seen[0]["references"] == ["Paris", "Rome"] * 3
    assert [output.text for output in seen[0]["outputs"]] == ["Paris", "Rome", "Rome", "Paris", "", ""]
    assert set(seen[0]["completions"]) == {"Say"}


def test_examples_without_a_reference_can_be_checked() -> None:
    task = make_task("text")
    bare = tuple(Example(example.id, example.input) for example in task.train)
    task = Task("bare", bare, task.dev, task.test, None, "exact-match", task.template)
    (check,) = check_rewards(built_in("exact-match"), task)
    assert (check.gold, check.wrong, check.empty) == (None, None, None)


# --- T8: what is refused ---


def length_one(*, outputs: list[TargetOutput], **columns: list[Any]) -> list[float]:
    return [1.0]


def sometimes_nan(*, outputs: list[TargetOutput], **columns: list[Any]) -> list[float]:
    return [math.nan if output.text == "" else 1.0 for output in outputs]


def text_number(*, outputs: list[TargetOutput], **columns: list[Any]) -> list[Any]:
    return ["1" if output.text == "Rome" else 1.0 for output in outputs]


def raises_on_empty(*, outputs: list[TargetOutput], **columns: list[Any]) -> list[float]:
    return [float(len(output.text.split()[0])) for output in outputs if output.text is not None]


def raises_on_many(*, outputs: list[TargetOutput], **columns: list[Any]) -> list[float]:
    (_,) = outputs
    return [1.0]


def unknown_column(*, outputs: list[TargetOutput], hardness: list[int], **columns: list[Any]) -> list[float]:
    return [1.0] * len(outputs)


def upside_down(*, outputs: list[TargetOutput], references: list[str], **columns: list[Any]) -> list[float]:
    return [float(output.text != gold) for output, gold in zip(outputs, references, strict=True)]


@pytest.mark.parametrize(
    ("reward", "match"),
    [
        (length_one, r"'mine' returned 1 values for 12 samples .*; return one number, or None, per sample"),
        (lambda *, outputs: None, "'mine' returned None, not a list of 12 numbers"),
        (sometimes_nan, "'mine' returned nan on the empty output of example 'train/0'; return a finite number"),
        (text_number, "'mine' returned a str, not a number or None on the gold output of example 'train/1'"),
        (raises_on_empty, "raised IndexError: list index out of range on the empty output of example 'train/0'; mend"),
        (raises_on_many, "raised ValueError: .* when it scores 12 samples at once; mend"),
        (unknown_column, "missing 1 required .*'hardness'.*; the columns of task 'toy' are: input, difficulty"),
        (
            upside_down,
            "'mine' scores the gold output of example 'train/0' 0, below the wrong one's 1, with weight 1; turn",
        ),
    ],
)
def test_t8_a_faulty_reward_is_refused_in_one_line_that_names_it_and_the_sample(
    reward: Callable[..., Any], match: str
) -> None:
    with pytest.raises(RewardError, match=match) as caught:
        check_rewards(one(reward), make_task("text"))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_t8_a_reward_that_hangs_is_refused() -> None:
    import threading

    release = threading.Event()

    def hang(*, outputs: list[TargetOutput], **columns: list[Any]) -> list[float]:
        release.wait(30)
        return [1.0] * len(outputs)

    with pytest.raises(RewardError, match=r"took longer than 0\.1 s .*; make it faster, or raise timeout_seconds"):
        check_rewards(one(hang, timeout_seconds=0.1), make_task("text"))
    release.set()


def test_a_reward_that_reads_text_is_refused_on_a_task_with_choices() -> None:
    with pytest.raises(RewardError, match=r"'exact-match' needs the target's text.*; task 'toy' is asked for choices"):
        check_rewards(built_in("exact-match"), make_task())


def test_a_negative_weight_turns_the_order_round() -> None:
    assert len(check_rewards(one(upside_down, weight=-1.0), make_task("text"))) == 1
    with pytest.raises(RewardError, match="above the wrong one's 0, with weight -1; make its weight positive"):
        check_rewards(
            RewardSet.from_config([RewardConfig(name="exact-match", weight=-1.0)]),
            make_task("text"),
        )


def test_a_reward_may_say_that_it_does_not_judge_answers() -> None:
    def shorter(*, outputs: list[TargetOutput], **columns: list[Any]) -> list[float]:
        return [-float(len(output.text or "")) for output in outputs]

    with pytest.raises(RewardError, match="gold_not_ordered = True"):
        check_rewards(one(shorter), make_task("text"))
    shorter.gold_not_ordered = True  # type: ignore[attr-defined]
    assert len(check_rewards(one(shorter), make_task("text"))) == 1


def test_abstentions_and_equal_values_pass() -> None:
    def careful(*, outputs: list[TargetOutput], **columns: list[Any]) -> list[float | None]:
        return [None if output.text == "" else 1.0 for output in outputs]

    (check,) = check_rewards(one(careful), make_task("text"))
    assert (check.gold, check.wrong, check.empty) == (1.0, 1.0, None)


def test_the_check_leaves_the_state_as_it_was() -> None:
    class Counting:
        def __init__(self) -> None:
            self.state = {"count": 0}

        def __call__(self, *, outputs: list[TargetOutput], **columns: list[Any]) -> list[float]:
            self.state["count"] += len(outputs)
            return [1.0] * len(outputs)

        def state_dict(self) -> dict[str, int]:
            return self.state  # the very dict that it changes

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.state = dict(state)

    reward = Counting()
    check_rewards(one(reward), make_task("text"))
    assert reward.state == {"count": 0}


def test_every_component_is_checked(tmp_path: Path) -> None:
    configs = [RewardConfig(name="accuracy"), RewardConfig(name="length", weight=0.0), RewardConfig(name="gap")]
    checks = check_rewards(RewardSet.from_config(configs), make_task())
    assert [check.name for check in checks] == ["accuracy", "length", "gap"]


# --- all built-in rewards ---

ORDERED: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("accuracy", "gap", "log-probability", "cross-entropy", "log-likelihood-f1")},
    **{name: {} for name in ("exact-match", "token-f1", "rouge", "bleu", "chrf", "similarity")},
    "gap-over-original": {"reward": "token-f1"},
}
UNORDERED: dict[str, dict[str, Any]] = {"length": {}, "fluency": {"model": "planted-10"}}
ELSEWHERE = {
    *("answer", "length-difference", "length-rule", "attribute", "judge", "ensemble", "checklist", "hybrid"),
    *("reward-model", "feature-model", "success-model", "preference-head", "dialogue", "promptist"),
}
"""Their own tests run the check, on tasks or with arguments of their own."""


def test_the_lists_below_name_every_built_in_reward() -> None:
    from rlprompt.registry import BUILT_IN

    assert {*ORDERED, *UNORDERED, *ELSEWHERE} == set(BUILT_IN["rewards"])


@pytest.mark.parametrize("name", ORDERED)
def test_scores_gold_highest(name: str) -> None:
    kinds = {"text": ["text"], "logprob": ["choices", "text"], "choices": ["choices"]}
    rewards = built_in(name, **ORDERED[name])
    for kind in ["choices", "text"] if name == "cross-entropy" else kinds[rewards.needs]:
        (check,) = check_rewards(rewards, make_task(kind))
        assert check.gold is not None
        assert check.wrong is not None
        assert check.empty is not None
        assert check.gold > max(check.wrong, check.empty)


@pytest.mark.parametrize("name", UNORDERED)
def test_rewards_that_do_not_judge_answers_say_so_and_pass_the_check(name: str) -> None:
    rewards = built_in(name, **UNORDERED[name])
    assert rewards.components[0].gold_not_ordered
    (check,) = check_rewards(rewards, make_task(), prompt="w01 w02")
    assert check.gold is not None
    assert check.gold == check.wrong == check.empty
    assert check.gold < 0


# --- rewards with a judge ---


def judged(reply: Callable[..., Any], **options: Any) -> RewardSet:
    judge = LLMJudge(FakeJudge(reply), "Good?", **options)
    rewards = RewardSet([Component("judge", judge)])
    rewards.attach(Ledger())
    return rewards


def test_a_judge_is_asked_about_the_made_up_outputs_in_a_phase_of_its_own() -> None:
    ledger = Ledger()
    rewards = judged(lambda shown, _: "5" if shown["text to be judged"] == "Paris" else "2")
    rewards.attach(ledger)
    (check,) = check_rewards(rewards, make_task("text"))
    # gold "Paris" once of four, wrong "Paris" three times of four: 5 is worth 1, 2 is worth 0.25
    assert (check.gold, check.wrong, check.empty) == ((1 + 3 * 0.25) / 4, (3 * 1 + 0.25) / 4, 0.25)
    assert (check.num_outputs, check.abstentions) == (12, {})
    assert ledger.snapshot()["by_phase"]["check"]["calls"] == 12


def test_a_judge_that_answers_in_prose_is_refused_in_one_line() -> None:
    rewards = judged(lambda *_: "I would say that this is rather good.")
    expected = (
        "reward 'judge' abstained on 12 of 12 made-up outputs (prose 12), more than max_abstained_fraction = 0.5; "
        "have its judge answer in the form that it is asked for"
    )
    with pytest.raises(RewardError) as caught:
        check_rewards(rewards, make_task("text"))
    assert str(caught.value).startswith(expected)
    assert "\n" not in str(caught.value)


def test_a_judge_may_abstain_up_to_its_bound() -> None:
    def reply(shown: dict[str, str], _: str) -> str:
        return "3" if shown["text to be judged"] else "Nothing to judge."

    (check,) = check_rewards(judged(reply), make_task("text"))  # 4 of 12, the empty outputs
    assert (check.empty, check.abstentions) == (None, {"prose": 4})
    with pytest.raises(RewardError, match="abstained on 4 of 12"):
        check_rewards(judged(reply, max_abstained_fraction=0.3), make_task("text"))


def test_the_check_leaves_no_verdicts_behind() -> None:
    rewards = judged(lambda *_: "3")
    before = rewards.state_dict()
    check_rewards(rewards, make_task("text"))
    assert rewards.state_dict() == before
    assert rewards.metrics() == {"reward/judge/abstained": 0.0}


def test_one_failed_call_is_let_pass_and_a_judge_that_never_answers_is_not() -> None:
    failure = Failure("target", "rate-limit", "429")
    (check,) = check_rewards(judged(lambda shown, _: "3" if shown["text to be judged"] else failure), make_task("text"))
    assert (check.gold, check.empty) == (0.5, None)
    with pytest.raises(RewardError, match="the judge's call failed: 429; so did all 12 calls of the check"):
        check_rewards(judged(lambda *_: failure), make_task("text"))


def test_a_column_that_is_not_there_is_named() -> None:
    with pytest.raises(RewardError, match="show names 'difficulti'"):
        check_rewards(judged(lambda *_: "3", show=["difficulti"]), make_task("text"))
