"""Measures what an iteration consists of, with the code that runs use: for plan.py."""

from __future__ import annotations

import statistics
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import torch

from experiments.benchmarks.concurrency import measure, server
from experiments.benchmarks.simulation import EPOCHS, Costs, Measured, Setting
from rlprompt.algorithms.rllib.engine import Engine
from rlprompt.algorithms.rllib.rollouts import env_of, weights_of
from rlprompt.config import RunConfig, parse_config
from rlprompt.mailbox import SCORE, Letter, open_mailbox
from rlprompt.policies import build_policy
from rlprompt.scoring import build_scorer
from rlprompt.types import Json

TINY: Json = {
    "policy": {"kind": "categorical", "model": "planted-50"},
    "env": {"prompt_length": 4, "action": "sequence"},
}
SMOLLM2: Json = {
    "policy": {"kind": "causal-lm", "model": "smollm2-135m-instruct", "kwargs": {"lora": {"r": 8, "alpha": 16}}},
    "env": {
        "kind": "rewrite",
        "meta_prompt": "prewrite",
        "draft": "Is this review positive or negative? Answer with one word.",
        "prompt_length": 24,
        "action": "sequence",
    },
}
POLICIES = {"tiny": TINY, "smollm2": SMOLLM2}


class Context:
    """The part of a run that the engine reads."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.scorer = build_scorer(config)
        self.policy = build_policy(config.policy, prompt_length=config.env.prompt_length, seed=config.seed)


def configured(policy: str, url: str, setting: Setting, runners: int) -> RunConfig:
    """Returns a run of so many env runners (0 is one share in this process) with a target behind HTTP."""
    parts = POLICIES[policy]
    sizes = {"num_envs": setting.share * max(runners, 1), "examples_per_step": setting.examples}
    target = {"base_url": url, "choices_by": "parsed", "concurrency": setting.concurrency, "max_attempts": 1}
    return parse_config(
        {
            "name": f"plan-{policy}",
            "task": {"name": "planted", "shots": 32, "dev_shots": 2},
            "target": {"name": "openai:latency", "kwargs": target},
            "policy": parts["policy"],
            "env": {**parts["env"], **sizes},
            "reward": [{"name": "accuracy"}],
            "stabilisers": [{"name": "leave-one-out"}],
            "algorithm": {"name": "ppo", "lr": 1e-4, "epochs": EPOCHS, "minibatch_size": 32, "kl_coeff": 0.05},
            "ray": {"num_env_runners": runners},
        }
    )


def service_times(policy: str, url: str, setting: Setting, call_s: float) -> Measured:
    """Measures the parts of one env runner's share in this process, and what passes between processes.

    Args:
        policy: a name of `POLICIES`.
        url: of the server with a fixed latency.
        setting: sizes.
        call_s: the client's CPU for a call, from `call_seconds`.
    """
    context = Context(configured(policy, url, setting, 0))
    engine = Engine(context)  # type: ignore[arg-type]  # the part of a run that it reads
    engine.iterate(0)  # what is loaded and compiled once
    parts = [_play_and_learn(engine, iteration) for iteration in range(1, setting.iterations + 1)]
    outside = [_bookkeeping(engine, setting.iterations + 1 + index) for index in range(setting.iterations)]
    found = {name: statistics.median(part[name] for part in parts) for name in parts[0]}
    writes = [part["write"] for part in parts]
    weights = _weights(engine)
    put_s, get_s = _passed(weights)
    costs = Costs(
        write_s=found["write"],
        write_cv=statistics.stdev(writes) / statistics.mean(writes) if len(writes) > 1 else 0.0,
        play_s=found["play"],
        get_s=get_s,
        put_s=put_s,
        weights_bytes=_bytes(weights),
        message_s=_message_seconds(engine, setting),
        fetch_s=found["fetch"],
        call_s=call_s,
        score_s=found["score"] / (setting.share * setting.examples),
        learn_s=found["learn"] / setting.share,
        rest_s=max(0.0, statistics.median(outside) - found["outside"]),
    )
    read = int((env_of(engine.algorithm.env_runner).writing.context_ids[0] >= 0).sum())
    engine.close()
    whole = getattr(context.policy, "hf_model", context.policy.head)
    return Measured(costs, sum(part.numel() for part in whole.parameters()), read, context.config.env.prompt_length)


def call_seconds(url: str, setting: Setting, folder: Path) -> float:
    """Returns the client's CPU for one call over HTTP that is written down, as in a run."""
    row = measure(url, setting.concurrency, setting.latency_s, 3, folder)
    return float(row["cpu_ms"]) / 1000


def throughput(policy: str, url: str, setting: Setting, runners: int) -> float:
    """Returns prompts a second of real iterations with so many env runners."""
    context = Context(configured(policy, url, setting, runners))
    engine = Engine(context)  # type: ignore[arg-type]  # the part of a run that it reads
    engine.iterate(0)
    seconds = [engine.iterate(1 + index)[1]["time/iteration_s"] for index in range(setting.iterations)]
    engine.close()
    return setting.share * runners / statistics.median(seconds)


