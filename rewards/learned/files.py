"""The folder of a learnt reward: safetensors with their checksums, and a description that is written last."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlprompt.errors import CheckpointError, ConfigError, RunError
from rlprompt.types import Json

FORMAT_VERSION = 1


def save_folder(folder: str | Path, description: str, values: Json, files: Mapping[str, bytes] | None = None) -> None:
    """Writes a learnt reward; a folder that has its description is whole.

    Args:
        folder: made where it does not exist; other files in it stay.
        description: name of the JSON file.
        values: what it says beside the format and the checksums.
        files: further files, by name.

    Raises:
        RunError: the folder cannot be written.
        ConfigError: `values` holds something that JSON does not know.
    """
    place = Path(folder)
    contents = dict(files or {})
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    whole = {"format_version": FORMAT_VERSION, **values, "files": sums}
    try:
        text = json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ConfigError(f"what {description} says must be JSON: {error}") from error
    try:
        place.mkdir(parents=True, exist_ok=True)
        (place / description).unlink(missing_ok=True)
        for name, data in {**contents, description: text.encode("utf-8")}.items():
            made = place / f".{name}.{os.getpid()}.tmp"
            made.write_bytes(data)
            os.replace(made, place / name)
    except OSError as error:
        raise RunError(f"cannot write {place}: {error.strerror or error}; free it, or choose another folder") from error


def read_folder(folder: str | Path, description: str, what: str) -> tuple[Json, dict[str, bytes]]:
    """Reads what `save_folder` wrote; returns the description and the checked files.

    Args:
        folder: where it is.
        description: name of the JSON file.
        what: for the message, such as "success model".

    Raises:
        ConfigError: nothing of the kind is there.
        CheckpointError: a file is missing, truncated, altered or of another format.
    """
    place = Path(folder).expanduser()
    if not (place / description).is_file():
        raise ConfigError(f"{folder} holds no {what}: no {description} in it; train one with rlprompt train-reward")
    try:
        values = json.loads((place / description).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{place / description} cannot be read, or is cut off: {_one_line(error)}") from error
    if not isinstance(values, dict) or not isinstance(values.get("files"), dict):
        raise CheckpointError(f"{place / description} describes no {what}; train it again")
    if values.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{place / description} has format_version {values.get('format_version')!r}, this version reads "
            f"{FORMAT_VERSION}; train it again"
        )
    return values, {name: _checked(place, name, sha256, description) for name, sha256 in values["files"].items()}


def tensors_of(data: bytes, where: str) -> dict[str, Any]:
    """Returns the tensors (of torch) in the bytes of a safetensors file.

    Raises:
        CheckpointError: it is none.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return dict(load(data))
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{where} is not a safetensors file: {_one_line(error)}") from error


def field(values: Json, name: str, kind: type | tuple[type, ...], where: str) -> Any:
    """Returns a field of a description.

    Raises:
        CheckpointError: it is missing or of the wrong type.
    """
    if not isinstance(values.get(name), kind):
        raise CheckpointError(f"{where}: '{name}' is missing or of the wrong type; train it again")
    return values[name]


def _checked(place: Path, name: str, sha256: Any, description: str) -> bytes:
    if Path(name).name != name:
        raise CheckpointError(f"{place / description}: '{name[:80]}' is no file name")
    try:
        data = (place / name).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{place / name} cannot be read: {error.strerror or error}; train it again") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise CheckpointError(f"{place / name} is truncated or altered: its checksum is not that of {description}")
    return data


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
