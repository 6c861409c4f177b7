"""Local targets that write text or read messages, against what transformers itself does."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from tiny_transformers import INPUTS, MULTI, PROMPTS, SINGLE, causal_reference, normalised, plain_model

from rlprompt.errors import ConfigError
from rlprompt.targets.transformers import TransformersTarget
from rlprompt.types import Failure, Rendered, TargetRequest


class TestGeneration:
    @pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "t5", "bart"])
    def test_greedy_text_is_what_transformers_generates(self, folders: Callable[[str], str], name: str) -> None:
        head = "seq2seq" if name in ("t5", "bart") else "causal"
        model, tokenizer = plain_model(folders(name), head)
        target = TransformersTarget(folders(name), dtype="float32", device="cpu")
        texts = [text for text in INPUTS if text]
        requests = [TargetRequest(Rendered(text=text), max_tokens=9) for text in texts]
        for text, output in zip(texts, target.run(requests), strict=True):
            ids = torch.tensor([tokenizer(text)["input_ids"]])
            options = {"max_new_tokens": 9, "do_sample": False, "eos_token_id": tokenizer.eos_token_id}
            if name == "bart":
                options |= {"forced_eos_token_id": None, "forced_bos_token_id": None, "num_beams": 1}
            written = model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **options)[0]
            start = 1 if head == "seq2seq" else ids.shape[1]
            assert output.text == tokenizer.decode(written[start:], skip_special_tokens=True)
            assert 1 <= output.completion_tokens <= 9

    def test_a_model_without_keys_and_values_writes_the_same(self, folders: Callable[[str], str]) -> None:
        model, tokenizer = plain_model(folders("mamba"))
        target = TransformersTarget(folders("mamba"), dtype="float32", device="cpu")
        texts = ["It was", "One word: it was", "It was"]
        for text, output in zip(
            texts, target.run([TargetRequest(Rendered(text=text), max_tokens=7) for text in texts]), strict=True
        ):
            ids = tokenizer(text)["input_ids"]
            written: list[int] = []
            while len(written) < 7 and tokenizer.eos_token_id not in written:
                with torch.inference_mode():
                    written.append(int(model(torch.tensor([ids + written])).logits[0, -1].argmax()))
            assert output.text == tokenizer.decode(written, skip_special_tokens=True)

    def test_what_texts_share_is_read_once_and_neighbours_change_nothing(self, folders: Callable[[str], str]) -> None:
        model, tokenizer = plain_model(folders("llama"))
        start = " ".join(INPUTS) + " "  # beyond 128 tokens, and below with the shorter one
        rendered = [
            Rendered(text=text + prompt, split=len(text))
            for text in (start, "It was. ")
            for prompt in PROMPTS
            if prompt
        ]
        requests = [TargetRequest(one, max_tokens=9) for one in rendered]
        target = TransformersTarget(folders("llama"), dtype="float32", device="cpu")
        together = target.run(requests)
        for one, output in zip(rendered, together, strict=True):
            ids = torch.tensor([tokenizer(one.text)["input_ids"]])
            options = {"max_new_tokens": 9, "do_sample": False, "pad_token_id": 0}
            written = model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0]
            assert output.text == tokenizer.decode(written[ids.shape[1] :], skip_special_tokens=True)
        assert target.stats()["prefix_misses"] == 2
        whole = TransformersTarget(folders("llama"), dtype="float32", device="cpu")
        whole.run([TargetRequest(Rendered(text=one.text), max_tokens=9) for one in rendered])
        computed = [entry.stats()["generation_tokens_computed"] for entry in (target, whole)]
        shared = len(tokenizer(start)["input_ids"])
        assert shared > 128
        assert computed[1] - computed[0] > 2 * shared
        alone = TransformersTarget(folders("llama"), dtype="float32", device="cpu")
        assert [alone.run([request])[0] for request in reversed(requests)] == together[::-1]
        assert target.run(requests) == together  # from the store
        assert target.stats()["tokens_computed"] == 0

    @pytest.mark.parametrize("name", ["llama", "t5"])
    def test_samples_depend_on_seed_sample_and_text_only(self, folders: Callable[[str], str], name: str) -> None:
        target = TransformersTarget(folders(name), dtype="float32", device="cpu")

        def ask(text: str, sample: int, seed: int) -> TargetRequest:
            return TargetRequest(Rendered(text=text), max_tokens=8, temperature=1.0, sample=sample, seed=seed)

        requests = [ask(text, sample, seed) for text in INPUTS for sample in (0, 1) for seed in (0, 5)]
        together = target.run(requests)
        assert [target.run([request])[0] for request in requests] == together
        texts = [output.text for output in together]
        assert len(set(texts[:4])) == 4

    def test_samples_follow_the_distribution(self, folders: Callable[[str], str]) -> None:
        model, tokenizer = plain_model(folders("gpt2"))
        target = TransformersTarget(folders("gpt2"), dtype="float32", device="cpu")
        with torch.inference_mode():
            logits = model(torch.tensor([tokenizer("It was")["input_ids"]])).logits[0, -1]
        expected = (logits.double() / 0.5).softmax(-1).numpy()
        requests = [
            TargetRequest(Rendered(text="It was"), max_tokens=1, temperature=0.5, sample=sample)
            for sample in range(400)
        ]
        texts = [output.text for output in target.run(requests)]
        # Several tokens have the same text: specials have none, halves of characters are all U+FFFD.
        spelled: dict[str, float] = {}
        for token, share in enumerate(expected):
            text = tokenizer.decode([token], skip_special_tokens=True)
            spelled[text] = spelled.get(text, 0.0) + share
        likely = sorted(spelled, key=lambda text: -spelled[text])[:3]
        assert 0.1 < spelled[likely[0]] < 0.9
        for text in likely:  # within four standard errors of a share of 400 draws
            error = math.sqrt(spelled[text] * (1 - spelled[text]) / 400)
            assert texts.count(text) / 400 == pytest.approx(spelled[text], abs=4 * error)

    def test_text_ends_before_the_first_stop_string(self, folders: Callable[[str], str]) -> None:
        target = TransformersTarget(folders("llama"), dtype="float32", device="cpu")
        request = TargetRequest(Rendered(text="It was"), max_tokens=20)
        whole = target.run([request])[0]
        stop = whole.text[3]
        cut = target.run([TargetRequest(request.rendered, max_tokens=20, stop=(stop,))])[0]
        assert cut.text == whole.text[: whole.text.index(stop)]
        assert cut.completion_tokens < whole.completion_tokens

    def test_a_masked_model_cannot_generate(self, folders: Callable[[str], str]) -> None:
        target = TransformersTarget(folders("bert"), dtype="float32", device="cpu")
        with pytest.raises(ConfigError, match="a masked model cannot generate"):
            target.run([TargetRequest(Rendered(text="x"), max_tokens=3)])


class TestChat:
    def test_messages_are_scored_in_the_model_s_own_chat_format(self, folders: Callable[[str], str]) -> None:
        target = TransformersTarget(folders("llama"), dtype="float32", device="cpu")
        model, tokenizer = plain_model(folders("llama"))
        messages = (("system", "In one word."), ("user", "It was long \U0001f3ac verdict:"))
        rendered = Rendered(messages=messages, split=len("In one word.") + len("It was long "))
        output = target.run([TargetRequest(rendered, choices=MULTI)])[0]
        text = "<system>In one word.</s><user>It was long \U0001f3ac verdict:</s><assistant>"
        expected = normalised(causal_reference(model, tokenizer, text, MULTI))
        assert output.choice_logprobs == pytest.approx(expected, abs=1e-5)
        encoded = target._encode([TargetRequest(rendered, choices=MULTI)])[0]
        assert not isinstance(encoded, Failure)
        # The template trims contents, so the prefix ends before the space in front of the prompt.
        assert tokenizer.decode(encoded.tokens[: encoded.split]) == "<system>In one word.</s><user>It was long"

    def test_messages_need_a_chat_template(self, folders: Callable[[str], str]) -> None:
        target = TransformersTarget(folders("gpt2"), dtype="float32", device="cpu")
        with pytest.raises(ConfigError, match="has no chat template; use a plain text template"):
            target.run([TargetRequest(Rendered(messages=(("user", "hello"),)), choices=SINGLE)])

    def test_a_masked_model_reads_no_messages(self, folders: Callable[[str], str]) -> None:
        target = TransformersTarget(folders("bert"), dtype="float32", device="cpu")
        with pytest.raises(ConfigError, match="use a plain text template, not messages"):
            target.run([TargetRequest(Rendered(messages=(("user", "hello"),)), choices=SINGLE)])
