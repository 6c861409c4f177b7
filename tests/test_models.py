"""Names, folders, packaged files, number types and shared tensors."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlprompt import model_files, models
from rlprompt.errors import ConfigError, ModelNotFoundError
from rlprompt.models import (
    WordTokenizer,
    cache_folder,
    known_models,
    load_config,
    load_frozen,
    load_tokenizer,
    pick_device,
    pick_dtype,
    resolve_model,
)
from rlprompt.planted_models import planted_model


def _save(folder: Path, **changes: Any) -> Path:
    """A folder with a tiny Llama, which has tied weights and rotary buffers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(1)
        settings: dict[str, Any] = {
            "vocab_size": 50,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "tie_word_embeddings": True,
            "initializer_range": 0.3,
        }
        LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).save_pretrained(folder)
    return folder


def _word_tokenizer(words: int) -> Any:
    """A transformers tokenizer with the words of `planted-N`."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    known = {f"w{number:02d}": number for number in range(words)} | {"<eos>": words}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(known, unk_token="<eos>")), eos_token="<eos>")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RLPROMPT_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))


class TestNames:
    @pytest.mark.usefixtures("offline")
    def test_an_unknown_name_offline_says_what_to_do(self) -> None:
        with pytest.raises(
            ModelNotFoundError, match=r"offline, and it is not in the hub's cache.*did you mean"
        ) as error:
            resolve_model("smollm2-135m-instuct")
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "a/b/c", "~/nowhere-at-all"])
    def test_a_path_that_does_not_exist_is_never_looked_up_elsewhere(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import huggingface_hub

        monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: pytest.fail("asked the hub"))
        with pytest.raises(ModelNotFoundError, match="no such folder, and it is no hub id"):
            resolve_model(name)

    def test_t2_a_hub_id_is_asked_for_its_revision_and_only_for_plain_files(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        import huggingface_hub

        folder = _save(tmp_path / "0123abc")
        asked: dict[str, Any] = {}

        def download(name: str, **options: Any) -> str:
            asked.update(options, name=name)
            return str(folder)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        monkeypatch.delenv("RLPROMPT_OFFLINE", raising=False)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        reference = resolve_model("someone/model", "v1")
        assert (reference.source, reference.revision, reference.sha256) == ("hub", "0123abc", None)
        assert (asked["name"], asked["revision"], asked["local_files_only"]) == ("someone/model", "v1", False)
        assert not any(pattern.endswith((".py", ".bin", ".pt", "*")) for pattern in asked["allow_patterns"])

    def test_t2_the_commit_that_a_branch_stood_for_is_written_down(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """In a run's environment.json, which holds the target's identity, and in a policy's description."""
        import huggingface_hub

        from rlprompt.config import PolicyConfig
        from rlprompt.policies import build_policy
        from rlprompt.runs.environment import describe_environment
        from rlprompt.targets import load_target

        folder = tmp_path / "0123abc"
        planted_model(20).save_pretrained(folder)
        _word_tokenizer(20).save_pretrained(folder)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(folder))
        target = load_target("someone/model", revision="main", device="cpu")
        assert describe_environment(target)["target"]["revision"] == "0123abc"
        config = PolicyConfig(model="someone/model", revision="main", kwargs={"hidden": 4})
        build_policy(config, prompt_length=2, seed=0).save(tmp_path / "policy")
        base = json.loads((tmp_path / "policy" / "policy.json").read_text())["base"]
        assert (base["name"], base["revision"]) == ("someone/model", "0123abc")

    def test_a_model_that_is_not_installed_says_how_to_install_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        for name, command in known_models().items():
            with pytest.raises(ModelNotFoundError, match=f"'{name}' is not installed; run: {command}"):
                resolve_model(name)

    @pytest.mark.parametrize("name", ["planted-50", "smollm2-135m-instruct"])
    def test_a_revision_where_there_is_none(self, name: str) -> None:
        with pytest.raises(ConfigError, match="has no revisions; remove revision"):
            resolve_model(name, "main")

    def test_the_cache_folder_follows_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RLPROMPT_CACHE_DIR", "/somewhere")
        assert cache_folder() == Path("/somewhere")
        monkeypatch.delenv("RLPROMPT_CACHE_DIR")
        assert cache_folder() == Path.home() / ".cache" / "rlprompt"


