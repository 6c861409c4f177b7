import numpy as np
import pytest

from rlprompt.rewards.images import SceneEmbedding, contrast, cosine
from rlprompt.targets.renderer import COLOURS, SHAPES, draw


def picture(text: str, noise: float = 0.02) -> list[object]:
    pixels: list[object] = (255 * draw(text, 16, noise, np.random.default_rng(0))).tolist()
    return pixels


def relevance(image: str, text: str) -> float:
    embedding = SceneEmbedding()
    return cosine(embedding.images([picture(image)])[0], embedding.texts([text])[0])


def test_contrast_is_ten_times_the_standard_deviation() -> None:
    # values 0, 0, 0, 255, 255, 255 in units of 255: standard deviation 0.5; all alike: 0
    assert contrast([[[[0, 0, 0], [255, 255, 255]]], [[[9, 9, 9], [9, 9, 9]]]]) == pytest.approx([5.0, 0.0])


def test_a_text_has_a_one_for_each_thing_that_it_names() -> None:
    rows = SceneEmbedding().texts(["A Red circle", "a castle"])
    assert rows.tolist() == [[1, 0, 0, 0, 1, 0, 0, 0, 0], [0.0] * 9]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("colour", COLOURS)
def test_the_closest_text_is_the_one_that_was_drawn(colour: str, shape: str) -> None:
    texts = [f"a {one} {other}" for one in COLOURS for other in SHAPES]
    found = [relevance(f"a {colour} {shape}", text) for text in texts]
    assert texts[int(np.argmax(found))] == f"a {colour} {shape}"
    assert max(found) > 0.28


def test_coloured_noise_is_far_from_every_text() -> None:
    for colour in COLOURS:
        for shape in SHAPES:
            assert relevance("abstract vivid detailed", f"a {colour} {shape}") < 0.28


def test_an_image_without_anything_is_a_vector_of_zeros() -> None:
    assert not SceneEmbedding().images([picture("", noise=0.0)]).any()
    assert cosine(np.zeros(2), np.ones(2)) == 0.0


def test_what_is_no_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"images must be of shape \(n, height, width, 3\), got \(1, 2\)"):
        contrast([[1, 2]])
    with pytest.raises(ValueError, match="square images, got 1 x 2"):
        SceneEmbedding().images([[[[0, 0, 0], [255, 255, 255]]]])
