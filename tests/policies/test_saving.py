"""Policies come back from disk as they were, and broken files are one-line errors."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import rlprompt
from rlprompt.config import PolicyConfig
from rlprompt.errors import CheckpointError, ConfigError, ModelNotFoundError
from rlprompt.models import load_frozen
from rlprompt.policies import PromptPolicy, build_policy, load_policy, read_policy_json

CONTEXT, TOKENS = torch.tensor([[50]]), torch.tensor([[1, 2, 3]])


def trained(kind: str = "lm-adaptor", **kwargs: Any) -> PromptPolicy:
    """A policy whose weights are not those of any start."""
    kwargs = kwargs or ({"hidden": 8, "mode": "residual", "top_k": 7} if kind == "lm-adaptor" else {})
    config = PolicyConfig(kind=kind, model="planted-50", context="w01 w02", dtype="float32", kwargs=kwargs)
    policy = build_policy(config, prompt_length=3, seed=5)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    return policy


@pytest.mark.parametrize("kind", ["lm-adaptor", "categorical"])
class TestRoundTrip:
    def test_a_loaded_policy_computes_exactly_what_the_saved_one_did(self, kind: str, tmp_path: Path) -> None:
        policy = trained(kind)
        policy.save(tmp_path / "exported")
        loaded = rlprompt.load_policy(tmp_path / "exported")
        features = loaded.features(CONTEXT, TOKENS)
        assert torch.equal(features, policy.features(CONTEXT, TOKENS))
        assert torch.equal(loaded.logits(features), policy.logits(features))
        assert torch.equal(loaded.values(features), policy.values(features))
        assert loaded.settings == policy.settings
        assert (loaded.kind, loaded.prompt_length, loaded.config.context) == (kind, 3, "w01 w02")

    def test_a_run_folder_gives_its_best_policy(self, kind: str, tmp_path: Path) -> None:
        policy = trained(kind)
        policy.save(tmp_path / "best")
        state = load_policy(tmp_path).trainable_state()
        assert all(torch.equal(state[name], value) for name, value in policy.trainable_state().items())

    def test_saving_again_replaces_and_leaves_no_other_files(self, kind: str, tmp_path: Path) -> None:
        policy = trained(kind)
        policy.save(tmp_path)
        with torch.no_grad():
            next(policy.parameters()).add_(1.0)
        policy.save(tmp_path, {"parent": "run-1", "dev_score": 0.75})
        assert sorted(file.name for file in tmp_path.iterdir()) == ["policy.json", "policy.safetensors"]
        assert torch.equal(next(load_policy(tmp_path).parameters()), next(policy.parameters()))


def test_the_description_says_what_the_policy_stands_on_and_holds_no_path(tmp_path: Path) -> None:
    trained().save(tmp_path, {"parent": "run-1", "dev_score": 0.75})
    text = (tmp_path / "policy.json").read_text(encoding="utf-8")
    data = json.loads(text)
    assert data["base"] == {"name": "planted-50", "revision": None, "sha256": None, "source": "generated"}
    assert data["kwargs"]["mode"] == "residual"
    assert data["kwargs"]["hidden"] == 8
    assert data["decoding"]["top_k"] == 7
    assert (data["tokenizer"], data["prompt_length"], data["context"]) == ("planted-50", 3, "w01 w02")
    assert (data["parent"], data["extra"]) == ("run-1", {"dev_score": 0.75})
    assert str(tmp_path) not in text
    assert str(Path.home()) not in text


def test_the_description_is_read_with_what_the_run_added(tmp_path: Path) -> None:
    trained().save(tmp_path / "best", {"mode": "task", "kind": "not the policy's", "draft": "Classify."})
    data = read_policy_json(tmp_path)
    assert (data["mode"], data["draft"], data["kind"], data["prompt_length"]) == ("task", "Classify.", "lm-adaptor", 3)
    with pytest.raises(ConfigError, match="no policy at"):
        read_policy_json(tmp_path / "nowhere")


def test_only_the_head_is_saved(tmp_path: Path) -> None:
    trained().save(tmp_path)
    # Linear(32, 8), Linear(8, 32), Linear(32, 1): 264 + 288 + 33 numbers of 4 bytes, and a header
    assert 585 * 4 < (tmp_path / "policy.safetensors").stat().st_size < 585 * 4 + 1000


def test_a_policy_on_a_local_folder_asks_for_it_and_notices_another_one(tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = {f"w{number:02d}": number for number in range(50)} | {"<eos>": 50}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<eos>")), eos_token="<eos>"
    )
    for name in ("mine", "theirs"):
        model = load_frozen("planted-50", dtype="float32", device="cpu")
        if name == "theirs":
            with torch.no_grad():
                model.transformer.ln_f.bias = torch.nn.Parameter(torch.ones(32))
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    config = PolicyConfig(model=str(tmp_path / "mine"), dtype="float32", kwargs={"hidden": 8})
    build_policy(config, prompt_length=3, seed=0).save(tmp_path / "policy")
    assert str(tmp_path) not in (tmp_path / "policy" / "policy.json").read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match=r"'mine' was a local folder; give it with load_policy\(model="):
        load_policy(tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy", model=str(tmp_path / "mine"))
    assert loaded.vocabulary_size == 51
    with pytest.raises(CheckpointError, match="another version of 'mine'"):
        load_policy(tmp_path / "policy", model=str(tmp_path / "theirs"))


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        file = folder / "policy.json"
        data = json.loads(file.read_text(encoding="utf-8"))
        change(data)
        file.write_text(json.dumps(data), encoding="utf-8")

    return apply


def cut(name: str, share: float) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * share)])

    return apply


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / "policy.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "policy.safetensors").write_bytes(bytes(content))


BROKEN: dict[str, tuple[Callable[[Path], None], type[Exception], str]] = {
    "truncated weights": (cut("policy.safetensors", 0.5), CheckpointError, "truncated or altered"),
    "empty weights": (cut("policy.safetensors", 0.0), CheckpointError, "truncated or altered"),
    "one bit of the weights": (flip_a_bit, CheckpointError, "truncated or altered"),
    "missing weights": (
        lambda folder: (folder / "policy.safetensors").unlink(),
        CheckpointError,
        "weights cannot be read",
    ),
    "truncated description": (cut("policy.json", 0.5), CheckpointError, "cannot be read, or is cut off"),
    "missing description": (lambda folder: (folder / "policy.json").unlink(), ConfigError, "no policy at"),
    "not an object": (
        lambda folder: (folder / "policy.json").write_text("[1]"),
        CheckpointError,
        "must hold a JSON object, got list",
    ),
    "another format": (
        edit(lambda data: data.update(format_version=99)),
        CheckpointError,
        "format_version 99, this version reads 1",
    ),
    "a field missing": (edit(lambda data: data.pop("context")), CheckpointError, "'context' is missing"),
    "a field of the wrong type": (
        edit(lambda data: data.update(prompt_length="3")),
        CheckpointError,
        "'prompt_length' is missing or of the wrong type",
    ),
    "a base without name": (
        edit(lambda data: data["base"].update(name=None)),
        CheckpointError,
        r"'base\.name' is missing",
    ),
    "a wrong dtype": (edit(lambda data: data.update(dtype="int8")), CheckpointError, "dtype: .*got 'int8'"),
    "another width": (
        edit(lambda data: data["kwargs"].update(hidden=9)),
        CheckpointError,
        r"must be torch.float32 \(9, 32\), got torch.float32 \(8, 32\)",
    ),
    "another kind": (edit(lambda data: data.update(kind="categorical", kwargs={})), CheckpointError, "not expected"),
    "an unknown argument": (
        edit(lambda data: data["kwargs"].update(hiddem=9)),
        ConfigError,
        "unknown key 'hiddem'",
    ),
    "a model that is not here": (
        edit(lambda data: data["base"].update(name="./nowhere")),
        ModelNotFoundError,
        "nowhere",
    ),
    "another vocabulary": (
        edit(lambda data: data["base"].update(name="planted-20")),
        CheckpointError,
        "trained with 51 tokens, 'planted-20' has 21",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_is_a_one_line_error(case: str, tmp_path: Path) -> None:
    trained().save(tmp_path)
    damage, kind, message = BROKEN[case]
    damage(tmp_path)
    with pytest.raises(kind, match=message) as caught:
        load_policy(tmp_path)
    assert "\n" not in str(caught.value)


def test_t3_code_named_in_a_saved_policy_is_never_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil_module.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    trained().save(tmp_path / "policy")
    edit(lambda data: data.update(kind="evil_module:Policy"))(tmp_path / "policy")
    with pytest.raises(CheckpointError, match="not a built-in policy"):
        load_policy(tmp_path / "policy")
    assert "evil_module" not in sys.modules


def test_values_that_json_does_not_know_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be JSON"):
        trained().save(tmp_path / "policy", {"score": float("nan")})
    assert not (tmp_path / "policy").exists()


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="cannot write the policy"):
        trained().save(tmp_path / "file")


@pytest.mark.parametrize("change", ["missing", "extra", "shape", "dtype"])
def test_weights_that_do_not_fit_are_refused_and_change_nothing(change: str) -> None:
    policy = trained("categorical")
    before = policy.trainable_state()
    state = {name: value + 1 for name, value in before.items()}
    if change == "missing":
        del state["value"]
    elif change == "extra":
        state["more"] = torch.zeros(1)
    else:
        state["value"] = torch.zeros(2) if change == "shape" else state["value"].double()
    with pytest.raises(CheckpointError, match="weights do not fit the policy"):
        policy.load_trainable_state(state)
    assert all(torch.equal(value, before[name]) for name, value in policy.trainable_state().items())


def test_the_trainable_state_is_a_copy() -> None:
    policy = trained("categorical")
    policy.trainable_state()["table"].zero_()
    assert policy.trainable_state()["table"].abs().sum() > 0


WHOLE_LMS = [("llama", "causal-lm"), ("gpt2", "causal-lm"), ("t5", "seq2seq-lm")]


def trained_lm(folder: str, kind: str, **kwargs: Any) -> Any:
    config = PolicyConfig(kind=kind, model=folder, dtype="float32", context="w01", kwargs=kwargs)
    policy = build_policy(config, prompt_length=3, seed=5)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return policy


@pytest.mark.parametrize("lora", [{}, {"lora": None}, {"value_head": False}], ids=["lora", "full", "no value"])
@pytest.mark.parametrize(("name", "kind"), WHOLE_LMS, ids=lambda value: value)
def test_an_lm_comes_back_bit_equal(
    name: str, kind: str, lora: dict[str, Any], tmp_path: Path, tiny_lm: Callable[[str], str]
) -> None:
    policy = trained_lm(tiny_lm(name), kind, **lora)
    before = policy.trainable_state()
    policy.save(tmp_path)
    loaded: Any = load_policy(tmp_path, model=tiny_lm(name))
    assert all(torch.equal(value, before[key]) for key, value in loaded.trainable_state().items())
    for found, expected in zip(loaded.evaluate(CONTEXT, TOKENS), policy.evaluate(CONTEXT, TOKENS), strict=True):
        assert torch.allclose(found, expected, atol=1e-6, rtol=0)
    assert torch.allclose(loaded.reference_logits(CONTEXT, TOKENS), policy.reference_logits(CONTEXT, TOKENS), atol=1e-6)
    assert loaded.settings == policy.settings
    where = str(Path(tiny_lm(name)).parent)
    texts = [file.read_text(encoding="utf-8") for file in tmp_path.glob("*.json")]
    assert len(texts) >= 2
    assert not any(where in text for text in texts)


@pytest.mark.parametrize(("name", "kind"), WHOLE_LMS, ids=lambda value: value)
def test_peft_loads_the_adapter(name: str, kind: str, tmp_path: Path, tiny_lm: Callable[[str], str]) -> None:
    from peft import PeftModel

    policy = trained_lm(tiny_lm(name), kind)
    policy.save(tmp_path)
    names = {"adapter_config.json", "adapter_model.safetensors", "value_head.safetensors", "policy.json"}
    assert {file.name for file in tmp_path.iterdir()} == names
    head: Any = "causal" if kind == "causal-lm" else "seq2seq"
    loaded = PeftModel.from_pretrained(load_frozen(tiny_lm(name), dtype="float32", device="cpu", head=head), tmp_path)
    inputs = {"input_ids": TOKENS} | ({"decoder_input_ids": TOKENS} if head == "seq2seq" else {})
    with torch.no_grad():
        assert torch.equal(loaded.eval()(**inputs).logits, policy.hf_model(**inputs).logits)


def test_transformers_loads_what_was_trained_whole(tmp_path: Path, tiny_lm: Callable[[str], str]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    policy = trained_lm(tiny_lm("llama"), "causal-lm", lora=None)
    policy.save(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=TOKENS).logits, policy.hf_model(input_ids=TOKENS).logits)
    assert AutoTokenizer.from_pretrained(tmp_path)("w03 w01")["input_ids"] == [3, 1]


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "value_head.safetensors", "adapter_config.json"])
def test_every_file_of_an_lm_is_checked(name: str, tmp_path: Path, tiny_lm: Callable[[str], str]) -> None:
    trained_lm(tiny_lm("llama"), "causal-lm").save(tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match=f"{name} is truncated or altered"):
        load_policy(tmp_path, model=tiny_lm("llama"))
    edit(lambda data: data["files"].pop(name))(tmp_path)
    if name != "adapter_config.json":
        with pytest.raises(CheckpointError, match=f"no {name}"):
            load_policy(tmp_path, model=tiny_lm("llama"))


def test_t3_a_file_elsewhere_is_never_read(tmp_path: Path) -> None:
    trained().save(tmp_path / "policy")
    edit(lambda data: data["files"].update({"../secret": "0"}))(tmp_path / "policy")
    with pytest.raises(CheckpointError, match=r"'\.\./secret' is no file name"):
        load_policy(tmp_path / "policy")


def test_policies_saved_by_the_first_version_still_load(tmp_path: Path) -> None:
    policy = trained()
    policy.save(tmp_path)
    edit(lambda data: data.update(weights_sha256=data.pop("files")["policy.safetensors"]))(tmp_path)
    loaded = load_policy(tmp_path)
    assert all(torch.equal(value, loaded.trainable_state()[key]) for key, value in policy.trainable_state().items())
