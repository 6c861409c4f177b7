"""Several env runners: the same prompts, spending and weights as one process, also when runners are lost."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from ray_sessions import one_ray_with
from rllib_runs import TOKENS, FakeRun, found_by, merged, weights_after

from rlprompt.algorithms.rllib import rollouts
from rlprompt.algorithms.rllib.engine import Engine
from rlprompt.cluster import RayConfig
from rlprompt.config import RunConfig
from rlprompt.errors import ConfigError, RunError
from rlprompt.mailbox import STABILISE
from rlprompt.ray_session import start_ray

pytestmark = pytest.mark.ray


def make_config(**overrides: Any) -> RunConfig:
    whole = {"reward": [{"name": "log-probability"}], "stabilisers": [{"name": "leave-one-out"}]}
    env = {**TOKENS["env"], "action": "sequence"}
    return merged({**TOKENS, **whole, "env": env, "algorithm": {**TOKENS["algorithm"], "iterations": 3}}, overrides)


@pytest.fixture(scope="module", autouse=True)
def one_ray() -> Iterator[None]:
    with one_ray_with(num_env_runners=4):
        yield


TOKEN_WISE = {"baseline": "critic", "kl_coeff": 0.1, "kl_in": "reward", "nlpo_top_p": 0.9, "nlpo_every": 2}
GAME = {"kind": "multi", "prompt_length": 5, "agents": [{"name": "a", "length": 2}, {"name": "b", "length": 1}]}
REWRITES = {
    "kind": "rewrite",
    "level": "instance",
    "meta_prompt": "w01 {input} {feedback}",
    "turns": 2,  # runners may need different numbers of them
    "chat": False,
    "rewrites_per_input": 8,  # the two runners share an input
}
WHOLE_LM = {
    "task": {"shots": 8},
    "target": {"name": "planted:separable", "kwargs": {"length": 3, "vocabulary": 8}},
    "policy": {"kind": "causal-lm", "model": "planted-8", "kwargs": {}},
    "env": REWRITES,
}


@pytest.mark.parametrize(
    ("overrides", "counts"),
    [
        ({}, (1, 4)),
        ({"env": {"action": "token"}, "algorithm": TOKEN_WISE}, (2,)),
        ({"env": GAME}, (2,)),
        (WHOLE_LM, (2,)),
        ({"budget": {"max_target_calls": 150}}, (2,)),
    ],
    ids=["plain", "token-wise", "game", "whole-lm", "budget"],
)
def test_t5_the_number_of_env_runners_changes_nothing(
    overrides: dict[str, Any], counts: tuple[int, ...], tmp_path: Path
) -> None:
    alone = found_by(make_config(**overrides), tmp_path / "alone")
    for count in counts:
        several = found_by(make_config(**overrides, ray={"num_env_runners": count}), tmp_path / str(count))
        for one, other in zip(alone, several, strict=True):
            assert one == other


def runner_actors(engine: Engine) -> list[Any]:
    return list(engine.algorithm.env_runner_group._worker_manager.actors().values())


def test_t9_an_env_runner_that_is_killed_comes_back_with_the_weights_of_now_and_nothing_is_asked_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    statistics = [{"name": "running-normalisation"}]  # a lost attempt must not move them
    calm = Engine(FakeRun(make_config(stabilisers=statistics)))  # type: ignore[arg-type]
    expected, calls = weights_after(calm, range(4)), calm.run.scorer.ledger.snapshot()["used"]["calls"]
    calm.close()
    run = FakeRun(make_config(stabilisers=statistics, ray={"num_env_runners": 2}))
    engine = Engine(run)  # type: ignore[arg-type]
    asked: list[int] = []
    ask = run.scorer.target.run
    monkeypatch.setattr(run.scorer.target, "run", lambda requests: asked.append(len(requests)) or ask(requests))
    engine.iterate(0)
    ray.kill(runner_actors(engine)[1], no_restart=False)  # between two iterations
    engine.iterate(1)
    answer = rollouts.answer_letters

    def answered_too_late(scorer: Any, letters: Any) -> Any:
        """In the middle of an iteration: a runner dies while the rewards of its prompts are stabilised."""
        answers = answer(scorer, letters)
        if all(letter.kind == STABILISE for letter in letters.values()):
            monkeypatch.setattr(rollouts, "answer_letters", answer)
            ray.kill(runner_actors(engine)[0], no_restart=False)
        return answers

    monkeypatch.setattr(rollouts, "answer_letters", answered_too_late)
    found = weights_after(engine, range(2, 3))
    ray.kill(engine.rollouts._mailbox, no_restart=False)  # type: ignore[attr-defined]
    found = weights_after(engine, range(3, 4))
    assert engine.rollouts.restarts >= 3  # type: ignore[attr-defined]
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert sum(asked) == run.scorer.ledger.snapshot()["used"]["calls"] == calls
    engine.close()


def test_t9_runners_that_are_lost_too_often_end_the_run_with_one_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    engine = Engine(FakeRun(make_config(ray={"num_env_runners": 2, "max_num_env_runner_restarts": 0})))  # type: ignore[arg-type]
    engine.iterate(0)
    ray.kill(runner_actors(engine)[0], no_restart=False)
    with pytest.raises(RunError, match=r"env runners were lost 1 times .*max_num_env_runner_restarts is 0.*resume"):
        engine.iterate(1)
    engine.close()
    assert "actor_manager" not in capfd.readouterr().err  # RLlib's own words about it


def test_an_error_of_scoring_reaches_the_run_and_joint_rewards_follow_in_the_order_of_the_episodes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = FakeRun(make_config(ray={"num_env_runners": 2}))
    engine = Engine(run)  # type: ignore[arg-type]
    score = run.scorer.score

    def refused(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(run.scorer, "score", score)
        raise RunError("no answer today")

    monkeypatch.setattr(run.scorer, "score", refused)
    with pytest.raises(RunError, match="no answer today"):
        engine.iterate(0)
    scores, _ = engine.iterate(0)
    rewards = engine.training_rewards
    assert scores is not None
    assert rewards is not None
    raw = scores.mean_rewards
    others = (raw.sum() - raw) / 7  # leave-one-out, over the eight prompts of both runners
    np.testing.assert_allclose(rewards, raw - others, atol=1e-12)
    engine.close()


def test_an_error_in_an_environment_is_the_users_not_rllibs(monkeypatch: pytest.MonkeyPatch) -> None:
    run = FakeRun(make_config())
    engine = Engine(run)  # type: ignore[arg-type]

    def refused(*args: Any, **kwargs: Any) -> Any:
        raise RunError("the scorer is closed")

    monkeypatch.setattr(run.scorer, "score", refused)
    with pytest.raises(RunError, match="the scorer is closed"):
        engine.iterate(0)
    engine.close()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"ray": {"num_env_runners": 3}}, r"env.num_envs is 8, which 3 env runners cannot share equally"),
        ({"ray": {"num_env_runners": 2}, "algorithm": {"name": "random"}}, r"'random' writes in one process"),
        ({"ray": {"address": "somewhere"}}, r"ray.address: it must be local, auto, ray://HOST:PORT"),
        ({"ray": {"num_workers": 2}}, r"unknown key 'ray.num_workers'"),
    ],
)
def test_workers_that_do_not_fit_are_refused(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(**section)


def test_more_cpus_than_the_connected_ray_has_are_refused_and_no_cluster_is_told_of() -> None:
    present = ray.cluster_resources().get("GPU", 0)
    with pytest.raises(
        ConfigError,
        match=rf"4 env runners need {4 * (present + 1):g} GPUs, but Ray has {present:g}",
    ):
        start_ray(RayConfig(num_env_runners=4, num_gpus_per_env_runner=present + 1))
    ray.shutdown()
    try:
        with pytest.raises(ConfigError, match=r"no Ray cluster at ray.address=127.0.0.1:1: "):
            start_ray(RayConfig(address="127.0.0.1:1"))
    finally:
        start_ray(RayConfig(num_env_runners=4))
