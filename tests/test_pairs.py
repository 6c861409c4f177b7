"""Pair scores: one prompt with one example, samples of its own, groups for stabilisers, budget and memory."""

from typing import Any

import numpy as np
import pytest

from rlprompt.config import parse_config
from rlprompt.errors import BudgetExceededError, ConfigError
from rlprompt.pairs import DEMONSTRATION, sample_seed
from rlprompt.scoring import Scorer, build_scorer
from rlprompt.tasks import Task
from rlprompt.tasks.planted import planted_task
from rlprompt.types import Scores, TargetOutput

GOOD, BAD = "w01 w02", "w03"


def make_scorer(**sections: Any) -> Scorer:
    defaults: dict[str, Any] = {
        "task": {"name": "planted", "shots": 4, "dev_shots": 4},
        "target": {"name": "planted:separable", "kwargs": {"length": 3, "vocabulary": 50}},
    }
    return build_scorer(parse_config({**defaults, **sections}))


def make_writing_scorer(compose: str = "replace", **sections: Any) -> Scorer:
    """On the planted items as a task without choices: the target answers in words."""
    rows = planted_task(4, 4, 2)
    template = rows.template if compose == "replace" else "{prompt}"
    task = Task(
        name="items",
        train=rows.train,
        dev=rows.dev,
        test=rows.test,
        choices=None,
        metric="exact-match",
        template=type(rows.template)(template) if isinstance(template, str) else template,
    )
    config = parse_config(
        {
            "target": {"name": "planted:separable", "kwargs": {"length": 3, "vocabulary": 50}},
            "reward": [{"name": "length"}],
            "env": {"kind": "rewrite", "level": "instance", "compose": compose},
            **sections,
        }
    )
    return build_scorer(config, task=task)


def watch(scorer: Scorer) -> list[Any]:
    asked: list[Any] = []
    run = scorer.target.run

    def watching(requests: Any) -> Any:
        asked.append(list(requests))
        return run(requests)

    scorer.target.run = watching  # type: ignore[method-assign]
    return asked


def test_a_pair_has_the_score_that_the_cross_product_has_there() -> None:
    scorer = make_scorer()
    examples = scorer.task.train[:3]
    pairs = scorer.score_pairs([GOOD, BAD, GOOD], examples)
    whole = make_scorer().score([GOOD, BAD], examples)
    assert pairs.rewards[:, 0].tolist() == [whole.rewards[0, 0], whole.rewards[1, 1], whole.rewards[0, 2]]
    assert pairs.correct.shape == (3, 1)
    assert pairs.row_example_ids == tuple(example.id for example in examples)
    assert pairs.example_ids == ("",)
    assert whole.row_example_ids is None


def test_known_pairs_are_shared_with_the_cross_product_and_asked_once() -> None:
    scorer = make_scorer()
    asked = watch(scorer)
    first, second = scorer.task.train[:2]
    scorer.score_pairs([GOOD, GOOD, BAD], [first, first, second])
    scorer.score([GOOD], [first])
    assert [len(requests) for requests in asked] == [2]
    assert scorer.ledger.snapshot()["used"]["calls"] == 2


def test_samples_are_drawn_with_keys_of_their_own() -> None:
    scorer = make_writing_scorer(seed=3)
    asked = watch(scorer)
    example = scorer.task.train[0]
    scores = scorer.score_pairs([GOOD, BAD], [example, example], samples=3)
    requests = asked[0]
    assert scores.rewards.shape == (2, 3)
    assert scores.example_ids == ("", "", "")
    assert [request.sample for request in requests] == [1, 2, 3, 1, 2, 3]
    assert {request.temperature for request in requests} == {0.7}
    assert len({request.seed for request in requests}) == 6
    assert requests[1].seed == sample_seed(3, GOOD, example.id, 2)
    scorer.score_pairs([GOOD], [example])  # the greedy answer is another one
    assert (asked[1][0].sample, asked[1][0].temperature) == (0, 0.0)
    assert scorer.ledger.snapshot()["used"]["calls"] == 7