class TestFolders:
    def test_a_folder_is_identified_by_its_content(self, tmp_path: Path) -> None:
        folder = _save(tmp_path / "a")
        reference = resolve_model(str(folder))
        assert (reference.source, reference.path, reference.revision) == ("folder", str(folder), None)
        moved = _save(tmp_path / "b")
        assert resolve_model(str(moved)).sha256 == reference.sha256
        assert resolve_model(str(_save(tmp_path / "c", hidden_size=32))).sha256 != reference.sha256

    @pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
    def test_t2_code_that_comes_with_a_model_is_refused(self, tmp_path: Path, file: str) -> None:
        folder = _save(tmp_path / "model")
        canary = tmp_path / "canary"
        (folder / "code.py").write_text(f"open({str(canary)!r}, 'w')\n")
        path = folder / file
        content = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**content, "auto_map": {"AutoModelForCausalLM": "code.Model"}}))
        for load in (resolve_model, load_frozen, load_tokenizer, load_config):
            with pytest.raises(ConfigError, match="auto_map"):
                load(str(folder))
        assert not canary.exists()

    def test_t2_an_adapter_cannot_name_another_model_that_is_loaded_instead(self, tmp_path: Path) -> None:
        folder, other = _save(tmp_path / "model"), _save(tmp_path / "other")
        canary = tmp_path / "canary"
        (other / "code.py").write_text(f"open({str(canary)!r}, 'w')\n")
        content = json.loads((other / "config.json").read_text())
        (other / "config.json").write_text(json.dumps({**content, "auto_map": {"AutoModelForCausalLM": "code.Model"}}))
        (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(other)}))
        for load in (resolve_model, load_frozen, load_tokenizer, load_config):
            with pytest.raises(ConfigError, match=r"holds an adapter .* of another model; merge it"):
                load(str(folder))
        assert not canary.exists()

    def test_t1_pickled_weights_are_not_read(self, tmp_path: Path) -> None:
        folder = _save(tmp_path / "model")
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        with pytest.raises(ModelNotFoundError, match=r"has no \*.safetensors"):
            load_frozen(str(folder))

    @pytest.mark.parametrize("content", ["", "{", '{"model_type": "no-such-type"}'])
    def test_a_broken_configuration(self, tmp_path: Path, content: str) -> None:
        folder = _save(tmp_path / "model")
        (folder / "config.json").write_text(content)
        with pytest.raises(ModelNotFoundError, match=r"config.json|cannot read"):
            load_config(str(folder))

    def test_truncated_weights(self, tmp_path: Path) -> None:
        folder = _save(tmp_path / "model")
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        with pytest.raises(ModelNotFoundError, match="cannot load it as a causal model"):
            load_frozen(str(folder), device="cpu")

    def test_weights_that_are_missing_are_not_made_up(self, tmp_path: Path) -> None:
        from transformers import BertConfig, BertModel

        config = BertConfig(
            vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
        )
        BertModel(config).save_pretrained(tmp_path)
        with pytest.raises(ModelNotFoundError, match=r"has no masked head: .* missing, for example 'cls\."):
            load_frozen(str(tmp_path), head="masked", device="cpu")

    def test_an_empty_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ModelNotFoundError, match=r"has no config\.json"):
            resolve_model(str(tmp_path))


