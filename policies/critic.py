"""The central critic of several agents: it reads the input and everything that was composed, whoever wrote it.

Its values serve training only; every agent still acts on what it reads itself. That the critic is central and the
actors are not is our reading of MultiPrompter (arXiv:2310.16730). Shapes: G games, P tokens of all segments, C context
tokens of the first agent, N agents.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlprompt.policies.base import linear
from rlprompt.seeding import integer_seed

EMBEDDING = 16


class PrefixCritic(torch.nn.Module):
    """Values of the states of a game: what is expected once so many tokens are composed and an agent is to write.

    Tokens are embedded, those of the prefix place by place, those of the context as their mean; with the agent and the
    place of the next token as one-hot vectors they go through one hidden layer. The output layer starts at 0.

    Args:
        vocabulary_size: of the largest vocabulary among the agents.
        length: P.
        agents: N.
        hidden: width of the hidden layer.
        seed: of the starting weights.
    """

    def __init__(self, *, vocabulary_size: int, length: int, agents: int, hidden: int, seed: int) -> None:
        super().__init__()
        self.length, self.agents = length, agents
        self.embedding = torch.nn.Parameter(torch.zeros(vocabulary_size + 1, EMBEDDING))
        self.hidden = linear(length * EMBEDDING + EMBEDDING + agents + length + 1, hidden)
        self.out = linear(hidden, 1)
        generator = torch.Generator().manual_seed(integer_seed(seed, "critic"))
        with torch.no_grad():
            self.embedding[1:].normal_(generator=generator)  # row 0 stands for what is not written
        torch.nn.init.xavier_uniform_(self.hidden.weight, generator=generator)
        for part in (self.hidden.bias, self.out.weight, self.out.bias):
            torch.nn.init.zeros_(part)

    def forward(self, context: Tensor, prefix: Tensor, agent: Tensor, position: Tensor) -> Tensor:
        """Returns values (G,).

        Args:
            context: (G, C) token ids of what the first agent read, -1 at padding.
            prefix: (G, P) token ids, -1 where nothing stands.
            agent: (G,) the agent that writes next.
            position: (G,) where in the prefix its token goes.
        """
        table = torch.cat([torch.zeros_like(self.embedding[:1]), self.embedding[1:]])
        written = table[prefix + 1].flatten(start_dim=1)
        read = table[context + 1].sum(dim=1) / (context >= 0).sum(dim=1, keepdim=True).clamp(min=1)
        who = torch.nn.functional.one_hot(agent, self.agents)
        where = torch.nn.functional.one_hot(position, self.length + 1)
        hidden = torch.relu(self.hidden(torch.cat([written, read, who, where], dim=1)))
        value: Tensor = self.out(hidden)
        return value.squeeze(-1)

    def values(self, context: Tensor, prefix: Tensor, owners: Tensor) -> Tensor:
        """Returns the values (G, P) before each token of whole games.

        Args:
            context: (G, C) as of `forward`.
            prefix: (G, P) with all segments.
            owners: (P,) the agent that writes each place of the prefix.
        """
        games, length = prefix.shape
        to_come = torch.triu(torch.ones(length, length, dtype=torch.bool))  # row p: what stands at p and behind
        seen = prefix.unsqueeze(1).masked_fill(to_come, -1).reshape(games * length, length)
        where = torch.arange(length).repeat(games)
        value: Tensor = self(context.repeat_interleave(length, dim=0), seen, owners.repeat(games), where)
        return value.view(games, length)
