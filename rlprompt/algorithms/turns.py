"""A game of several agents as one trajectory: advantages over its turns in order, across agents.

Every token of a game is an action of whoever wrote it, and a critic that sees the whole prefix values the state before
it. So the value after the last token of a segment is that of the longer prefix, as the *next* agent's turn begins: what
a segment is worth is what the others can still make of it. Advantages per agent, each as if its own last token were the
end, do not see that.

MultiPrompter's abstract (arXiv:2310.16730) speaks of a cooperative game of prompters that take turns; that the target
of a prompter's value is the next prompter's value is our reading of it. Shapes: G games, T tokens of an agent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlprompt.algorithms.losses import gae


@dataclass(frozen=True)
class TurnTokens:
    """One agent's turn in G games, (G, T) each; row g of every agent is the same game."""

    rewards: Tensor
    values: Tensor
    """What the critic expects before each token, from the whole prefix."""
    mask: Tensor
    """1 where a token was written."""


def turns_gae(turns: Sequence[TurnTokens], *, gamma: float, lam: float) -> list[tuple[Tensor, Tensor]]:
    """Generalised advantage estimates along whole games. Reference: arXiv:1506.02438, eq. 16, over concatenated turns.

    Where nothing was written, in the rest of a segment that ended early or in an empty one, time does not pass: the
    token before and the one after are neighbours.

    Args:
        turns: of each agent, in the order of the turns.
        gamma: discount per token, in [0, 1].
        lam: lambda per token, in [0, 1].

    Returns:
        Advantages and returns (what the critic aims at) of each agent, (G, T), 0 where not written.
    """
    widths = [turn.mask.shape[1] for turn in turns]
    written = torch.cat([turn.mask for turn in turns], dim=1) > 0
    order = torch.argsort((~written).to(torch.int8), dim=1, stable=True)  # what was written, in order, to the front
    rewards, values = (
        torch.cat(parts, dim=1).gather(1, order)
        for parts in ([turn.rewards for turn in turns], [turn.values for turn in turns])
    )
    found = gae(rewards, values, written.gather(1, order), gamma=gamma, lam=lam)
    whole = [torch.zeros_like(part).scatter(1, order, part) for part in found]
    advantages, returns = (torch.split(part, widths, dim=1) for part in whole)
    return list(zip(advantages, returns, strict=True))


def game_rewards(masks: Sequence[Tensor], rewards: Tensor, *, shared: bool) -> list[Tensor]:
    """Puts the agents' rewards on the tokens that earned them, so that along a game each counts once.

    Args:
        masks: (G, T) of each agent, in the order of the turns.
        rewards: what each agent was given at the end, (N, G).
        shared: whether it is one reward, given to all: it then belongs to the last token of the game. Otherwise each
            agent's own reward belongs to the last token of its segment; where it wrote nothing, to that of the segment
            before, or of the next one where there is none.

    Returns:
        Rewards (G, T) of each agent.
    """
    placed = [torch.zeros_like(mask, dtype=rewards.dtype) for mask in masks]
    for game in range(rewards.shape[1]):
        lengths = [int((mask[game] > 0).sum()) for mask in masks]
        writers = [place for place, length in enumerate(lengths) if length]
        for place in range(len(masks)) if not shared else [len(masks) - 1]:
            before = [writer for writer in writers if writer <= place] or writers[:1]
            if before:
                owner = before[-1]
                last = int(torch.nonzero(masks[owner][game] > 0)[-1])
                placed[owner][game, last] += rewards[place, game]
    return placed
