import math
from typing import Any

import pytest

from rlprompt.errors import ConfigError, ModelNotFoundError
from rlprompt.rewards.fluency import Fluency
from rlprompt.types import TargetOutput

ANSWER = TargetOutput(text="w03")


def score(reward: Fluency, *texts: str) -> list[float | None]:
    return reward(completions=list(texts), outputs=[ANSWER] * len(texts))


def one_by_one(words: int, tokens: list[int]) -> float:
    """Mean log-likelihood after EOS, one text alone, without padding, with a softmax written out."""
    import torch

    from rlprompt import models

    model = models.load_frozen(f"planted-{words}", dtype="float32", device="cpu")
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[words, *tokens]])).logits[0].double()
    total = 0.0
    for position, token in enumerate(tokens):
        row = [math.exp(float(value)) for value in logits[position]]
        total += math.log(row[token] / sum(row))
    return total / len(tokens)


def test_fluency_is_the_mean_log_likelihood_per_token_with_the_first_one() -> None:
    reward = Fluency("planted-7", dtype="float32")
    texts = {"w00": [0], "w01 w02": [1, 2], "w06 w06 w00 w01 w02 w03 w04 w05 w06 w06": [6, 6, 0, 1, 2, 3, 4, 5, 6, 6]}
    expected = [one_by_one(7, tokens) for tokens in texts.values()]
    assert score(reward, *texts) == pytest.approx(expected, abs=1e-5)
    assert expected[0] != pytest.approx(expected[1], abs=1e-4)


def test_a_value_does_not_depend_on_the_texts_beside_it() -> None:
    texts = [f"w0{index % 7} w0{index % 5} w0{index % 3}" for index in range(40)]
    together = score(Fluency("planted-7", dtype="float32"), *texts)
    alone = [score(Fluency("planted-7", dtype="float32"), text)[0] for text in texts[:5]]
    assert together[:5] == alone


def test_a_batch_is_never_smaller_than_four_rows_nor_larger_than_its_token_budget(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reward = Fluency("planted-7")
    shapes: list[tuple[int, int]] = []
    model = reward._model

    def counted(*, input_ids: Any, **options: Any) -> Any:
        shapes.append(tuple(input_ids.shape))
        return model(input_ids=input_ids, **options)

    monkeypatch.setattr(reward, "_model", counted)
    monkeypatch.setattr(counted, "parameters", model.parameters, raising=False)
    score(reward, "w01", *(f"w0{first} w0{second}" for first in range(6) for second in range(6)))
    # 37 texts of up to 8 tokens: 32 rows and the remaining 5; then one text alone, filled up to 4 rows
    score(reward, " ".join(["w01"] * 9))
    assert shapes == [(32, 8), (5, 8), (4, 16)]


def test_a_text_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reward = Fluency("planted-7")
    asked: list[int] = []
    compute = reward._mean_log_likelihoods

    def counted(rows: list[list[int]], length: int) -> list[float]:
        asked.append(len(rows))
        return compute(rows, length)

    monkeypatch.setattr(reward, "_mean_log_likelihoods", counted)
    first = score(reward, "w01", "w02", "w01", "w01")
    assert asked == [2]
    assert first[0] == first[2] == first[3]
    assert score(reward, "w02", "w01") == [first[1], first[0]]
    assert asked == [2]


def test_a_text_without_tokens_is_left_out() -> None:
    values = score(Fluency("planted-7"), "", "w01")
    assert values[0] is None
    assert values[1] is not None


def test_the_outputs_text_can_be_judged_instead() -> None:
    reward = Fluency("planted-7", of="output")
    assert reward.needs == "text"
    outputs = [ANSWER, TargetOutput(text=None)]
    assert reward(completions=["w01", "w01"], outputs=outputs) == [score(Fluency("planted-7"), "w03")[0], None]


def test_a_long_text_is_judged_by_its_beginning() -> None:
    reward = Fluency("planted-7", max_tokens=3)
    assert score(reward, "w01 w02 w03 w04 w05")[0] == score(reward, "w01 w02 w03")[0]
    longer_than_the_model_reads = " ".join(["w01"] * 5000)
    assert score(Fluency("planted-7", max_tokens=5000), longer_than_the_model_reads)[0] is not None


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"of": "input"}, ConfigError, "of must be prompt or output, got 'input'"),
        ({"max_tokens": 0}, ConfigError, "max_tokens must be at least 1"),
        ({"model": "./no-such-model"}, ModelNotFoundError, "no-such-model"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(kwargs: dict[str, object], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        Fluency(**kwargs)  # type: ignore[arg-type]


def test_a_sentence_is_more_fluent_than_its_words_in_disorder() -> None:
    reward = Fluency("smollm2-135m-instruct", dtype="float32", device="cpu")
    sentence, disorder = score(reward, "The film was really very good.", "good film very The. was really")
    assert sentence is not None
    assert disorder is not None
    assert disorder + 0.5 < sentence < 0
