"""Losses against numbers computed by hand, and their invariances: padding and forbidden tokens change nothing."""

import math

import pytest
import torch

from rlprompt.algorithms.losses import (
    SQL_VARIANTS,
    categorical_kl,
    gae,
    kl_shaped_rewards,
    masked_entropy,
    next_kl_coefficient,
    nlpo_allowed,
    penalty_baseline,
    polyak_,
    ppo_policy_loss,
    reinforce_loss,
    shape_rewards,
    sql_loss,
    value_loss,
)
from rlprompt.errors import ConfigError

INF = float("inf")
LN2 = math.log(2)


def rows(*values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


class TestGae:
    def test_advantages_of_three_tokens_are_those_computed_by_hand(self) -> None:
        # gamma 0.9, lambda 0.5, rewards 0 0 1, values 0.5 0.4 0.2:
        # delta_2 = 1 - 0.2 = 0.8                      A_2 = 0.8
        # delta_1 = 0 + 0.9 * 0.2 - 0.4 = -0.22        A_1 = -0.22 + 0.45 * 0.8 = 0.14
        # delta_0 = 0 + 0.9 * 0.4 - 0.5 = -0.14        A_0 = -0.14 + 0.45 * 0.14 = -0.077
        advantages, returns = gae(rows([0, 0, 1]), rows([0.5, 0.4, 0.2]), torch.ones(1, 3), gamma=0.9, lam=0.5)
        assert advantages[0].tolist() == pytest.approx([-0.077, 0.14, 0.8])
        assert returns[0].tolist() == pytest.approx([0.423, 0.54, 1.0])  # advantage + value

    def test_lambda_one_without_values_is_the_discounted_reward_to_come(self) -> None:
        advantages, _ = gae(rows([1, 0, 2]), rows([0, 0, 0]), torch.ones(1, 3), gamma=0.5, lam=1.0)
        assert advantages[0].tolist() == [1.5, 1.0, 2.0]  # 1 + 0.25 * 2, 0.5 * 2, 2

    def test_nothing_is_bootstrapped_from_behind_the_last_written_token(self) -> None:
        short, short_returns = gae(rows([0, 1]), rows([0.3, 0.6]), torch.ones(1, 2), gamma=0.9, lam=0.8)
        padded, padded_returns = gae(
            rows([0, 1, 7, 7]),
            rows([0.3, 0.6, 5, float("nan")]),
            torch.tensor([[1.0, 1, 0, 0]]),
            gamma=0.9,
            lam=0.8,
        )
        assert padded[0].tolist() == [*short[0].tolist(), 0.0, 0.0]
        assert padded_returns[0].tolist() == [*short_returns[0].tolist(), 0.0, 0.0]

    def test_advantages_carry_no_gradient(self) -> None:
        values = rows([0.1, 0.2]).requires_grad_()
        assert not any(out.requires_grad for out in gae(rows([0, 1]), values, torch.ones(1, 2), gamma=1, lam=1))


class TestPpo:
    def test_loss_and_statistics_are_those_computed_by_hand(self) -> None:
        # ratios 1.5, 0.5, 1.1 with advantages 2, -1, 1 and clip 0.2:
        # min(1.5 * 2, 1.2 * 2) = 2.4;  min(0.5 * -1, 0.8 * -1) = -0.8;  min(1.1, 1.1) = 1.1
        # loss = -(2.4 - 0.8 + 1.1) / 3 = -0.9; two of three ratios were clipped
        ratios = [1.5, 0.5, 1.1]
        logp = rows([math.log(ratio) for ratio in ratios])
        loss, stats = ppo_policy_loss(logp, torch.zeros_like(logp), rows([2, -1, 1]), torch.ones(1, 3), clip=0.2)
        assert loss.item() == pytest.approx(-0.9)
        assert stats["clip_fraction"].item() == pytest.approx(2 / 3)
        assert stats["ratio"].item() == pytest.approx(3.1 / 3)
        # 0.5 - ln 1.5 + -0.5 - ln 0.5 + 0.1 - ln 1.1 = 0.094535 + 0.193147 + 0.004690 = 0.292372
        assert stats["approx_kl"].item() == pytest.approx(0.292372 / 3, abs=1e-6)

    def test_a_clipped_token_gets_no_gradient_and_an_unclipped_one_minus_ratio_times_advantage(self) -> None:
        logp = rows([math.log(1.5), math.log(1.1)]).requires_grad_()
        loss, _ = ppo_policy_loss(logp, rows([0, 0]), rows([1, 1]), torch.ones(1, 2), clip=0.2)
        loss.backward()
        assert logp.grad is not None
        assert logp.grad[0].tolist() == pytest.approx([0.0, -0.55])  # -1.1 / 2 tokens

    def test_padding_changes_neither_loss_nor_gradient(self) -> None:
        short = rows([0.3, -0.2]).requires_grad_()
        loss, stats = ppo_policy_loss(short, rows([0, 0]), rows([1, -2]), torch.ones(1, 2), clip=0.2)
        loss.backward()
        padded = rows([0.3, -0.2, 900]).requires_grad_()  # exp(900) overflows
        mask = torch.tensor([[1.0, 1, 0]])
        same, same_stats = ppo_policy_loss(padded, rows([0, 0, 0]), rows([1, -2, 3]), mask, clip=0.2)
        same.backward()
        assert same.item() == loss.item()
        assert same_stats == stats
        assert short.grad is not None
        assert padded.grad is not None
        assert padded.grad[0].tolist() == [*short.grad[0].tolist(), 0.0]

    def test_a_batch_without_written_tokens_costs_nothing(self) -> None:
        loss, _ = ppo_policy_loss(rows([1.0]), rows([0.0]), rows([1.0]), torch.zeros(1, 1), clip=0.2)
        assert loss.item() == 0.0


def test_value_loss_is_the_mean_squared_error_of_the_written_tokens() -> None:
    mask = torch.tensor([[1.0, 1, 0]])
    loss = value_loss(rows([1, 2, 9]), rows([0, 4, 0]), mask)
    assert loss.item() == 2.5  # (1 + 4) / 2


def test_reinforce_weighs_the_log_probability_of_whole_prompts() -> None:
    # prompts: -1 - 2 = -3 with advantage 2, and -4 (one token, then padding) with advantage -1:
    # -(2 * -3 + -1 * -4) / 2 = 1
    logp = rows([-1, -2], [-4, float("nan")]).requires_grad_()
    loss = reinforce_loss(logp, rows([2, -1])[0], torch.tensor([[1.0, 1], [1, 0]]))
    loss.backward()
    assert loss.item() == 1.0
    assert logp.grad is not None
    assert logp.grad.tolist() == [[-1.0, -1.0], [0.5, 0.0]]  # -advantage / 2 prompts


class TestEntropyAndKl:
    def test_entropy_is_that_of_the_allowed_tokens_over_written_positions(self) -> None:
        # uniform over 2 of 3 tokens: ln 2; one certain token: 0; the third position is padding
        logits = torch.tensor([[[1.0, 1.0, -INF], [5.0, -INF, -INF], [0.0, 1.0, 2.0]]], requires_grad=True)
        entropy = masked_entropy(logits, torch.tensor([[1.0, 1, 0]]))
        entropy.backward()
        assert entropy.item() == pytest.approx(LN2 / 2)
        assert logits.grad is not None
        assert torch.isfinite(logits.grad).all()
        assert (logits.grad[0, 2] == 0).all()

    def test_kl_of_two_distributions_is_the_one_computed_by_hand(self) -> None:
        # KL((3/4, 1/4) || (1/2, 1/2)) = 3/4 ln 3/2 + 1/4 ln 1/2 = 0.304099 - 0.173287 = 0.130812
        logits = torch.tensor([[[0.75, 0.25]]]).log()
        assert categorical_kl(logits, torch.zeros(1, 1, 2), torch.ones(1, 1)).item() == pytest.approx(
            0.130812, abs=1e-6
        )

    def test_kl_of_a_policy_to_itself_is_zero(self) -> None:
        logits = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0))
        assert categorical_kl(logits, logits, torch.ones(2, 3)).item() == 0.0

    def test_forbidden_tokens_change_neither_kl_nor_gradient(self) -> None:
        logits = torch.tensor([[[0.75, 0.25]]]).log().requires_grad_()
        kl = categorical_kl(logits, torch.zeros(1, 1, 2), torch.ones(1, 1))
        kl.backward()
        masked = torch.tensor([[[math.log(0.75), -INF, math.log(0.25)]]], requires_grad=True)
        same = categorical_kl(masked, torch.tensor([[[0.0, -INF, 0.0]]]), torch.ones(1, 1))
        same.backward()
        assert same.item() == pytest.approx(kl.item())
        assert logits.grad is not None
        assert masked.grad is not None
        assert masked.grad[0, 0, 1] == 0.0
        assert masked.grad[0, 0, [0, 2]].tolist() == pytest.approx(logits.grad[0, 0].tolist())

    @pytest.mark.parametrize("of", ["entropy", "kl"])
    def test_a_padded_row_that_allows_nothing_stays_finite(self, of: str) -> None:
        logits = torch.tensor([[[0.0, 1.0], [-INF, -INF]]], requires_grad=True)
        mask = torch.tensor([[1.0, 0]])
        value = masked_entropy(logits, mask) if of == "entropy" else categorical_kl(logits, logits * 2, mask)
        value.backward()
        assert logits.grad is not None
        assert torch.isfinite(value)
        assert torch.isfinite(logits.grad).all()


