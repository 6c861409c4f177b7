"""Checkpoints: nested state <-> `state.safetensors` + `state.json`, exactly, with checksums and without pickles.

Arrays and tensors lie in the safetensors file; everything else, and the shape of the nesting, in the JSON file.
A dictionary with one of these keys stands for a value that JSON has no word for:

    $array   a NumPy array          $scalar  a NumPy scalar        $tensor  a torch tensor (with its dtype)
    $float   nan, inf or -inf       $items   a dictionary whose keys are not all texts

A text key that begins with "$" gets one more "$". Tuples come back as lists, tensors on the CPU.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rlprompt.errors import CheckpointError
from rlprompt.runs.folder import (
    TEMPORARY,
    RunFolder,
    remove,
    replace_folder,
    sha256,
    sync_tree,
    write_bytes,
    writing_errors,
)
from rlprompt.types import Json

logger = logging.getLogger(__name__)

FORMAT = 1
_STATE = "state.json"
_TENSORS = "state.safetensors"
_CHECKSUMS = "checksums.json"
_MALFORMED = (ValueError, KeyError, TypeError, AttributeError, RuntimeError)
"""What a file of another shape than ours may lead to; nesting without end is a RuntimeError."""
_SAME_WIDTH = {1: "uint8", 2: "int16", 4: "int32", 8: "int64"}


def encode(state: Any) -> tuple[Any, dict[str, np.ndarray]]:
    """Takes nested state apart into JSON values and named arrays; the arrays are copies.

    Args:
        state: dictionaries, lists, tuples, numbers, texts, None, NumPy arrays and scalars, torch tensors.

    Raises:
        CheckpointError: a value of another type; the message says where.
    """
    arrays: dict[str, np.ndarray] = {}
    return _encode(state, "state", arrays), arrays


def decode(skeleton: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """Puts together what `encode` took apart."""
    if isinstance(skeleton, list):
        return [decode(item, arrays) for item in skeleton]
    if not isinstance(skeleton, dict):
        return skeleton
    if "$array" in skeleton:
        return arrays[skeleton["$array"]].copy()
    if "$scalar" in skeleton:
        return arrays[skeleton["$scalar"]][()]
    if "$tensor" in skeleton:
        return _tensor(arrays[skeleton["$tensor"]], skeleton["dtype"])
    if "$float" in skeleton:
        return float(skeleton["$float"])
    if "$items" in skeleton:
        return {decode(key, arrays): decode(value, arrays) for key, value in skeleton["$items"]}
    return {_unescape(key): decode(value, arrays) for key, value in skeleton.items()}


def _encode(value: Any, where: str, arrays: dict[str, np.ndarray]) -> Any:
    if value is None or isinstance(value, bool | str) or (type(value) is int):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"$float": repr(value)}
    if isinstance(value, np.generic):
        return {"$scalar": _keep(np.asarray(value), where, arrays)}
    if isinstance(value, np.ndarray):
        return {"$array": _keep(value, where, arrays)}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {_escape(key): _encode(item, f"{where}.{key}", arrays) for key, item in value.items()}
        items = [(_encode(key, where, arrays), _encode(item, f"{where}.{key}", arrays)) for key, item in value.items()]
        return {"$items": [list(pair) for pair in items]}
    if isinstance(value, list | tuple):
        return [_encode(item, f"{where}.{index}", arrays) for index, item in enumerate(value)]
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        array, dtype = _from_tensor(value)
        return {"$tensor": _keep(array, where, arrays), "dtype": dtype}
    raise CheckpointError(
        f"{where} is a {type(value).__name__}, which a checkpoint cannot hold; give numbers, texts, lists, "
        "dictionaries, arrays or tensors"
    )


def _keep(array: np.ndarray, where: str, arrays: dict[str, np.ndarray]) -> str:
    if array.dtype.kind not in "fiub":
        raise CheckpointError(f"{where} is an array of {array.dtype}, which a checkpoint cannot hold")
    name = f"{len(arrays):05d}.{where}"
    # np.array keeps 0-d arrays 0-d; safetensors wants contiguous rows in native byte order.
    arrays[name] = np.array(array, dtype=array.dtype.newbyteorder("="), order="C", copy=True)
    return name


def _from_tensor(tensor: Any) -> tuple[np.ndarray, str]:
    import torch

    plain = tensor.detach().to("cpu").contiguous()
    name = str(plain.dtype).removeprefix("torch.")
    if plain.dtype in (torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool):
        return plain.numpy(), name
    if plain.is_complex() or plain.is_quantized or plain.element_size() not in _SAME_WIDTH:
        raise CheckpointError(f"a tensor of {name} cannot be held by a checkpoint")
    # bfloat16 and the like: the same bits under the name of an integer type that NumPy knows
    return plain.view(getattr(torch, _SAME_WIDTH[plain.element_size()])).numpy(), name


def _tensor(array: np.ndarray, dtype: str) -> Any:
    import torch

    wanted = getattr(torch, dtype, None)
    if not isinstance(wanted, torch.dtype):
        raise CheckpointError(f"'{dtype}' is no dtype of torch")
    tensor = torch.from_numpy(array.copy())
    return tensor if tensor.dtype == wanted else tensor.view(wanted)


def _escape(key: str) -> str:
    return f"${key}" if key.startswith("$") else key


def _unescape(key: str) -> str:
    return key[1:] if key.startswith("$$") else key


def save_checkpoint(
    folder: RunFolder,
    iteration: int,
    encoded: tuple[Any, Mapping[str, np.ndarray]],
    *,
    keep: int,
    save_policy: Callable[[Path], None],
) -> Path:
    """Writes `checkpoint-<iteration>/` whole, then `latest`, then deletes all but the newest `keep` checkpoints.

    Args:
        folder: the run folder.
        iteration: the iteration after which the state was taken.
        encoded: what `encode` returned.
        keep: checkpoints kept, >= 1.
        save_policy: writes the policy into the folder that it is given.
    """
    import safetensors.numpy

    final = folder.checkpoint(iteration)
    temporary = folder.root / f"{TEMPORARY}{os.getpid()}-{final.name}"
    skeleton, arrays = encoded
    document = json.dumps({"format": FORMAT, "state": skeleton}, ensure_ascii=False, allow_nan=False)
    with writing_errors(final):
        remove(temporary)
        temporary.mkdir(parents=True)
        (temporary / _STATE).write_bytes(document.encode())
        (temporary / _TENSORS).write_bytes(safetensors.numpy.save(dict(arrays)))
        save_policy(temporary / "policy")
        sums = {_relative(path, temporary): sha256(path) for path in _files(temporary)}
        (temporary / _CHECKSUMS).write_bytes(json.dumps(sums, indent=2, sort_keys=True).encode())
        sync_tree(temporary)
        replace_folder(temporary, final)
    settle(folder, iteration, keep=keep)
    return final


def settle(folder: RunFolder, newest: int, *, keep: int) -> None:
    """Lets `latest` name the newest checkpoint, then deletes all but the newest `keep` of them.

    A kill between the two, or before, is made good when the run is resumed.
    """
    write_bytes(folder.latest, f"{folder.checkpoint(newest).name}\n".encode())
    for _, path in folder.checkpoints()[:-keep]:
        remove(path)


def load_checkpoint(path: Path) -> Json:
    """Reads one checkpoint.

    Raises:
        CheckpointError: a file is missing, altered or not of this format.
    """
    import safetensors
    import safetensors.numpy

    _verify(path)
    try:
        document = json.loads((path / _STATE).read_text(encoding="utf-8"))
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise CheckpointError(f"{path} is of another format than {FORMAT}; use the rlprompt that wrote it")
        arrays = safetensors.numpy.load_file(path / _TENSORS)
        state = decode(document["state"], arrays)
        if not isinstance(state, dict):
            raise CheckpointError(f"{path} holds no state; put it back, or start a new run")
    except (OSError, *_MALFORMED, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    return state


def newest_valid(folder: RunFolder) -> tuple[int, Json] | None:
    """Returns (iteration, state) of the newest checkpoint that is whole; None where the run has none yet.

    Damaged ones that are newer are reported and renamed to `damaged-...`, so that they are never counted as kept.

    Raises:
        CheckpointError: there are checkpoints, or `latest` says so, but none is whole.
    """
    damaged: list[tuple[Path, CheckpointError]] = []
    for iteration, path in reversed(folder.checkpoints()):
        try:
            state = load_checkpoint(path)
        except CheckpointError as error:
            logger.warning("checkpoint is damaged: %s", error)
            damaged.append((path, error))
            continue
        for broken, _ in damaged:
            logger.warning("going back to %s; %s is set aside", path.name, broken.name)
            aside = broken.with_name(f"damaged-{broken.name}")
            with writing_errors(aside):
                remove(aside)
                os.rename(broken, aside)
        return iteration, state
    if damaged:
        raise CheckpointError(f"no checkpoint of {folder.root} is whole ({damaged[0][1]}); start a new run")
    if folder.latest.exists():
        raise CheckpointError(f"{folder.latest} names a checkpoint but none is there; put it back, or start a new run")
    return None


def _verify(path: Path) -> None:
    if path.is_symlink():
        raise CheckpointError(f"{path} is a link; a checkpoint must lie in the run folder itself")
    try:
        sums = json.loads((path / _CHECKSUMS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path / _CHECKSUMS} cannot be read: {error}") from error
    found = {_relative(file, path): file for file in _files(path) if file != path / _CHECKSUMS}
    if not isinstance(sums, dict) or set(sums) != set(found):
        raise CheckpointError(f"the files of {path} are not those that its {_CHECKSUMS} lists")
    for name, file in found.items():
        if file.is_symlink() or sha256(file) != sums[name]:
            raise CheckpointError(f"{file} was altered or cut short: its checksum does not match")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_symlink() or path.is_file())


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
