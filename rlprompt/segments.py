"""How the segments of several agents become one prompt: the same in environments, learners and serving.

A segment is the list of token ids that one agent wrote. Segments of one tokenizer with nothing between them are
decoded together, exactly as one agent's tokens would be; elsewhere the border is text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rlprompt.agents import AgentConfig
from rlprompt.config import MaskConfig
from rlprompt.contexts import text_ids
from rlprompt.errors import ConfigError
from rlprompt.masks import decode, static_mask
from rlprompt.types import BoolArray

SO_FAR = "The prompt so far: "
"""Stands before what fills a meta-prompt's `{composed}`."""
TOKENS_FOR_ONE = 4
"""Room that a reader keeps for each token written before it, where it reads them as text of its own tokenizer."""


def said_so_far(text: str) -> str:
    """Returns what stands in `{composed}` for what was composed: nothing before the first words."""
    return SO_FAR + text if text else ""


def end_token(tokenizer: Any, agent: AgentConfig) -> int | None:
    """Returns the id that ends an agent's segment early; None for segments of fixed length.

    Args:
        tokenizer: the agent's.
        agent: as `rlprompt.agents.settled` returned it.

    Raises:
        ConfigError: the tokenizer has no EOS, or the separator is not one token of it.
    """
    if agent.ends == "length":
        return None
    if agent.ends == "eos":
        if tokenizer.eos_token_id is None:
            raise ConfigError(f"agent '{agent.name}' ends with EOS, but its tokenizer has none; set ends: length")
        return int(tokenizer.eos_token_id)
    found = list(tokenizer.encode(agent.separator or "", add_special_tokens=False))
    if len(found) != 1:
        raise ConfigError(
            f"agent '{agent.name}' ends with its separator {agent.separator!r}, which is {len(found)} tokens of its "
            "tokenizer; take a separator of one token, or ends: eos"
        )
    return int(found[0])


def segment_mask(tokenizer: Any, agent: AgentConfig, mask: MaskConfig) -> BoolArray:
    """Returns which tokens an agent may ever write, (V,): `rlprompt.masks.static_mask`, and what ends its segment."""
    allowed = static_mask(tokenizer, mask, eos=agent.ends == "eos")
    if agent.ends == "separator":
        allowed = allowed.copy()
        allowed[end_token(tokenizer, agent)] = True
        allowed.setflags(write=False)
    return allowed


class Composition:
    """The rule by which N agents' segments become a prompt, and by which later agents read earlier segments.

    An empty segment adds nothing, no separator either. Nothing follows the last segment.

    Args:
        agents: in the order of their turns, as `rlprompt.agents.settled` returned them.
        tokenizers: of each agent.

    Raises:
        ConfigError: a segment cannot end as configured.
    """

    def __init__(self, agents: Sequence[AgentConfig], tokenizers: Sequence[Any]) -> None:
        self.agents = tuple(agents)
        self.tokenizers = tuple(tokenizers)
        self.ends = tuple(end_token(*pair) for pair in zip(tokenizers, agents, strict=True))

    def words(self, place: int, segment: Iterable[int]) -> list[int]:
        """Returns the ids of an agent's segment that are text: those before its end, -1 left out."""
        stops = {self.ends[place], self.tokenizers[place].eos_token_id} - {None}
        kept: list[int] = []
        for token in segment:
            if int(token) in stops:
                break
            if int(token) >= 0:
                kept.append(int(token))
        return kept

    def part(self, place: int, segment: Iterable[int]) -> str:
        """Returns the text of one agent's segment alone."""
        return decode(self.tokenizers[place], self.words(place, segment))

    def text(self, segments: Sequence[Iterable[int]]) -> str:
        """Returns the prompt that the first agents' segments make."""
        text, run, writer, glue = "", list[int](), 0, ""
        for place, segment in enumerate(segments):
            words = self.words(place, segment)
            if words and run and glue:
                text, run = text + decode(self.tokenizers[writer], run) + glue, []
            if words:
                run, writer, glue = run + words, place, ""
            if run:
                glue = glue or self.agents[place].separator or ""
        return text + (decode(self.tokenizers[writer], run) if run else "")

    def is_direct(self, place: int) -> bool:
        """Whether an agent reads the very tokens that were written before it, not their text."""
        earlier = self.agents[:place]
        return all(agent.model == self.agents[place].model and not agent.separator for agent in earlier)

    def ids(self, segments: Sequence[Iterable[int]]) -> list[int]:
        """Returns what the next agent reads of the segments before it, as ids of its own tokenizer.

        As text, they come with the separator that follows them. A single space is left to the next agent's first
        token, which brings it.
        """
        place = len(segments)
        if self.is_direct(place):
            return [token for index, segment in enumerate(segments) for token in self.words(index, segment)]
        text = self.text(segments)
        if text:
            text += (self.agents[place - 1].separator or "").removesuffix(" ")
        return text_ids(self.tokenizers[place], text) if text else []

    def room(self, place: int) -> int:
        """Returns how many tokens an agent keeps free for the segments before it."""
        earlier = self.agents[:place]
        if self.is_direct(place):
            return sum(agent.length for agent in earlier)
        between = sum(len(text_ids(self.tokenizers[place], agent.separator or "")) + 1 for agent in earlier)
        return between + TOKENS_FOR_ONE * sum(agent.length for agent in earlier)

    def slot_room(self, place: int) -> int:
        """Returns the most tokens that `{composed}` takes in an agent's meta-prompt; 0 for the first agent."""
        return self.room(place) + len(text_ids(self.tokenizers[place], SO_FAR)) if place else 0
