"""A cluster of three nodes on one machine: joined by its address, one node lost, the same weights."""

from collections.abc import Iterator

import numpy as np
import pytest
import ray
import torch
from ray.cluster_utils import Cluster
from rllib_runs import TOKENS, FakeRun, merged, weights_after

from rlprompt.algorithms.rllib.engine import Engine

pytestmark = pytest.mark.ray
STORE_BYTES = 80 * 2**20
"""Of each node; Ray wants at least 75 MB."""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head without CPUs to give away, and two nodes with one each."""
    ray.shutdown()
    store = {"object_store_memory": STORE_BYTES}
    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **store})
    for _ in range(2):
        started.add_node(num_cpus=1, **store)
    started.wait_for_nodes()
    yield started
    ray.shutdown()
    started.shutdown()


def test_t9_a_run_joins_a_cluster_and_survives_a_full_object_store_and_the_loss_of_a_node(cluster: Cluster) -> None:
    runners = {"address": cluster.address, "num_env_runners": 2}
    engine = Engine(FakeRun(merged(TOKENS, {"ray": runners})))  # type: ignore[arg-type]
    assert len(ray.nodes()) == 3
    held = [ray.put(np.zeros(STORE_BYTES // 4, dtype=np.uint8)) for _ in range(6)]  # one and a half times what fits
    engine.iterate(0)
    own = ray.get_runtime_context().get_node_id()  # they all have one address: the driver may be on any
    lost = next(node for node in cluster.worker_nodes if node.node_id != own)
    cluster.remove_node(lost, allow_graceful=False)
    cluster.add_node(num_cpus=1)
    found = weights_after(engine, range(1, 4))
    assert engine.rollouts.restarts >= 1  # type: ignore[attr-defined]
    engine.close()
    assert len(held) == 6
    ray.shutdown()
    calm = Engine(FakeRun(merged(TOKENS, {})))  # type: ignore[arg-type]
    expected = weights_after(calm, range(4))
    calm.close()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
