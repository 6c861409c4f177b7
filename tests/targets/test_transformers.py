"""The local targets against a straightforward computation: one text at a time, no padding, no cache, float32."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from rlprompt.errors import ConfigError, ModelNotFoundError, UnknownNameError
from rlprompt.models import load_frozen
from rlprompt.targets.transformers import TransformersTarget
from rlprompt.types import Failure, Rendered, Target, TargetOutput, TargetRequest

INPUTS = (
    "He said \"fine\", she said 'no'.",
    "Ünïcödé 日本語 🎬 text",
    "",
    "a",
    "tab\tand\nnew line and  two spaces ",
    "It was long and dull, and then it went on for a good while before it came to any end at all.",
)
PROMPTS = ("It was", "In one word, it was", "", "verdict:")
SINGLE = (" great", " bad")
MULTI = (" great", " really bad", " not good at all")
SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
CHAT = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content | trim }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def _save_tokenizer(folder: Path, *, mask: bool = False, template: str | None = None) -> Any:
    """A byte-level BPE tokenizer in which the words of `SINGLE` are one token each."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=["<pad>", "<s>", "</s>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(["It was great bad really good not in one word and then it was"] * 9, trainer)
    if mask:
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", mask_token="<mask>"
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return tokenizer


def _causal_models() -> dict[str, Callable[[int], Any]]:
    t = transformers
    small = {**SIZE, "initializer_range": 0.2, "max_position_embeddings": 256, "pad_token_id": 0}
    return {
        "llama": lambda v: t.LlamaForCausalLM(t.LlamaConfig(vocab_size=v, num_key_value_heads=2, **small)),
        "gpt2": lambda v: t.GPT2LMHeadModel(
            t.GPT2Config(vocab_size=v, n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.2)
        ),
        # A window of 8 is shorter than the texts, so keys and values at wrong distances would show.
        "gemma3": lambda v: t.Gemma3ForCausalLM(
            t.Gemma3TextConfig(
                vocab_size=v,
                num_key_value_heads=1,
                head_dim=8,
                sliding_window=8,
                layer_types=["sliding_attention", "full_attention"],
                **small,
            )
        ),
        # Soft caps on logits and attention.
        "gemma2": lambda v: t.Gemma2ForCausalLM(
            t.Gemma2Config(
                vocab_size=v,
                num_key_value_heads=2,
                head_dim=8,
                final_logit_softcapping=2.0,
                attn_logit_softcapping=5.0,
                sliding_window=8,
                query_pre_attn_scalar=8,
                **small,
            )
        ),
        # Logits times a scale, layer norm with another order.
        "cohere": lambda v: t.CohereForCausalLM(
            t.CohereConfig(vocab_size=v, num_key_value_heads=2, logit_scale=0.3, **small)
        ),
        # An output layer with a bias.
        "phi": lambda v: t.PhiForCausalLM(t.PhiConfig(vocab_size=v, **small)),
        # No keys and values at all.
        "mamba": lambda v: t.MambaForCausalLM(
            t.MambaConfig(vocab_size=v, hidden_size=32, num_hidden_layers=2, state_size=4, initializer_range=0.2)
        ),
    }


