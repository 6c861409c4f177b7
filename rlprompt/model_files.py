"""Turns a packaged GGUF file into a folder that transformers loads in a moment."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rlprompt.errors import ModelNotFoundError

_DONE = "rlprompt.json"
"""Written last, so a folder that has it is complete."""


def converted_folder(name: str, parts: Sequence[Path], sha256: str, parent: Path) -> Path:
    """Returns the folder of a packaged model as bfloat16 safetensors; makes it when it is not there.

    Args:
        name: of the model, the first half of the folder's name.
        parts: the GGUF file, or its parts in order.
        sha256: of the joined parts, the second half of the folder's name (its first 16 digits).
        parent: where the folder is, or will be.

    Raises:
        ModelNotFoundError: the `gguf` package is missing, the file is no GGUF file of a known architecture, or the
            folder cannot be written.
    """
    final = parent / f"{name}-{sha256[:16]}"
    if (final / _DONE).is_file():
        return final
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=parent) as scratch:
            made = Path(scratch) / "model"
            logging.getLogger(__name__).info("converting %s into %s, once", name, final)
            _convert(name, _joined(parts, Path(scratch)), made)
            (made / _DONE).write_text(json.dumps({"name": name, "sha256": sha256}), encoding="utf-8")
            _move_into_place(made, final)
    except OSError as error:
        raise ModelNotFoundError(
            f"model '{name}': cannot convert it into {parent}: {error}; make room there or set RLPROMPT_CACHE_DIR"
        ) from error
    return final


def _joined(parts: Sequence[Path], scratch: Path) -> Path:
    if len(parts) == 1:
        return parts[0]
    whole = scratch / "model.gguf"
    with whole.open("wb") as out:
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, out, 1 << 20)
    return whole


def _convert(name: str, file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # The reader of GGUF files has a progress bar of its own that cannot be switched off.
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
            model: Any = AutoModelForCausalLM.from_pretrained(
                str(file.parent), gguf_file=file.name, dtype=torch.float32
            )
        except ImportError as error:
            raise ModelNotFoundError(
                f"model '{name}' is converted with the gguf package, which is missing; run: pip install gguf"
            ) from error
        except (ValueError, KeyError) as error:
            raise ModelNotFoundError(f"model '{name}': {file} cannot be converted: {error}") from error
        # The loader marks the model as quantised, and transformers then refuses to save it, though the tensors
        # are plain by now.
        model.hf_quantizer = None
        del model.config.quantization_config
        model.is_quantized = False
        # The 4-bit levels times their scales keep less than bfloat16 does.
        model.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _move_into_place(made: Path, final: Path) -> None:
    try:
        os.replace(made, final)
    except OSError:
        if (final / _DONE).is_file():
            return  # another process was faster; its folder is the same
        shutil.rmtree(final)  # a folder without the mark is not one of ours in a state that can be used
        os.replace(made, final)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences transformers' and the hub's progress bars, warnings and log lines within the block."""
    hub: Any = importlib.import_module("huggingface_hub.utils")
    messages: Any = importlib.import_module("transformers.utils.logging")
    bars, level = messages.is_progress_bar_enabled(), messages.get_verbosity()
    hub_bars_off = hub.are_progress_bars_disabled()
    messages.disable_progress_bar()
    messages.set_verbosity_error()
    hub.disable_progress_bars()
    others = [logging.getLogger(name) for name in ("huggingface_hub", "gguf")]
    levels = [logger.level for logger in others]
    for logger in others:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, before in zip(others, levels, strict=True):
            logger.setLevel(before)
        messages.set_verbosity(level)
        if bars:
            messages.enable_progress_bar()
        if not hub_bars_off:
            hub.enable_progress_bars()
