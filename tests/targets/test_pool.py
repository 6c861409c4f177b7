"""A target in several processes: the same answers as in one, also when processes die or hang."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray_sessions import one_ray_with

from rlprompt import restarts
from rlprompt.cluster import RayConfig
from rlprompt.config import TargetConfig, parse_config
from rlprompt.errors import ConfigError, RunError, UnknownNameError
from rlprompt.runs import load_run, train
from rlprompt.targets import load_target, pool, pooled_target, routing
from rlprompt.targets.cache import CachedTarget
from rlprompt.targets.pool import TargetPool
from rlprompt.types import Rendered, TargetRequest

pytestmark = pytest.mark.ray

TWO = {"num_target_replicas": 2}


@pytest.fixture(scope="module", autouse=True)
def one_ray() -> Iterator[None]:
    with one_ray_with(num_target_replicas=4):
        yield


@pytest.fixture
def opened() -> Iterator[Any]:
    pools: list[TargetPool] = []

    def open_pool(name: str = "planted:separable", kwargs: dict[str, Any] | None = None, **settings: Any) -> TargetPool:
        pools.append(TargetPool(TargetConfig(name=name, kwargs=kwargs or {}), RayConfig(**{**TWO, **settings})))
        return pools[-1]

    yield open_pool
    for one in pools:
        one.close()


def questions(count: int) -> list[TargetRequest]:
    texts = [f"w{index % 7:02d} w{index % 11:02d} w{index % 13:02d} input {index % 5}" for index in range(count)]
    return [TargetRequest(Rendered(text=text, split=3), choices=(" no", " yes")) for text in texts]


def test_the_answers_are_those_of_one_process_to_the_bit(opened: Any, one_thread: None) -> None:
    alone, asked = load_target("smollm2-135m-instruct"), questions(48)
    shared = opened("smollm2-135m-instruct")
    assert shared.identity == alone.identity
    assert shared.count_tokens(asked) == alone.count_tokens(asked)
    told: dict[int, Any] = {}
    found = shared.run_streaming(asked, told.__setitem__)
    assert found == alone.run(asked)
    assert [told[index] for index in range(48)] == found
    assert shared.stats()["requests"] == 48
    busy = [ray.get(slot.actor.stats.remote())["requests"] for slot in shared._slots]
    assert min(busy) > 0


def test_a_text_that_was_read_before_is_read_by_the_same_replica(opened: Any) -> None:
    shared, beginning = opened("planted-50"), " ".join(f"w{number:02d}" for number in range(9))
    texts = [f"w{10 + number} {beginning} w01" for number in range(6)]  # six prefixes

    def asked(text: str) -> TargetRequest:
        return TargetRequest(Rendered(text=text, split=38), choices=("w20", "w21"))

    shared.run([asked(text) for text in texts])
    before = shared.stats()
    shared.run([asked(f"{text} w05") for text in texts])
    after = shared.stats()
    assert before["prefix_misses"] == after["prefix_misses"] == 6
    assert after["prefix_hits"] == before["prefix_hits"] + 6


def test_t9_a_killed_replica_is_replaced_and_nothing_is_lost(opened: Any) -> None:
    alone, shared = load_target("planted:separable"), opened()
    expected = alone.run(questions(300))
    assert shared.run(questions(300)) == expected
    for slot in shared._slots:
        os.kill(ray.get(slot.actor.pid.remote()), signal.SIGKILL)
    assert shared.run(questions(300)) == expected
    assert shared.restarts == 2


def test_t9_a_replica_that_is_killed_in_the_middle_of_a_batch_loses_nothing(opened: Any) -> None:
    shared = opened(kwargs={"latency_s": 1.0})
    victim = ray.get(shared._slots[0].actor.pid.remote())
    killer = threading.Timer(0.5, os.kill, (victim, signal.SIGKILL))
    killer.start()
    told: list[int] = []
    found = shared.run_streaming(questions(100), lambda index, output: told.append(index))
    killer.join()
    assert found == load_target("planted:separable").run(questions(100))
    assert sorted(told) == list(range(100))
    assert shared.restarts == 1


def test_batches_that_take_too_long_become_smaller(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "POLL_S", 0.1)
    shared = opened(target_replica_timeout_s=1.5)
    os.kill(ray.get(shared._slots[0].actor.pid.remote()), signal.SIGSTOP)
    shared.run(questions(40))
    assert shared._router.most == routing.MOST // 2


def test_a_replica_that_never_comes_up_ends_the_wait(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "POLL_S", 0.1)
    monkeypatch.setattr(restarts, "COMES_UP_S", 5.0)
    with pytest.raises(RunError, match="a replica of the target is not there after 5 s"):
        opened(num_cpus_per_target_replica=3)  # four are there, which is enough for one of them


def test_paid_targets_are_refused(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "target_prices", lambda target: {})  # as of a plug-in that does not say
    with pytest.raises(ConfigError, match="calls of 'planted:separable' may be paid for"):
        opened()


def test_t9_a_replica_that_hangs_is_replaced(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "POLL_S", 0.1)
    shared = opened(target_replica_timeout_s=1.0)
    stopped = ray.get(shared._slots[0].actor.pid.remote())
    os.kill(stopped, signal.SIGSTOP)
    try:
        assert shared.run(questions(300)) == load_target("planted:separable").run(questions(300))
    finally:
        os.kill(stopped, signal.SIGKILL)
    assert shared.restarts >= 1


def test_t9_no_crash_loop(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restarts, "LONGEST_PAUSE_S", 0.0)
    shared = opened(max_num_target_replica_restarts=2)

    def lose_and_ask() -> None:
        for _ in range(50):
            for slot in shared._slots:
                if slot.is_idle:
                    ray.kill(slot.actor)
            shared.run(questions(4))
            time.sleep(0.1)

    with pytest.raises(RunError, match=r"lost 3 times \(ray.max_num_target_replica_restarts is 2\).*resume"):
        lose_and_ask()


def test_errors_of_the_target_are_told_as_in_one_process(opened: Any, one_thread: None) -> None:
    with pytest.raises(ConfigError, match="no-such-model"):
        opened("no-such-model")
    with pytest.raises(UnknownNameError, match="unknown argument of target 'planted' 'nois'; did you mean 'noise'"):
        opened(kwargs={"nois": 1})
    shared = opened("planted-50")
    asked = [TargetRequest(Rendered(text="w01"), choices=())]
    with pytest.raises(ConfigError, match="names none") as told:
        shared.run(asked)
    with pytest.raises(ConfigError) as expected:
        load_target("planted-50").run(asked)
    assert str(told.value) == str(expected.value)
    good = [TargetRequest(Rendered(text="w01"), choices=("w20", "w21"))]
    assert shared.run(good) == load_target("planted-50").run(good)  # it can still be asked


def test_the_cache_is_in_the_process_that_asks(tmp_path: Path) -> None:
    config = TargetConfig(name="planted:separable", cache="on", kwargs={"cache_path": str(tmp_path / "answers.sqlite")})
    target = pooled_target(config, RayConfig(**TWO))
    assert isinstance(target, CachedTarget)
    first, second = target.run(questions(40)), target.run(questions(40))
    target.target.close()  # type: ignore[attr-defined]
    assert not first[0].cached
    assert all(output.cached for output in second)
    assert [output.choice_logprobs for output in first] == [output.choice_logprobs for output in second]


def test_a_run_is_the_same_with_replicas(tmp_path: Path) -> None:
    def result(folder: str, **settings: Any) -> list[Any]:
        config = parse_config(
            {
                "seed": 3,
                "task": {"name": "planted", "shots": 4, "dev_shots": 4},
                "target": {"name": "planted:separable", "kwargs": {"noise": 0.1}},
                "policy": {"kind": "categorical", "model": "planted-50"},
                "env": {"prompt_length": 3, "num_envs": 16},
                "algorithm": {"name": "random", "iterations": 3},
                "run": {"dir": str(tmp_path / folder), "tensorboard": False},
                "ray": settings,
            }
        )
        ended = train(config, progress=False)
        prompts = load_run(ended.folder).prompts()
        return [ended.best_prompt, ended.dev_accuracy, ended.target_calls, prompts]

    alone, shared = result("alone"), result("shared", **TWO)
    assert shared[:3] == alone[:3]
    assert repr(shared[3]) == repr(alone[3])  # NaN is not equal to itself


def test_replicas_of_a_target_behind_a_server_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"num_target_replicas is 2, but 'openai:m' computes in its own server"):
        parse_config({"target": {"name": "openai:m", "kwargs": {"base_url": "http://localhost:1"}}, "ray": TWO})
