"""What is done with the letters of workers, and where letters wait: no Ray needed."""

import asyncio
from typing import Any

import numpy as np
import pytest

from rlprompt.config import TaskConfig
from rlprompt.mailbox import SCORE, STABILISE, Letter, Mailbox
from rlprompt.scoring.desk import answer_letters
from rlprompt.tasks import task_from_config
from rlprompt.types import Example, FloatArray, Scores

TRAIN = tuple(Example(f"train/{number}", f"text {number}", number % 2) for number in range(4))


class CountingScorer:
    """A prompt's reward is its length, on every example; remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[str], int | None, list[str]]] = []

    def _scores(self, prompts: list[str], ids: tuple[str, ...], rows: tuple[str, ...] | None) -> Scores:
        rewards = np.array([[float(len(prompt))] * len(ids) for prompt in prompts])
        valid = np.ones(rewards.shape, dtype=np.bool_)
        return Scores(tuple(prompts), ids, {}, rewards, rewards, valid, ((),) * len(prompts), row_example_ids=rows)

    def score(self, prompts: list[str], examples: tuple[Example, ...], *, contexts: list[str]) -> Scores:
        self.calls.append(("score", list(prompts), None, list(contexts)))
        return self._scores(prompts, tuple(example.id for example in examples), None)

    def score_pairs(self, prompts: list[str], examples: list[Example], *, samples: int, contexts: list[str]) -> Scores:
        self.calls.append(("pairs", list(prompts), samples, list(contexts)))
        return self._scores(prompts, ("",) * samples, tuple(example.id for example in examples))

    def stabilise(self, scores: Scores) -> FloatArray:
        self.calls.append(("stabilise", list(scores.prompts), None, []))
        centred: FloatArray = scores.mean_rewards - scores.mean_rewards.mean()
        return centred


def letter(share: int, prompts: tuple[str, ...], samples: int | None = None, **further: Any) -> Letter:
    examples = TRAIN if samples is None else TRAIN[: len(prompts)]
    given = {"examples": examples, "samples": samples, "contexts": ("read",) * len(prompts), **further}
    return Letter(1, share, SCORE, prompts=prompts, **given)


def test_what_workers_ask_together_is_one_call_in_the_order_of_their_shares() -> None:
    scorer = CountingScorer()
    answers = answer_letters(scorer, {7: letter(2, ("ccc", "d")), 9: letter(0, ("a", "bb"))})  # type: ignore[arg-type]
    assert scorer.calls == [("score", ["a", "bb", "ccc", "d"], None, ["read"] * 4)]
    assert answers[7].prompts == ("ccc", "d")
    assert answers[9].mean_rewards.tolist() == [1.0, 2.0]


def test_pairs_are_asked_together_too_and_other_columns_make_another_call() -> None:
    scorer = CountingScorer()
    letters = {1: letter(0, ("a",), 2), 2: letter(1, ("bb",), 2), 3: letter(2, ("ccc",))}
    answers = answer_letters(scorer, letters)  # type: ignore[arg-type]
    assert scorer.calls == [("pairs", ["a", "bb"], 2, ["read"] * 2), ("score", ["ccc"], None, ["read"])]
    assert answers[2].row_example_ids == ("train/0",)
    assert set(answers) == {1, 2, 3}


def test_rewards_are_stabilised_together_once_nobody_has_prompts_to_score() -> None:
    scorer = CountingScorer()
    scored = answer_letters(scorer, {1: letter(0, ("a", "bb")), 2: letter(2, ("cccccc",))})  # type: ignore[arg-type]
    done = {3: Letter(1, 2, STABILISE, scored[2]), 4: Letter(1, 0, STABILISE, scored[1])}
    mixed = {3: done[3], 5: letter(0, ("zz", "z"))}
    assert set(answer_letters(scorer, mixed)) == {5}  # type: ignore[arg-type]  # the other one waits
    answers = answer_letters(scorer, done)  # type: ignore[arg-type]
    assert scorer.calls[-1] == ("stabilise", ["a", "bb", "cccccc"], None, [])
    assert answers[4].tolist() == [-2.0, -1.0]  # of 1, 2 and 6, less their mean of 3
    assert answers[3].tolist() == [3.0]


def test_a_letter_waits_in_the_mailbox_for_its_answer() -> None:
    task = task_from_config(TaskConfig(name="planted", shots=2, dev_shots=2))

    async def exchange() -> tuple[list[Any], list[tuple[int, Letter]]]:
        mailbox = Mailbox(task)
        assert await mailbox.task() is task
        asked = [asyncio.create_task(mailbox.ask(letter(share, ("a",)))) for share in (0, 1)]
        found = await mailbox.letters()
        assert not any(task.done() for task in asked)
        await mailbox.answer({found[1][0]: "second"})
        await mailbox.answer({found[0][0]: None})
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(mailbox.letters(), 0.01)  # each letter is taken once
        return [await task for task in asked], found

    answers, found = asyncio.run(exchange())
    assert answers == [None, "second"]
    assert [one.share for _, one in found] == [0, 1]