class TestKlInTheReward:
    def test_every_written_token_pays_for_its_own_log_ratio(self) -> None:
        # beta 0.5: 0 - 0.5 * 0.4 = -0.2; 0 - 0.5 * -0.2 = 0.1; 1 - 0.5 * 0.6 = 0.7; padding 0
        shaped = kl_shaped_rewards(
            rows([0, 0, 1, 5]), rows([0.4, -0.2, 0.6, float("nan")]), torch.tensor([[1.0, 1, 1, 0]]), coefficient=0.5
        )
        assert shaped[0].tolist() == pytest.approx([-0.2, 0.1, 0.7, 0.0])

    def test_a_policy_that_is_its_reference_pays_nothing(self) -> None:
        rewards = rows([0, 0, 1])
        assert torch.equal(kl_shaped_rewards(rewards, torch.zeros(1, 3), torch.ones(1, 3), coefficient=0.5), rewards)

    def test_the_penalties_of_a_prompt_add_up_to_its_log_ratio(self) -> None:
        ratios = rows([0.3, -1.0, 0.25], [2.0, 0.0, 0.0])
        shaped = kl_shaped_rewards(torch.zeros(2, 3), ratios, torch.ones(2, 3), coefficient=0.1)
        assert shaped.sum(dim=1).tolist() == pytest.approx([0.045, -0.2])

    def test_the_penalty_carries_no_gradient(self) -> None:
        ratios = rows([0.1, 0.2]).requires_grad_()
        assert not kl_shaped_rewards(rows([0, 1]), ratios, torch.ones(1, 2), coefficient=1.0).requires_grad

    def test_advantages_of_penalised_rewards_are_those_computed_by_hand(self) -> None:
        # Rewards -0.2, 0.1, 0.7 (above) and values 0.5 0.4 0.2, gamma 0.9, lambda 0.5:
        # delta_2 = 0.7 - 0.2 = 0.5                          A_2 = 0.5
        # delta_1 = 0.1 + 0.9 * 0.2 - 0.4 = -0.12            A_1 = -0.12 + 0.45 * 0.5 = 0.105
        # delta_0 = -0.2 + 0.9 * 0.4 - 0.5 = -0.34           A_0 = -0.34 + 0.45 * 0.105 = -0.29275
        mask = torch.tensor([[1.0, 1, 1, 0]])
        shaped = kl_shaped_rewards(rows([0, 0, 1, 0]), rows([0.4, -0.2, 0.6, 9]), mask, coefficient=0.5)
        advantages, returns = gae(shaped, rows([0.5, 0.4, 0.2, 9]), mask, gamma=0.9, lam=0.5)
        assert advantages[0].tolist() == pytest.approx([-0.29275, 0.105, 0.5, 0.0])
        assert returns[0].tolist() == pytest.approx([0.20725, 0.505, 0.7, 0.0])

    def test_without_a_critic_a_token_answers_for_its_own_penalty_and_those_that_follow(self) -> None:
        # reward 1 at the end, beta 1, log ratios 0.1 0.2 0.3, gamma 1: 1 - 0.6, 1 - 0.5, 1 - 0.3
        shaped = kl_shaped_rewards(rows([0, 0, 1]), rows([0.1, 0.2, 0.3]), torch.ones(1, 3), coefficient=1.0)
        advantages, _ = gae(shaped, torch.zeros(1, 3), torch.ones(1, 3), gamma=1.0, lam=1.0)
        assert advantages[0].tolist() == pytest.approx([0.4, 0.5, 0.7])

    def test_the_baseline_of_the_penalty_is_what_others_paid_less_what_was_paid_before(self) -> None:
        # Prompts paid -3, -1 (padding left out) and -2. Others: -1.5, -2.5, -2. Before: 0 -1; 0; 0 -2.
        penalties = rows([-1, -2], [-1, 7], [-2, 0])
        mask = torch.tensor([[1.0, 1], [1, 0], [1, 1]])
        baseline = penalty_baseline(penalties, mask, torch.tensor([0, 1, 2]))
        assert baseline.tolist() == [[-1.5, -0.5], [-2.5, 0.0], [-2.0, 0.0]]

    def test_another_turn_of_the_same_episode_is_no_other(self) -> None:
        baseline = penalty_baseline(rows([-1], [-5], [-3]), torch.ones(3, 1), torch.tensor([0, 0, 1]))
        assert baseline.tolist() == [[-3.0], [-3.0], [-3.0]]  # the third: mean of -1 and -5
        assert penalty_baseline(rows([-1], [-5]), torch.ones(2, 1), torch.tensor([0, 0])).tolist() == [[0.0], [0.0]]

    def test_at_the_optimum_no_token_has_an_advantage(self) -> None:
        # reward - beta log(pi / pi_0) = 0.2 for all: rewards 1.2, 0.7, -0.3, beta 0.5, summed log ratios 2, 1, -1.
        ratios = rows([1.5, 0.5], [-1, 2], [0.5, -1.5])
        rewards, mask = torch.tensor([1.2, 0.7, -0.3], dtype=torch.float64), torch.ones(3, 2)
        compared = (rewards - rewards.mean()) * 3 / 2  # leave-one-out
        penalty = kl_shaped_rewards(torch.zeros(3, 2), ratios, mask, coefficient=0.5)
        shaped = penalty.clone()
        shaped[:, 1] += compared
        advantages, _ = gae(shaped, torch.zeros(3, 2), mask, gamma=1.0, lam=1.0)
        advantages = advantages - penalty_baseline(penalty, mask, torch.tensor([0, 1, 2]))
        assert advantages.abs().max().item() == pytest.approx(0.0, abs=1e-7)

    @pytest.mark.parametrize(
        ("kl", "factor"),
        [
            (2.2, 1.01),  # 10 % above: 1 + 0.1 * 0.1
            (1.8, 0.99),
            (100.0, 1.02),  # clipped at 20 %: 1 + 0.2 * 0.1
            (-5.0, 0.98),
            (2.0, 1.0),
        ],
    )
    def test_the_coefficient_moves_in_proportion_to_the_error(self, kl: float, factor: float) -> None:
        moved = next_kl_coefficient(0.5, kl, target=2.0, prompts=16, horizon=160)  # K_beta = 16 / 160 = 0.1
        assert moved == pytest.approx(0.5 * factor)


