"""The local targets against a straightforward computation, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tiny_transformers import (
    INPUTS,
    MULTI,
    PROMPTS,
    SINGLE,
    causal_models,
    causal_reference,
    check_agreement,
    masked_reference,
    normalised,
    plain_model,
    rendered_texts,
    seq2seq_reference,
)

from rlprompt.errors import ConfigError, ModelNotFoundError, UnknownNameError
from rlprompt.models import load_frozen
from rlprompt.targets.transformers import TransformersTarget
from rlprompt.types import Rendered, Target, TargetOutput, TargetRequest


class TestAgreementWithThePlainComputation:
    @pytest.mark.parametrize("name", list(causal_models()))
    def test_causal(self, folders: Callable[[str], str], name: str) -> None:
        target = TransformersTarget(folders(name), dtype="float32", device="cpu")
        assert target.head == "causal"
        assert target._scorer.reuses_prefixes == (name != "mamba")
        check_agreement(target, causal_reference, *plain_model(folders(name)))

    @pytest.mark.parametrize("name", ["bert", "roberta"])
    def test_masked(self, folders: Callable[[str], str], name: str) -> None:
        target = TransformersTarget(folders(name), dtype="float32", device="cpu")
        assert target.head == "masked"
        check_agreement(target, masked_reference, *plain_model(folders(name), "masked"))

    @pytest.mark.parametrize("name", ["t5", "bart"])
    def test_seq2seq(self, folders: Callable[[str], str], name: str) -> None:
        target = TransformersTarget(folders(name), dtype="float32", device="cpu")
        assert target.head == "seq2seq"
        check_agreement(target, seq2seq_reference, *plain_model(folders(name), "seq2seq"))

    def test_smollm2(self) -> None:
        target = TransformersTarget("smollm2-135m-instruct", dtype="float32", device="cpu")
        model, tokenizer = load_frozen("smollm2-135m-instruct", dtype="float32", device="cpu"), target.tokenizer
        texts = [f"{text} {PROMPTS[0]}" for text in INPUTS]
        requests = [
            TargetRequest(Rendered(text=text, split=len(given)), choices=choices)
            for choices in ((" terrible", " great"), (" terrible", " a good film"))
            for text, given in zip(texts, INPUTS, strict=True)
        ]
        for request, output in zip(requests, target.run(requests), strict=True):
            expected = normalised(causal_reference(model, tokenizer, request.rendered.text, request.choices))
            assert np.exp(output.choice_logprobs) == pytest.approx(np.exp(expected), abs=1e-5)

    def test_a_mask_inside_the_text_is_where_the_choice_is_read(self, folders: Callable[[str], str]) -> None:
        target = TransformersTarget(folders("bert"), dtype="float32", device="cpu")
        model, tokenizer = plain_model(folders("bert"), "masked")
        text = "It was <mask>, and then bad."
        output = target.run([TargetRequest(Rendered(text=text), choices=MULTI)])[0]
        expected = normalised(masked_reference(model, tokenizer, text, MULTI))
        assert output.choice_logprobs == pytest.approx(expected, abs=1e-5)

    def test_bfloat16_is_close_to_float32(self, folders: Callable[[str], str]) -> None:
        requests = [TargetRequest(one, choices=choices) for choices in (SINGLE, MULTI) for one in rendered_texts()]
        exact = TransformersTarget(folders("llama"), dtype="float32", device="cpu").run(requests)
        rough = TransformersTarget(folders("llama"), dtype="bfloat16", device="cpu").run(requests)
        for one, other in zip(exact, rough, strict=True):
            assert np.exp(one.choice_logprobs) == pytest.approx(np.exp(other.choice_logprobs), abs=0.05)


@pytest.mark.usefixtures("one_thread")
class TestIndependence:
    @pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "mamba", "bert", "t5"])
    def test_numbers_do_not_depend_on_the_other_requests_of_the_call(
        self, folders: Callable[[str], str], name: str
    ) -> None:
        requests = [TargetRequest(one, choices=choices) for choices in (SINGLE, MULTI) for one in rendered_texts()]
        together = TransformersTarget(folders(name), dtype="float32", device="cpu").run(requests)
        target = TransformersTarget(folders(name), dtype="float32", device="cpu", batch_tokens=64)
        for size in (1, 5):
            apart: list[TargetOutput] = []
            for start in range(0, len(requests), size):
                apart += target.run(requests[start : start + size])
            assert apart == together

    def test_numbers_do_not_depend_on_what_the_cache_holds(self, folders: Callable[[str], str]) -> None:
        requests = [TargetRequest(one, choices=MULTI) for one in rendered_texts()]
        kept = TransformersTarget(folders("llama"), dtype="float32", device="cpu")
        forgetful = TransformersTarget(folders("llama"), dtype="float32", device="cpu", kv_cache_bytes=0)
        first = kept.run(requests)
        assert kept.run(requests) == first
        assert forgetful.run(requests) == first
        assert kept.stats()["prefix_hits"] > 0
        assert forgetful.stats()["prefix_hits"] == 0
        assert forgetful.stats()["kv_bytes"] == 0

    def test_the_split_is_a_hint_for_speed_only(self, folders: Callable[[str], str]) -> None:
        target = TransformersTarget(folders("llama"), dtype="float32", device="cpu")
        text = "It was really good and then it was not"
        values = [
            target.run([TargetRequest(Rendered(text=text, split=split), choices=SINGLE)])[0].choice_logprobs
            for split in (0, 1, 7, 20, len(text), 1000)
        ]
        for value in values:
            assert value == pytest.approx(values[0], abs=1e-6)

    def test_equal_requests_are_computed_once(self, folders: Callable[[str], str]) -> None:
        target = TransformersTarget(folders("gpt2"), dtype="float32", device="cpu")
        target.run([TargetRequest(Rendered(text="It was"), choices=SINGLE)] * 4)
        once = target.stats()["tokens_computed"]
        target.run([TargetRequest(Rendered(text="It was"), choices=SINGLE)] * 400)
        assert target.stats()["tokens_computed"] == 2 * once


class TestRefusals:
    @pytest.mark.parametrize("name", ["gpt2", "bert", "bart"])
    def test_a_long_text_fails_and_nothing_is_cut(self, folders: Callable[[str], str], name: str) -> None:
        target = TransformersTarget(folders(name), dtype="float32", device="cpu", max_length=12)
        short, long = Rendered(text="It was"), Rendered(text="It was " * 30, split=6)
        alone = target.run([TargetRequest(short, choices=SINGLE)])[0]
        outputs = target.run([TargetRequest(long, choices=SINGLE), TargetRequest(short, choices=SINGLE)])
        assert outputs[0].failure is not None
        assert (outputs[0].failure.kind, outputs[0].choice_logprobs) == ("too-long", None)
        assert outputs[1] == alone

    def test_the_longest_text_that_fits_is_answered(self, folders: Callable[[str], str]) -> None:
        model, tokenizer = plain_model(folders("gpt2"))
        target = TransformersTarget(folders("gpt2"), dtype="float32", device="cpu")
        assert target.max_length == 256
        text = "a" * 400
        while len(tokenizer(text)["input_ids"]) > 256:
            text = text[:-1]
        for split in (0, 251, 256):  # whole, cut so that padding would pass the last position, cut at the end
            output = target.run([TargetRequest(Rendered(text=text, split=split), choices=SINGLE)])[0]
            expected = model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0, -1].double()
            ids = [tokenizer(choice)["input_ids"][0] for choice in SINGLE]
            assert output.choice_logprobs == pytest.approx(expected[ids].log_softmax(-1).tolist(), abs=1e-5)
        too_long = target.run([TargetRequest(Rendered(text=text + "aaaa"), choices=SINGLE)])[0]
        assert too_long.failure is not None

    def test_generation_needs_room_for_its_tokens(self, folders: Callable[[str], str]) -> None:
        target = TransformersTarget(folders("gpt2"), dtype="float32", device="cpu", max_length=12)
        output = target.run([TargetRequest(Rendered(text="It was"), max_tokens=50)])[0]
        assert output.failure is not None
        assert output.failure.kind == "too-long"

    def test_half_of_a_surrogate_pair_fails_alone(self, folders: Callable[[str], str]) -> None:
        target = TransformersTarget(folders("gpt2"), dtype="float32", device="cpu")
        texts = ["\ud83d", "It was"]
        outputs = target.run([TargetRequest(Rendered(text=text), choices=SINGLE) for text in texts])
        assert outputs[0].failure is not None
        assert outputs[0].failure.kind == "malformed"
        assert outputs[1].failure is None

    def test_two_masks_fail(self, folders: Callable[[str], str]) -> None:
        target = TransformersTarget(folders("bert"), dtype="float32", device="cpu")
        output = target.run([TargetRequest(Rendered(text="<mask> or <mask>"), choices=SINGLE)])[0]
        assert output.failure is not None
        assert "holds 2 masks" in output.failure.message

    def test_a_choice_without_tokens_is_the_user_s_mistake(self, folders: Callable[[str], str]) -> None:
        target = TransformersTarget(folders("gpt2"), dtype="float32", device="cpu")
        with pytest.raises(ConfigError, match="the choice or continuation '' has no tokens"):
            target.run([TargetRequest(Rendered(text="x"), choices=("", " bad"))])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"head": "casual"}, "did you mean 'causal'"),
            ({"batch_tokens": 0}, "target.kwargs.batch_tokens must be a whole number of at least 1, got 0"),
            ({"kv_cache_bytes": -1}, "target.kwargs.kv_cache_bytes must be a whole number of at least 0"),
            ({"dtype": "float8"}, "unknown dtype 'float8'"),
        ],
    )
    def test_wrong_arguments(self, folders: Callable[[str], str], options: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            TransformersTarget(folders("gpt2"), **options)

    def test_a_head_that_the_model_has_not(self, folders: Callable[[str], str]) -> None:
        with pytest.raises(ModelNotFoundError, match="cannot load it as a seq2seq model"):
            TransformersTarget(folders("gpt2"), head="seq2seq", dtype="float32", device="cpu")


def test_it_is_a_target_and_says_what_it_is(folders: Callable[[str], str]) -> None:
    target = TransformersTarget(folders("gpt2"), dtype="float32", device="cpu")
    assert isinstance(target, Target)
    identity = target.identity
    assert identity["kind"] == "transformers"
    assert identity["dtype"] == "float32"
    assert folders("gpt2") not in str(identity)
    assert identity["sha256"] != TransformersTarget(folders("llama"), device="cpu").identity["sha256"]


@pytest.mark.parametrize("name", ["gpt2", "bert", "t5"])
def test_counted_tokens_are_an_upper_bound_of_reported_ones(folders: Callable[[str], str], name: str) -> None:
    target = TransformersTarget(folders(name), dtype="float32", device="cpu")
    requests = [TargetRequest(one, choices=choices) for choices in (SINGLE, MULTI) for one in rendered_texts()]
    if name != "bert":
        requests += [TargetRequest(one, max_tokens=4) for one in rendered_texts()]
    counts = target.count_tokens(requests)
    for count, output in zip(counts, target.run(requests), strict=True):
        assert 0 < output.prompt_tokens + output.completion_tokens <= count


def test_unknown_head_is_an_unknown_name_or_configuration_error() -> None:
    with pytest.raises((ConfigError, UnknownNameError)):
        TransformersTarget("planted-20", head="x")
