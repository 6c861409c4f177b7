"""What an API's reply says about choices: pure functions from log-probabilities or text to an answer.

Nothing here makes up a probability: where the server does not tell enough, the answer is a text, or none.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

_AMBIGUOUS_SHARE = 0.01
"""Probability of tokens that fit several choices, relative to those that fit one, above which nothing is read."""


class NoAnswer(ValueError):  # noqa: N818 - the reply is at fault, not the program
    """The reply does not tell which choice was meant, or how probable the choices are."""


def normalise(logprobs: Sequence[float]) -> tuple[float, ...]:
    """Returns log-probabilities whose exponentials sum to 1.

    Raises:
        NoAnswer: a value that is no log-probability, or all are minus infinity.
    """
    highest = max(logprobs)
    if any(math.isnan(value) for value in logprobs) or not math.isfinite(highest):
        raise NoAnswer("the log-probabilities of the choices are not finite")
    total = highest + math.log(math.fsum(math.exp(value - highest) for value in logprobs))
    return tuple(value - total for value in logprobs)


def from_top_tokens(
    top: Sequence[tuple[str, float]], choices: Sequence[str]
) -> tuple[tuple[float, ...] | None, str | None]:
    """Reads the choices from the most probable first tokens of an answer.

    A token stands for a choice when, spaces around both taken off, the choice begins with it: " great" and "gre"
    stand for "great". The probability of a choice is the sum over its tokens. A token that fits several choices
    decides nothing, and neither does the reply when such tokens are probable.

    Args:
        top: (token, log-probability) pairs.
        choices: the texts to choose from.

    Returns:
        (log-probabilities normalised over the choices, None) when every choice has a token; else (None, the most
        probable choice): one that is not among the top tokens is less probable, but nobody knows by how much.

    Raises:
        NoAnswer: no token fits a choice, or the first token does not tell the choices apart.
    """
    masses = [0.0] * len(choices)
    ambiguous = 0.0
    for token, logprob in top:
        start = token.strip()
        fits = [index for index, choice in enumerate(choices) if start and choice.strip().startswith(start)]
        if len(fits) == 1:
            masses[fits[0]] += math.exp(logprob)
        elif fits:
            ambiguous += math.exp(logprob)
    if not any(masses) and not ambiguous:
        raise NoAnswer("none of the most probable first tokens begins a choice")
    if ambiguous > _AMBIGUOUS_SHARE * math.fsum(masses):
        raise NoAnswer("the first token does not tell the choices apart; use choices_by echo or parsed")
    if all(masses):
        return normalise([math.log(mass) for mass in masses]), None
    return None, choices[masses.index(max(masses))]


def from_echo(
    texts: Sequence[str], scored: Sequence[tuple[Sequence[str], Sequence[float | None]]]
) -> tuple[float, ...]:
    """Returns the log-likelihood of each text as the end of an echoed prompt, summed over its tokens.

    Positions are counted from the end, because servers decode characters that span tokens differently and put
    special tokens in front. A token may cross the border between prompt and continuation; then all sums begin at
    the earliest such token, so that they condition on the same text.

    Args:
        texts: the continuations that were appended to one prompt.
        scored: per continuation the tokens of the whole prompt and their log-probabilities (the first is None).

    Raises:
        NoAnswer: the tokens do not end with the continuation, or a log-probability that is needed is missing.
    """
    placed = [_placed(text, tokens, logprobs) for text, (tokens, logprobs) in zip(texts, scored, strict=True)]
    start = 0
    while True:
        earliest = min((begin for row in placed for begin, end, _ in row if begin < start < end), default=start)
        if earliest == start:
            break
        start = earliest
    totals = []
    for row in placed:
        values = [logprob for _, end, logprob in row if end > start]
        if not values or any(value is None or math.isnan(value) for value in values):
            raise NoAnswer("the reply lacks log-probabilities of the continuation")
        totals.append(math.fsum(value for value in values if value is not None))
    return tuple(totals)


def _placed(text: str, tokens: Sequence[str], logprobs: Sequence[float | None]) -> list[tuple[int, int, float | None]]:
    """Returns (begin, end, log-probability) per token; position 0 is where the continuation begins."""
    if len(tokens) != len(logprobs):
        raise NoAnswer(f"{len(tokens)} tokens came with {len(logprobs)} log-probabilities")
    if not text or not "".join(tokens).endswith(text):
        raise NoAnswer("the echoed tokens do not end with the continuation")
    placed = []
    end = len(text)
    for token, logprob in zip(reversed(tokens), reversed(logprobs), strict=True):
        placed.append((end - len(token), end, logprob))
        end -= len(token)
    return placed[::-1]


def parse_choice(text: str, choices: Sequence[str]) -> int:
    """Returns the index of the only choice that a text names as a whole word.

    Upper and lower case are the same, unless that would merge two choices or the choices are single letters. A
    choice inside a longer one does not count ("positive" in "very positive" where both are choices).

    Raises:
        NoAnswer: the text names none, or more than one.
    """
    names = [choice.strip() for choice in choices]
    folded = {name.casefold() for name in names}
    exact = len(folded) < len(names) or all(len(name) == 1 for name in names)
    longest_first = sorted(names, key=len, reverse=True)
    pattern = r"(?<!\w)(?:" + "|".join(re.escape(name) for name in longest_first if name) + r")(?!\w)"
    found = re.findall(pattern, text, 0 if exact else re.IGNORECASE)
    named = {match if exact else match.casefold() for match in found}
    if len(named) != 1:
        raise NoAnswer(f"the answer names {len(named)} of the choices, one was expected")
    (name,) = named
    return next(index for index, known in enumerate(names) if (known if exact else known.casefold()) == name)


def constraint_body(constraint: str, choices: Sequence[str]) -> Mapping[str, Any]:
    """Returns the part of a request body that lets the server write nothing but a choice.

    Args:
        constraint: "json-schema" (`response_format` with a schema), "structured-outputs" or "guided-choice" (the
            newer and the older field of vLLM servers).
        choices: the texts to choose from.
    """
    names = [choice.strip() for choice in choices]
    if constraint == "structured-outputs":
        return {"structured_outputs": {"choice": names}}
    if constraint == "guided-choice":
        return {"guided_choice": names}
    schema = {
        "type": "object",
        "properties": {"choice": {"type": "string", "enum": names}},
        "required": ["choice"],
        "additionalProperties": False,
    }
    return {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "choice", "strict": True, "schema": schema},
        }
    }


def read_constrained(constraint: str, text: str, choices: Sequence[str]) -> int:
    """Returns the index of the choice in the answer to a request with `constraint_body`.

    Raises:
        NoAnswer: the server did not keep to the constraint.
    """
    value: Any = text
    if constraint == "json-schema":
        try:
            parsed = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise NoAnswer("the constrained answer is not JSON") from error
        value = parsed.get("choice") if isinstance(parsed, dict) else None
    names = [choice.strip() for choice in choices]
    if not isinstance(value, str) or value.strip() not in names:
        raise NoAnswer("the constrained answer is none of the choices")
    return names.index(value.strip())
