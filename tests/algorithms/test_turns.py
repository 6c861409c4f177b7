"""Advantages along a game of two agents, by hand, and what an agent alone would make of the same numbers."""

import numpy as np
import pytest
import torch
from ray.rllib.utils.postprocessing.value_predictions import compute_value_targets

from rlprompt.algorithms.losses import gae
from rlprompt.algorithms.turns import TurnTokens, game_rewards, turns_gae

GAMMA, LAM = 0.5, 0.5
# One game: agent 0 writes two tokens, agent 1 two more; the shared reward of 1 comes at the very end.
VALUES = [[0.2, 0.4], [0.6, 0.8]]
REWARDS = [[0.0, 0.0], [0.0, 1.0]]
# By hand, from the end: delta_t = r_t + 0.5 V_t+1 - V_t, advantage_t = delta_t + 0.25 advantage_t+1.
#   token 3: 1 - 0.8 = 0.2                      0.2
#   token 2: 0.5 * 0.8 - 0.6 = -0.2             -0.2 + 0.25 * 0.2 = -0.15
#   token 1: 0.5 * 0.6 - 0.4 = -0.1             -0.1 - 0.25 * 0.15 = -0.1375
#   token 0: 0.5 * 0.4 - 0.2 = 0.0              0.25 * -0.1375 = -0.034375
BY_HAND = [[-0.034375, -0.1375], [-0.15, 0.2]]


def turn(rewards, values, mask=None):
    values = torch.tensor(values, dtype=torch.float64)
    mask = torch.ones_like(values) if mask is None else torch.tensor(mask, dtype=torch.float64)
    return TurnTokens(torch.tensor(rewards, dtype=torch.float64), values, mask)


def test_two_agents_and_four_tokens_by_hand():
    turns = [turn([REWARDS[place]], [VALUES[place]]) for place in (0, 1)]
    found = turns_gae(turns, gamma=GAMMA, lam=LAM)
    for place in (0, 1):
        advantages, returns = found[place]
        assert advantages[0].tolist() == pytest.approx(BY_HAND[place])
        assert returns[0].tolist() == pytest.approx(np.add(BY_HAND[place], VALUES[place]).tolist())


@pytest.mark.parametrize("everyone_gets_it", [True, False])
def test_each_agent_alone_gives_other_numbers(everyone_gets_it):
    # Stock RLlib: agent 0's episode ends with its last token, whether or not the shared reward is booked there.
    rewards = np.array([0.0, 1.0 if everyone_gets_it else 0.0])
    targets = compute_value_targets(
        values=np.array(VALUES[0]),
        rewards=rewards,
        terminateds=np.array([False, True]),
        truncateds=np.array([False, False]),
        gamma=GAMMA,
        lambda_=LAM,
    )
    # token 1: r - 0.4 = 0.6 or -0.4; token 0: 0.0 + 0.25 * that.
    alone = [0.15, 0.6] if everyone_gets_it else [-0.1, -0.4]
    assert (targets - VALUES[0]).tolist() == pytest.approx(alone, abs=1e-6)
    ours, _ = gae(torch.tensor(rewards)[None], torch.tensor([VALUES[0]]), torch.ones(1, 2), gamma=GAMMA, lam=LAM)
    assert ours[0].tolist() == pytest.approx(alone)
    assert np.abs(np.subtract(alone, BY_HAND[0])).max() > 0.2


def test_the_game_is_one_trajectory_however_it_is_cut_into_turns():
    generator = torch.Generator().manual_seed(0)
    rewards, values = (torch.rand((3, 8), generator=generator, dtype=torch.float64) for _ in range(2))
    whole = gae(rewards, values, torch.ones(3, 8), gamma=0.9, lam=0.7)
    for widths in ([8], [4, 4], [1, 2, 5], [1] * 8):
        parts = zip(rewards.split(widths, dim=1), values.split(widths, dim=1), strict=True)
        found = turns_gae([TurnTokens(*part, torch.ones_like(part[0])) for part in parts], gamma=0.9, lam=0.7)
        for index in (0, 1):
            assert torch.cat([pair[index] for pair in found], dim=1).tolist() == whole[index].tolist()


def test_no_time_passes_where_nothing_was_written():
    # Game 0 of the example, with holes: agent 0 ends early, an agent between writes nothing.
    turns = [
        turn([[0.0, 0.0, 9.0]], [[0.2, 0.4, 9.0]], [[1, 1, 0]]),
        turn([[9.0]], [[9.0]], [[0]]),
        turn([REWARDS[1]], [VALUES[1]]),
    ]
    first, between, last = turns_gae(turns, gamma=GAMMA, lam=LAM)
    assert first[0][0].tolist() == pytest.approx([*BY_HAND[0], 0.0])
    assert between[0].tolist() == between[1].tolist() == [[0.0]]
    assert last[0][0].tolist() == pytest.approx(BY_HAND[1])


def test_with_gamma_and_lambda_1_every_token_answers_for_the_whole_reward():
    turns = [turn([REWARDS[place]], [VALUES[place]]) for place in (0, 1)]
    for _, returns in turns_gae(turns, gamma=1.0, lam=1.0):
        assert returns[0].tolist() == pytest.approx([1.0, 1.0])


def test_a_shared_reward_counts_once_and_own_ones_where_they_were_earned():
    masks = [torch.tensor([[1, 1], [1, 0]]), torch.tensor([[1], [0]])]  # in game 1 the second agent wrote nothing
    given = torch.tensor([[0.5, 0.25], [0.5, 0.25]])
    shared = game_rewards(masks, given, shared=True)
    assert [part.tolist() for part in shared] == [[[0.0, 0.0], [0.25, 0.0]], [[0.5], [0.0]]]
    own = game_rewards(masks, torch.tensor([[0.5, 1.0], [0.125, 2.0]]), shared=False)
    assert [part.tolist() for part in own] == [[[0.0, 0.5], [3.0, 0.0]], [[0.125], [0.0]]]
    nobody = game_rewards([torch.zeros(1, 2)], torch.ones(1, 1), shared=True)
    assert nobody[0].tolist() == [[0.0, 0.0]]
