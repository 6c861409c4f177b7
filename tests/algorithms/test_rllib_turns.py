"""Episodes of several turns: rows, rewards and advantages against numbers made by hand."""

from typing import Any

import numpy as np
import pytest
import torch

from rlprompt.algorithms.rllib.batches import advantages_and_returns, episode_columns, rewards_to_the_end

EOS = 9


class FakeEpisode:
    """What the batch reads of an RLlib episode; `turns` says which turn each step is played in."""

    def __init__(
        self, actions: list[Any], rewards: list[float], turns: list[int], waiting: tuple[int, ...] = ()
    ) -> None:
        self.actions, self.rewards, self.turns, self.waiting = actions, rewards, turns, waiting
        self.token_rewards: dict[int, list[float]] = {}

    def __len__(self) -> int:
        return len(self.actions)

    def get_infos(self, index: int) -> dict[str, Any]:
        turn = [*self.turns, self.turns[-1]][index]
        found = {"turn": turn, "waiting": turn in self.waiting}
        return found | ({"token_rewards": self.token_rewards[index]} if index in self.token_rewards else {})

    def get_observations(self, index: int) -> dict[str, Any]:
        return {"key": np.array([0, 0]), "context": np.array([7, self.turns[index]])}

    def get_actions(self) -> Any:
        return np.array(self.actions)

    def get_rewards(self) -> Any:
        return np.array(self.rewards)


def check(columns: dict[str, torch.Tensor]) -> None:
    assert columns["tokens"].tolist() == [[5, EOS, -1], [6, 6, 6], [4, EOS, -1]]
    assert columns["context"].tolist() == [[7, 0], [7, 1], [7, 0]]
    assert columns["episode"].tolist() == [0, 0, 1]
    assert columns["rewards"].tolist() == [[0, 0, 0], [0, 0, 1], [0, 2, 0]]


def test_each_turn_is_a_row_and_a_turn_of_waiting_is_none() -> None:
    # Episode 0 writes two prompts. Episode 1 was right after its first one: what it writes then is ignored, and its
    # reward, which comes with the last step, belongs to its EOS.
    tokens = [
        FakeEpisode([5, EOS, 6, 6, 6], [0, 0, 0, 0, 1.0], [0, 0, 1, 1, 1]),
        FakeEpisode([4, EOS, 8, 8, 8], [0, 0, 0, 0, 2.0], [0, 0, 1, 1, 1], waiting=(1,)),
    ]
    whole = [
        FakeEpisode([[5, EOS, EOS], [6, 6, 6]], [0, 1.0], [0, 1]),
        FakeEpisode([[4, EOS, EOS], [8, 8, 8]], [0, 2.0], [0, 1], waiting=(1,)),
    ]
    check(episode_columns(tokens, 3, EOS))
    check(episode_columns(whole, 3, EOS))


def test_a_whole_prompt_says_which_token_brought_what() -> None:
    # What came while the first prompt waited for others (0.25) belongs to its EOS.
    episode = FakeEpisode([[5, EOS, EOS], [6, 6, 6]], [0.75, 1.5], [0, 1])
    episode.token_rewards = {1: [0.5, 0.0, 0.25], 2: [0.5, 0.0, 1.0]}
    assert episode_columns([episode], 3, EOS)["rewards"].tolist() == [[0.5, 0.25, 0.0], [0.5, 0.0, 1.0]]


def columns(rewards: list[list[float]], values: list[list[float]], tokens: list[list[int]]) -> dict[str, torch.Tensor]:
    written = torch.tensor(tokens)
    return {
        "tokens": written,
        "mask": (written >= 0).double(),
        "rewards": torch.tensor(rewards, dtype=torch.float64),
        "values": torch.tensor(values, dtype=torch.float64),
        "episode": torch.tensor([0, 0, 1]),
    }


def test_advantages_go_on_over_the_turns_of_an_episode() -> None:
    # Two tokens, then two: as one prompt of rewards 0 0 0 1 and values 0.5 0.4 0.3 0.2, gamma 0.9, lambda 0.5:
    # A_3 = 0.8;  A_2 = 0.9 * 0.2 - 0.3 + 0.45 * 0.8 = 0.24
    # A_1 = 0.9 * 0.3 - 0.4 + 0.45 * 0.24 = -0.022;  A_0 = 0.9 * 0.4 - 0.5 + 0.45 * -0.022 = -0.1499
    # The other episode has one token: A = 2 - 0.5.
    batch = columns(
        [[0, 0, 0], [0, 1, 0], [2, 0, 0]],
        [[0.5, 0.4, 8], [0.3, 0.2, 8], [0.5, 8, 8]],
        [[1, 1, -1], [1, 1, -1], [1, -1, -1]],
    )
    advantages, returns = advantages_and_returns(batch, gamma=0.9, lam=0.5)
    assert advantages[0].tolist() == pytest.approx([-0.1499, -0.022, 0.0])
    assert advantages[1].tolist() == pytest.approx([0.24, 0.8, 0.0])
    assert advantages[2].tolist() == pytest.approx([1.5, 0.0, 0.0])
    assert returns[1].tolist() == pytest.approx([0.54, 1.0, 0.0])


def test_the_return_of_a_turn_holds_what_later_turns_bring() -> None:
    batch = columns([[0.5, 0, 0], [0.25, 1, 0], [2, 0, 0]], [[0.0] * 3] * 3, [[1, 1, -1], [1, 1, -1], [1, -1, -1]])
    assert rewards_to_the_end(batch).sum(dim=1).tolist() == [1.75, 1.25, 2.0]
    assert rewards_to_the_end(batch)[0].tolist() == [0.5, 1.25, 0.0]