class TestFrozenModels:
    def test_it_computes_what_a_plain_load_computes(self, tmp_path: Path) -> None:
        from transformers import AutoModelForCausalLM

        folder = str(_save(tmp_path / "model"))
        ids = torch.arange(24).view(2, 12)
        plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        for _ in range(2):  # the first of its kind, and one that shares its tensors
            frozen = load_frozen(folder, dtype="float32", device="cpu")
            assert torch.equal(frozen(ids).logits, plain(ids).logits)
            assert not frozen.training
            assert not any(parameter.requires_grad for parameter in frozen.parameters())

    def test_tensors_are_shared_and_modules_are_not(self, tmp_path: Path) -> None:
        folder = str(_save(tmp_path / "model"))
        first = load_frozen(folder, dtype="float32", device="cpu")
        second = load_frozen(folder, dtype="float32", device="cpu")
        places = dict(first.named_parameters())
        for name, parameter in second.named_parameters():
            assert parameter is not places[name]
            assert parameter.data_ptr() == places[name].data_ptr()
        for (_, one), (_, other) in zip(first.named_buffers(), second.named_buffers(), strict=True):
            assert one.data_ptr() == other.data_ptr()
        mine: Any = first
        assert mine.lm_head.weight is mine.model.embed_tokens.weight  # still tied
        mine.model.layers[0].self_attn.q_proj = torch.nn.Linear(16, 16)  # what an adapter does
        mine.config.use_cache = False
        other: Any = second
        third: Any = load_frozen(folder, dtype="float32", device="cpu")
        ids = torch.arange(12).view(1, 12)
        assert torch.equal(other(ids).logits, third(ids).logits)
        assert third.config.use_cache

    def test_other_number_types_are_other_tensors(self, tmp_path: Path) -> None:
        folder = str(_save(tmp_path / "model"))
        exact: Any = load_frozen(folder, dtype="float32", device="cpu")
        rough: Any = load_frozen(folder, dtype="bfloat16", device="cpu")
        assert (exact.dtype, rough.dtype) == (torch.float32, torch.bfloat16)

    def test_loading_draws_nothing_from_the_global_generators(self) -> None:
        before = torch.random.get_rng_state()
        numbers = copy.deepcopy(np.random.get_state()[1])
        models._FROZEN.clear()
        load_frozen("planted-20", dtype="float32", device="cpu")
        assert torch.equal(torch.random.get_rng_state(), before)
        assert np.array_equal(np.random.get_state()[1], numbers)