def _other_models() -> dict[str, Callable[[int], Any]]:
    t = transformers
    small = {**SIZE, "initializer_range": 0.2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return {
        "bert": lambda v: t.BertForMaskedLM(t.BertConfig(vocab_size=v, **small)),
        "roberta": lambda v: t.RobertaForMaskedLM(t.RobertaConfig(vocab_size=v, max_position_embeddings=130, **small)),
        "t5": lambda v: t.T5ForConditionalGeneration(
            t.T5Config(vocab_size=v, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0)
        ),
        "bart": lambda v: t.BartForConditionalGeneration(
            t.BartConfig(
                vocab_size=v,
                d_model=32,
                encoder_layers=2,
                decoder_layers=2,
                encoder_attention_heads=4,
                decoder_attention_heads=4,
                encoder_ffn_dim=48,
                decoder_ffn_dim=48,
                max_position_embeddings=256,
                init_std=0.2,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
                decoder_start_token_id=2,
            )
        ),
    }


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Makes the folder of a small random model on demand."""
    made: dict[str, str] = {}

    def make(name: str) -> str:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            builders = {**_causal_models(), **_other_models()}
            tokenizer = _save_tokenizer(
                folder, mask=name in ("bert", "roberta"), template=CHAT if name == "llama" else None
            )
            with torch.random.fork_rng():
                torch.manual_seed(7)
                model = builders[name](len(tokenizer))
                for parameter_name, parameter in model.named_parameters():
                    if parameter_name.endswith("bias"):
                        torch.nn.init.normal_(parameter, std=0.3)
            model.save_pretrained(folder)
            made[name] = str(folder)
        return made[name]

    return make


def _texts() -> list[Rendered]:
    found = []
    for prompt in PROMPTS:
        for text in INPUTS:
            whole = f"{text} {prompt}" if prompt else text
            found.append(Rendered(text=whole, split=len(text)))
    return found


def _plain(folder: str, head: str = "causal") -> tuple[Any, Any]:
    name = {
        "causal": "AutoModelForCausalLM",
        "masked": "AutoModelForMaskedLM",
        "seq2seq": "AutoModelForSeq2SeqLM",
    }[head]
    model = getattr(transformers, name).from_pretrained(folder, dtype=torch.float32).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def _normalised(scores: list[float]) -> np.ndarray:
    values = np.array(scores)
    return values - np.log(np.exp(values - values.max()).sum()) - values.max()


@torch.inference_mode()
def _causal_reference(model: Any, tokenizer: Any, text: str, choices: tuple[str, ...]) -> list[float]:
    """Sum of the log-probabilities of each choice's tokens."""
    ids = tokenizer(text)["input_ids"] or [tokenizer.bos_token_id]
    found = []
    for choice in choices:
        answer = tokenizer(choice, add_special_tokens=False)["input_ids"]
        logprobs = model(torch.tensor([ids + answer])).logits[0].double().log_softmax(-1)
        found.append(sum(float(logprobs[len(ids) - 1 + k, token]) for k, token in enumerate(answer)))
    return found


@torch.inference_mode()
def _masked_reference(model: Any, tokenizer: Any, text: str, choices: tuple[str, ...]) -> list[float]:
    text = text if "<mask>" in text else text + " <mask>"
    found = []
    for choice in choices:
        answer = tokenizer(choice, add_special_tokens=False)["input_ids"]
        ids = tokenizer(text.replace("<mask>", "<mask>" * len(answer)))["input_ids"]
        places = [place for place, token in enumerate(ids) if token == tokenizer.mask_token_id]
        logprobs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        found.append(sum(float(logprobs[place, token]) for place, token in zip(places, answer, strict=True)))
    return found


@torch.inference_mode()
def _seq2seq_reference(model: Any, tokenizer: Any, text: str, choices: tuple[str, ...]) -> list[float]:
    ids = tokenizer(text)["input_ids"] or [tokenizer.bos_token_id]
    found = []
    for choice in choices:
        answer = tokenizer(choice, add_special_tokens=False)["input_ids"]
        start = [model.config.decoder_start_token_id, *answer[:-1]]
        logits = model(input_ids=torch.tensor([ids]), decoder_input_ids=torch.tensor([start])).logits
        logprobs = logits[0].double().log_softmax(-1)
        found.append(sum(float(logprobs[k, token]) for k, token in enumerate(answer)))
    return found


def _check(target: TransformersTarget, reference: Callable[..., list[float]], model: Any, tokenizer: Any) -> None:
    rendered = _texts()
    requests = [TargetRequest(one, choices=choices) for choices in (SINGLE, MULTI) for one in rendered]
    requests += [TargetRequest(one, continuation=" good word") for one in rendered]
    outputs = target.run(requests)
    for request, output in zip(requests, outputs, strict=True):
        assert output.failure is None
        text = request.rendered.text
        if request.choices is None:
            expected = reference(model, tokenizer, text, (request.continuation,))
            assert output.logprob == pytest.approx(expected[0], abs=1e-5)
        else:
            expected = _normalised(reference(model, tokenizer, text, request.choices))
            assert output.choice_logprobs == pytest.approx(expected, abs=1e-5)
            assert sum(math.exp(value) for value in output.choice_logprobs) == pytest.approx(1, abs=1e-12)


class TestAgreementWithThePlainComputation:
    @pytest.mark.parametrize("name", list(_causal_models()))
    def test_causal(self, folders: Callable[[str], str], name: str) -> None:
        target = TransformersTarget(folders(name), dtype="float32", device="cpu")
        assert target.head == "causal"
        assert target._scorer.reuses_prefixes == (name != "mamba")
        _check(target, _causal_reference, *_plain(folders(name)))

    @pytest.mark.parametrize("name", ["bert", "roberta"])
    def test_masked(self, folders: Callable[[str], str], name: str) -> None:
        target = TransformersTarget(folders(name), dtype="float32", device="cpu")
        assert target.head == "masked"
        _check(target, _masked_reference, *_plain(folders(name), "masked"))

    @pytest.mark.parametrize("name", ["t5", "bart"])
    def test_seq2seq(self, folders: Callable[[str], str], name: str) -> None:
        target = TransformersTarget(folders(name), dtype="float32", device="cpu")
        assert target.head == "seq2seq"
        _check(target, _seq2seq_reference, *_plain(folders(name), "seq2seq"))

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
            expected = _normalised(_causal_reference(model, tokenizer, request.rendered.text, request.choices))
            assert np.exp(output.choice_logprobs) == pytest.approx(np.exp(expected), abs=1e-5)

    def test_a_mask_inside_the_text_is_where_the_choice_is_read(self, folders: Callable[[str], str]) -> None:
        target = TransformersTarget(folders("bert"), dtype="float32", device="cpu")
        model, tokenizer = _plain(folders("bert"), "masked")
        text = "It was <mask>, and then bad."
        output = target.run([TargetRequest(Rendered(text=text), choices=MULTI)])[0]
        expected = _normalised(_masked_reference(model, tokenizer, text, MULTI))
        assert output.choice_logprobs == pytest.approx(expected, abs=1e-5)

    def test_bfloat16_is_close_to_float32(self, folders: Callable[[str], str]) -> None:
        requests = [TargetRequest(one, choices=choices) for choices in (SINGLE, MULTI) for one in _texts()]
        exact = TransformersTarget(folders("llama"), dtype="float32", device="cpu").run(requests)
        rough = TransformersTarget(folders("llama"), dtype="bfloat16", device="cpu").run(requests)
        for one, other in zip(exact, rough, strict=True):
            assert np.exp(one.choice_logprobs) == pytest.approx(np.exp(other.choice_logprobs), abs=0.05)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Matrices as small as these are shared out among threads by their number of rows; larger ones are not."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
class TestIndependence:
    @pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "mamba", "bert", "t5"])
    def test_numbers_do_not_depend_on_the_other_requests_of_the_call(
        self, folders: Callable[[str], str], name: str
    ) -> None:
        requests = [TargetRequest(one, choices=choices) for choices in (SINGLE, MULTI) for one in _texts()]
        together = TransformersTarget(folders(name), dtype="float32", device="cpu").run(requests)
        target = TransformersTarget(folders(name), dtype="float32", device="cpu", batch_tokens=64)
        for size in (1, 5):
            apart: list[TargetOutput] = []
            for start in range(0, len(requests), size):
                apart += target.run(requests[start : start + size])
            assert apart == together

    def test_numbers_do_not_depend_on_what_the_cache_holds(self, folders: Callable[[str], str]) -> None:
        requests = [TargetRequest(one, choices=MULTI) for one in _texts()]
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


