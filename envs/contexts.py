"""What a policy reads before it writes: one plain text, or a meta-prompt filled in for a task or for single inputs.

The target never sees any of this. Shapes: B prompts, C context tokens (padded with -1 on the right).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rlprompt.config import EnvConfig
from rlprompt.contexts import (
    FEEDBACK_TOKENS,
    context_ids,
    context_limit,
    cut_text,
    feedback_room,
    start_token,
    text_ids,
)
from rlprompt.errors import ConfigError
from rlprompt.masks import NOT_WRITTEN
from rlprompt.meta_prompts import MetaPrompt, load_meta_prompt
from rlprompt.seeding import generator
from rlprompt.types import Example, IntArray

if TYPE_CHECKING:
    from rlprompt.scoring import ScoringRules

SHOWN_EXAMPLES = 3
"""Train examples in `{examples}`, drawn once by the run's seed."""
_LEVELS = ("task", "instance")


class PlainContext:
    """The same text for every prompt.

    Args:
        tokenizer: the policy's.
        text: what is read; empty means the BOS (else EOS) token.

    Raises:
        ConfigError: the text is empty, and the tokenizer has neither token.
    """

    per_input = False

    def __init__(self, tokenizer: Any, text: str) -> None:
        self.text = text
        ids = list(tokenizer.encode(text, add_special_tokens=False)) if text else []
        self._ids: IntArray = np.array(ids or [start_token(tokenizer)], dtype=np.int64)
        self.width = len(self._ids)

    def inputs(self, iteration: int, episodes: IntArray) -> None:
        """Nothing is written for single inputs."""

    def read(self, examples: Sequence[Example] | None, feedback: Sequence[str]) -> tuple[list[str], IntArray]:
        """Returns the texts and token ids (B, C) that B prompts are written after."""
        return [self.text] * len(feedback), np.repeat(self._ids[None], len(feedback), axis=0)