class TestNlpo:
    def test_the_nucleus_of_the_masking_policy_is_what_may_be_written(self) -> None:
        # Of the allowed tokens 0, 1 and 2 the masking policy gives 0.6, 0.3 and 0.1; token 3 is most probable but
        # forbidden. p = 0.8 keeps 0.6 + 0.3.
        masking = torch.tensor([[[0.6, 0.3, 0.1, 9.0]]]).log()
        allowed = torch.tensor([[[True, True, True, False]]])
        assert nlpo_allowed(allowed, masking, torch.tensor([[0]]), p=0.8).tolist() == [[[True, True, False, False]]]
        assert nlpo_allowed(allowed, masking, torch.tensor([[0]]), p=0.5).tolist() == [[[True, False, False, False]]]
        assert torch.equal(nlpo_allowed(allowed, masking, torch.tensor([[0]]), p=1.0), allowed)

    def test_a_written_token_stays_and_a_forbidden_one_does_not_come_back(self) -> None:
        masking = torch.tensor([[[0.9, 0.06, 0.04]]]).log()
        allowed = torch.tensor([[[True, True, False]]])
        assert nlpo_allowed(allowed, masking, torch.tensor([[1]]), p=0.5).tolist() == [[[True, True, False]]]
        assert nlpo_allowed(allowed, masking, torch.tensor([[2]]), p=0.5).tolist() == [[[True, False, False]]]

    def test_padding_keeps_the_nucleus_alone(self) -> None:
        masking = torch.tensor([[[0.9, 0.1]]]).log()
        kept = nlpo_allowed(torch.ones(1, 1, 2, dtype=torch.bool), masking, torch.tensor([[-1]]), p=0.5)
        assert kept.tolist() == [[[True, False]]]


