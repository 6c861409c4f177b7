"""`rlprompt list`: what can be named in a configuration or on the command line."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from rlprompt.cli.console import note, number, say_table
from rlprompt.errors import UnknownNameError


def list_kind(
    kind: Annotated[
        str,
        typer.Argument(
            help="tasks, models, rewards, features, aesthetics, embedders, stabilisers, policies, algorithms, targets, "
            "envs, meta-prompts, roles, dialogues, pair-builders, recipes or runs."
        ),
    ],
) -> int:
    """List the names of a KIND, one a line, with what they stand for."""
    if kind not in _LISTERS:
        raise UnknownNameError("kind", kind, _LISTERS)
    rows = _LISTERS[kind]()
    if not rows:
        note(f"no {kind} found")
    say_table(rows)
    return 0


def recipe_files(root: Path | None = None) -> list[Path]:
    """Returns the configurations under `experiments/`, of the source tree and of the current folder.

    Args:
        root: the source tree; the one this package lies in by default (an installed wheel has none).
    """
    source = Path(__file__).resolve().parents[2] if root is None else root
    folders = dict.fromkeys(folder.resolve() for folder in (source / "experiments", Path("experiments")))
    return sorted(file for folder in folders for file in folder.rglob("*.yaml"))


def _tasks() -> list[list[str]]:
    from rlprompt.tasks import list_tasks

    return [[name] for name in list_tasks()]


def _models() -> list[list[str]]:
    from rlprompt.models import known_models

    return [[name, how] for name, how in sorted(known_models().items())]


def _registered(group: str) -> Callable[[], list[list[str]]]:
    def rows() -> list[list[str]]:
        from rlprompt.registry import names

        return [[name, place] for name, place in sorted(names(group).items())]

    return rows


def _targets() -> list[list[str]]:
    """A model is a target by its own name; the registered ones are written as name:argument."""
    from rlprompt.registry import names

    written = {
        "transformers": "MODEL",
        "openai": "openai:MODEL",
        "planted": "planted:LANDSCAPE",
        "renderer": "renderer:SIZE",
    }
    return [[written.get(name, f"{name}:ARGUMENT"), place] for name, place in sorted(names("targets").items())]


def _envs() -> list[list[str]]:
    import gymnasium

    import rlprompt.envs.multi  # registers the ids

    made = {name: str(spec.entry_point) for name, spec in gymnasium.registry.items() if name.startswith("rlprompt/")}
    made[rlprompt.envs.multi.ENV_ID] = "rlprompt.envs.multi:env"  # PettingZoo's
    return [[name, place] for name, place in sorted(made.items())]


def _meta_prompts() -> list[list[str]]:
    """Name, slots and source."""
    from rlprompt.meta_prompts import META_PROMPTS, MetaPrompt

    return [
        [name, " ".join(f"{{{slot}}}" for slot in sorted(MetaPrompt(entry.text).slots)), entry.source]
        for name, entry in sorted(META_PROMPTS.items())
    ]


def _roles() -> list[list[str]]:
    """Name, meta-prompts at task and at instance level, and separator."""
    from rlprompt.registry import names, resolve

    rows = []
    for name in sorted(names("roles")):
        role = resolve("roles", name)
        rows.append([name, role.task, role.instance, repr(role.separator)])
    return rows


def _pair_builders() -> list[list[str]]:
    """Name, arguments, and what it does."""
    from rlprompt.preferences import BUILDERS

    return [
        [name, " ".join(list(inspect.signature(builder).parameters)[1:]), (builder.__doc__ or "").split("\n")[0]]
        for name, builder in sorted(BUILDERS.items())
    ]


def _recipes() -> list[list[str]]:
    here = Path.cwd()
    return [
        [str(file.relative_to(here) if file.is_relative_to(here) else file), _first_comment(file)]
        for file in recipe_files()
    ]


def _first_comment(file: Path) -> str:
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            return line.lstrip("# ").rstrip()
        if line.strip():
            break
    return ""


def _runs() -> list[list[str]]:
    """Newest first: folder, and how the run ended."""
    base = Path(os.environ.get("RLPROMPT_RUN_DIR", "runs"))
    folders = [file.parent for file in base.glob("*/*/config.yaml")]
    return [
        [str(folder), _state(folder)]
        for folder in sorted(folders, key=lambda folder: folder.stat().st_mtime, reverse=True)
    ]


def _state(folder: Path) -> str:
    """The test accuracies of `summary.json`, else how `result.json` says that the run ended."""
    try:
        if (folder / "summary.json").is_file():
            return _accuracies(json.loads((folder / "summary.json").read_text(encoding="utf-8"))) or "finished"
        if not (folder / "result.json").is_file():
            return "unfinished"
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "its result cannot be read"
    if not isinstance(result, dict):
        return "its result cannot be read"
    return f"{result.get('stop_reason', 'finished')}, dev accuracy {_known(result.get('dev_accuracy'))}"


def _accuracies(rows: Any) -> str:
    return ", ".join(
        f"{row['name']} {_known(row['test_accuracy'])}"
        for row in (rows if isinstance(rows, list) else [])
        if isinstance(row, dict) and row.get("name") and isinstance(row.get("test_accuracy"), float)
    )


def _known(value: Any) -> str:
    return number(value if isinstance(value, int | float) else None)


_LISTERS: dict[str, Callable[[], list[list[str]]]] = {
    "tasks": _tasks,
    "models": _models,
    "rewards": _registered("rewards"),
    "features": _registered("features"),
    "aesthetics": _registered("aesthetics"),
    "embedders": _registered("embedders"),
    "stabilisers": _registered("stabilisers"),
    "policies": _registered("policies"),
    "algorithms": _registered("algorithms"),
    "targets": _targets,
    "envs": _envs,
    "meta-prompts": _meta_prompts,
    "roles": _roles,
    "dialogues": _registered("dialogues"),
    "pair-builders": _pair_builders,
    "recipes": _recipes,
    "runs": _runs,
}
