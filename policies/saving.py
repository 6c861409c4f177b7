"""Policies on disk: the weights that were trained, and `policy.json` (what they were trained on top of).

The weights are `policy.safetensors`, a PEFT adapter's folder or a Hugging Face model's folder, by the policy's kind.
`policy.json` holds no paths and names no code: the kind is one of the built-in policies.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rlprompt.agents import AgentConfig, check_names
from rlprompt.config import PolicyConfig, describe
from rlprompt.errors import CheckpointError, ConfigError
from rlprompt.models import resolve_model
from rlprompt.policies.base import WEIGHTS, PromptPolicy
from rlprompt.registry import BUILT_IN, resolve
from rlprompt.types import Json

FORMAT_VERSION = 1
DESCRIPTION = "policy.json"
TEAM = "team"
"""The kind of several policies that write in turns; each of them has a folder and a description of its own."""


def save_policy(policy: PromptPolicy, folder: Path, extra: Json | None = None) -> None:
    """Writes a policy so that `load_policy` finds it; the description comes last, and each file appears whole.

    Args:
        policy: what to save.
        folder: made where it does not exist.
        extra: further JSON values; `parent` (what the policy came from) gets a place of its own, the others go under
            `extra`.

    Raises:
        CheckpointError: the folder cannot be written.
        ConfigError: `extra` holds something that JSON does not know.
    """
    description = _description(policy, dict(extra or {}))
    _as_json(description)  # a mistake must show before anything is written
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".policy-", dir=folder) as name:
            policy.write_weights(Path(name))
            written = sorted(Path(name).iterdir())
            description["files"] = {file.name: _sha256(file) for file in written}
            for file in written:
                _sync(file)
                file.chmod(0o644)  # safetensors makes files that only their owner may read
                file.replace(folder / file.name)
        _write(folder / DESCRIPTION, _as_json(description).encode("utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot write the policy to {folder}: {error}") from error


def load_policy(path: str | Path, *, model: str | None = None) -> PromptPolicy:
    """Loads a saved policy.

    Args:
        path: an exported folder, or a run folder (its best policy).
        model: the frozen LM, where it is not found under the saved name (a local folder, for example).

    Returns:
        The policy on the CPU, in evaluation mode.

    Raises:
        ConfigError: nothing is saved there.
        CheckpointError: a file is truncated or altered, or the frozen LM is another one than in training.
        ModelNotFoundError: the frozen LM is not on this machine.
    """
    folder = policy_folder(Path(path))
    description = _read_description(folder / DESCRIPTION)
    if description["kind"] == TEAM:
        raise ConfigError(
            f"{folder} holds a team of agents, and one policy is wanted; give one of its members/, or load all of them "
            "with rlprompt.policies.load_team"
        )
    base = description["base"]
    try:
        config = PolicyConfig(
            kind=description["kind"],
            model=model or base["name"],
            revision=None if model else base["revision"],
            context=description["context"],
            dtype=description["dtype"],
            kwargs=description["kwargs"],
        )
    except ValidationError as error:
        raise CheckpointError(f"{folder / DESCRIPTION}: {describe(error, PolicyConfig)}") from error
    if base["source"] == "folder" and model is None:
        raise ConfigError(f"{folder}: its LM '{base['name']}' was a local folder; give it with load_policy(model=...)")
    found = resolve_model(config.model, config.revision)
    same_source = found.source == base["source"]  # a checksum covers the files of its source
    if base["sha256"] is not None and same_source and found.sha256 != base["sha256"]:
        raise CheckpointError(
            f"{folder} was trained on another version of '{base['name']}'; install that one, or export it again"
        )
    kind = resolve("policies", description["kind"])
    policy: PromptPolicy = kind(config, prompt_length=description["prompt_length"], seed=0)
    if description.get("roles") is not None:
        policy = _with_roles(policy, description["roles"], folder)
    if policy.vocabulary_size != description["vocabulary_size"]:
        raise CheckpointError(
            f"{folder}: trained with {description['vocabulary_size']} tokens, '{config.model}' has "
            f"{policy.vocabulary_size}"
        )
    policy.read_weights(_read_files(folder, description["files"]))
    return policy.eval()


def read_policy_json(path: str | Path) -> Json:
    """Returns the checked `policy.json` of an exported folder or a run folder, without loading a model.

    What was saved under `extra` (mode, meta_prompt, draft, target, dev score, ...) stands beside the other fields.

    Raises:
        ConfigError: nothing is saved there.
        CheckpointError: the file is cut off, of another format, or lacks a field.
    """
    description = _read_description(policy_folder(Path(path)) / DESCRIPTION)
    return {**dict(description.get("extra") or {}), **description}


def save_team(folder: Path, agents: Sequence[AgentConfig], *, weights: str, extra: Json | None = None) -> None:
    """Writes the `policy.json` of a team, whose members are saved already.

    Args:
        folder: of the team.
        agents: in the order of their turns, without paths.
        weights: "own", "shared" or "embedding".
        extra: as of `save_policy`.

    Raises:
        CheckpointError: the folder cannot be written.
        ConfigError: `extra` holds something that JSON does not know.
    """
    description = {
        "format_version": FORMAT_VERSION,
        "kind": TEAM,
        "weights": weights,
        "agents": [agent.model_dump(mode="json", exclude={"start"}) for agent in agents],
        "extra": dict(extra or {}),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / DESCRIPTION, _as_json(description).encode("utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot write the team to {folder}: {error}") from error


def read_team(folder: Path) -> tuple[tuple[AgentConfig, ...], str]:
    """Returns the agents of a saved team and which weights they have.

    Raises:
        ConfigError: it is a policy that writes alone.
        CheckpointError: the description is damaged.
    """
    file = folder / DESCRIPTION
    description = _read_description(file)
    if description["kind"] != TEAM:
        raise ConfigError(
            f"{folder} holds one policy, not a team of agents; load it with rlprompt.policies.load_policy"
        )
    try:
        agents = tuple(AgentConfig.model_validate(agent) for agent in description["agents"])
        check_names(agents)
    except (ValidationError, ConfigError) as error:
        detail = describe(error, AgentConfig) if isinstance(error, ValidationError) else str(error)
        raise CheckpointError(f"{file}: an agent is damaged: {detail}") from error
    return agents, description["weights"]


def _with_roles(policy: PromptPolicy, roles: Any, folder: Path) -> PromptPolicy:
    from rlprompt.policies.base import FeaturePolicy
    from rlprompt.policies.roles import RolePolicy

    if not isinstance(roles, int) or not 1 <= roles <= 1000 or not isinstance(policy, FeaturePolicy):
        raise CheckpointError(f"{folder / DESCRIPTION}: 'roles' is {roles!r}, which cannot be for '{policy.kind}'")
    return RolePolicy(policy, roles)


def _description(policy: PromptPolicy, extra: Json) -> Json:
    config = policy.config
    reference = resolve_model(config.model, config.revision)
    local = reference.source == "folder"
    name = Path(reference.path).name if local else reference.name
    return {
        "format_version": FORMAT_VERSION,
        "kind": policy.kind,
        "kwargs": policy.settings.model_dump(mode="json"),
        "base": {
            "name": name,
            "revision": reference.revision,
            "sha256": reference.sha256,
            "source": reference.source,
        },
        "tokenizer": name,
        "dtype": config.dtype,
        "vocabulary_size": policy.vocabulary_size,
        "prompt_length": policy.prompt_length,
        "context": config.context,
        "decoding": _decoding(policy),
        "roles": getattr(policy, "num_roles", None),
        "parent": extra.pop("parent", None),
        "extra": extra,
    }


def _decoding(policy: PromptPolicy) -> Json:
    settings = policy.settings.model_dump(mode="json")
    names = ("top_k", "top_p", "fluent_top_k", "temperature", "logit_bias")
    return {name: settings[name] for name in names if name in settings}


def policy_folder(path: Path) -> Path:
    """Returns the folder of a saved policy: the given one, or the best policy of a run.

    Raises:
        ConfigError: nothing is saved there.
    """
    for folder in (path, path / "best", path / "best" / "policy"):
        if (folder / DESCRIPTION).is_file():
            return folder
    raise ConfigError(f"no policy at {path}: neither {DESCRIPTION} nor best/{DESCRIPTION}; check the path")


def saved_files(folder: Path) -> list[Path]:
    """Returns the files of a saved policy or team, by their place in its folder, with `policy.json` first.

    Raises:
        CheckpointError: one is missing, truncated or altered.
    """
    description = _read_description(folder / DESCRIPTION)
    found = [Path(DESCRIPTION)]
    if description["kind"] == TEAM:
        for member in sorted(file.parent for file in folder.glob(f"members/*/{DESCRIPTION}")):
            found += [member.relative_to(folder) / file for file in saved_files(member)]
        return found
    _check_files(folder, description["files"])
    return found + [Path(name) for name in description["files"]]


_FIELDS: dict[str, type | tuple[type, ...]] = {
    "kind": str,
    "kwargs": dict,
    "base": dict,
    "dtype": str,
    "vocabulary_size": int,
    "prompt_length": int,
    "context": str,
    "files": dict,
}


def _read_description(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read, or is cut off: {_one_line(error)}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{file} must hold a JSON object, got {type(data).__name__}")
    if data.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{file} has format_version {data.get('format_version')!r}, this version reads {FORMAT_VERSION}"
        )
    if data.get("kind") == TEAM:
        if not isinstance(data.get("agents"), list) or data.get("weights") not in ("own", "shared", "embedding"):
            raise CheckpointError(f"{file}: 'agents' or 'weights' is missing or of the wrong type")
        return data
    if isinstance(data.get("weights_sha256"), str):  # written before a policy could have several files
        data.setdefault("files", {WEIGHTS: data["weights_sha256"]})
    for name, kind in _FIELDS.items():
        if not isinstance(data.get(name), kind):
            raise CheckpointError(f"{file}: '{name}' is missing or of the wrong type")
    base = data["base"]
    for name in ("name", "revision", "sha256", "source"):
        if name not in base or not (isinstance(base[name], str) or (base[name] is None and name != "name")):
            raise CheckpointError(f"{file}: 'base.{name}' is missing or of the wrong type")
    if data["kind"] not in BUILT_IN["policies"]:
        raise CheckpointError(f"{file}: '{data['kind'][:80]}' is not a built-in policy; nothing else is loaded")
    return data


def _read_files(folder: Path, files: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Checks every file that was saved and returns the tensors of the *.safetensors among them, by file name."""
    import safetensors
    import safetensors.torch

    tensors: dict[str, dict[str, Any]] = {}
    _check_files(folder, files)
    for name in files:
        file = folder / name
        if file.suffix == ".safetensors":
            try:
                tensors[name] = safetensors.torch.load_file(file)
            except safetensors.SafetensorError as error:
                raise CheckpointError(f"{file} is not a safetensors file: {_one_line(error)}") from error
    return tensors


def _check_files(folder: Path, files: dict[str, Any]) -> None:
    for name, sha256 in files.items():
        if Path(name).name != name:
            raise CheckpointError(f"{folder / DESCRIPTION}: '{name[:80]}' is no file name")
        try:
            found = _sha256(folder / name)
        except OSError as error:
            raise CheckpointError(f"the policy's weights cannot be read: {_one_line(error)}") from error
        if found != sha256:
            raise CheckpointError(f"{folder / name} is truncated or altered: its checksum is not that of {DESCRIPTION}")


def _as_json(description: Json) -> str:
    try:
        return json.dumps(description, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the policy's further values must be JSON: {error}") from error


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


def _write(file: Path, content: bytes) -> None:
    """Writes a file so that it is either the old or the whole new one, also after a crash."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
