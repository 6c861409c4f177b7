"""Several learners: the same gradients, weights and prompts as one process, also when learners are lost."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray_sessions import one_ray_with
from rllib_runs import TOKENS, FakeRun, found_by, merged, weights_after

from rlprompt.algorithms import chunks
from rlprompt.algorithms.rllib.engine import Engine
from rlprompt.algorithms.rllib.remote_learners import gradient_chunks
from rlprompt.config import RunConfig
from rlprompt.errors import ConfigError

pytestmark = pytest.mark.ray

WHOLE_LM = {
    "target": {"name": "planted:separable", "kwargs": {"length": 3, "vocabulary": 8}},
    "policy": {"kind": "causal-lm", "model": "planted-8", "kwargs": {}},
    "env": {**TOKENS["env"], "action": "sequence"},
}


def make_config(**overrides: Any) -> RunConfig:
    return merged({**TOKENS, **WHOLE_LM}, overrides)


@pytest.fixture(scope="module", autouse=True)
def one_ray() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as many as a learner of one CPU has: sums that are cut in two round differently
    with one_ray_with(num_env_runners=2, num_learners=3):
        yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of two or three rows each."""
    monkeypatch.setattr(chunks, "TOKENS_WITH_GRADIENT", 8)


GAME = {"kind": "multi", "prompt_length": 5, "agents": [{"name": "a", "length": 2}, {"name": "b", "length": 1}]}
ALL_OF_PPO = {"baseline": "critic", "kl_coeff": 0.1, "kl_in": "loss", "minibatch_size": 5, "entropy_coeff": 0.01}
ASYNC = {"algorithm": {"mode": "async", "kl_coeff": 0.1, "kl_target": 0.05, "kl_in": "reward"}}


@pytest.mark.parametrize(
    ("overrides", "workers"),
    [
        ({"algorithm": ALL_OF_PPO}, {"num_learners": 3}),
        ({"env": GAME, "algorithm": {"baseline": "critic"}}, {"num_learners": 2}),
        (ASYNC, {"num_learners": 2, "num_env_runners": 2}),
    ],
    ids=["ppo", "game", "async-with-env-runners"],
)
def test_t5_the_number_of_learners_changes_nothing(
    overrides: dict[str, Any], workers: dict[str, int], tmp_path: Path
) -> None:
    alone = found_by(make_config(**overrides), tmp_path / "alone")
    several = found_by(make_config(**overrides, ray=workers), tmp_path / "several")
    for found, expected in zip(several, alone, strict=True):
        assert found == expected


def test_chunks_are_the_whole_minibatch_and_their_shares_are_one() -> None:
    written = torch.tensor([[1, 2, -1], [3, 4, 5], [6, -1, -1], [1, 1, 1], [2, 2, -1]])
    batch = {
        "tokens": written,
        "context": torch.zeros((5, 1), dtype=torch.int64),
        "mask": (written >= 0).float(),
        "advantages": torch.arange(15.0).reshape(5, 3),
    }
    found = gradient_chunks(batch, 8)
    assert len(found) > 1
    assert [row for chunk in found for row in chunk.columns["advantages"][:, 0].tolist()] == [0.0, 3.0, 6.0, 9.0, 12.0]
    assert [float(chunk.of_tokens) for chunk in found] == pytest.approx(
        [float(chunk.columns["mask"].sum()) / 11 for chunk in found]
    )
    assert sum(float(chunk.of_rows) for chunk in found) == pytest.approx(1)
    assert sum(float(chunk.of_tokens) for chunk in found) == pytest.approx(1)


def test_t9_a_learner_that_is_killed_is_replaced_and_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    calm = Engine(FakeRun(make_config()))  # type: ignore[arg-type]
    expected = weights_after(calm, range(4))
    calm.close()
    engine = Engine(FakeRun(make_config(ray={"num_learners": 2})))  # type: ignore[arg-type]
    remote = engine._learner.remote
    assert remote is not None
    engine.iterate(0)
    ray.kill(remote.actors[1])  # between two iterations
    engine.iterate(1)
    answer = remote._answer

    def killed_first(place: int, *rest: Any) -> Any:  # in the middle of an update
        if place == 0:
            monkeypatch.setattr(remote, "_answer", answer)
            ray.kill(remote.actors[0])
        return answer(place, *rest)

    monkeypatch.setattr(remote, "_answer", killed_first)
    found = weights_after(engine, range(2, 4))
    assert 1 <= remote.restarts <= 2  # the second one may have answered before it was killed
    engine.close()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"algorithm": {"name": "sql"}}, "num_learners is 2, but 'sql' learns in one process"),
        ({"algorithm": {"name": "random"}}, "expert-iteration can use several.; set it to 0"),
    ],
    ids=["sql", "random"],
)
def test_what_learns_in_one_process_says_so(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(**overrides, ray={"num_learners": 2})


def test_a_head_is_no_work_to_share() -> None:
    config = merged(TOKENS, {"ray": {"num_learners": 2}})
    with pytest.raises(ConfigError, match="only heads on frozen LMs are trained, which is no work to share; set"):
        Engine(FakeRun(config))  # type: ignore[arg-type]