class TestPackagedModels:
    def test_smollm2_is_converted_once(self) -> None:
        reference = resolve_model("smollm2-135m-instruct")
        folder = Path(reference.path)
        assert reference.source == "package"
        assert reference.sha256 is not None
        assert folder.name == f"smollm2-135m-instruct-{reference.sha256[:16]}"
        changed = (folder / "model.safetensors").stat().st_mtime_ns
        resolve_model("smollm2-135m-instruct")
        assert (folder / "model.safetensors").stat().st_mtime_ns == changed
        assert not [path for path in folder.parent.iterdir() if path.name.startswith(".smollm2-135m-instruct-")]
        tokenizer = load_tokenizer("smollm2-135m-instruct")
        assert tokenizer(" terrible", add_special_tokens=False)["input_ids"] == [13321]
        assert tokenizer(" great", add_special_tokens=False)["input_ids"] == [1109]

    def test_an_interrupted_conversion_leaves_nothing_and_the_next_one_succeeds(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        part = tmp_path / "x.gguf"
        part.write_bytes(b"x")
        cache = tmp_path / "cache"

        def interrupted(name: str, file: Path, folder: Path) -> None:
            folder.mkdir()
            raise KeyboardInterrupt

        def complete(name: str, file: Path, folder: Path) -> None:
            folder.mkdir()
            (folder / "model.safetensors").write_bytes(file.read_bytes())

        monkeypatch.setattr(model_files, "_convert", interrupted)
        with pytest.raises(KeyboardInterrupt):
            model_files.converted_folder("m", [part], "ab" * 32, cache)
        assert list(cache.iterdir()) == []
        monkeypatch.setattr(model_files, "_convert", complete)
        folder = model_files.converted_folder("m", [part, part], "ab" * 32, cache)
        assert folder.name == "m-" + "ab" * 8
        assert (folder / "model.safetensors").read_bytes() == b"xx"  # the parts, joined
        monkeypatch.setattr(model_files, "_convert", interrupted)
        assert model_files.converted_folder("m", [part], "ab" * 32, cache) == folder

    def test_a_half_written_folder_is_replaced(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        part = tmp_path / "x.gguf"
        part.write_bytes(b"x")
        broken = tmp_path / "cache" / ("m-" + "ab" * 8)
        broken.mkdir(parents=True)
        (broken / "rest").write_text("half")
        monkeypatch.setattr(model_files, "_convert", lambda name, file, folder: folder.mkdir())
        folder = model_files.converted_folder("m", [part], "ab" * 32, tmp_path / "cache")
        assert sorted(path.name for path in folder.iterdir()) == ["rlprompt.json"]

    def test_a_cache_that_cannot_be_written(self, tmp_path: Path) -> None:
        part = tmp_path / "x.gguf"
        part.write_bytes(b"x")
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(ModelNotFoundError, match="make room there or set RLPROMPT_CACHE_DIR"):
            model_files.converted_folder("m", [part], "ab" * 32, tmp_path / "file")

    def test_a_file_that_is_no_gguf(self, tmp_path: Path) -> None:
        part = tmp_path / "x.gguf"
        part.write_bytes(b"not a model at all")
        with pytest.raises(ModelNotFoundError, match="model 'm'"):
            model_files.converted_folder("m", [part], "ab" * 32, tmp_path / "cache")


class TestDevicesAndNumberTypes:
    @pytest.mark.parametrize(
        ("flags", "expected"),
        [
            ({"avx2"}, torch.float32),
            ({"avx2", "avx512f"}, torch.float32),
            ({"avx2", "avx512f", "avx512_bf16"}, torch.bfloat16),
            ({"amx_bf16"}, torch.bfloat16),
            (set(), torch.float32),
        ],
    )
    def test_auto_is_bfloat16_only_where_the_cpu_has_it(
        self, flags: set[str], expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(models, "_cpu_flags", lambda: frozenset(flags))
        assert pick_dtype("auto", "cpu") == expected
        assert pick_dtype("bfloat16", "cpu") == torch.bfloat16

    @pytest.mark.parametrize(("generation", "expected"), [((8, 0), torch.bfloat16), ((7, 5), torch.float32)])
    def test_auto_on_cuda(
        self, generation: tuple[int, int], expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: generation)
        assert pick_dtype("auto", torch.device("cuda:0")) == expected

    def test_names_that_do_not_exist(self) -> None:
        with pytest.raises(ConfigError, match="unknown dtype 'bf16'"):
            pick_dtype("bf16", "cpu")
        with pytest.raises(ConfigError, match="device 'gpu' is unknown; use auto, cpu"):
            pick_device("gpu")
        with pytest.raises(ConfigError, match="CUDA devices; use device=auto or cpu"):
            pick_device("cuda:63")
        with pytest.raises(ConfigError, match="head must be one of causal, masked, seq2seq"):
            load_frozen("planted-5", head="none")  # type: ignore[arg-type]


class TestPlantedModels:
    def test_words_and_ids(self) -> None:
        tokenizer = load_tokenizer("planted-50")
        assert isinstance(tokenizer, WordTokenizer)
        assert (len(tokenizer), tokenizer.eos_token_id, tokenizer.bos_token_id) == (51, 50, None)
        assert tokenizer.encode("w00  w49 unknown") == [0, 49]
        assert tokenizer.decode([7, 12]) == "w07 w12"
        assert tokenizer.decode([7, 50], skip_special_tokens=True) == "w07"
        assert load_tokenizer("planted-200").decode([3, 150]) == "w003 w150"
        assert tokenizer.convert_tokens_to_ids(tokenizer.convert_ids_to_tokens([4, 50])) == [4, 50]
        assert tokenizer.batch_decode([[1], [2]]) == ["w01", "w02"]

    def test_the_model_has_the_same_weights_everywhere(self) -> None:
        model: Any = load_frozen("planted-50", dtype="float32", device="cpu")
        assert model.config.vocab_size == 51
        assert load_config("planted-50").vocab_size == 51
        weights = model.transformer.wte.weight
        # Normal with standard deviation 0.02: 51 * 32 = 1632 draws, so the mean is within 5 * 0.02 / 40 = 0.0025.
        assert float(weights.mean()) == pytest.approx(0.0, abs=0.0025)
        assert float(weights.std()) == pytest.approx(0.02, abs=0.002)
        models._FROZEN.clear()
        again: Any = load_frozen("planted-50", dtype="float32", device="cpu")
        assert torch.equal(again.transformer.wte.weight, weights)

    @pytest.mark.parametrize("name", ["planted-0", "planted-", "planted-x"])
    @pytest.mark.usefixtures("offline")
    def test_other_numbers_of_words_are_no_names(self, name: str) -> None:
        with pytest.raises(ModelNotFoundError, match=r"not found|no hub id"):
            load_tokenizer(name)

    def test_it_has_a_causal_head_only(self) -> None:
        with pytest.raises(ModelNotFoundError, match="has no masked head; use head=causal"):
            load_frozen("planted-5", head="masked")