def sql_case() -> dict[str, torch.Tensor]:
    """Two tokens; V = logsumexp of two equal logits = logit + ln 2, chosen so that the values are round.

    Online: logits (1, 1) and (3, 3): Q = 1, 3; V = 1 + ln 2, 3 + ln 2; A = -ln 2 at both.
    Target: logits (0, 0) and (2, 2): bar V = ln 2, 2 + ln 2. Reward r = 5.
    """
    return {
        "logits": torch.tensor([[[1.0, 1.0], [3.0, 3.0]]], dtype=torch.float64),
        "target_logits": torch.tensor([[[0.0, 0.0], [2.0, 2.0]]], dtype=torch.float64),
        "tokens": torch.tensor([[0, 1]]),
        "rewards": torch.tensor([5.0], dtype=torch.float64),
        "mask": torch.ones(1, 2),
    }


SQL_BY_HAND = {
    # (Q_1 - bar V_2)^2 + (Q_2 - r)^2 = (1 - 2 - ln 2)^2 + (3 - 5)^2
    "v1": (1 + LN2) ** 2 + 4,
    # (A_1 - (bar V_2 - bar V_1))^2 + (A_2 - (r - bar V_2))^2 = (-ln 2 - 2)^2 + (-ln 2 - 3 + ln 2)^2
    "v2": (2 + LN2) ** 2 + 9,
    # (A_1 + A_2 - (r - bar V_1))^2 + (A_2 - (r - bar V_2))^2 = (-2 ln 2 - 5 + ln 2)^2 + 9
    "v3": (5 + LN2) ** 2 + 9,
    "v2_v3": ((2 + LN2) ** 2 + 9 + (5 + LN2) ** 2 + 9) / 2,
}


