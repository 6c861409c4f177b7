"""Who may import whom: the floors of docs/design.md, read from the ASTs; and what a bare import may load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "rlprompt": "rlprompt",
    "rlprompt.envs": "envs",
    "rlprompt.policies": "policies",
    "rlprompt.rewards": "rewards",
}

FLOOR = {
    "errors": 0,
    "types": 0,
    "redaction": 0,
    "seeding": 0,
    "registry": 0,
    "shipping": 0,
    "ray_session": 0,
    "restarts": 0,
    "listening": 0,
    "config": 0,
    "overrides": 0,
    "sections": 0,
    "agents": 0,
    "cluster": 0,
    "roles": 0,
    "segments": 0,
    "models": 0,
    "model_files": 0,
    "planted_models": 0,
    "masks": 0,
    "meta_prompts": 0,
    "contexts": 0,
    "dialogues": 0,
    "served": 0,
    "pairs": 0,
    "payloads": 0,
    "preference_pairs": 0,
    "json_lines": 0,
    "calibration": 0,
    "tasks": 1,
    "mailbox": 2,
    "targets": 2,  # the planted target knows the planted task
    "rewards": 3,
    "scoring": 4,
    "envs": 5,
    "policies": 5,
    "preferences": 5,
    "algorithms": 6,
    "search": 6,
    "evaluation": 6,
    "runs": 7,
    "labelling": 8,
    "serving": 8,
    "sweeps": 8,
    "cli": 9,
    "__main__": 10,
}
"""A part may import parts of lower floors and itself; parts of one floor above 0 do not know each other.

Policies stand beside the rest and see floor 0 only."""


def _modules() -> dict[str, Path]:
    found = {}
    for package, folder in FOLDERS.items():
        base = ROOT / folder
        for path in base.rglob("*.py"):
            if any(parent.is_symlink() for parent in path.parents if parent.is_relative_to(base)):
                continue
            parts = list(path.relative_to(base).with_suffix("").parts)
            if parts[-1] == "__init__":
                parts.pop()
            found[".".join([package, *parts])] = path
    return found


def _imported(path: Path) -> set[str]:
    """Every rlprompt module that a file imports, at the top, in functions and under TYPE_CHECKING."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            module = node.module or ""
            found |= {f"{module}.{alias.name}" if module == "rlprompt" else module for alias in node.names}
    return {name for name in found if name.split(".")[0] == "rlprompt"}


def _part(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


MODULES = _modules()


def test_every_part_has_a_floor() -> None:
    assert {_part(name) for name in MODULES} - {""} <= set(FLOOR)


@pytest.mark.parametrize("module", sorted(name for name in MODULES if _part(name)))
def test_imports_go_downwards_only(module: str) -> None:
    own = _part(module)
    wrong = []
    for imported in sorted(_imported(MODULES[module])):
        part = _part(imported)
        if part in {"", own, "__version__"}:
            continue
        lower = FLOOR[part] < FLOOR[own] or FLOOR[part] == FLOOR[own] == 0
        if own == "policies":
            lower = FLOOR[part] == 0
        if not lower:
            wrong.append(imported)
    assert wrong == [], f"{module} must not import {wrong}"


def test_an_upward_import_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text("def f():\n    from rlprompt.runs import train\n    import rlprompt.cli.main\n")
    assert _imported(file) == {"rlprompt.runs", "rlprompt.cli.main"}


def test_the_three_folders_are_always_imported_under_the_package() -> None:
    wrong = []
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            wrong += [(module, name) for name in names if name.split(".")[0] in {"envs", "policies", "rewards"}]
    assert wrong == []


def _loaded_after(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(' '.join(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return set(done.stdout.split())


def test_a_bare_import_loads_only_the_standard_library() -> None:
    new = _loaded_after("import rlprompt") - _loaded_after("import importlib, typing")
    outside = {name.split(".")[0] for name in new} - set(sys.stdlib_module_names) - {"rlprompt"}
    assert outside == set()


def test_the_command_line_starts_without_heavy_packages() -> None:
    loaded = _loaded_after("import rlprompt.cli.main")
    heavy = {
        "torch",
        "ray",
        "numpy",
        "transformers",
        "gymnasium",
        "pydantic",
        "pyarrow",
        "httpx",
        "aiohttp",
        "scipy",
        "yaml",
    }
    assert loaded & heavy == set()


@pytest.mark.parametrize("module", ["rlprompt.types", "rlprompt.config", "rlprompt.tasks", "rlprompt.registry"])
def test_the_lower_floors_load_no_torch(module: str) -> None:
    assert _loaded_after(f"import {module}") & {"torch", "ray", "transformers"} == set()


def test_every_lazy_name_of_the_package_is_there() -> None:
    import rlprompt

    for name in rlprompt.__all__:
        assert getattr(rlprompt, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = rlprompt.nothing
