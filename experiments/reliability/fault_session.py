"""One process of the soak of faults: trains or resumes a run, and breaks something of its Ray at a given moment.

Command: python experiments/reliability/fault_session.py PLAN    (started by faults.py; PLAN is a JSON object)
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# The checkout replaces this script's folder on the path.
sys.path[0] = str(Path(__file__).resolve().parents[2])

STORE_BYTES = 80 * 2**20
"""Of each node of a cluster; Ray wants at least 75 MB."""
CLASSES = {"runner": "EnvRunner", "mailbox": "Mailbox"}
"""Fault -> what the class of the actor that is killed is called, or ends with."""
POLL_S = 0.05
PATIENCE, PATIENCE_S = "RAY_gcs_rpc_server_reconnect_timeout_s", 3
"""Seconds after which Ray gives a lost head up; it waits for a minute by itself."""


def iterations_of(runs: Path) -> int:
    """Returns how many iterations the run below a folder has recorded."""
    return sum(path.read_bytes().count(b'"event": "iteration"') for path in runs.glob("*/*/events.jsonl"))


def wait_for(runs: Path, iteration: int, delay_s: float) -> None:
    """Waits until so many iterations are recorded, and then a little longer."""
    while iterations_of(runs) < iteration:
        time.sleep(POLL_S)
    time.sleep(delay_s)


@contextmanager
def cluster_for(fault: str) -> Iterator[Any]:
    """Starts what the fault is injected into; yields the cluster, or None where the run starts Ray by itself."""
    if fault not in (*CLASSES, "node", "head", "store"):
        yield None
        return
    from ray.cluster_utils import Cluster

    nodes = 3 if fault == "node" else 0  # one to spare: Ray starts nodes from the main thread only
    head = {"num_cpus": 0 if nodes else 2, "include_dashboard": False, "object_store_memory": STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(nodes):
        cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
    cluster.wait_for_nodes()
    try:
        yield cluster
    finally:
        import ray

        ray.shutdown()
        cluster.shutdown()


def inject(fault: str, cluster: Any, seed: int) -> Any:
    """Breaks something; returns what has to be kept so that it stays broken."""
    import numpy as np
    import ray

    if fault == "head":  # without its directory of everything, Ray ends all processes that have joined it
        cluster.head_node.kill_gcs_server(check_alive=False)
        return None
    if fault == "store":
        return [ray.put(np.zeros(STORE_BYTES // 4, dtype=np.uint8)) for _ in range(6)]
    from ray._private.state import actors

    wanted = CLASSES[fault if fault in CLASSES else "runner"]
    alive = [actor for actor in actors().values() if actor["State"] == "ALIVE"]
    found = sorted((actor for actor in alive if actor["ActorClassName"].endswith(wanted)), key=lambda one: one["Pid"])
    if fault != "node":
        os.kill(int(random.Random(seed).choice(found)["Pid"]), signal.SIGKILL)
        return None
    own = ray.get_runtime_context().get_node_id()  # all nodes have one address: the driver may be on any
    used = {actor["Address"]["NodeID"] for actor in found} - {own}
    nodes = [node for node in cluster.worker_nodes if node.node_id in used]
    cluster.remove_node(random.Random(seed).choice(nodes), allow_graceful=False)
    return None


def main() -> int:
    """Trains, with the fault; returns the exit code of `rlprompt train`."""
    from rlprompt.cli.main import main as rlprompt

    plan = json.loads(sys.argv[1])
    if plan["fault"] == "head":
        os.environ[PATIENCE] = str(PATIENCE_S)
    fault, runs = plan["fault"], Path(plan["runs"])
    kept: list[Any] = []
    with cluster_for(fault) as cluster:

        def work() -> None:
            wait_for(runs, plan["iteration"], plan["delay_s"])
            kept.append(inject(fault, cluster, plan["seed"]))
            Path(plan["injected"]).write_text(fault, encoding="utf-8")

        if cluster is not None and not Path(plan["injected"]).exists():
            threading.Thread(target=work, daemon=True).start()
        before = sorted(runs.glob("*/*"))
        address = "local" if cluster is None else cluster.address
        resume = ["--resume", str(before[0])] if before else []
        return rlprompt(["train", plan["config"], f"ray.address={address}", "--quiet", *resume])


if __name__ == "__main__":
    raise SystemExit(main())
