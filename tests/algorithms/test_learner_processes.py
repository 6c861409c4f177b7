"""Processes of learners: asked at once, replaced where they are lost, and not for ever."""

import os
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import ray
from ray.exceptions import RayTaskError
from ray_sessions import one_ray_with

from rlprompt import restarts
from rlprompt.algorithms.learner_processes import LearnerProcesses, check_learners, shared_out
from rlprompt.cluster import RayConfig
from rlprompt.config import parse_config
from rlprompt.errors import ConfigError, RunError

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", autouse=True)
def one_ray() -> Iterator[None]:
    with one_ray_with(num_learners=3):
        yield


class Toys(LearnerProcesses):
    """Actors that are there at once; one that takes another's place may need other CPUs."""

    def __init__(self, answer: Callable[..., Any], *, later_cpus: int = 1, **settings: Any) -> None:
        self._toy = type("Toy", (), {"answer": answer, "__module__": "__main__"})  # sent by value
        self._later_cpus = later_cpus
        super().__init__(RayConfig(**{"num_learners": 1, **settings}))

    def _start(self) -> Any:
        return ray.remote(self._toy).options(num_cpus=self._later_cpus if self.restarts else 1).remote()


def asked(toys: Toys, numbers: list[int]) -> list[Any]:
    try:
        return list(toys.ask("answer", [(number,) for number in numbers]))
    finally:
        toys.close()


def dies(toy: Any, number: int) -> None:
    os._exit(1)


def test_answers_come_in_the_order_of_the_questions() -> None:
    assert asked(Toys(lambda toy, number: number**2, num_learners=3), [3, 1, 2]) == [9, 1, 4]


@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (3, [1, 1, 1]), (4, [2, 2]), (7, [3, 3, 1])])
def test_no_learner_gets_an_empty_share(count: int, sizes: list[int]) -> None:
    shares = shared_out(list(range(count)), 3)
    assert [len(share) for share in shares] == sizes
    assert [piece for share in shares for piece in share] == list(range(count))


def test_t9_a_lost_learner_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[int] = []
    monkeypatch.setattr(restarts, "pause_before", lambda losses: pauses.append(losses) or 0.0)
    toys = Toys(lambda toy, number: number**2, num_learners=2)
    ray.kill(toys.actors[1])
    assert asked(toys, [3, 4]) == [9, 16]
    assert toys.restarts == 1
    assert pauses == [1]


def test_t9_learners_that_are_lost_too_often_end_the_run_with_one_sentence() -> None:
    with pytest.raises(RunError, match=r"lost 1 times \(ray\.max_num_learner_restarts is 0\).*then resume"):
        asked(Toys(dies, max_num_learner_restarts=0), [1])


def test_t9_a_learner_that_always_dies_is_no_crash_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    losses: list[int] = []
    monkeypatch.setattr(restarts, "MOST_IN_A_ROW", 3)
    monkeypatch.setattr(restarts, "pause_before", lambda lost: losses.append(lost) or 0.0)
    with pytest.raises(RunError, match=r"lost 3 times in a row without an answer \([^\x1b]*\).*then resume"):
        asked(Toys(dies), [1])
    assert losses == [1, 2]


def test_t9_a_cluster_without_room_for_a_lost_learner_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restarts, "COMES_UP_S", 1.0)
    with pytest.raises(RunError, match=r"did not come back within 1 s; .* ray\.num_learners needs, then resume"):
        asked(Toys(dies, later_cpus=1000), [1])


def test_an_error_of_a_learner_is_the_runs_error() -> None:
    toys = Toys(lambda toy, number: {}["unknown"])
    with pytest.raises(RayTaskError, match="KeyError: 'unknown'"):
        asked(toys, [1])
    assert toys.restarts == 0  # it would fail again


def test_one_whole_lm_beside_a_head_is_work_to_share() -> None:
    config = parse_config({"ray": {"num_learners": 2}, "algorithm": {"name": "ppo"}})
    head, whole = (types.SimpleNamespace(frozen_features=frozen) for frozen in (True, False))
    check_learners(config, [head, whole])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="only heads on frozen LMs are trained, which is no work to share; set it to"):
        check_learners(config, [head])  # type: ignore[list-item]
