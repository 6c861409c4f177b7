"""Promptist's formula by hand, and the reward that applies it to a target's images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlprompt.config import RewardConfig
from rlprompt.errors import ConfigError, UnknownNameError
from rlprompt.rewards import RewardSet, check_rewards
from rlprompt.rewards.component import load_component
from rlprompt.rewards.promptist import Promptist, promptist_reward, relevance_penalty
from rlprompt.tasks import Task, Template
from rlprompt.types import Example, Failure, TargetOutput

PAGE = Path(__file__).parents[2] / "docs" / "non-text-targets.md"


def test_the_penalty_begins_below_the_threshold() -> None:
    # 20 * 0.27 - 5.6 = -0.2; 20 * 0.1 - 5.6 = -3.6; a negative cosine counts as 0
    assert relevance_penalty([1.0, 0.2801, 0.28, 0.27, 0.1, 0.0, -0.9]) == pytest.approx(
        [0.0, 0.0, 0.0, -0.2, -3.6, -5.6, -5.6], abs=1e-12
    )


def test_the_formula_by_hand() -> None:
    # images of x': 6.5 and 5.5; of x: 5.0 and 4.0, mean 4.5; cosines 0.30 (free) and 0.25 (20 * 0.25 - 5.6 = -0.6)
    # ((6.5 - 4.5 + 0) + (5.5 - 4.5 - 0.6)) / 2 = (2.0 + 0.4) / 2 = 1.2
    assert promptist_reward([6.5, 5.5], [5.0, 4.0], [0.30, 0.25]) == pytest.approx(1.2)
    # the plain prompt itself, relevant enough: 0
    assert promptist_reward([5.0, 4.0], [5.0, 4.0], [0.5, 0.3]) == 0.0
    # one image each, nothing of the plain prompt in it: 7 - 4 - 5.6
    assert promptist_reward([7.0], [4.0], [-0.2]) == pytest.approx(-2.6)
    # the numbers of images of x and x' may differ: 3 - (1 + 2 + 3) / 3
    assert promptist_reward([3.0], [1.0, 2.0, 3.0], [1.0]) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "arguments", [([], [1.0], []), ([1.0], [], [1.0]), ([1.0, 2.0], [1.0], [0.5]), ([[1.0]], [1.0], [[1.0]])]
)
def test_numbers_that_do_not_fit_are_refused_in_one_line(arguments: tuple[Any, Any, Any]) -> None:
    with pytest.raises(ConfigError, match="promptist: give one aesthetic score and one relevance") as caught:
        promptist_reward(*arguments)
    assert "\n" not in str(caught.value)


class Angles:
    """An image is (aesthetic score, angle); every text has angle 0, so relevance is the angle's cosine."""

    def images(self, images: Sequence[Any]) -> Any:
        return np.array([[np.cos(angle), np.sin(angle)] for _, angle in images])

    def texts(self, texts: Sequence[str]) -> Any:
        return np.array([[0.0, 0.0] if text == "unknown" else [1.0, 0.0] for text in texts])


def scores(images: Sequence[Any]) -> list[float]:
    return [score for score, _ in images]


def painted(*images: Any) -> TargetOutput:
    return TargetOutput(payload={"images": [list(image) for image in images]})


FAILED = TargetOutput(failure=Failure("target", "timeout", "too slow"))


def score(outputs: list[TargetOutput], originals: list[TargetOutput], plain: list[str] | None = None) -> Any:
    reward = Promptist(scores, Angles())
    return reward(outputs=outputs, originals=originals, input=plain or ["x"] * len(outputs))


def test_the_reward_is_the_formula_of_the_images() -> None:
    free, quarter = np.arccos(0.30), np.arccos(0.25)
    found = score(
        [painted((6.5, free), (5.5, quarter)), painted((7.0, np.pi))],
        [painted((5.0, 0.0), (4.0, 0.0)), painted((4.0, 0.0))],
    )
    assert found["reward"] == pytest.approx([1.2, -2.6])
    assert found["aesthetic"] == pytest.approx([1.5, 3.0])
    assert found["relevance"] == pytest.approx([0.275, 0.0])


