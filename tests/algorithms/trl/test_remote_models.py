"""Learners under TRL's trainers: the same events and weights as in one process, also when one of them is lost."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray_sessions import one_ray_with
from toy import ToyRun, assert_same, make_config, write_lines

from rlprompt.algorithms import chunks
from rlprompt.algorithms.learner_processes import LearnerProcesses
from rlprompt.algorithms.trl.remote_models import RemoteModel, RemoteModels
from rlprompt.errors import ConfigError
from rlprompt.registry import resolve

LM = {"kind": "causal-lm", "kwargs": {"lora": {"r": 2, "targets": ["c_attn"]}}}
PAIRS = [
    {"id": str(row), "context": context, "chosen": "w01 w02", "rejected": rejected, "margin": 0.5 + row}
    for row, (context, rejected) in enumerate([("w00", "w00 w00"), ("w01 w02", "w02 w01"), ("w02 w00 w01", "w00")])
]
RANKED = [{"id": "0", "context": "w00", "texts": ["w01 w02", "w00 w00", "w02"], "scores": [0.1, 0.9, 0.5]}]
SFT = [{"context": "w00 w01 w02", "target": "w01 w02"}, {"context": "w00", "target": "w01"}]
CASES: dict[str, tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]] = {
    "grpo": ({"name": "grpo", "kl_coeff": 0.1, "kl_in": "loss", "entropy_coeff": 0.01}, {}),
    "rloo": ({"name": "rloo", "kl_coeff": 0.1}, {}),
    "sft": ({"name": "sft", "minibatch_size": 4}, {"pairs": SFT}),
    "dpo": ({"name": "dpo", "minibatch_size": 3, "pair_weights": "gap"}, {"pairs": PAIRS, "val": PAIRS}),
    "rrhf": ({"name": "rrhf", "minibatch_size": 2}, {"ranked": RANKED}),
    "online-dpo": ({"name": "online-dpo"}, {}),
    "expert-iteration": ({"name": "expert-iteration"}, {}),
}


def value(prompt: str) -> float:
    return float(prompt.count("w01"))


def make_run(case: str, folder: Path, **workers: Any) -> ToyRun:
    algorithm, files = CASES[case]
    data = {name: write_lines(folder / f"{name}.jsonl", rows) for name, rows in files.items()}
    settings = {**algorithm, "iterations": 3, "lr": 0.05}
    config = make_config(algorithm=settings, policy=LM, ray=workers)
    run = ToyRun(config, value, folder=folder, data=data or None)
    run.scorer.spec = {"code": {"allow_modules": [], "search_path": None}}  # type: ignore[attr-defined]
    return run


def fit(run: ToyRun) -> ToyRun:
    resolve("algorithms", run.config.algorithm.name)(run)
    return run


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of two or three rows each."""
    monkeypatch.setattr(chunks, "TOKENS_WITH_GRADIENT", 8)
    monkeypatch.setattr(chunks, "TOKENS_WITHOUT_GRADIENT", 8)


@pytest.mark.parametrize("case", CASES)
def test_t5_copies_of_the_policy_change_nothing(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copies are in this process here, so that all algorithms can be compared in little time."""
    alone = fit(make_run(case, tmp_path))
    asked: list[str] = []

    class Copies(RemoteModels):
        def _start(self) -> Any:
            return RemoteModel(ray.get(self._recipe), self.threads)

        def ask(self, method: str, orders: Any) -> Iterator[Any]:
            for actor, (of, weights, *rest) in zip(self.actors, orders, strict=False):
                asked.append(method)
                yield getattr(actor, method)(of, ray.get(weights), *rest)

        def close(self) -> None:
            pass

    monkeypatch.setattr("rlprompt.algorithms.trl.rollout.RemoteModels", Copies)
    monkeypatch.setattr("rlprompt.algorithms.trl.rollout.join_ray", lambda run: None)
    monkeypatch.setattr(ray, "put", lambda value: value)
    monkeypatch.setattr(ray, "get", lambda value: value)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    several = fit(make_run(case, tmp_path, num_learners=3))
    torch.set_num_threads(threads)
    assert_same(alone, several)
    assert asked.count("gradients") >= 6  # three steps, of two learners or more


def test_learners_are_refused_where_there_is_no_work_for_them(tmp_path: Path) -> None:
    config = make_config(algorithm={"name": "grpo"}, ray={"num_learners": 2})
    with pytest.raises(ConfigError, match="only heads on frozen LMs are trained"):
        fit(ToyRun(config, folder=tmp_path))
    on_gpu = make_config(algorithm={"name": "grpo"}, policy=LM, ray={"num_learners": 2}).model_copy()
    run = ToyRun(on_gpu, folder=tmp_path)
    run.config = on_gpu.model_copy(update={"policy": on_gpu.policy.model_copy(update={"device": "cuda"})})
    with pytest.raises(ConfigError, match=r"policy.device is cuda, but .* use policy.device=cpu, or"):
        fit(run)


@pytest.mark.ray
def test_t9_a_learner_that_is_killed_between_its_two_passes_is_replaced_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as many as a learner of one CPU has: sums that are cut in two round differently
    alone = fit(make_run("grpo", tmp_path))
    ask, killed = LearnerProcesses.ask, []

    def killing(self: RemoteModels, method: str, orders: Any) -> Iterator[Any]:
        if method == "gradients" and not killed:  # its graphs are gone
            killed.append(self)
            ray.kill(self.actors[1])
        return ask(self, method, orders)

    monkeypatch.setattr(LearnerProcesses, "ask", killing)
    with one_ray_with(num_learners=2):
        several = fit(make_run("grpo", tmp_path, num_learners=2))
    torch.set_num_threads(threads)
    assert killed[0].restarts == 1
    assert_same(alone, several)
