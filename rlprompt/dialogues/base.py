"""What every scripted partner is, and how the state of a dialogue travels with its example.

It is the example's reference: so an environment, a reward, a metric and a test that have the same example and the same
words agree on what follows.
"""

from __future__ import annotations

import functools
import hashlib
import json
from typing import Any, Protocol

from rlprompt.errors import ConfigError
from rlprompt.registry import resolve
from rlprompt.types import Example, Json

METRIC = "dialogue"
"""The metric of a task of dialogues: its references hold the partner's name and the state, as JSON."""
SPEAKER = "You"
"""Whose words the target's are."""


class Partner(Protocol):
    """Somebody who follows a script, and a critic who comments on what the target said.

    A state is a JSON object with `said` (list of [speaker, words]), `over`, `score` in [0, 1], `comment` (the critic's,
    on the newest words), and whatever the script needs. It is never changed in place.
    """

    template: str
    """Of the task, for models that go on with a text: with `{input}` and `{prompt}`."""
    max_tokens: int
    """Of an utterance."""

    def scenario(self, number: int) -> tuple[str, Json]:
        """Returns what the target reads before anything was said, and the state; the same for a number everywhere."""

    def reply(self, state: Json, words: str) -> Json:
        """Returns the state after the target said something and the partner answered, unless the dialogue is over."""


def opened(said: list[list[str]], **known: Any) -> Json:
    """Returns the state of a dialogue that begins.

    Args:
        said: what the partner says first.
        **known: of the script.
    """
    return {"said": said, "over": False, "score": 0.0, "comment": "", **known}


def after(state: Json, words: str, answer: str, *, partner: str, comment: str, **changed: Any) -> Json:
    """Returns a state after an exchange.

    Args:
        state: before it.
        words: the target's.
        answer: the partner's.
        partner: who that is.
        comment: the critic's.
        **changed: what else changed: `over`, `score`, and what the script knows.
    """
    said = [*state["said"], [SPEAKER, one_line(words)], [partner, answer]]
    return {**state, "said": said, "comment": comment, **changed}


def one_line(words: str) -> str:
    """Returns the first line of what was said: nobody speaks for the other."""
    lines = words.strip().splitlines()
    return lines[0].strip() if lines else ""


def reference_of(partner: str, state: Json) -> str:
    """Returns the reference of an example: who the partner is, and how far the dialogue is."""
    return json.dumps({"partner": partner, "state": state}, sort_keys=True)


def dialogue_of(reference: Any, example_id: str = "") -> tuple[Partner, Json]:
    """Returns the partner and the state that a reference tells of.

    Raises:
        ConfigError: the example is no dialogue.
        UnknownNameError: no such partner.
    """
    try:
        known = json.loads(str(reference))
        name, state = str(known["partner"]), dict(known["state"])
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"example '{example_id}' is no dialogue; take a task of dialogues (task.name=negotiation or workflow), or "
            "set env.dialogue to false"
        ) from error
    return _partner(name), state


@functools.lru_cache(maxsize=64)
def _partner(name: str) -> Partner:
    """The partner of a name; looking for installed plug-ins takes longer than a turn."""
    partner: Partner = resolve("dialogues", name)()
    return partner


def derived(example: Example, state: Json) -> Example:
    """Returns the example as the target reads it now: with all that was said since it began.

    The id has a hash of the state, so that equal dialogues are equal examples, and others are not.

    Args:
        example: of the beginning.
        state: as it is now.
    """
    known = json.loads(str(example.reference))
    began = len(known["state"]["said"])
    lines = [f"{speaker}: {words}" for speaker, words in state["said"][began:]]
    reference = reference_of(known["partner"], state)
    digest = hashlib.sha256(reference.encode()).hexdigest()[:12]
    return Example(f"{example.id}#{digest}", "\n".join([example.input, *lines]), reference, example.columns)


def feedback(state: Json) -> str:
    """Returns what a policy reads of a dialogue before its next turn: the last exchange and the critic's comment."""
    lines = [f"{speaker}: {words}" for speaker, words in state["said"][-2:]]
    return "\n".join([*lines, f"Critic: {state['comment']}"])