class TestSoftQ:
    @pytest.mark.parametrize("variant", SQL_VARIANTS)
    def test_each_variant_gives_the_number_computed_by_hand(self, variant: str) -> None:
        assert sql_loss(**sql_case(), variant=variant).item() == pytest.approx(SQL_BY_HAND[variant])

    @pytest.mark.parametrize("variant", SQL_VARIANTS)
    def test_the_loss_is_summed_over_time_and_averaged_over_prompts(self, variant: str) -> None:
        twice = {name: torch.cat([value, value]) for name, value in sql_case().items()}
        assert sql_loss(**twice, variant=variant).item() == pytest.approx(SQL_BY_HAND[variant])

    @pytest.mark.parametrize("variant", SQL_VARIANTS)
    @pytest.mark.parametrize("padding", [-INF, 0.0, 50.0])
    def test_padding_changes_neither_loss_nor_gradient(self, variant: str, padding: float) -> None:
        case = sql_case()
        case["logits"].requires_grad_()
        sql_loss(**case, variant=variant).backward()
        more = torch.full((1, 1, 2), padding, dtype=torch.float64)
        padded = {
            "logits": torch.cat([case["logits"].detach(), more], dim=1).requires_grad_(),
            "target_logits": torch.cat([case["target_logits"], more], dim=1),
            "tokens": torch.tensor([[0, 1, -1]]),
            "rewards": case["rewards"],
            "mask": torch.tensor([[1.0, 1, 0]]),
        }
        loss = sql_loss(**padded, variant=variant)
        loss.backward()
        assert loss.item() == pytest.approx(SQL_BY_HAND[variant])
        assert padded["logits"].grad is not None
        assert case["logits"].grad is not None
        assert torch.equal(padded["logits"].grad[:, :2], case["logits"].grad)
        assert (padded["logits"].grad[:, 2] == 0).all()

    @pytest.mark.parametrize("variant", SQL_VARIANTS)
    def test_forbidden_tokens_change_nothing_and_leave_gradients_finite(self, variant: str) -> None:
        case = sql_case()
        wall = torch.full((1, 2, 3), -INF, dtype=torch.float64)
        case["logits"] = torch.cat([case["logits"], wall], dim=2).requires_grad_()
        case["target_logits"] = torch.cat([case["target_logits"], wall], dim=2)
        loss = sql_loss(**case, variant=variant)
        loss.backward()
        assert loss.item() == pytest.approx(SQL_BY_HAND[variant])
        assert case["logits"].grad is not None
        assert torch.isfinite(case["logits"].grad).all()
        assert (case["logits"].grad[..., 2:] == 0).all()

    @pytest.mark.parametrize("variant", SQL_VARIANTS)
    def test_no_gradient_reaches_the_target_network(self, variant: str) -> None:
        case = sql_case()
        case["logits"].requires_grad_()
        case["target_logits"].requires_grad_()
        sql_loss(**case, variant=variant).backward()
        assert case["target_logits"].grad is None

    @pytest.mark.parametrize("variant", ["v2", "v3", "v2_v3"])
    def test_path_consistency_vanishes_at_the_soft_optimum(self, variant: str) -> None:
        # The optimal policy of one step has Q = r(a) for all a and logsumexp as its value: with both tokens worth 5
        # and the target network equal to the policy, A = -ln 2 and r - bar V = 5 - (5 + ln 2).
        logits = torch.full((1, 1, 2), 5.0, dtype=torch.float64)
        loss = sql_loss(
            logits,
            logits,
            torch.tensor([[1]]),
            torch.tensor([5.0], dtype=torch.float64),
            torch.ones(1, 1),
            variant=variant,
        )
        assert loss.item() == pytest.approx(0.0, abs=1e-20)

    def test_an_unknown_variant_is_refused_with_the_nearest_name(self) -> None:
        with pytest.raises(ConfigError, match="unknown sql_variant 'v2v3'; did you mean 'v2_v3'"):
            sql_loss(**sql_case(), variant="v2v3")


class TestPolyakAndShaping:
    def test_the_target_moves_by_tau_and_the_source_stays(self) -> None:
        target, source = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
        with torch.no_grad():
            for parameter, number in ((target.weight, 1.0), (target.bias, 0.0), (source.weight, 3.0)):
                parameter.fill_(number)
            source.bias.fill_(-1.0)
        polyak_(target, source, 0.25)
        assert (target.weight.item(), target.bias.item()) == (1.5, -0.25)  # 1 + 0.25 * 2, 0 + 0.25 * -1
        assert (source.weight.item(), source.bias.item()) == (3.0, -1.0)

    def test_rewards_are_mapped_linearly_and_not_clipped(self) -> None:
        shaped = shape_rewards(torch.tensor([0.0, 0.5, 1.5]), (0.0, 1.0), (0.0, 5.0))
        assert shaped.tolist() == [0.0, 2.5, 7.5]

    def test_an_empty_range_is_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"two different bounds, got 1\.0 twice"):
            shape_rewards(torch.tensor([0.0]), (1.0, 1.0), (0.0, 5.0))
