"""A cluster of three nodes on one machine: joined by its address, one node lost, code sent, the same weights."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from ray.cluster_utils import Cluster
from rllib_runs import TOKENS, FakeRun, merged, weights_after

from rlprompt.algorithms.rllib.engine import Engine
from rlprompt.algorithms.rllib.rollouts import modules_of

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


def test_code_that_the_configuration_names_is_sent_to_nodes_that_lack_it(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "their_table.py").write_text("TEMPERATURE = 2.0\n")
    (tmp_path / "their_policy.py").write_text(
        "from rlprompt.policies.lm_adaptor import LMAdaptorPolicy\n"
        "from their_table import TEMPERATURE\n\n\n"
        "class Policy(LMAdaptorPolicy):\n"
        "    temperature = TEMPERATURE\n"
    )
    runners = {"address": cluster.address, "num_env_runners": 1}

    def code_of(runner: Any) -> str:  # sent itself: the nodes lack the tests, too
        policy = next(iter(modules_of(runner).values())).policy
        return str(sys.modules[type(policy).__module__].__file__)

    config = merged(TOKENS, {"ray": runners, "policy": {"kind": "their_policy:Policy"}})
    engine = Engine(FakeRun(config, search_path=tmp_path))  # type: ignore[arg-type]
    found = engine.algorithm.env_runner_group.foreach_env_runner(code_of, local_env_runner=False)
    engine.iterate(0)
    engine.close()
    assert len(found) == 1
    assert found[0].endswith("their_policy.py")
    assert not Path(found[0]).is_relative_to(tmp_path)


def test_learners_get_the_code_and_the_run_keeps_one_scorer(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "their_lm.py").write_text(
        "from rlprompt.policies.causal_lm import CausalLMPolicy\n\n\nclass Policy(CausalLMPolicy):\n    pass\n"
    )
    whole = {
        "target": {"name": "planted:separable", "kwargs": {"length": 3, "vocabulary": 8}},
        "policy": {"kind": "their_lm:Policy", "model": "planted-8", "kwargs": {}},
        "env": {**TOKENS["env"], "action": "sequence"},
        "ray": {"address": cluster.address, "num_learners": 1},
    }
    run = FakeRun(merged(TOKENS, whole), search_path=tmp_path)
    engine = Engine(run)  # type: ignore[arg-type]
    engine.iterate(0)
    spent = run.scorer.ledger.snapshot()["used"]["calls"]
    assert spent > 0  # another scorer, of another spec, would have spent on a ledger of its own
    engine.close()
