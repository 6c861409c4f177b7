"""Code that a configuration names, for workers on machines that do not have it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlprompt import registry
from rlprompt.config import RunConfig


@dataclass(frozen=True)
class Shipment:
    """What workers need of the user's own code."""

    modules: tuple[str, ...] = ()
    """Modules that the configuration names and workers import."""
    files: tuple[Path, ...] = ()
    """Modules and packages that are sent, each with what it may import from beside it."""


def shipment(config: RunConfig, *, search_path: str | Path | None) -> Shipment | None:
    """Returns the code that env runners import: of policies. Rewards stay in the run's own process.

    None where they are on this machine, and find it at its place.

    Of a module beside the configuration, the other modules and packages beside it go along, since it may import them;
    of one elsewhere, its top-level module or package.

    Args:
        config: of the run.
        search_path: the folder of the user's configuration.

    Raises:
        ConfigError: a module that is named cannot be found.
    """
    if config.ray.address == "local" or not config.ray.num_env_runners:
        return None
    kinds = [config.policy.kind, *(agent.kind for agent in config.env.agents if agent.kind is not None)]
    modules = tuple(dict.fromkeys(kind.partition(":")[0] for kind in kinds if ":" in kind))
    files: dict[Path, None] = {}
    for module in modules:
        source = registry.source_of(module, search_path)
        beside = search_path is not None and source.parent == Path(search_path).resolve()
        files |= dict.fromkeys(_modules_in(source.parent) if beside else [source])
    return Shipment(modules, tuple(files))


def _modules_in(folder: Path) -> Sequence[Path]:
    """The modules and packages of a folder."""
    return sorted(
        path
        for path in folder.iterdir()
        if (path.suffix == ".py" and path.is_file() and path.stem.isidentifier()) or (path / "__init__.py").is_file()
    )
