"""Scores joined and taken apart, with numbers made by hand."""

from dataclasses import replace

import numpy as np
import pytest

from rlprompt.scoring.parts import join_scores, split_scores
from rlprompt.types import Failure, Scores, TargetOutput

LATE = Failure("target", "timeout", "no answer in 3 s")


def scores(prompts: tuple[str, ...], rewards: list[list[float]], failures: tuple[tuple[int, int], ...] = ()) -> Scores:
    raw = np.array(rewards)
    valid = np.ones(raw.shape, dtype=np.bool_)
    for place in failures:
        valid[place] = False
    return Scores(
        prompts=prompts,
        example_ids=("train/0", "train/1"),
        components={"gap": raw / 2},
        rewards=np.where(valid, raw, 0.0),
        correct=np.where(valid, 1.0, np.nan),
        valid=valid,
        outputs=tuple(tuple(TargetOutput(text=f"{prompt}{column}") for column in range(2)) for prompt in prompts),
        failures=tuple((*place, LATE) for place in failures),
    )


def test_joined_rows_stand_in_order_and_failures_keep_their_prompt() -> None:
    one = scores(("a",), [[1.0, 2.0]], ((0, 1),))
    other = scores(("b", "c"), [[3.0, 4.0], [5.0, 6.0]], ((1, 0),))
    joined = join_scores([one, other])
    assert joined.prompts == ("a", "b", "c")
    assert joined.rewards.tolist() == [[1.0, 0.0], [3.0, 4.0], [0.0, 6.0]]
    assert joined.components["gap"].tolist() == [[0.5, 1.0], [1.5, 2.0], [2.5, 3.0]]
    assert joined.failures == ((0, 1, LATE), (2, 0, LATE))
    assert joined.mean_rewards.tolist() == [1.0, 3.5, 6.0]
    assert [row[0].text for row in joined.outputs] == ["a0", "b0", "c0"]


def test_what_was_joined_comes_apart_as_it_was() -> None:
    parts = [scores(("a",), [[1.0, 2.0]], ((0, 1),)), scores(("b", "c"), [[3.0, 4.0], [5.0, 6.0]], ((1, 0),))]
    for part, again in zip(parts, split_scores(join_scores(parts), [1, 2]), strict=True):
        assert again.prompts == part.prompts
        assert again.failures == part.failures
        assert again.outputs == part.outputs
        np.testing.assert_array_equal(again.rewards, part.rewards)
        np.testing.assert_array_equal(again.correct, part.correct)
        np.testing.assert_array_equal(again.valid, part.valid)
        np.testing.assert_array_equal(again.components["gap"], part.components["gap"])


def test_pairs_keep_their_examples_and_other_columns_are_refused() -> None:
    rows = scores(("a", "b"), [[1.0, 2.0], [3.0, 4.0]])
    pairs = replace(rows, row_example_ids=("train/3", "train/5"))
    joined = join_scores([pairs, pairs])
    assert joined.row_example_ids == ("train/3", "train/5", "train/3", "train/5")
    assert split_scores(joined, [3, 1])[1].row_example_ids == ("train/5",)
    for other in (pairs, replace(rows, example_ids=("train/0", "train/9"))):
        with pytest.raises(ValueError, match="same columns"):
            join_scores([rows, other])