class TestGeneration:
    @pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "t5", "bart"])
    def test_greedy_text_is_what_transformers_generates(self, folders: Callable[[str], str], name: str) -> None:
        head = "seq2seq" if name in ("t5", "bart") else "causal"
        model, tokenizer = _plain(folders(name), head)
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
        model, tokenizer = _plain(folders("gpt2"))
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
        model, tokenizer = _plain(folders("llama"))
        messages = (("system", "In one word."), ("user", "It was long \U0001f3ac verdict:"))
        rendered = Rendered(messages=messages, split=len("In one word.") + len("It was long "))
        output = target.run([TargetRequest(rendered, choices=MULTI)])[0]
        text = "<system>In one word.</s><user>It was long \U0001f3ac verdict:</s><assistant>"
        expected = _normalised(_causal_reference(model, tokenizer, text, MULTI))
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
        model, tokenizer = _plain(folders("gpt2"))
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
    requests = [TargetRequest(one, choices=choices) for choices in (SINGLE, MULTI) for one in _texts()]
    if name != "bert":
        requests += [TargetRequest(one, max_tokens=4) for one in _texts()]
    counts = target.count_tokens(requests)
    for count, output in zip(counts, target.run(requests), strict=True):
        assert 0 < output.prompt_tokens + output.completion_tokens <= count


def test_unknown_head_is_an_unknown_name_or_configuration_error() -> None:
    with pytest.raises((ConfigError, UnknownNameError)):
        TransformersTarget("planted-20", head="x")