@dataclass(frozen=True)
class MetaSettings:
    """The part of `rlprompt.config.EnvConfig` that says what a rewriting policy reads; the names are the same."""

    meta_prompt: str = "prewrite"
    draft: str = ""
    level: str = "task"
    chat: bool = True
    rewrites_per_input: int = 1
    samples: int = 1
    turns: int = 1
    hint_reward: float = 0.0
    max_context: int | None = None
    """Most tokens that the policy reads; None takes all positions of its model that the prompt leaves."""
    composed: bool | None = None
    """Whether other agents write before this one; None for a policy that writes alone."""
    dialogue: bool = False
    """Whether a scripted partner answers the target between the turns."""

    @classmethod
    def from_config(cls, env: EnvConfig) -> MetaSettings:
        """Takes the settings from a configuration."""
        names = ("meta_prompt", "draft", "chat", "rewrites_per_input", "samples", "turns", "hint_reward", "dialogue")
        level = "instance" if env.per_input else "task"
        return cls(**{name: getattr(env, name) for name in names}, level=level)

    def check(self) -> None:
        """Raises ConfigError for a value out of range."""
        if self.level not in _LEVELS:
            raise ConfigError(f"level must be task or instance, got '{self.level}'")
        for name in ("rewrites_per_input", "samples", "turns"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.hint_reward < float("inf"):
            raise ConfigError(f"hint_reward must be 0 or more, got {self.hint_reward}")

    def load(self) -> MetaPrompt:
        """Returns the meta-prompt.

        Raises:
            ConfigError: a value out of range, a slot that is missing or unknown, or no draft for the slot {draft}.
        """
        self.check()
        meta = load_meta_prompt(
            self.meta_prompt, per_input=self.level == "instance", turns=self.turns, composed=self.composed
        )
        if "draft" in meta.slots and not self.draft:
            raise ConfigError("the meta-prompt has the slot {draft}, but env.draft is empty; write a draft instruction")
        return meta


class MetaContexts:
    """A meta-prompt filled in with the draft (task level), or with one example's input (instance level).

    An input that is too long for the policy is cut at its end for the policy only; what the target reads is never cut.

    Args:
        tokenizer: the policy's.
        settings: meta-prompt, draft, level, ...
        limit: most tokens of a context; None for no limit.
        scorer: draws the inputs, and has the examples.
        round_size: prompts of one iteration over all workers.
        composed_room: most tokens of `{composed}`.

    Raises:
        ConfigError: a slot is missing or unknown; the meta-prompt is too long for the policy; the number of prompts
            is no multiple of `rewrites_per_input`.
    """

    def __init__(
        self,
        tokenizer: Any,
        settings: MetaSettings,
        *,
        limit: int | None,
        scorer: ScoringRules,
        round_size: int,
        composed_room: int = 0,
    ) -> None:
        self.meta = settings.load()
        self.per_input = settings.level == "instance"
        if self.per_input and round_size % settings.rewrites_per_input:
            raise ConfigError(
                f"env.num_envs must be a multiple of env.rewrites_per_input = {settings.rewrites_per_input}, got "
                f"{round_size}"
            )
        self._settings = settings
        self._tokenizer = tokenizer
        self._limit = limit
        self._scorer = scorer
        self._round_size = round_size
        self._known: dict[str, tuple[str, list[int]]] = {}
        self._fixed = {"draft": settings.draft}
        if "examples" in self.meta.slots:
            self._fixed["examples"] = shown_examples(scorer)
        self._composed_room = composed_room
        self._room = feedback_room(settings.turns) + (composed_room + 2 if composed_room else 0)  # and a line break
        bare = len(self._encode({}))
        if limit is not None and bare + self._room > limit:
            raise ConfigError(
                f"the meta-prompt takes {bare + self._room} tokens without the input, but the policy can read {limit} "
                "before env.prompt_length more; shorten it or env.draft, or take a policy with more positions"
            )
        examples = scorer.task.train if self.per_input else [None]
        self.width = max(len(self._first(example)[1]) for example in examples) + self._room
        if limit is not None:
            self.width = min(self.width, limit)

    def inputs(self, iteration: int, episodes: IntArray) -> list[Example] | None:
        """Returns the example that each episode of an iteration writes for; None at task level."""
        if not self.per_input:
            return None
        repeats = self._settings.rewrites_per_input
        drawn = self._scorer.draw_inputs(iteration, self._round_size // repeats)
        return [drawn[(int(episode) % self._round_size) // repeats] for episode in episodes]

    def read(
        self, examples: Sequence[Example] | None, feedback: Sequence[str], composed: Sequence[str] | None = None
    ) -> tuple[list[str], IntArray]:
        """Returns the texts and token ids (B, C); C is at least `width`, and more only for inputs not in train."""
        before = [""] * len(feedback) if composed is None else composed
        rows = [
            self.one(None if examples is None else examples[index], said, before[index])
            for index, said in enumerate(feedback)
        ]
        width = max([self.width, *(len(ids) for _, ids in rows)])
        padded = np.full((len(rows), width), NOT_WRITTEN, dtype=np.int64)
        for row, (_, ids) in enumerate(rows):
            padded[row, : len(ids)] = ids
        return [text for text, _ in rows], padded

    def one(self, example: Example | None, feedback: str = "", composed: str = "") -> tuple[str, list[int]]:
        """Returns the text and the token ids that one prompt is written after."""
        if not feedback and not composed:
            return self._first(example)
        values = {
            "feedback": cut_text(self._tokenizer, feedback, FEEDBACK_TOKENS),
            "composed": cut_text(self._tokenizer, composed, self._composed_room),
        }
        return self._fit("" if example is None else example.input, values)

    def _first(self, example: Example | None) -> tuple[str, list[int]]:
        key = "" if example is None else example.id
        if key not in self._known:
            self._known[key] = self._fit("" if example is None else example.input, {})
        return self._known[key]

    def _fit(self, text: str, values: Mapping[str, str]) -> tuple[str, list[int]]:
        """Fills in and tokenises, with the input cut at its end until everything fits."""
        limit = None if self._limit is None else self._limit - (0 if values else self._room)
        values = {**values, "input": text}
        ids = self._encode(values)
        while limit is not None and len(ids) > limit and values["input"]:
            kept = len(text_ids(self._tokenizer, values["input"])) - (len(ids) - limit)
            shorter = cut_text(self._tokenizer, values["input"], max(kept, 0))
            values["input"] = shorter if len(shorter) < len(values["input"]) else shorter[:-1]
            ids = self._encode(values)
        return self.meta.fill({**self._fixed, **values}), ids

    def _encode(self, values: Mapping[str, str]) -> list[int]:
        text = self.meta.fill({**self._fixed, **values})
        return context_ids(self._tokenizer, text, chat=self._settings.chat)


def shown_examples(scorer: ScoringRules) -> str:
    """Returns what stands in `{examples}`."""
    train = scorer.task.train
    order = generator(scorer.seed, "meta-examples").permutation(len(train))[:SHOWN_EXAMPLES]
    return "\n".join(
        f"Input: {train[int(index)].input}\nAnswer: {reference_text(scorer, train[int(index)])}" for index in order
    )


def reference_text(scorer: ScoringRules, example: Example) -> str:
    """Returns the gold answer of an example as text."""
    reference, choices = example.reference, scorer.task.choices
    if choices is not None and isinstance(reference, int):
        return choices[reference].strip()
    return "" if reference is None else str(reference)


__all__ = [
    "FEEDBACK_TOKENS",
    "MetaContexts",
    "MetaPrompt",
    "MetaSettings",
    "PlainContext",
    "context_ids",
    "context_limit",
    "cut_text",
    "reference_text",
    "shown_examples",
    "text_ids",
]
