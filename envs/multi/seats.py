"""The agents of a game: what each may write, and what it reads.

Shapes: B copies of the game, C context tokens of an agent, V its vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from rlprompt.agents import AgentConfig, settled
from rlprompt.config import MaskConfig, describe
from rlprompt.contexts import context_limit
from rlprompt.envs.contexts import MetaContexts, MetaSettings, PlainContext
from rlprompt.errors import ConfigError
from rlprompt.masks import NOT_WRITTEN
from rlprompt.segments import Composition, said_so_far, segment_mask
from rlprompt.types import BoolArray, Example, IntArray

if TYPE_CHECKING:
    from rlprompt.scoring import ScoringRules

Segments = Sequence[Sequence[list[int]]]
"""Of each copy, the segments that were written so far, in order."""


class PlainReader:
    """Reads a text, and then what was composed before; without either, the BOS (else EOS) token.

    Where all agents before have the reader's tokenizer and nothing between their segments, it reads their very tokens.
    Else it reads their text, of which the beginning is cut off where it takes more tokens than there is room for.
    """

    def __init__(self, context: PlainContext, composition: Composition, place: int) -> None:
        self._context = context
        self._composition = composition
        self._room = composition.room(place)
        self.width = context.width + self._room

    def read(self, examples: Sequence[Example] | None, segments: Segments) -> tuple[list[str], IntArray]:
        """Returns the texts and the token ids (B, C), padded with -1 on the right."""
        texts, ids = self._context.read(examples, [""] * len(segments))
        padded = np.full((len(segments), self.width), NOT_WRITTEN, dtype=np.int64)
        padded[:, : ids.shape[1]] = ids
        for row, written in enumerate(segments):
            before = self._composition.ids(written)[-self._room :] if self._room else []
            padded[row, ids.shape[1] : ids.shape[1] + len(before)] = before
        composed = [self._composition.text(written) for written in segments]
        return [text + part for text, part in zip(texts, composed, strict=True)], padded


class MetaReader:
    """Reads a meta-prompt with the draft or the input, and what was composed before in `{composed}`."""

    def __init__(self, contexts: MetaContexts, composition: Composition) -> None:
        self._contexts = contexts
        self._composition = composition
        self.width = contexts.width

    def read(self, examples: Sequence[Example] | None, segments: Segments) -> tuple[list[str], IntArray]:
        """Returns the texts and the token ids (B, C), padded with -1 on the right."""
        composed = [self._composition.text(written) for written in segments]
        said = [said_so_far(text) for text in composed]
        return self._contexts.read(examples, [""] * len(segments), said)


@dataclass(frozen=True)
class Seat:
    """An agent's place in the game."""

    agent: AgentConfig
    tokenizer: Any
    vocabulary_size: int
    static_mask: BoolArray
    """(V,)"""
    end_id: int | None
    """What ends its segment early."""
    offset: int
    """Tokens that the segments before it have at most."""
    reader: PlainReader | MetaReader


def agents_from(
    values: Sequence[AgentConfig | Mapping[str, Any]], *, level: str, model: str
) -> tuple[AgentConfig, ...]:
    """Returns the settled agents of a game.

    Raises:
        ConfigError: one does not fit, or they do not fit together.
    """
    found: list[AgentConfig] = []
    for place, value in enumerate(values):
        try:
            found.append(value if isinstance(value, AgentConfig) else AgentConfig.model_validate(dict(value)))
        except ValidationError as error:
            raise ConfigError(f"agents.{place}.{describe(error, AgentConfig)}") from error
    return settled(found, per_input=level == "instance", model=model)


def take_seats(
    agents: Sequence[AgentConfig],
    *,
    mask: MaskConfig,
    context: str,
    meta: MetaSettings,
    scorer: ScoringRules,
    round_size: int,
) -> tuple[tuple[Seat, ...], Composition]:
    """Returns the seats of settled agents, and the rule by which their segments become a prompt.

    Args:
        agents: in the order of their turns.
        mask: of all of them.
        context: what an agent without a meta-prompt reads before the composed tokens.
        meta: what those with one share; its `meta_prompt` is not read.
        scorer: draws the inputs, and has the examples.
        round_size: prompts of one iteration over all workers.

    Raises:
        ConfigError: an agent cannot end or read as configured, or the mask leaves too few tokens.
    """
    from rlprompt.models import load_tokenizer

    tokenizers = [load_tokenizer(str(agent.model)) for agent in agents]
    composition = Composition(agents, tokenizers)
    seats: list[Seat] = []
    for place, (agent, tokenizer) in enumerate(zip(agents, tokenizers, strict=True)):
        seats.append(
            Seat(
                agent=agent,
                tokenizer=tokenizer,
                vocabulary_size=len(tokenizer),
                static_mask=segment_mask(tokenizer, agent, mask),
                end_id=composition.ends[place],
                offset=sum(earlier.length for earlier in agents[:place]),
                reader=_reader(composition, place, context=context, meta=meta, scorer=scorer, round_size=round_size),
            )
        )
    if mask.no_repeat:
        _check_no_repeat(seats)
    return tuple(seats), composition


def _reader(
    composition: Composition, place: int, *, context: str, meta: MetaSettings, scorer: ScoringRules, round_size: int
) -> PlainReader | MetaReader:
    agent, tokenizer = composition.agents[place], composition.tokenizers[place]
    if agent.meta_prompt is None:
        return PlainReader(PlainContext(tokenizer, context), composition, place)
    contexts = MetaContexts(
        tokenizer,
        replace(meta, meta_prompt=agent.meta_prompt, composed=place > 0),
        limit=context_limit(str(agent.model), agent.length, meta.max_context),
        scorer=scorer,
        round_size=round_size,
        composed_room=composition.slot_room(place),
    )
    return MetaReader(contexts, composition)


def _check_no_repeat(seats: Sequence[Seat]) -> None:
    """Raises ConfigError where tokens of different tokenizers would be compared, or too few are allowed."""
    if len({seat.agent.model for seat in seats}) > 1:
        raise ConfigError(
            "env.mask.no_repeat compares tokens, but the agents have different tokenizers; set it to false"
        )
    length = sum(seat.agent.length for seat in seats)
    for seat in seats:
        words = int(seat.static_mask.sum()) - int(seat.end_id is not None)
        if words < length:
            raise ConfigError(f"env.mask.no_repeat leaves {words} tokens for {length} positions; allow more")
