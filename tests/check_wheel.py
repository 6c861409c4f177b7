"""Run by `make wheel` with the wheel's folder first on the path: imports every package and compares the files."""

from __future__ import annotations

import importlib
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAPPED = {"rlprompt.envs": "envs", "rlprompt.policies": "policies", "rlprompt.rewards": "rewards"}


def problems(site: Path) -> list[str]:
    """Returns what is wrong with the wheel that was unpacked into `site`."""
    found = []
    top = {path.name for path in site.iterdir() if path.suffix != ".dist-info" and path.name not in {"bin"}}
    if top != {"rlprompt"}:
        found.append(f"the wheel installs {sorted(top)}, not only rlprompt")
    shipped = _files(site / "rlprompt", Path("rlprompt"))
    source = _files(ROOT / "rlprompt", Path("rlprompt"))
    for package, folder in MAPPED.items():
        source |= _files(ROOT / folder, Path(*package.split(".")))
    found += [f"{path} is in the source tree but not in the wheel" for path in sorted(source - shipped)]
    found += [f"{path} is in the wheel but not in the source tree" for path in sorted(shipped - source)]
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for package in settings["tool"]["setuptools"]["packages"]:
        module = importlib.import_module(package)
        if not Path(str(module.__file__)).is_relative_to(site):
            found.append(f"{package} was imported from {module.__file__}, not from the wheel")
    import rlprompt

    found += [f"rlprompt.{name} is missing" for name in rlprompt.__all__ if not hasattr(rlprompt, name)]
    return found


def _files(folder: Path, name: Path) -> set[str]:
    """The package's files without caches; links are not followed, the mapped folders are listed by themselves."""
    return {
        str(name / path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file()
        and path.suffix in {".py", ".yaml", ".typed", ".html", ".css", ".js"}
        and not any(parent.is_symlink() for parent in path.parents if parent.is_relative_to(folder))
    }


if __name__ == "__main__":
    wrong = problems(Path("site").resolve())
    for line in wrong:
        sys.stderr.write(f"error: {line}\n")
    sys.stderr.write("the wheel is complete\n" if not wrong else "")
    sys.exit(bool(wrong))
