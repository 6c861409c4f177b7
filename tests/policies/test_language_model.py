"""Policies that are whole LMs: scoring, writing, the reference, and what stays frozen; for both architectures."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from rlprompt.config import PolicyConfig
from rlprompt.errors import CheckpointError, ConfigError
from rlprompt.models import load_frozen
from rlprompt.policies import PromptPolicy, build_policy
from rlprompt.policies.language_model import LanguageModelPolicy
from rlprompt.policies.network import in_float32
from rlprompt.policies.sampling import write_prompts

EOS = 50
RAGGED = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, -1, -1], [3, 1, 4, 1, 5], [EOS, -1, -1, -1, -1]])
TOKENS = torch.tensor([[2, 7, 1, 8], [2, 8, -1, -1], [4, 5, 9, -1], [3, 6, 9, 2]])
WRITTEN = TOKENS >= 0
NAMES = ["llama", "gpt2", "gemma3", "t5", "bart"]
KINDS = {"t5": "seq2seq-lm", "bart": "seq2seq-lm"}

TinyLM = Callable[[str], str]


def build(folder: str, kind: str = "causal-lm", seed: int = 0, length: int = 4, **kwargs: Any) -> LanguageModelPolicy:
    dtype = kwargs.pop("dtype", "float32")
    config = PolicyConfig(kind=kind, model=folder, dtype=dtype, kwargs=kwargs)
    policy = build_policy(config, prompt_length=length, seed=seed)
    assert isinstance(policy, LanguageModelPolicy)
    return policy


def trained(policy: LanguageModelPolicy, steps: int = 3) -> LanguageModelPolicy:
    """Some steps towards other logits and values, so that nothing is as at the start."""
    optimizer = torch.optim.Adam(policy.trainable.parameters(), lr=0.05)
    for _ in range(steps):
        logits, values = policy.evaluate(RAGGED, TOKENS)
        logp = torch.log_softmax(logits, -1).gather(-1, TOKENS.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        loss = -logp[WRITTEN].mean() + (values[WRITTEN] - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return policy


def checksums(folder: str, head: Any) -> dict[str, float]:
    model = load_frozen(folder, dtype="float32", device="cpu", head=head)
    return {name: value.double().sum().item() for name, value in model.state_dict().items()}


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def policy(name: str, tiny_lm: TinyLM) -> LanguageModelPolicy:
    return trained(build(tiny_lm(name), KINDS.get(name, "causal-lm")))


class TestScoring:
    def test_a_row_gives_what_it_gives_alone(self, policy: LanguageModelPolicy) -> None:
        logits, values = policy.evaluate(RAGGED, TOKENS)
        for row in range(4):
            context, tokens = RAGGED[row][RAGGED[row] >= 0], TOKENS[row][WRITTEN[row]]
            alone, value = policy.evaluate(context[None], tokens[None])
            assert torch.allclose(logits[row, : len(tokens)], alone[0], atol=1e-4, rtol=0)
            assert torch.allclose(values[row, : len(tokens)], value[0], atol=1e-4, rtol=0)

    def test_it_is_what_the_model_itself_says(self, name: str, policy: LanguageModelPolicy) -> None:
        logits, _ = policy.evaluate(RAGGED, TOKENS)
        for row in range(4):
            context, tokens = RAGGED[row][RAGGED[row] >= 0][None], TOKENS[row][WRITTEN[row]][None]
            with torch.no_grad():
                if name in KINDS:
                    inputs = torch.cat([torch.tensor([[EOS]]), tokens[:, :-1]], dim=1)
                    plain = policy.hf_model(input_ids=context, decoder_input_ids=inputs).logits[0]
                else:
                    whole = torch.cat([context, tokens[:, :-1]], dim=1)
                    plain = policy.hf_model(input_ids=whole).logits[0, context.shape[1] - 1 :]
            assert torch.allclose(logits[row, : tokens.shape[1]], plain[:, :51], atol=1e-4, rtol=0)

    def test_what_was_not_written_is_zero_and_changes_nothing(self, policy: LanguageModelPolicy) -> None:
        logits, values = policy.evaluate(RAGGED, TOKENS)
        assert (logits[~WRITTEN] == 0).all()
        assert (values[~WRITTEN] == 0).all()
        assert torch.allclose(logits[:, :2], policy.evaluate(RAGGED, TOKENS[:, :2])[0], atol=1e-5)

    def test_the_output_layer_reads_written_positions_only(
        self, policy: LanguageModelPolicy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shapes: list[tuple[int, ...]] = []
        project = policy.network.project
        monkeypatch.setattr(
            policy.network, "project", lambda hidden: (shapes.append(tuple(hidden.shape)), project(hidden))[1]
        )
        policy.evaluate(RAGGED, TOKENS)
        assert shapes == [(13, 16)]  # 4 + 2 + 3 + 4 written tokens, hidden size 16

    def test_values_start_at_zero_and_do_not_train_the_lm(self, name: str, tiny_lm: TinyLM) -> None:
        policy = build(tiny_lm(name), KINDS.get(name, "causal-lm"))
        _, values = policy.evaluate(RAGGED, TOKENS)
        assert (values == 0).all()
        (values[WRITTEN] - 1).square().sum().backward()
        assert all(parameter.grad is None for parameter in policy.head.lm.parameters())
        assert policy.head.value is not None
        assert policy.head.value.bias.grad.item() == -26.0  # 13 written tokens, each 2 * (0 - 1)


class TestWriting:
    def test_the_writer_gives_the_logits_of_evaluate(self, policy: LanguageModelPolicy) -> None:
        logits, _ = policy.evaluate(RAGGED, TOKENS)
        writer = policy.writer(RAGGED)
        for step in range(4):
            found = writer.next_logits(TOKENS[:, step - 1] if step else None)
            rows = WRITTEN[:, step]
            assert torch.allclose(found[rows], logits[rows, step], atol=1e-4, rtol=0)

    def test_a_row_writes_what_it_writes_alone(self, policy: LanguageModelPolicy) -> None:
        uniforms = np.random.default_rng(0).random((4, 4))
        rules: dict[str, Any] = {"static_mask": np.ones(51, bool), "eos_id": EOS, "no_repeat": False, "length": 4}
        together = write_prompts(policy, RAGGED, uniforms=uniforms, **rules)
        for row in range(4):
            context = RAGGED[row][RAGGED[row] >= 0][None]
            alone = write_prompts(policy, context, uniforms=uniforms[row : row + 1], **rules)
            assert alone.tolist() == together[row : row + 1].tolist()

    def test_token_by_token_reads_each_token_once_and_forgets_when_weights_change(
        self, policy: LanguageModelPolicy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tokens = TOKENS.clamp(min=0)
        mask = torch.ones(4, 51, dtype=torch.bool)
        logits, _ = policy.evaluate(RAGGED, tokens)
        starts: list[int] = []
        start = policy.network.start
        monkeypatch.setattr(
            policy.network, "start", lambda contexts: (starts.append(len(contexts)), start(contexts))[1]
        )
        for step in range(4):
            found = policy.next_logits(RAGGED, tokens[:, :step], mask)
            assert torch.allclose(found, logits[:, step], atol=1e-4, rtol=0)
        assert starts == [4]
        policy.next_logits(RAGGED, tokens[:, :2], mask)
        with torch.no_grad():
            for parameter in policy.trainable.parameters():
                parameter.mul_(2)
        changed, _ = policy.evaluate(RAGGED, tokens)
        assert not torch.allclose(changed[:, 3], logits[:, 3], atol=1e-2, rtol=0)
        starts.clear()
        found = policy.next_logits(RAGGED, tokens[:, :3], mask)
        assert torch.allclose(found, changed[:, 3], atol=1e-4, rtol=0)
        assert starts == [4]

    def test_a_context_of_many_rows_is_read_once(self, name: str, policy: LanguageModelPolicy) -> None:
        sizes: list[torch.Size] = []
        reader = policy.network.lm.get_encoder() if name in KINDS else policy.network.lm.base_model
        reader.register_forward_pre_hook(
            lambda module, inputs, named: sizes.append(named["input_ids"].shape), with_kwargs=True
        )
        policy.evaluate(RAGGED[[0, 0, 0, 0]], TOKENS.clamp(min=0))
        assert sizes[0] == (1, 5)


class TestReference:
    @pytest.mark.parametrize("lora", [{}, {"lora": None}], ids=["lora", "full"])
    def test_it_is_the_policy_at_step_zero(self, name: str, lora: dict[str, Any], tiny_lm: TinyLM) -> None:
        policy = build(tiny_lm(name), KINDS.get(name, "causal-lm"), **lora)
        logits, _ = policy.evaluate(RAGGED, TOKENS)
        start = policy.reference_logits(RAGGED, TOKENS)
        assert torch.allclose(logits, start, atol=1e-5, rtol=1e-5)
        new, old = torch.log_softmax(logits, -1), torch.log_softmax(start, -1)
        assert (new.exp() * (new - old)).sum(-1).abs().max() < 1e-6
        trained(policy)
        assert torch.allclose(policy.reference_logits(RAGGED, TOKENS), start, atol=1e-6, rtol=0)
        assert (policy.evaluate(RAGGED, TOKENS)[0] - start).abs().max() > 0.1

    def test_asking_for_it_between_forward_and_backward_changes_no_gradient(self, policy: LanguageModelPolicy) -> None:
        gradients = []
        for ask in (False, True):
            policy.freeze_reference() if ask else None
            policy.trainable.zero_grad()
            logits, values = policy.evaluate(RAGGED, TOKENS)
            if ask:
                policy.reference_logits(RAGGED, TOKENS)
                policy.load_reference_state({})
                policy.reference_logits(RAGGED, TOKENS)
            (logits.square().sum() + values.sum()).backward()
            gradients.append([p.grad.clone() for p in policy.trainable.parameters() if p.grad is not None])
        assert len(gradients[0]) == len(list(policy.trainable.parameters()))
        assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))

    def test_it_can_be_frozen_kept_and_restored(self, name: str, policy: LanguageModelPolicy, tiny_lm: TinyLM) -> None:
        plain = policy.reference_logits(RAGGED, TOKENS)
        assert policy.reference_state() == {}
        now = policy.evaluate(RAGGED, TOKENS)[0].detach()
        policy.freeze_reference()
        state = policy.reference_state()
        trained(policy)
        assert torch.allclose(policy.reference_logits(RAGGED, TOKENS), now, atol=1e-6, rtol=0)
        other = build(tiny_lm(name), KINDS.get(name, "causal-lm"))
        other.load_reference_state(state)
        assert torch.allclose(other.reference_logits(RAGGED, TOKENS), now, atol=1e-6, rtol=0)
        other.load_reference_state({})
        assert torch.allclose(other.reference_logits(RAGGED, TOKENS), plain, atol=1e-6, rtol=0)
        state.popitem()
        with pytest.raises(CheckpointError, match="missing or not expected"):
            other.load_reference_state(state)


class TestFrozenParts:
    @pytest.mark.parametrize("lora", [{}, {"lora": None}], ids=["lora", "full"])
    def test_training_leaves_the_shared_tensors_as_they_were(
        self, name: str, lora: dict[str, Any], tiny_lm: TinyLM
    ) -> None:
        head = "seq2seq" if name in KINDS else "causal"
        before = checksums(tiny_lm(name), head)
        policy = build(tiny_lm(name), KINDS.get(name, "causal-lm"), **lora)
        start = policy.trainable_state()
        trained(policy)
        assert checksums(tiny_lm(name), head) == before
        changed = [not torch.equal(start[key], value) for key, value in policy.trainable_state().items()]
        assert all(changed)

    def test_with_lora_policy_and_target_share_tensors_but_no_modules(self, tiny_lm: TinyLM) -> None:
        policy = build(tiny_lm("llama"))
        target = load_frozen(tiny_lm("llama"), dtype="float32", device="cpu")
        shared = {parameter.data_ptr() for parameter in target.parameters()}
        frozen = [p for p in policy.network.parameters() if not p.requires_grad]
        assert {parameter.data_ptr() for parameter in frozen} == shared
        assert not {id(module) for module in target.modules()} & {id(module) for module in policy.network.modules()}
        assert not any("lora" in key for key, _ in target.named_modules())

    @pytest.mark.parametrize("lora", [{}, {"lora": None}], ids=["lora", "full"])
    def test_only_what_is_trained_is_registered(self, lora: dict[str, Any], tiny_lm: TinyLM) -> None:
        policy = build(tiny_lm("llama"), **lora)
        assert {id(p) for p in policy.parameters()} == {id(p) for p in policy.trainable.parameters()}
        assert {f"head.{key}" for key in policy.trainable_state()} == set(policy.state_dict())
        assert all(parameter.dtype == torch.float32 for parameter in policy.parameters())
        in_model = {id(p) for p in policy.hf_model.parameters() if p.requires_grad}
        assert in_model == {id(p) for p in policy.head.lm.parameters()}

    def test_what_is_frozen_finds_its_place_again_when_the_policy_moves(self, policy: LanguageModelPolicy) -> None:
        before = policy.evaluate(RAGGED, TOKENS)[0].detach()
        for parameter in policy.network.parameters():
            if not parameter.requires_grad:
                parameter.data = torch.zeros_like(parameter)
        policy._follow()  # what `policy.to("cuda")` does for the frozen part
        assert torch.equal(policy.evaluate(RAGGED, TOKENS)[0], before)

    def test_a_copy_trains_alone_and_shares_what_is_frozen(self, policy: LanguageModelPolicy) -> None:
        policy.next_logits(RAGGED, TOKENS[:, :0], torch.ones(4, 51, dtype=torch.bool))
        before = policy.evaluate(RAGGED, TOKENS)[0].detach()
        twin = copy.deepcopy(policy)
        assert torch.equal(twin.evaluate(RAGGED, TOKENS)[0], before)
        trained(twin)
        assert torch.equal(policy.evaluate(RAGGED, TOKENS)[0], before)
        assert (twin.evaluate(RAGGED, TOKENS)[0] - before).abs().max() > 0.01
        twin.load_trainable_state(policy.trainable_state())
        assert torch.equal(twin.evaluate(RAGGED, TOKENS)[0], before)
        frozen = [{p.data_ptr() for p in one.network.parameters() if not p.requires_grad} for one in (policy, twin)]
        assert frozen[0] == frozen[1]


class TestSettings:
    def test_without_a_value_head_values_are_zero(self, tiny_lm: TinyLM) -> None:
        policy = build(tiny_lm("llama"), value_head=False)
        assert (policy.evaluate(RAGGED, TOKENS)[1] == 0).all()
        assert all(key.startswith("lm.") for key in policy.trainable_state())

    def test_temperature_and_bias_reach_policy_writer_and_reference_alike(self, tiny_lm: TinyLM) -> None:
        plain, policy = build(tiny_lm("llama")), build(tiny_lm("llama"), temperature=2.0, logit_bias=1.0)
        expected = (plain.evaluate(RAGGED, TOKENS)[0] / 2 + 1)[WRITTEN]
        assert torch.allclose(policy.evaluate(RAGGED, TOKENS)[0][WRITTEN], expected, atol=1e-5)
        assert torch.allclose(policy.reference_logits(RAGGED, TOKENS)[WRITTEN], expected, atol=1e-5)
        assert torch.allclose(policy.writer(RAGGED).next_logits(), policy.evaluate(RAGGED, TOKENS)[0][:, 0], atol=1e-5)

    @pytest.mark.parametrize("kind", ["llama", "t5"])
    def test_gradient_checkpointing_changes_no_number(self, kind: str, tiny_lm: TinyLM) -> None:
        found = []
        for checkpointing in (False, True):
            policy = build(tiny_lm(kind), KINDS.get(kind, "causal-lm"), gradient_checkpointing=checkpointing)
            trained(policy, steps=1)
            logits, values = policy.evaluate(RAGGED, TOKENS)
            (logits.square().mean() + values.sum()).backward()
            found.append([logits, values, *(p.grad for p in policy.trainable.parameters())])
        assert all(torch.allclose(*pair, atol=1e-4, rtol=1e-3) for pair in zip(*found, strict=True))

    def test_gradient_checkpointing_really_computes_layers_again(self, tiny_lm: TinyLM) -> None:
        calls = []
        policy = build(tiny_lm("llama"), gradient_checkpointing=True)
        policy.network.lm.model.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
        logits, _ = policy.evaluate(RAGGED, TOKENS)
        assert len(calls) == 1
        logits.sum().backward()
        assert len(calls) == 2
        policy.writer(RAGGED).next_logits(TOKENS[:, 0])
        assert len(calls) == 4  # contexts, then one token: the cache works

    def test_dropout_acts_on_training_only(self, tiny_lm: TinyLM) -> None:
        policy = trained(build(tiny_lm("llama"), lora={"dropout": 0.5}).eval())
        plain, _ = policy.evaluate(RAGGED, TOKENS)
        policy.train()
        with torch.random.fork_rng():
            noisy, _ = policy.evaluate(RAGGED, TOKENS)
        assert (noisy - plain).abs().max() > 0.01
        with torch.no_grad():
            assert torch.equal(policy.evaluate(RAGGED, TOKENS)[0], plain)
        assert torch.allclose(policy.writer(RAGGED).next_logits(), plain[:, 0], atol=1e-5)

    def test_what_a_trainer_left_in_training_mode_computes_as_before(self, tiny_lm: TinyLM) -> None:
        policy = build(tiny_lm("gpt2"))  # has dropout of its own
        before, _ = policy.evaluate(RAGGED, TOKENS)
        policy.hf_model.train()
        assert torch.equal(policy.evaluate(RAGGED, TOKENS)[0], before)
        policy.hf_model.train()
        assert torch.allclose(policy.writer(RAGGED).next_logits(), before[:, 0], atol=1e-5)

    def test_under_bfloat16_what_is_trained_and_logits_are_float32(self, tiny_lm: TinyLM) -> None:
        exact, policy = build(tiny_lm("llama")), build(tiny_lm("llama"), dtype="bfloat16")
        logits, values = policy.evaluate(RAGGED, TOKENS)
        assert {logits.dtype, values.dtype, *(p.dtype for p in policy.parameters())} == {torch.float32}
        assert torch.equal(policy.reference_logits(RAGGED, TOKENS), logits)
        difference = torch.softmax(logits, -1) - torch.softmax(exact.evaluate(RAGGED, TOKENS)[0], -1)
        assert difference[WRITTEN].abs().max() < 0.1
        weight = policy.network.lm.get_output_embeddings().weight
        assert weight.dtype == torch.bfloat16
        assert in_float32(weight) is policy.network.held[0]
        assert copy.deepcopy(policy).network.held[0] is policy.network.held[0]


class TestMistakes:
    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"lora": {"r": 0}}, r"policy\.kwargs of 'causal-lm': lora\.r: .*greater than or equal to 1, got 0"),
            ({"lora": {"rank": 8}}, "unknown key 'lora.rank'"),
            ({"lora": {"targets": ["q_prj"]}}, "'q_prj' is no linear layer of this LM; did you mean 'q_proj'"),
            ({"lora": {"targets": ["lm_head"]}}, "'lm_head' is no linear layer of this LM"),
            ({"lora": {"targets": []}}, "LoRA needs targets for 'llama': set lora.targets to some of .*q_proj"),
            ({"lora": {"dropout": 0.1}, "gradient_checkpointing": True}, "set lora.dropout to 0"),
            ({"lora": None, "dtype": "bfloat16"}, "lora: null trains in float32; use auto or float32"),
        ],
    )
    def test_a_wrong_argument_is_one_line(self, kwargs: dict[str, Any], message: str, tiny_lm: TinyLM) -> None:
        with pytest.raises(ConfigError, match=message) as caught:
            build(tiny_lm("llama"), **kwargs)
        assert "\n" not in str(caught.value)

    def test_the_wrong_kind_for_an_architecture_names_the_right_one(self, tiny_lm: TinyLM) -> None:
        with pytest.raises(ConfigError, match=r"has an encoder; use policy\.kind=seq2seq-lm"):
            build(tiny_lm("t5"))
        with pytest.raises(ConfigError, match=r"has no encoder; use policy\.kind=causal-lm"):
            build(tiny_lm("llama"), "seq2seq-lm")

    def test_an_empty_context_is_eos_and_without_bos_and_eos_an_error(self, tiny_lm: TinyLM) -> None:
        policy: PromptPolicy = build(tiny_lm("llama"))
        empty, _ = policy.evaluate(torch.full((1, 2), -1), TOKENS[:1])
        assert torch.equal(empty, policy.evaluate(torch.tensor([[EOS]]), TOKENS[:1])[0])
        policy.tokenizer.eos_token = None
        for call in (lambda: policy.writer(torch.full((1, 2), -1)), lambda: policy.context_ids("")):
            with pytest.raises(ConfigError, match="neither BOS nor EOS; give the policy a context"):
                call()
