"""Preference losses against numbers worked out by hand, and against TRL's own trainer."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlprompt.algorithms.preference_losses import (
    LENGTH_NORMALISED,
    PAIRWISE,
    best_text_loss,
    bradley_terry_loss,
    dpo_loss,
    gap_weights,
    hinge_loss,
    implicit_reward,
    ipo_loss,
    log_ratio,
    mean_logp,
    rank_loss,
    robust_dpo_loss,
    rrhf_loss,
    weighted_mean,
)
from rlprompt.errors import ConfigError


def numbers(*values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


CHOSEN, REJECTED = numbers(-4.0, -6.0), numbers(-5.0, -3.0)
REFERENCE_CHOSEN, REFERENCE_REJECTED = numbers(-6.0, -5.0), numbers(-4.0, -4.0)
LENGTHS_CHOSEN, LENGTHS_REJECTED = numbers(4, 2), numbers(2, 1)
# Log-ratios: chosen 2 and -1, rejected -1 and 1; gaps 3 and -2. Per token: 0.5 and -0.5, -0.5 and 1; gaps 1 and -1.5.


def gap(*, per_token: bool = False) -> torch.Tensor:
    lengths = (LENGTHS_CHOSEN, LENGTHS_REJECTED) if per_token else (None, None)
    chosen = log_ratio(CHOSEN, REFERENCE_CHOSEN, lengths[0])
    return chosen - log_ratio(REJECTED, REFERENCE_REJECTED, lengths[1])


def test_log_ratios_and_implicit_rewards() -> None:
    assert log_ratio(CHOSEN, REFERENCE_CHOSEN).tolist() == [2.0, -1.0]
    assert gap().tolist() == [3.0, -2.0]
    assert gap(per_token=True).tolist() == [1.0, -1.5]
    rewards = (
        implicit_reward(CHOSEN, REFERENCE_CHOSEN, beta=0.5),
        implicit_reward(REJECTED, REFERENCE_REJECTED, beta=0.5),
    )
    assert [part.tolist() for part in rewards] == [[1.0, -0.5], [-0.5, 0.5]]
    assert implicit_reward(CHOSEN, REFERENCE_CHOSEN, beta=0.5, lengths=LENGTHS_CHOSEN).tolist() == [0.25, -0.25]


def test_dpo() -> None:
    # -log sigmoid(0.5 * 3) = log(1 + e^-1.5) = 0.2014133; -log sigmoid(0.5 * -2) = log(1 + e) = 1.3132617
    assert dpo_loss(gap(), beta=0.5).tolist() == pytest.approx([0.20141327798, 1.31326168752])


def test_length_normalised_dpo_is_dpo_on_the_mean_over_tokens() -> None:
    # log(1 + e^-0.5) = 0.4740770; log(1 + e^0.75) = 1.1368710
    assert dpo_loss(gap(per_token=True), beta=0.5).tolist() == pytest.approx([0.47407698418, 1.13687100637])
    assert "sigmoid_norm" in LENGTH_NORMALISED


def test_ipo() -> None:
    # 1 / (2 * 0.25) = 2: (3 - 2)^2 and (-2 - 2)^2
    assert ipo_loss(gap(), beta=0.25).tolist() == [1.0, 16.0]


def test_hinge() -> None:
    assert hinge_loss(gap(), beta=0.5).tolist() == [0.0, 2.0]  # max(0, 1 - 1.5), 1 + 1


def test_robust_dpo() -> None:
    # (0.9 * 0.2014133 - 0.1 * (0.2014133 + 1.5)) / 0.8, since -log sigmoid(-z) = -log sigmoid(z) + z
    wanted = (0.9 * 0.20141327798 - 0.1 * 1.70141327798) / 0.8
    assert float(robust_dpo_loss(gap(), beta=0.5, label_smoothing=0.1)[0]) == pytest.approx(wanted)
    assert torch.equal(robust_dpo_loss(gap(), beta=0.5, label_smoothing=0.0), dpo_loss(gap(), beta=0.5))
    with pytest.raises(ConfigError, match=r"label_smoothing must be in \[0, 0.5\) for the robust loss, got 0.5"):
        robust_dpo_loss(gap(), beta=0.5, label_smoothing=0.5)


def test_bradley_terry_with_and_without_a_margin() -> None:
    chosen, rejected = numbers(1.0, 0.0), numbers(0.0, 2.0)
    # log(1 + e^-1) = 0.3132617; log(1 + e^2) = 2.1269280; with a margin of 1: log 2 and log(1 + e^3) = 3.0485874
    assert bradley_terry_loss(chosen, rejected).tolist() == pytest.approx([0.31326168752, 2.12692801104])
    ahead = bradley_terry_loss(chosen, rejected, margin=numbers(1.0, 1.0))
    assert ahead.tolist() == pytest.approx([math.log(2), 3.04858735157])


def test_weights_by_the_gap_have_mean_one_and_scale_each_pair() -> None:
    weights = gap_weights(numbers(0.1, 0.3))
    assert weights.tolist() == pytest.approx([0.5, 1.5])
    losses = dpo_loss(gap(), beta=0.5)
    assert float(weighted_mean(losses, weights)) == pytest.approx((0.5 * 0.20141327798 + 1.5 * 1.31326168752) / 2)
    assert float(weighted_mean(losses)) == pytest.approx((0.20141327798 + 1.31326168752) / 2)
    with pytest.raises(ConfigError, match=r"weights by the gap need margins above 0, got 0\.0"):
        gap_weights(numbers(0.1, 0.0))


@pytest.mark.parametrize("name", PAIRWISE)
def test_weights_scale_the_gradient_of_their_pair_alone(name: str) -> None:
    def gradient(weights: torch.Tensor | None) -> torch.Tensor:
        free = numbers(0.3, -0.2).requires_grad_()
        weighted_mean(PAIRWISE[name](free, 0.5, 0.1), weights).backward()
        assert free.grad is not None
        return free.grad

    plain = gradient(None)
    assert plain.abs().min() > 0
    torch.testing.assert_close(gradient(numbers(3.0, 1.0)), plain * numbers(3.0, 1.0))


# Two contexts: three texts with scores 3 > 1 = 1, and two texts with scores 0 < 5; the third place is padding.
LOGP = numbers([-6.0, -2.0, -8.0], [-1.0, -4.0, 7.0])
LENGTHS = numbers([2.0, 1.0, 2.0], [1.0, 2.0, 0.0])
SCORES = numbers([3.0, 1.0, 1.0], [0.0, 5.0, 99.0])
MASK = torch.tensor([[True, True, True], [True, True, False]])


def test_rrhf_ranks_by_the_log_probability_per_token() -> None:
    per_token = mean_logp(LOGP, LENGTHS)
    assert per_token[0].tolist() == [-3.0, -2.0, -4.0]
    assert per_token[1, :2].tolist() == [-1.0, -2.0]
    # r_2 < r_1: max(0, -2 + 3) = 1; r_3 < r_1: max(0, -4 + 3) = 0; r_2 = r_3 is no comparison. Then: -1 + 2 = 1.
    assert rank_loss(per_token, SCORES, MASK).tolist() == [1.0, 1.0]


def test_rrhf_adds_the_loss_of_the_best_text() -> None:
    assert best_text_loss(LOGP, SCORES, MASK).tolist() == [6.0, 4.0]  # the padding's score of 99 is not looked at
    assert rrhf_loss(LOGP, LENGTHS, SCORES, MASK, rank_weight=10.0).tolist() == [16.0, 14.0]


def test_rrhf_has_the_gradient_of_the_pairs_that_are_the_wrong_way_round() -> None:
    logp = LOGP.clone().requires_grad_()
    rrhf_loss(logp, LENGTHS, SCORES, MASK, rank_weight=1.0).sum().backward()
    assert logp.grad is not None
    # Context 1: text 2 is ahead of text 1: +1/1 and -1/2, and -1 for the best, text 1. Context 2 likewise.
    assert logp.grad.tolist() == [[-1.5, 1.0, 0.0], [1.0, -1.5, 0.0]]


def test_texts_that_all_tie_are_not_ranked() -> None:
    logp = LOGP.clone().requires_grad_()
    rank_loss(mean_logp(logp, LENGTHS), torch.ones_like(SCORES), MASK).sum().backward()
    assert logp.grad is not None
    assert not logp.grad.any()


def trl_loss(name: str, label_smoothing: float) -> float:
    """What TRL's trainer makes of the same pairs: each text's log-probability lies on its tokens in equal parts."""
    from collections import defaultdict
    from contextlib import nullcontext

    from trl import DPOTrainer

    logp = torch.cat([CHOSEN, REJECTED])
    lengths = torch.cat([LENGTHS_CHOSEN, LENGTHS_REJECTED]).long()
    mask = (torch.arange(5)[None] >= 1) & (torch.arange(5)[None] <= lengths[:, None])  # one token of context
    spread = mask[:, 1:] * (logp / lengths)[:, None]
    outputs = SimpleNamespace(log_probs=spread, entropy=spread, mean_logits=spread, is_top1=mask[:, 1:])
    trainer: Any = DPOTrainer.__new__(DPOTrainer)
    same = SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x, device="cpu")
    trainer.__dict__ |= {
        "model": SimpleNamespace(training=True),
        "accelerator": same,
        "aux_loss_enabled": False,
        "ld_alpha": None,
        "precompute_ref_logps": True,
        "f_divergence_type": "reverse_kl",
        "loss_types": [name],
        "loss_weights": [1.0],
        "beta": 0.5,
        "label_smoothing": label_smoothing,
        "use_weighting": False,
        "_metrics": defaultdict(lambda: defaultdict(list)),
        "_total_train_tokens": 0,
        "_tp_size": 1,
        "maybe_activation_offload_context": nullcontext(),
    }
    inputs = {
        "input_ids": mask.long(),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask.long(),
        "ref_chosen_logps": REFERENCE_CHOSEN,
        "ref_rejected_logps": REFERENCE_REJECTED,
    }
    return float(trainer._compute_loss(lambda **_: outputs, inputs, False))


@pytest.mark.parametrize("name", PAIRWISE)
def test_each_loss_is_the_one_that_trl_computes_under_its_name(name: str) -> None:
    smoothing = 0.1 if name == "robust" else 0.0
    own = PAIRWISE[name](gap(per_token=name in LENGTH_NORMALISED), 0.5, smoothing).mean()
    assert float(own) == pytest.approx(trl_loss(name, smoothing), rel=1e-12)