def _play_and_learn(engine: Any, iteration: int) -> dict[str, float]:
    """Plays and learns one iteration with the times of its parts; writing has one thread, as in an env runner."""
    rollouts, learner, scorer = engine.rollouts, engine._learner, env_of(engine.algorithm.env_runner).scorer
    engine.prepare(iteration)
    rollouts.prepare(iteration, weights_of(learner))
    learner.iteration, learner.diagnostics = iteration, {}
    written, answered, learnt = rollouts.seconds, scorer.target_seconds, learner.seconds
    with _one_thread(), _timed(scorer) as scoring:
        started = time.perf_counter()
        episodes = rollouts.play()
        wall = time.perf_counter() - started
    written, answered = rollouts.seconds - written, scorer.target_seconds - answered
    stored = ray.put(episodes)
    started = time.perf_counter()
    ray.get(stored)
    fetched = time.perf_counter() - started
    settings = engine.run.config.algorithm
    started = time.perf_counter()
    engine.algorithm.learner_group.update(
        episodes=episodes, timesteps={}, num_epochs=settings.epochs, minibatch_size=settings.minibatch_size
    )
    update = time.perf_counter() - started
    learner.end_iteration()
    engine.update_policy()
    parts = {"write": written, "play": wall - written - sum(scoring), "score": sum(scoring) - answered}
    outside = parts["play"] + parts["score"] + update - (learner.seconds - learnt)
    return {**parts, "fetch": fetched, "learn": update, "outside": outside}


def _bookkeeping(engine: Any, iteration: int) -> float:
    """Returns the time of a whole iteration outside of policy, target and learner."""
    metrics = engine.iterate(iteration)[1]
    models = sum(metrics[f"time/{name}_s"] for name in ("policy", "target", "learner"))
    return float(metrics["time/iteration_s"] - models)


def _weights(engine: Any) -> dict[str, Any]:
    """What env runners get before an iteration."""
    modules = engine._learner.prompt_modules
    return {name: module.policy.trainable_state() for name, module in modules.items()}


def _bytes(weights: Mapping[str, Mapping[str, torch.Tensor]]) -> int:
    return sum(value.nbytes for module in weights.values() for value in module.values())


def _passed(weights: dict[str, Any], repeats: int = 5) -> tuple[float, float]:
    """Returns the seconds of publishing weights and of unpacking them; medians."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        stored = ray.put(weights)
        put = time.perf_counter()
        ray.get(stored)
        times.append((put - started, time.perf_counter() - put))
    put_s, get_s = (statistics.median(column) for column in zip(*times, strict=True))
    return put_s, get_s


def _message_seconds(engine: Any, setting: Setting, count: int = 256) -> float:
    """Returns the seconds that driver and mailbox take for a letter and its answer, many of them at a time."""
    name = f"plan-{uuid.uuid4().hex}"
    mailbox = open_mailbox(name, engine.run.scorer.task)
    scores = engine.rollouts.scores
    examples = tuple(engine.run.scorer.task.train[: setting.examples])
    texts = tuple(scores.prompts[: setting.share])
    contexts = ("",) * len(texts)
    letters = [Letter(0, index, SCORE, prompts=texts, examples=examples, contexts=contexts) for index in range(count)]

    def send(part: list[Letter]) -> None:
        """Stands for all env runners: puts their letters in, and waits for all answers."""
        box = ray.get_actor(name)
        ray.get([box.ask.remote(letter) for letter in part])

    sender = ray.remote(num_cpus=1)(send)
    rates = []
    for part in (letters[:8], letters, letters):  # the first starts the actors
        sending = sender.remote(part)
        tickets: list[int] = []
        started = 0.0
        while len(tickets) < len(part):
            arrived = ray.get(mailbox.letters.remote())
            started = started or time.perf_counter()
            tickets += [ticket for ticket, _ in arrived]
        ray.get(mailbox.answer.remote(dict.fromkeys(tickets, scores)))
        ray.get(sending)
        rates.append((time.perf_counter() - started) / len(part))
    ray.kill(mailbox)
    return min(rates[1:])


@contextmanager
def _one_thread() -> Iterator[None]:
    """Ray gives an env runner one thread for each of its CPUs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _timed(scorer: Any) -> Iterator[list[float]]:
    """Yields the seconds of all calls of the scorer inside the block."""
    seconds: list[float] = []

    def timed(method: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            try:
                return method(*arguments, **named)
            finally:
                seconds.append(time.perf_counter() - started)

        return call

    for name in ("score", "stabilise"):
        setattr(scorer, name, timed(getattr(scorer, name)))
    try:
        yield seconds
    finally:
        for name in ("score", "stabilise"):
            delattr(scorer, name)


__all__ = ["POLICIES", "call_seconds", "server", "service_times", "throughput"]
