import json
from typing import Any

import numpy as np
import pytest

from rlprompt.errors import ConfigError
from rlprompt.targets import load_target, target_prices
from rlprompt.targets.cache import CachedTarget, ResponseCache
from rlprompt.targets.ledger import Price
from rlprompt.targets.renderer import SHAPES, RendererTarget, draw, shape_mask
from rlprompt.types import Rendered, Target, TargetOutput, TargetRequest


def ask(target: Target, text: str, **fields: Any) -> TargetOutput:
    (output,) = target.run([TargetRequest(Rendered(text=text), **fields)])
    return output


def pixels(output: TargetOutput) -> np.ndarray:
    return np.array(output.payload["images"])


def test_it_answers_with_arrays_and_no_text() -> None:
    target = RendererTarget(8, images=3)
    assert isinstance(target, Target)
    output = ask(target, "a red circle")
    assert (output.text, output.failure, output.prompt_tokens) == (None, None, 3)
    assert pixels(output).shape == (3, 8, 8, 3)
    assert pixels(output).min() >= 0
    assert pixels(output).max() <= 255


def test_an_answer_depends_on_the_request_alone() -> None:
    first = ask(RendererTarget(), "a red circle")
    requests = [TargetRequest(Rendered(text=text)) for text in ("a blue cross", "a red circle")]
    assert RendererTarget().run(requests)[1] == first
    assert ask(RendererTarget(), "a red circle", sample=1, temperature=0.7) != first
    assert ask(RendererTarget(seed=1), "a red circle") != first
    images = pixels(first)
    assert (images[0] != images[1]).any()


def test_without_noise_pixels_are_those_of_the_words() -> None:
    # pale (contrast 0.4): red is 0.5 + 0.4 * (1 - 0.5, 0 - 0.5, 0 - 0.5) = (0.7, 0.3, 0.3) on grey 0.5
    draws = np.random.default_rng(0)
    image = draw("A red SQUARE, please", 16, 0.0, draws)
    inside = shape_mask("square", 16)
    assert image[inside] == pytest.approx(np.tile([0.7, 0.3, 0.3], (inside.sum(), 1)))
    assert image[~inside] == pytest.approx(0.5)
    # vivid detailed: contrast 0.8; bright: everything 0.15 higher, and no higher than 1
    styled = draw("a red square bright vivid detailed", 16, 0.0, draws)
    assert styled[inside] == pytest.approx(np.tile([1.0, 0.25, 0.25], (inside.sum(), 1)))
    assert styled[~inside] == pytest.approx(0.65)
    # red and blue are mixed: (0.5, 0, 0.5)
    assert draw("red blue square", 16, 0.0, draws)[inside][0] == pytest.approx([0.5, 0.3, 0.5])
    assert draw("nothing known", 16, 0.0, draws) == pytest.approx(0.5)
    assert draw("an abstract red square", 16, 0.0, draws).std() > 0.1


@pytest.mark.parametrize("size", [8, 16, 33])
def test_shapes_differ_and_leave_the_edge_free(size: int) -> None:
    masks = [shape_mask(shape, size) for shape in SHAPES]
    for index, mask in enumerate(masks):
        assert mask.any()
        assert not np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]]).any()
        assert not any((mask == other).all() for other in masks[:index])


def test_json_and_the_cache_keep_its_images(tmp_path: Any) -> None:
    output = ask(RendererTarget(8), "a red circle")
    assert json.loads(json.dumps(output.payload)) == output.payload
    cached = CachedTarget(RendererTarget(8), ResponseCache(tmp_path / "answers.sqlite"))
    ask(cached, "a red circle")
    again = ask(cached, "a red circle")
    assert again.cached
    assert again.payload == output.payload


def test_messages_are_read_as_well() -> None:
    rendered = Rendered(messages=(("system", "Draw."), ("user", "a red circle")))
    (output,) = RendererTarget(noise=0.0).run([TargetRequest(rendered)])
    assert output.payload == ask(RendererTarget(noise=0.0), "a red circle").payload


def test_it_cannot_be_asked_for_probabilities() -> None:
    for fields in ({"choices": ("a", "b")}, {"continuation": "a"}):
        failure = ask(RendererTarget(), "a red circle", **fields).failure
        assert failure is not None
        assert failure.kind == "unsupported"


def test_it_is_loaded_by_name_and_costs_nothing() -> None:
    target = load_target("renderer:8", images=1)
    assert isinstance(target, RendererTarget)
    assert target.identity == {"kind": "renderer", "size": 8, "images": 1, "noise": 0.02, "seed": 0}
    assert target_prices(target) == {"target": Price()}
    assert target.count_tokens([TargetRequest(Rendered(text="a red circle"))]) == [3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": "big"}, "size must be a whole number, got 'big'"),
        ({"size": 2}, r"size must be in \[8, 256\], got 2"),
        ({"images": 0}, r"images must be in \[1, 16\], got 0"),
        ({"noise": -0.1}, "noise must be >= 0, got -0.1"),
        ({"seed": -1}, "seed must be >= 0, got -1"),
    ],
)
def test_arguments_out_of_range_are_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        RendererTarget(**arguments)
    assert "\n" not in str(caught.value)
