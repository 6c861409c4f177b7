"""The installed namespace, the folders of the repository, the lock and the Makefile must not drift apart."""

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest

from rlprompt.cli.doctor import REQUIRED

ROOT = Path(__file__).parents[1]
MAPPED = {"rlprompt.envs": "envs", "rlprompt.policies": "policies", "rlprompt.rewards": "rewards"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def _packages_on_disk() -> set[str]:
    found = set()
    for name, folder in {"rlprompt": "rlprompt", **MAPPED}.items():
        base = ROOT / folder
        for init in base.rglob("__init__.py"):
            if not any(parent.is_symlink() for parent in init.parents if parent.is_relative_to(base)):
                found.add(".".join([name, *init.parent.relative_to(base).parts]))
    return found


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _lock() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {_normal(name): version for name, version in pairs}


def test_every_package_is_listed_in_pyproject() -> None:
    settings = PROJECT["tool"]["setuptools"]
    assert settings["package-dir"] == MAPPED
    assert set(settings["packages"]) == _packages_on_disk()


@pytest.mark.parametrize("folder", MAPPED.values())
def test_source_link_points_at_the_folder(folder: str) -> None:
    link = ROOT / "rlprompt" / folder
    assert link.is_symlink(), f"{link} should link to ../{folder}; set git's core.symlinks"
    assert link.resolve() == ROOT / folder


def test_every_module_folder_is_a_package() -> None:
    folders = {path.parent for name in ("rlprompt", *MAPPED.values()) for path in (ROOT / name).rglob("*.py")}
    assert [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []


def test_data_files_of_packages_are_declared() -> None:
    declared = PROJECT["tool"]["setuptools"]["package-data"]
    for name, folder in {"rlprompt": "rlprompt", **MAPPED}.items():
        base = ROOT / folder
        for path in base.rglob("*"):
            linked = any(parent.is_symlink() for parent in path.parents if parent.is_relative_to(base))
            if path.is_dir() or linked or path.suffix in {".py", ".pyc"}:
                continue
            covered = [
                package
                for package, patterns in declared.items()
                if any(path.match(pattern) for pattern in patterns)
                and (package == name or package.startswith(name + "."))
            ]
            assert covered, f"{path.relative_to(ROOT)} is not in [tool.setuptools.package-data]"


def test_the_lock_names_versions_only_and_pins_torch() -> None:
    lock = _lock()
    assert lock["torch"] == "2.13.0"
    assert [name for name, version in lock.items() if not re.fullmatch(r"[0-9][0-9a-zA-Z.]*", version)] == []


def test_the_lock_has_every_dependency() -> None:
    lock = _lock()
    wanted = [*PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"]["dev"]]
    names = {_normal(re.split(r"[\[<>=!~ ]", requirement, maxsplit=1)[0]) for requirement in wanted}
    assert sorted(names - set(lock)) == []


def test_data_packages_of_the_makefile_are_the_locked_ones() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    pinned = dict(item.split("==") for item in re.findall(r"^DATA := (.*)$", makefile, re.M)[0].split())
    lock = _lock()
    assert pinned == {name: lock[_normal(name)] for name in pinned}


def test_the_second_environment_has_the_newest_gymnasium_and_no_ray() -> None:
    lines = (ROOT / "environments" / "gym14-constraints.txt").read_text(encoding="utf-8").splitlines()
    lock = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert lock["gymnasium"].startswith("1.4.")
    assert lock["torch"] == "2.13.0"
    assert "ray" not in lock
    assert _lock()["gymnasium"] == "1.2.2"


def test_t2_the_lowest_versions_have_no_known_way_to_run_code() -> None:
    """The reasons stand in pyproject.toml; what is installed here is checked too, and `doctor` asks for the same."""
    floors = {
        "torch": (2, 6),
        "transformers": (5, 3),
        "sentence-transformers": (6,),
        "datasets": (4,),
        "pyarrow": (14, 0, 1),
        "ray": (2, 52),
    }
    found = (re.match(r"([\w.-]+)(?:\[\w+\])?>=([\d.]+)", line) for line in PROJECT["project"]["dependencies"])
    lowest = {match[1]: match[2] for match in found if match is not None}
    for name, floor in floors.items():
        assert tuple(map(int, lowest[name].split("."))) >= floor, name
        installed = re.findall(r"\d+", importlib.metadata.version(name).partition("+")[0])
        assert tuple(map(int, installed)) >= floor, name
        if name in REQUIRED:
            assert REQUIRED[name][0] >= floor, name


@pytest.mark.parametrize("target", ["quickstart", "test", "reference", "bench", "lint", "wheel", "lock"])
def test_every_target_sets_up_the_environment_first(target: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    found = re.search(rf"^{target}: (.*)$", makefile, re.M)
    assert found is not None, f"no target {target}"
    assert "install" in found[1].split()


def test_ci_runs_make_test() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111, "must be executable"
    assert re.search(r"^exec make test$", script.read_text(encoding="utf-8"), re.M)
