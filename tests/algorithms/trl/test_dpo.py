"""DPO from pairs: the gradient by hand, TRL's losses and ours as one, what is learnt, and exact resume."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy import ToyRun, assert_same, make_config, resumed, write_lines

from rlprompt.algorithms.preference_losses import PAIRWISE
from rlprompt.algorithms.trl.dpo import fit, text_logps
from rlprompt.algorithms.trl.rollout import Rollout
from rlprompt.config import parse_config
from rlprompt.errors import ConfigError
from rlprompt.targets.planted import PlantedTarget

PAIRS = [
    {"id": "0", "context": "w00", "chosen": "w01 w02", "rejected": "w00 w00", "margin": 0.5},
    {"id": "1", "context": "w00", "chosen": "w01", "rejected": "w02 w01", "margin": 1.5},
]
LM = {"kind": "causal-lm", "kwargs": {"lora": {"r": 4, "targets": ["c_attn", "c_fc"]}}}


def make_run(folder: Path, rows: list[dict[str, Any]], algorithm: dict[str, Any] | None = None, **more: Any) -> ToyRun:
    data = {"pairs": write_lines(folder / "pairs.jsonl", rows), **more.pop("data", {})}
    settings = {"name": "dpo", "minibatch_size": 2, "iterations": 1, "beta": 0.5, **(algorithm or {})}
    return ToyRun(make_config(algorithm=settings, **more), folder=folder, data=data)


def gradient(run: ToyRun) -> np.ndarray:
    """The first step's gradient: Adam's first moment is 0.1 of it."""
    moment: np.ndarray = run.iterations[0]["state"]["optimizer"]["table"]["exp_avg"].numpy() * 10
    return moment


def test_the_gradient_is_that_of_the_sum_over_the_tokens(tmp_path: Path) -> None:
    run = make_run(tmp_path, PAIRS)
    fit(run)  # type: ignore[arg-type]
    # At gap 0 the loss has the slope -beta / 2 = -0.25 in the gap, and the softmax parts of both texts cancel where
    # both have a token: place 1: -1[w01] + 1[w00], -1[w01] + 1[w02]; place 2: -1[w02] + 1[w00], then only the rejected
    # text has one: 1[w01] - 1/3.
    expected = 0.25 / 2 * np.array([[1, -2, 1, 0], [1 - 1 / 3, 1 - 1 / 3, -1 - 1 / 3, 0]])
    np.testing.assert_allclose(gradient(run), expected, atol=1e-6)
    metrics = run.iterations[0]["metrics"]
    assert metrics["loss/total"] == pytest.approx(np.log(2))
    assert (metrics["preference/margin"], metrics["preference/accuracy"]) == (0.0, 0.0)
    assert run.iterations[0]["scores"] is None
    assert run.scorer.calls == 0


@pytest.mark.parametrize("loss", PAIRWISE)
def test_weights_give_multiples_of_the_gradient_that_trl_computes(tmp_path: Path, loss: str) -> None:
    smoothing = 0.1 if loss == "robust" else 0.0
    settings = {"preference_loss": loss, "label_smoothing": smoothing, "iterations": 2}
    stock = make_run(tmp_path, PAIRS, settings)
    fit(stock)  # type: ignore[arg-type]
    doubled = make_run(tmp_path, [{**row, "weight": 2.0} for row in PAIRS], settings)
    fit(doubled)  # type: ignore[arg-type]
    np.testing.assert_allclose(gradient(doubled), 2 * gradient(stock), atol=1e-6)
    assert np.abs(gradient(stock)).max() > 0.01
    for one, other in zip(stock.iterations, doubled.iterations, strict=True):
        assert other["metrics"]["loss/total"] == pytest.approx(2 * one["metrics"]["loss/total"], rel=1e-5)
        assert other["metrics"]["preference/margin"] == pytest.approx(one["metrics"]["preference/margin"], abs=1e-6)


def test_weights_by_the_gap_follow_the_margins(tmp_path: Path) -> None:
    single = []
    for row in PAIRS:
        run = make_run(tmp_path, [row], {"minibatch_size": 1})
        fit(run)  # type: ignore[arg-type]
        single.append(gradient(run))
    both = make_run(tmp_path, PAIRS, {"pair_weights": "gap"})
    fit(both)  # type: ignore[arg-type]
    np.testing.assert_allclose(gradient(both), (0.5 * single[0] + 1.5 * single[1]) / 2, atol=1e-6)  # margins 0.5, 1.5


def test_a_weight_of_zero_takes_a_pair_out(tmp_path: Path) -> None:
    run = make_run(tmp_path, [PAIRS[0], {**PAIRS[1], "weight": 0.0}])
    fit(run)  # type: ignore[arg-type]
    alone = make_run(tmp_path, PAIRS[:1], {"minibatch_size": 1})
    fit(alone)  # type: ignore[arg-type]
    np.testing.assert_allclose(gradient(run), gradient(alone) / 2, atol=1e-6)


def planted_pairs(seconds: range) -> list[dict[str, Any]]:
    """Pairs of prompts whose qualities on a planted target differ; those with other second words share no text."""
    target = PlantedTarget(landscape="separable", length=2, vocabulary=12)
    right = target.optimum.split()[0]
    rows = []
    for second in seconds:
        good, bad = f"{right} w{second:02d}", f"w{(5 * second + 1) % 12:02d} w{second:02d}"
        gap = target.quality(good) - target.quality(bad)
        if gap > 0:
            rows.append({"id": str(second), "input": "", "chosen": good, "rejected": bad, "margin": gap})
    return rows


def test_dpo_on_planted_pairs_raises_the_chosen_texts_and_ranks_held_out_ones(tmp_path: Path) -> None:
    train, held_out = planted_pairs(range(8)), planted_pairs(range(8, 12))
    assert (len(train), len(held_out)) == (7, 4)
    run = make_run(
        tmp_path,
        train,
        {"iterations": 30, "lr": 0.02, "minibatch_size": 4, "beta": 0.1},
        policy={**LM, "model": "planted-12", "dtype": "float32"},  # a planted LM is too small to learn in 16 bits
        data={"val": write_lines(tmp_path / "val.jsonl", held_out), "val_every": 15},
    )
    rollout = Rollout(run)  # type: ignore[arg-type]
    rows = [((12,), run.policy.tokenizer.encode(row["chosen"])) for row in train]  # 12 is EOS, the empty context
    before = text_logps(rollout.model(), rows, 8)
    fit(run)  # type: ignore[arg-type]
    after = text_logps(rollout.model(), rows, 8)
    assert np.mean(after) > np.mean(before) + 0.3  # the planted LM's logits cannot be more than 0.64
    measured = [entry["metrics"] for entry in run.iterations if "val/margin" in entry["metrics"]]
    assert len(measured) == 2  # after 15 steps and at the end
    assert measured[-1]["val/margin"] > 0.01
    assert measured[-1]["val/accuracy"] == 1.0
    assert run.iterations[-1]["metrics"]["preference/accuracy"] == 1.0
    # The reference is still the untrained policy.
    assert text_logps(rollout.model(reference=True), rows, 8) == pytest.approx(before, abs=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(tmp_path: Path, weighted: bool) -> None:
    rows = planted_pairs(range(7))
    settings = {"iterations": 5, "lr": 0.01, "pair_weights": "gap" if weighted else "given"}
    data = {"val": write_lines(tmp_path / "val.jsonl", planted_pairs(range(8, 12))), "val_every": 2}
    whole, again = resumed(
        lambda: make_run(tmp_path, rows, settings, policy={**LM, "model": "planted-12"}, data=data),
        fit,
        after=2,
    )
    assert_same(whole, again)
    assert any("val/margin" in entry["metrics"] for entry in again.iterations[2:])


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        ({"kl_coeff": 0.1}, "algorithm.kl_coeff is 0.1, but dpo does not use it"),
        ({"rank_weight": 2.0}, "algorithm.rank_weight is 2.0, but dpo does not use it"),
        ({"regenerate": 0.5}, "algorithm.regenerate is 0.5, but dpo does not use it"),
        ({"label_smoothing": 0.1}, "label_smoothing is 0.1, but preference_loss 'sigmoid' does not use it"),
        ({"preference_loss": "exo_pair"}, "'exo_pair' needs algorithm.label_smoothing above 0"),
        ({"preference_loss": "apo_zero", "pair_weights": "gap"}, "preference_loss 'apo_zero' has none; take one of"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path: Path, algorithm: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fit(make_run(tmp_path, PAIRS, algorithm))  # type: ignore[arg-type]


def test_weights_by_the_gap_need_margins(tmp_path: Path) -> None:
    rows = [PAIRS[0], {key: value for key, value in PAIRS[1].items() if key != "margin"}]
    with pytest.raises(ConfigError, match="pair_weights is gap, but 1 of 2 pairs have no 'margin'"):
        fit(make_run(tmp_path, rows, {"pair_weights": "gap"}))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["sft", "simpo", "Sigmoid"])
def test_a_loss_that_is_none_of_trl_s_pairwise_ones_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(ConfigError, match="preference_loss") as error:
        parse_config({"algorithm": {"name": "dpo", "preference_loss": name}})
    assert "\n" not in str(error.value)
    assert "sigmoid_norm" in str(error.value)


def test_every_loss_that_the_configuration_names_is_one_that_trl_computes(tmp_path: Path) -> None:
    from typing import get_args

    from rlprompt.config import PreferenceLoss

    for loss in get_args(PreferenceLoss):
        run = make_run(
            tmp_path, PAIRS, {"preference_loss": loss, "label_smoothing": 0.01 if loss == "exo_pair" else 0.0}
        )
        fit(run)  # type: ignore[arg-type]
        assert np.abs(gradient(run)).max() > 1e-4, loss


def test_no_trainer_leaves_anything_frozen_in_the_optimiser(tmp_path: Path) -> None:
    run = make_run(tmp_path, PAIRS, policy=LM)
    fit(run)  # type: ignore[arg-type]
    assert set(run.iterations[0]["state"]["optimizer"]) <= set(run.policy.trainable_state())
    assert all(torch.isfinite(value).all() for value in run.policy.trainable_state().values())
