"""Who writes for a user's text when a run is served: one policy, or a team whose agents write in turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from rlprompt.contexts import context_ids, cut_text
from rlprompt.errors import ConfigError
from rlprompt.meta_prompts import MetaPrompt
from rlprompt.policies import PromptPolicy, PromptTeam
from rlprompt.segments import Composition, said_so_far
from rlprompt.served import Served
from rlprompt.serving.writing import TextWriter


class Author(Protocol):
    """Writes prompts for texts."""

    max_tokens: int | None
    """The most tokens of a prompt, where the user may ask for fewer."""
    tokenizers: Sequence[Any]

    def context(self, text: str) -> list[int]:
        """Returns what is read for a text before anything is written."""

    def too_long(self, text: str) -> tuple[int, int] | None:
        """Returns how many tokens would have to be read for a text, and how many can be; None where it fits."""

    def write(
        self, texts: Sequence[str], *, length: int | None, batch_size: int, temperature: float, seed: int
    ) -> list[str]:
        """Returns the prompt for each text; with temperature 0 the most probable one."""


class SingleAuthor:
    """One policy that reads its meta-prompt.

    Args:
        served: of a run whose policy writes for single texts.
        policy: who writes.

    Raises:
        ConfigError: there is no meta-prompt.
    """

    def __init__(self, served: Served, policy: PromptPolicy) -> None:
        if served.meta_prompt is None:
            raise ConfigError(f"the mode '{served.mode}' needs a policy and a meta-prompt; load a run's folder")
        self.served = served
        self.policy = policy
        self.tokenizers: Sequence[Any] = [policy.tokenizer]
        self.max_tokens: int | None = policy.prompt_length
        self._meta = MetaPrompt(served.meta_prompt)
        self._writer = TextWriter(policy, served, longest=served.max_context)

    def context(self, text: str) -> list[int]:
        """Returns the tokens that the policy reads for a text."""
        values = {"draft": self.served.draft, "examples": self.served.examples, "input": text}
        return context_ids(self.policy.tokenizer, self._meta.fill(values), chat=self.served.chat)

    def too_long(self, text: str) -> tuple[int, int] | None:
        """Returns the size of a context that the policy cannot read, and its limit."""
        size, limit = len(self.context(text)), self.served.max_context
        return None if limit is None or size <= limit else (size, limit)

    def write(
        self, texts: Sequence[str], *, length: int | None, batch_size: int, temperature: float, seed: int
    ) -> list[str]:
        """Returns what the policy writes for each text."""
        rows = [self.context(text) for text in texts]
        most = self.policy.prompt_length if length is None else length
        if temperature:
            return self._writer.sampled(rows, most, batch_size, temperature=temperature, seed=seed, keys=texts)
        return self._writer.greedy(rows, most, batch_size)


class TeamAuthor:
    """Agents that compose a prompt in turns, each reading its meta-prompt with what was composed, as in training.

    Args:
        served: of a run whose agents write for single texts.
        team: who writes.

    Raises:
        ConfigError: what the agents read is missing.
    """

    max_tokens: int | None = None

    def __init__(self, served: Served, team: PromptTeam) -> None:
        if served.readings is None or len(served.readings) != len(team.agents):
            raise ConfigError("the team has no meta-prompt for each of its agents; load a run's folder")
        self.served = served
        self.team = team
        self.tokenizers: Sequence[Any] = [policy.tokenizer for policy in team.policies]
        self._composition = Composition(team.agents, self.tokenizers)
        self._metas = [MetaPrompt(reading.meta_prompt) for reading in served.readings]
        self._readings = served.readings
        self._writers = [
            TextWriter(team.policy(place), served, agent, longest=reading.max_context)
            for place, (agent, reading) in enumerate(zip(team.agents, served.readings, strict=True))
        ]

    def context(self, text: str) -> list[int]:
        """Returns the tokens that the first agent reads for a text."""
        return self._read(0, text, "")

    def too_long(self, text: str) -> tuple[int, int] | None:
        """Returns the size of a context that an agent cannot read, and its limit."""
        for place, reading in enumerate(self._readings):
            size = len(self._read(place, text, ""))
            if reading.max_context is not None and size > reading.max_context:
                return size, reading.max_context
        return None

    def write(
        self, texts: Sequence[str], *, length: int | None, batch_size: int, temperature: float, seed: int
    ) -> list[str]:
        """Returns what the agents compose for each text; `length` has no meaning, segments have their own."""
        segments: list[list[list[int]]] = [[] for _ in texts]
        for place, (agent, writer) in enumerate(zip(self.team.agents, self._writers, strict=True)):
            composed = [self._composition.text(written) for written in segments]
            rows = [self._read(place, text, before) for text, before in zip(texts, composed, strict=True)]
            held = [[token for segment in written for token in segment if token >= 0] for written in segments]
            if temperature:
                found = writer.sampled_tokens(
                    rows,
                    agent.length,
                    batch_size,
                    temperature=temperature,
                    seed=seed,
                    keys=texts,
                    before=held,
                    place=place,
                )
            else:
                found = writer.greedy_tokens(rows, agent.length, batch_size, before=held)
            for written, tokens in zip(segments, found, strict=True):
                written.append(tokens)
        return [self._composition.text(written) for written in segments]

    def _read(self, place: int, text: str, composed: str) -> list[int]:
        tokenizer, reading = self.tokenizers[place], self._readings[place]
        values = {
            "draft": self.served.draft,
            "examples": self.served.examples,
            "input": text,
            "composed": cut_text(tokenizer, said_so_far(composed), reading.composed_room),
        }
        return context_ids(tokenizer, self._metas[place].fill(values), chat=self.served.chat)