def test_the_card_may_choose_the_temperature() -> None:
    scorer = make_writing_scorer()
    object.__setattr__(scorer.task, "sampling_temperature", 0.2)
    asked = watch(scorer)
    scorer.score_pairs([GOOD], [scorer.task.train[0]], samples=2)
    assert [request.temperature for request in asked[0]] == [0.2, 0.2]


def test_a_derived_prompt_and_its_answer_come_before_the_input() -> None:
    scorer = make_writing_scorer("demonstration")
    asked = watch(scorer)
    example = scorer.task.train[0]
    scorer.score_pairs(["w01 item 5", ""], [example, example])
    assert asked[0][0].rendered.text == "w01 item 5"
    derived = scorer.known_answer("w01 item 5", example.id, DEMONSTRATION)
    assert derived is not None
    texts = [request.rendered.text for request in asked[1]]
    assert texts == [f"w01 item 5\n{derived.text}\n\n{example.input}", example.input]
    assert scorer.ledger.snapshot()["used"]["calls"] == 3


def test_groups_are_stabilised_apart() -> None:
    # Rows a: 1 and 3, b: 10, 20 and one that failed. Leave-one-out: -2, 2; -10, 10; nothing.
    scorer = make_scorer(stabilisers=[{"name": "leave-one-out"}])
    values = np.array([[1.0, 1.0], [10.0, 10.0], [2.0, 4.0], [20.0, 0.0], [0.0, 0.0]])
    valid = np.array([[True, True], [True, True], [True, True], [True, False], [False, False]])
    scores = Scores(
        prompts=("p", "q", "r", "s", "t"),
        example_ids=("", ""),
        components={},
        rewards=values,
        correct=np.full((5, 2), np.nan),
        valid=valid,
        outputs=((TargetOutput(),) * 2,) * 5,
        row_example_ids=("a", "b", "a", "b", "b"),
    )
    assert scorer.stabilise(scores).tolist() == [-2.0, -10.0, 2.0, 10.0, 0.0]
    # z per input: +-1 (a: mean 2, deviation 1; b: mean 15, deviation 5), epsilon apart
    scorer = make_scorer(stabilisers=[{"name": "z-score"}])
    assert scorer.stabilise(scores) == pytest.approx([-1, -1, 1, 1, 0], abs=2e-4)
    # running normalisation sees all five rows at once: mean (1 + 10 + 3 + 20) / 4 = 8.5
    scorer = make_scorer(stabilisers=[{"name": "running-normalisation"}])
    assert scorer.stabilise(scores)[:4].sum() == pytest.approx(0.0)
    assert scorer.stabilisers[0].state_dict()["mean"] == pytest.approx(8.5)
    assert make_scorer().stabilise(scores).tolist() == [1.0, 10.0, 3.0, 20.0, 0.0]


def test_what_cannot_be_scored_in_pairs_is_said_in_one_line() -> None:
    scorer = make_scorer(budget={"max_target_calls": 1})
    examples = scorer.task.train[:2]
    with pytest.raises(ConfigError, match="one example per prompt, got 1 and 2"):
        scorer.score_pairs([GOOD], examples)
    with pytest.raises(ConfigError, match="samples is 2, but task 'planted' asks for choices"):
        scorer.score_pairs([GOOD, BAD], examples, samples=2)
    with pytest.raises(ConfigError, match="set calibration to none"):
        make_scorer(calibration="median").score_pairs([GOOD, BAD], examples)
    with pytest.raises(BudgetExceededError):
        scorer.score_pairs([GOOD, BAD], examples)
    assert scorer.ledger.snapshot()["used"]["calls"] == 0


@pytest.mark.parametrize(
    ("env", "match"),
    [
        ({"samples": 4}, "env.samples and env.best_of are for prompts that are written for one input"),
        ({"kind": "rewrite", "draft": "x", "best_of": 2}, "env.samples and env.best_of are for prompts"),
        ({"kind": "stimulus", "samples": 4, "best_of": 2, "step_reward": "difference"}, "is about whole prompts"),
    ],
)
def test_samples_that_nothing_would_use_are_refused(env: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        parse_config({"env": env})
    assert "\n" not in str(caught.value)
    parse_config({"env": {"kind": "stimulus", "samples": 4, "best_of": 2}})
