"""The connection to Ray: one that starts on this machine, or a cluster that is there."""

from __future__ import annotations

import logging
import math
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from rlprompt.cluster import RayConfig
from rlprompt.errors import ConfigError

OBJECT_STORE_BYTES = 256 * 2**20
"""Where everything runs in one process; Ray's default would reserve a third of the memory."""
KNOCK_S = 5.0

_started_with: list[float] = []
"""CPUs of the Ray that this process started; empty where it started none."""


def start_ray(settings: RayConfig) -> None:
    """Joins the cluster that the settings name, or starts Ray on this machine only (loopback, no dashboard).

    A process that is connected already stays so. What it has started itself, and is now too small, is started again.

    Raises:
        ConfigError: there is no cluster at the address, or the connected one has too few CPUs or GPUs.
    """
    silence()
    cpus = settings.num_env_runners * settings.num_cpus_per_env_runner
    if ray.is_initialized() and _started_with and cpus > _started_with[0]:
        ray.shutdown()
    if not ray.is_initialized():
        _started_with.clear()
        _connect(settings, cpus)
    _check_resources(settings, cpus)


def silence() -> None:
    """Keeps Ray and RLlib from logging: what fails is raised, and reported once, by us. RLlib's algorithms undo it."""
    for name in ("ray", "ray.rllib", "ray.tune"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _connect(settings: RayConfig, cpus: float) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if settings.address != "local":
        try:
            _knock(settings.address)
            ray.init(address=settings.address, **quiet)
        except (OSError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"no Ray cluster at ray.address={settings.address}: {' '.join(str(error).split())[:160]}; start one "
                "with 'ray start --head', or use ray.address=local"
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
            object_store_memory=None if settings.num_env_runners else OBJECT_STORE_BYTES,
            **quiet,
        )
    _started_with.append(given)


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


def _check_resources(settings: RayConfig, cpus: float) -> None:
    """RLlib would wait for what the cluster does not have; one that grows by itself has to have its nodes first."""
    gpus = settings.num_env_runners * settings.num_gpus_per_env_runner
    present = ray.cluster_resources()
    for name, needed in (("CPU", cpus), ("GPU", gpus)):
        if needed > present.get(name, 0.0):
            raise ConfigError(
                f"{settings.num_env_runners} env runners need {needed:g} {name}s, but Ray has "
                f"{present.get(name, 0.0):g}; lower ray.num_env_runners or ray.num_{name.lower()}s_per_env_runner, or "
                "join a larger cluster"
            )
