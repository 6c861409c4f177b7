"""The connection to Ray: one that starts on this machine, or a cluster that is there."""

from __future__ import annotations

import logging
import math
import os
import re
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RuntimeEnvSetupError

from rlprompt.cluster import RayConfig
from rlprompt.errors import ConfigError

OBJECT_STORE_BYTES = 256 * 2**20
"""Where everything runs in one process; Ray's default would reserve a third of the memory."""
KNOCK_S = 5.0

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_started_with: list[float] = []
"""CPUs of the Ray that this process started; empty where it started none."""


def start_ray(settings: RayConfig, code: Sequence[Path] = ()) -> None:
    """Joins the cluster that the settings name, or starts Ray on this machine only (loopback, no dashboard).

    A process that is connected already stays so. What it has started itself, and is now too small, is started again.

    Args:
        settings: the section `ray`.
        code: modules and packages that workers of a cluster are sent; those on this machine read them where they are.

    Raises:
        ConfigError: there is no cluster at the address, or the connected one has too few CPUs or GPUs.
    """
    runners = Workers(
        settings.num_env_runners, settings.num_cpus_per_env_runner, settings.num_gpus_per_env_runner, "env runners"
    )
    replicas = Workers(
        settings.num_target_replicas,
        settings.num_cpus_per_target_replica,
        settings.num_gpus_per_target_replica,
        "target replicas",
        fewer="ray.num_target_replicas",
        smaller="ray.num_{}s_per_target_replica",
    )
    learners = Workers(
        settings.num_learners,
        settings.num_cpus_per_learner,
        0,
        "learners",
        fewer="ray.num_learners",
        smaller="ray.num_{}s_per_learner",
    )
    store = None if runners.number or replicas.number or learners.number else OBJECT_STORE_BYTES
    join_ray(settings.address, [runners, replicas, learners], code=code, object_store_bytes=store)


@dataclass(frozen=True)
class Workers:
    """Processes of one kind that there has to be room for."""

    number: int
    cpus: float
    """Of each, as its GPUs."""
    gpus: float
    what: str
    fewer: str = "ray.num_env_runners"
    """The setting for their number."""
    smaller: str = "ray.num_{}s_per_env_runner"
    """The setting for the CPUs, or GPUs, of each."""


def join_ray(
    address: str,
    workers: Sequence[Workers],
    *,
    code: Sequence[Path] = (),
    object_store_bytes: int | None = OBJECT_STORE_BYTES,
) -> None:
    """Joins the cluster at an address, or starts Ray on this machine, for any workers; see `start_ray`.

    Args:
        address: as `ray.address`.
        workers: that there has to be room for.
        code: as of `start_ray`.
        object_store_bytes: of a Ray that is started here; None is Ray's default.
    """
    silence()
    cpus = sum(kind.number * kind.cpus for kind in workers)
    if ray.is_initialized() and _started_with and cpus > _started_with[0]:
        ray.shutdown()
    if not ray.is_initialized():
        _started_with.clear()
        _connect(address, cpus, code, object_store_bytes)
    _check_resources(workers)


def silence() -> None:
    """Keeps Ray and RLlib from logging: what fails is raised, and reported once, by us. RLlib's algorithms undo it."""
    for name in ("ray", "ray.rllib", "ray.tune"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _connect(address: str, cpus: float, code: Sequence[Path], object_store_bytes: int | None) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address != "local":
        try:
            _knock(address)
            sent = {"py_modules": [str(path) for path in code]} if code else None
            ray.init(address=address, runtime_env=sent, **quiet)
        except RuntimeEnvSetupError as error:
            names = ", ".join(path.name for path in code)
            raise ConfigError(
                f"the modules beside the configuration ({names}) cannot be sent to the cluster: {in_one_line(error)}; "
                "put large files elsewhere"
            ) from error
        except (OSError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"no Ray cluster at ray.address={address}: {in_one_line(error)}; start one with 'ray start --head', or "
                "use ray.address=local"
            ) from error
        return
    # Ray's own process reports on the cluster to its makers, without a dashboard too, unless it is told not to.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    given = max(os.cpu_count() or 1, math.ceil(cpus))  # more runners than cores are slow, not wrong
    with _loopback_only():
        ray.init(
            address="local",  # without it Ray joins a cluster that somebody else has started on this machine
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            num_cpus=given,
            object_store_memory=object_store_bytes,
            **quiet,
        )
    _started_with.append(given)


def in_one_line(error: object) -> str:
    r"""Returns the beginning of what Ray says of an error, without its colours and line breaks.

    >>> in_one_line("died \n in \x1b[36mray::Toy\x1b[39m")
    'died in ray::Toy'
    """
    return " ".join(_COLOUR.sub("", str(error)).split())[:200]


@contextmanager
def _loopback_only() -> Iterator[None]:
    """Has Ray listen on 127.0.0.1 only.

    On Linux it takes a loopback address for a mistake, replaces it by the machine's own, and listens on all interfaces;
    unless it is told that there will be no cluster, as it assumes on Windows and macOS.
    """
    from ray._private import ray_constants

    name = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
    before, os.environ[name] = os.environ.get(name), "0"  # for the processes that Ray starts
    is_cluster, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = is_cluster
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _knock(address: str) -> None:
    """Raises OSError where nobody listens: Ray itself would try again for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon:
        socket.create_connection((host, int(port)), timeout=KNOCK_S).close()


@contextmanager
def without_native_messages() -> Iterator[None]:
    """Keeps from standard error what Ray's C++ part writes there; it is in Ray's log files too.

    Where RLlib starts env runners, that is a warning of an object that might be lost: it lives as long as this process.
    """
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _check_resources(workers: Sequence[Workers]) -> None:
    """Ray would wait for what the cluster does not have; one that grows by itself has to have its nodes first."""
    present = ray.cluster_resources()
    wanted = [kind for kind in workers if kind.number]
    for name, each in (("CPU", [kind.cpus for kind in wanted]), ("GPU", [kind.gpus for kind in wanted])):
        needed = sum(kind.number * amount for kind, amount in zip(wanted, each, strict=True))
        if needed > present.get(name, 0.0):
            who = " and ".join(f"{kind.number} {kind.what}" for kind in wanted)
            lower = " or ".join(f"{kind.fewer} or {kind.smaller.format(name.lower())}" for kind in wanted)
            raise ConfigError(
                f"{who} need {needed:g} {name}s, but Ray has {present.get(name, 0.0):g}; lower {lower}, or join a "
                "larger cluster"
            )
