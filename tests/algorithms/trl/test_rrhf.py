"""RRHF: the gradient by hand, no model beside the policy, what is learnt, and exact resume."""

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy import ToyRun, assert_same, make_config, resumed, write_lines

from rlprompt.algorithms.trl.rrhf import fit
from rlprompt.errors import ConfigError

RANKINGS = [
    {"id": "0", "context": "w00", "texts": ["w01 w02", "w00 w00", "w02"], "scores": [0.1, 0.9, 0.5]},
    {"id": "1", "context": "w00", "texts": ["w01", "w00 w01"], "scores": [3, 2]},
]
LM = {"kind": "causal-lm", "kwargs": {"lora": {"r": 4, "targets": ["c_attn", "c_fc"]}}}
TABLE = torch.tensor([[0.5, -0.25, 0.0, 0.0], [-1.0, 0.25, 0.5, 0.0]])  # the fourth token is EOS: never written


def make_run(folder: Path, rows: list[dict[str, Any]], algorithm: dict[str, Any] | None = None, **more: Any) -> ToyRun:
    data = {"ranked": write_lines(folder / "ranked.jsonl", rows), **more.pop("data", {})}
    settings = {"name": "rrhf", "minibatch_size": 2, "iterations": 1, **(algorithm or {})}
    return ToyRun(make_config(algorithm=settings, **more), folder=folder, data=data)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.5, 2.0)])
def test_loss_and_gradient_by_hand(tmp_path: Path, weights: tuple[float, float]) -> None:
    run = make_run(
        tmp_path, [{**row, "weight": w} for row, w in zip(RANKINGS, weights, strict=True)], {"rank_weight": 3}
    )
    with torch.no_grad():
        run.policy.head.table.copy_(TABLE)
    fit(run)  # type: ignore[arg-type]
    table = TABLE[:, :3].double().requires_grad_()
    places = torch.log_softmax(table, dim=-1)

    def logp(text: str) -> torch.Tensor:
        return torch.stack([places[at, int(word[1:])] for at, word in enumerate(text.split())]).sum()

    total: Any = 0.0
    for row, weight in zip(RANKINGS, weights, strict=True):
        texts: Any = row["texts"]
        scores: Any = row["scores"]
        per_token = [logp(text) / len(text.split()) for text in texts]
        loss = -logp(texts[int(np.argmax(scores))])
        for i in range(len(texts)):
            for j in range(len(texts)):
                if scores[i] < scores[j]:
                    loss = loss + 3 * torch.relu(per_token[i] - per_token[j])
        total = total + weight * loss / 2
    total.backward()
    assert table.grad is not None
    moment = run.iterations[0]["state"]["optimizer"]["table"]["exp_avg"].numpy() * 10
    np.testing.assert_allclose(moment[:, :3], table.grad.numpy(), atol=1e-6)
    assert run.iterations[0]["metrics"]["loss/total"] == pytest.approx(float(total.detach()), rel=1e-6)
    assert run.scorer.calls == 0


def test_scores_that_only_float64_tells_apart_are_still_an_order(tmp_path: Path) -> None:
    rows = [{"context": "w00", "texts": ["w01", "w02"], "scores": [1e9, 1e9 + 1]}]
    run = make_run(tmp_path, rows, {"iterations": 20, "minibatch_size": 1, "lr": 0.1})
    fit(run)  # type: ignore[arg-type]
    assert run.iterations[-1]["metrics"]["preference/accuracy"] == 1.0


def test_the_policy_learns_the_order_and_ranks_held_out_texts(tmp_path: Path) -> None:
    def ranking(number: int) -> dict[str, Any]:
        texts = [f"w{first:02d} w{number:02d}" for first in (1, 2, 3, 4)]
        return {"id": str(number), "input": "", "texts": texts, "scores": [-1, 0, 1, 2]}  # the first word decides

    run = make_run(
        tmp_path,
        [ranking(number) for number in range(5, 10)],
        {"iterations": 40, "lr": 0.02, "minibatch_size": 5},
        policy={**LM, "model": "planted-12"},
        data={"val": write_lines(tmp_path / "val.jsonl", [ranking(10), ranking(11)]), "val_every": 20},
    )
    fit(run)  # type: ignore[arg-type]
    measured = [entry["metrics"] for entry in run.iterations if "val/margin" in entry["metrics"]]
    assert len(measured) == 2
    assert measured[-1]["val/accuracy"] > 0.9
    assert measured[-1]["val/margin"] > 0.01
    assert run.iterations[-1]["metrics"]["loss/total"] < run.iterations[0]["metrics"]["loss/total"]


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    policy = {**LM, "model": "planted-3"}
    rows = [*RANKINGS, {**RANKINGS[0], "id": "2", "scores": [2, 1, 1]}]
    whole, again = resumed(lambda: make_run(tmp_path, rows, {"iterations": 5}, policy=policy), fit, after=2)
    assert_same(whole, again)


def weights_like(shape: tuple[int, ...]) -> set[int]:
    """The storages of all weights of a shape that this process holds: parameters, and buffers of frozen copies."""
    gc.collect()
    with_this_shape = (
        thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor) and thing.shape == shape
    )
    return {tensor.untyped_storage().data_ptr() for tensor in with_this_shape}


@pytest.mark.parametrize(("lora", "models"), [({"r": 2, "targets": ["c_attn"]}, 1), (None, 2)], ids=["lora", "whole"])
def test_there_is_no_reference_model(tmp_path: Path, lora: dict[str, Any] | None, models: int) -> None:
    words = 29 if lora else 41  # a vocabulary that no other test uses: no other LM's embedding has its shape
    policy = {"kind": "causal-lm", "model": f"planted-{words}", "dtype": "float32", "kwargs": {"lora": lora}}
    run = make_run(tmp_path, RANKINGS, policy=policy)  # beside an LM in 16 bits there would be its head in float32
    embedding = (words + 1, 32)
    held: list[set[int]] = []
    end = run.end_iteration

    def counting(iteration: int, **values: Any) -> None:
        held.append(weights_like(embedding))
        end(iteration, **values)

    run.end_iteration = counting  # type: ignore[method-assign]
    before = weights_like(embedding)
    assert len(before) == models  # with LoRA the frozen LM; trained whole, the stored LM and the trained copy
    fit(run)  # type: ignore[arg-type]
    optimizer = run.iterations[0]["state"]["optimizer"]
    moments = {name for state in optimizer.values() for name, value in state.items() if value.shape == embedding}
    # Beside the weights are Adam's two moments of what is trained. A reference would be one more.
    beside = 0 if lora else len(moments)
    assert len(held[0]) == models + beside
    assert before <= held[0]
    assert run.policy._reference is None
    assert run.policy._start is None  # nobody asked for the log-probabilities of a reference


def test_all_tied_scores_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"of 1 rankings in .* 1 tie and 0 .*: none is left to learn from"):
        fit(make_run(tmp_path, [{**RANKINGS[0], "scores": [1, 1, 1]}]))  # type: ignore[arg-type]


@pytest.mark.parametrize("setting", [{"beta": 0.5}, {"preference_loss": "ipo"}, {"pair_weights": "gap"}])
def test_settings_of_other_losses_are_refused(tmp_path: Path, setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"algorithm.{next(iter(setting))} is .* but rrhf does not use it; remove it"):
        fit(make_run(tmp_path, RANKINGS, setting))  # type: ignore[arg-type]
