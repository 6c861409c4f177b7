"""Targets: the frozen LLMs that are prompted, their cache and the ledger that meters them.

Importing this package imports neither torch nor an HTTP client; a target's module is imported when it is loaded.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlprompt import registry
from rlprompt.errors import ConfigError, UnknownNameError
from rlprompt.targets.ledger import Ledger, Price, Reservation
from rlprompt.types import Target

if TYPE_CHECKING:
    from rlprompt.cluster import RayConfig
    from rlprompt.config import TargetConfig

__all__ = ["Ledger", "Price", "Reservation", "load_target", "pooled_target", "target_from_config", "target_prices"]

_LOCAL_KINDS = ("planted", "renderer", "transformers")
"""Targets that compute on this machine: their calls cost nothing."""


def load_target(
    name: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    revision: str | None = None,
    cache: str = "off",
    cache_path: str | Path | None = None,
    cache_bytes: int | None = None,
    **kwargs: Any,
) -> Target:
    """Loads a target by name.

    Args:
        name: `planted:LANDSCAPE`, `renderer:SIZE`, `openai:MODEL`, `NAME:ARGUMENT` of an installed plug-in, or the
            name of a model (installed package, folder, hub id).
        dtype: of a model that runs here: "auto", "float32", "bfloat16" or "float16"; others do not use it.
        device: of a model that runs here, for example "cpu" or "cuda:0"; others do not use it.
        revision: of a model from the hub.
        cache: "on", "read-only", "refresh" or "off".
        cache_path: the cache file; by default `answers.sqlite` in RLPROMPT_CACHE_DIR or ~/.cache/rlprompt.
        cache_bytes: most bytes of answers that the cache keeps.
        **kwargs: further arguments of the target's class.

    Raises:
        UnknownNameError: no such target, landscape, argument or cache mode.
        ConfigError: an argument that does not fit; a model that cannot be found (`ModelNotFoundError`).
    """
    prefix, colon, argument = name.partition(":")
    table = registry.names("targets")
    if colon and prefix in table and prefix != "transformers":
        if revision is not None:
            raise ConfigError(f"target '{name}' has no revisions; remove target.revision (got '{revision}')")
        target = _build(prefix, argument, kwargs)
    elif colon and prefix != "transformers" and not Path(name).exists():
        raise UnknownNameError("kind of target", prefix, table, "; it is written as KIND:NAME")
    else:
        model = argument if prefix == "transformers" and colon else name
        target = _build("transformers", model, kwargs, dtype=dtype, device=device, revision=revision)
    return _with_cache(target, cache, cache_path, cache_bytes)


def target_from_config(config: TargetConfig) -> Target:
    """Loads the target that the section `target` of a run's configuration describes; raises as `load_target`."""
    own = ("name", "dtype", "device", "revision", "cache")
    for key in config.kwargs:
        if key in own:
            raise ConfigError(f"target.kwargs.{key} is not allowed; set target.{key}")
    return load_target(**{key: getattr(config, key) for key in own}, **config.kwargs)


def pooled_target(config: TargetConfig, settings: RayConfig) -> Target:
    """Loads a target in `ray.num_target_replicas` processes; its cache, if any, is in this one.

    Args:
        config: the section `target`.
        settings: the section `ray`; Ray has to be there.

    Raises:
        ConfigError: as `load_target`, and as `rlprompt.targets.pool.TargetPool`.
    """
    from rlprompt.targets.pool import TargetPool

    kwargs = dict(config.kwargs)
    path, limit = kwargs.pop("cache_path", None), kwargs.pop("cache_bytes", None)
    pool = TargetPool(config.model_copy(update={"kwargs": kwargs}), settings)
    try:
        return _with_cache(pool, config.cache, path, limit)
    except BaseException:
        pool.close()
        raise


def target_prices(target: Target) -> dict[str, Price]:
    """Returns the listed price of a target's calls for `Ledger(prices=...)`; empty where it is unknown.

    A target that computes on this machine costs nothing; any other one tells its `price`, or None.
    """
    inner = getattr(target, "target", target)  # without its cache
    price = getattr(inner, "price", None)
    if price is None and inner.identity.get("kind") in _LOCAL_KINDS:
        price = Price()
    return {} if price is None else {"target": price}


def _build(kind: str, argument: str, kwargs: Mapping[str, Any], **fixed: Any) -> Target:
    """Makes a target of a registered kind; the first parameter of its class takes what follows the colon."""
    if not argument:
        raise ConfigError(f"target '{kind}:' names nothing; write it as {kind}:NAME")
    make = registry.resolve("targets", kind)
    first, *others = inspect.signature(make).parameters.values()
    open_ended = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in others)
    known = [parameter.name for parameter in others if parameter.name not in fixed]
    for key in kwargs:
        if key in fixed or key == first.name or (key not in known and not open_ended):
            raise UnknownNameError(f"argument of target '{kind}'", str(key), known, " (target.kwargs)")
    target: Target = make(argument, **fixed, **kwargs)
    return target


def _with_cache(target: Target, mode: str, path: str | Path | None, max_bytes: int | None) -> Target:
    if mode == "off":
        return target
    from rlprompt.targets.cache import DEFAULT_BYTES, CachedTarget, ResponseCache, check_mode

    checked = check_mode(mode)
    limit = DEFAULT_BYTES if max_bytes is None else max_bytes
    return CachedTarget(target, ResponseCache(path, max_bytes=limit, read_only=mode == "read-only"), checked)
