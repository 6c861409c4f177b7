"""Code that a configuration names, for workers on machines that do not have it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlprompt import registry
from rlprompt.config import RunConfig
from rlprompt.types import Json


@dataclass(frozen=True)
class Shipment:
    """What workers need of the user's own code."""

    modules: tuple[str, ...] = ()
    """Modules that the configuration names and workers import."""
    files: tuple[Path, ...] = ()
    """Modules and packages that are sent, each with what it may import from beside it."""

    @property
    def code(self) -> Json:
        """What takes the place of a scorer spec's `code` where they were sent to: the modules, and no folder."""
        return {"allow_modules": list(self.modules), "search_path": None}


def shipment(config: RunConfig, *, search_path: str | Path | None) -> Shipment | None:
    """Returns the code that env runners and learners import: of policies. Rewards stay in the run's own process.

    None where they are on this machine, and find it at its place.

    Of a module beside the configuration, the other modules and packages beside it go along, since it may import them,
    but none with a name of the standard library or of an installed package: workers would take it for that. Of a module
    elsewhere, its top-level module or package goes.

    Args:
        config: of the run.
        search_path: the folder of the user's configuration.

    Raises:
        ConfigError: a module that is named cannot be found.
    """
    if config.ray.address == "local" or not (config.ray.num_env_runners or config.ray.num_learners):
        return None
    kinds = [config.policy.kind, *(agent.kind for agent in config.env.agents if agent.kind is not None)]
    modules = tuple(dict.fromkeys(kind.partition(":")[0] for kind in kinds if ":" in kind))
    files: dict[Path, None] = {}
    for module in modules:
        source = registry.source_of(module, search_path)
        if search_path is not None and source.parent == Path(search_path).resolve():
            files |= dict.fromkeys(path for path in _modules_in(source.parent) if path == source or _is_new(path))
        else:
            files[source] = None
    return Shipment(modules, tuple(files))


def _modules_in(folder: Path) -> Sequence[Path]:
    """The modules and packages of a folder."""
    return sorted(
        path
        for path in folder.iterdir()
        if (path.suffix == ".py" and path.is_file() and path.stem.isidentifier()) or (path / "__init__.py").is_file()
    )


def _is_new(path: Path) -> bool:
    """Whether nothing else that workers can import has the name."""
    if path.stem in sys.stdlib_module_names or path.stem == "rlprompt":
        return False
    found = importlib.util.find_spec(path.stem)
    origin = None if found is None or found.origin is None else Path(found.origin)
    # Found at its own place, where the user stands in its folder, it is new all the same.
    return origin is None or path in (origin, origin.parent)