def test_it_abstains_where_an_image_or_an_embedding_is_missing() -> None:
    one = painted((1.0, 0.0))
    texts = TargetOutput(text="no image")
    found = score(
        [texts, one, FAILED, one, one, one], [one, texts, one, FAILED, one, one], ["x", "x", "x", "x", "unknown", "x"]
    )
    assert found["reward"] == [None, None, None, None, None, 0.0]
    assert found["relevance"] == [None, None, None, None, None, 1.0]
    assert score([texts], [texts])["reward"] == [None]


@pytest.mark.parametrize("payload", [[1, 2], {"images": []}, {"images": "a.png"}, {"sound": [1]}])
def test_another_payload_is_a_failure_of_that_pair(payload: Any) -> None:
    one = painted((1.0, 0.0))
    found = score([TargetOutput(payload=payload), one, one], [one, one, TargetOutput(payload=payload)])["reward"]
    assert [isinstance(entry, Failure) for entry in found] == [True, False, True]
    assert found[0].kind == "malformed"
    assert found[1] == 0.0


def test_scorers_that_return_something_else_are_refused() -> None:
    one = [painted((1.0, 0.0))]
    with pytest.raises(ValueError, match=r"the aesthetic scorer returned shape \(\) for 1 images"):
        Promptist(lambda images: 1.0, Angles())(outputs=one, originals=one, input=["x"])

    class Short(Angles):
        def texts(self, texts: Sequence[str]) -> Any:
            return np.ones((len(texts), 3))

    with pytest.raises(ValueError, match=r"the embedder returned shapes \(1, 2\) and \(1, 3\)"):
        Promptist(scores, Short())(outputs=one, originals=one, input=["x"])
    with pytest.raises(ValueError, match="the task has no column 'caption'; it has input"):
        Promptist(scores, Angles(), plain="caption")(outputs=one, originals=one, input=["x"])


def test_wrong_names_are_one_line() -> None:
    with pytest.raises(UnknownNameError, match="unknown aesthetic 'contrst'"):
        Promptist("contrst")
    with pytest.raises(UnknownNameError, match="unknown embedder 'clip'"):
        Promptist(relevance="clip")
    with pytest.raises(ConfigError, match="relevance needs the methods images and texts, got <function scores"):
        Promptist(relevance=scores)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="aesthetic must be a callable or its name, got 3"):
        Promptist(3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="outside the configuration's folder"):
        load_component(RewardConfig(name="promptist", kwargs={"aesthetic": "my_images:brightness"}))
    with pytest.raises(ConfigError, match="kwargs may not set 'allow_modules'"):
        load_component(RewardConfig(name="promptist", kwargs={"allow_modules": ["os"]}))


def test_code_beside_the_configuration_may_be_named_as_the_page_says(tmp_path: Path) -> None:
    code = PAGE.read_text().split("```python\n# my_images.py\n")[1].split("```")[0]
    (tmp_path / "my_images.py").write_text(code)
    kwargs = {"aesthetic": "my_images:brightness", "relevance": "my_images:WidthEmbedding"}
    component = load_component(RewardConfig(name="promptist", kwargs=kwargs), search_path=tmp_path)
    # a picture of 2 columns and a text of 9 letters (9 % 8 + 1 = 2) have cosine 1
    image = TargetOutput(payload={"images": [np.full((8, 2, 3), 204).tolist()] * 2})
    dark = TargetOutput(payload={"images": [np.full((8, 2, 3), 51).tolist()] * 2})
    found = component.call({"outputs": [image], "originals": [dark], "input": ["x" * 9], "completions": ["y"]})
    assert found["reward"] == pytest.approx([0.8 - 0.2])


def test_the_check_before_a_run_passes_without_images() -> None:
    rows = [(Example(f"{split}/0", f"a red circle {split}"),) for split in ("train", "dev", "test")]
    task = Task("pictures", *rows, None, "exact-match", Template("{input} {prompt}"))
    (check,) = check_rewards(RewardSet.from_config([RewardConfig(name="promptist")]), task)
    assert (check.gold, check.wrong, check.empty) == (None, None, None)
