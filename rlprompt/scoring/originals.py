"""The original prompt that a reward compares the written ones with (`needs_original`), and its answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlprompt.errors import CheckpointError
from rlprompt.types import Example, Json, TargetOutput


@dataclass(frozen=True)
class Originals:
    """For P rows: the original prompt of each, and the target's answers to it, (P, columns)."""

    prompts: Sequence[str]
    outputs: Sequence[Sequence[TargetOutput]]

    def columns(self, width: int) -> dict[str, list[Any]]:
        """Returns what rewards get of it, as lists over all pairs."""
        return {
            "original_prompts": [prompt for prompt in self.prompts for _ in range(width)],
            "originals": [output for row in self.outputs for output in row],
        }


def original_prompt(compose: str, example: Example, draft: str, *, shows_input: bool) -> str:
    """Returns what a policy would write at instance level to change nothing.

    The draft, or the input itself where the target reads it only through `{prompt}`; nothing at all where the text is
    added to what the user wrote.

    Args:
        compose: see `rlprompt.pairs.compose_prompt`.
        example: whose input is rewritten.
        draft: the draft instruction.
        shows_input: whether the template has `{input}`.

    >>> example = Example("a", "Why?")
    >>> original_prompt("replace", example, "", shows_input=False)
    'Why?'
    >>> original_prompt("append", example, "Explain.", shows_input=True)
    ''
    """
    if compose != "replace":
        return ""
    return draft or ("" if shows_input else example.input)


def answer_to_json(prompt: str, example_id: str, sample: int, output: TargetOutput) -> Json:
    """Returns a remembered answer, with a payload that can be kept, as JSON values; they survive without loss."""
    return {
        "prompt": prompt,
        "example_id": example_id,
        "sample": sample,
        "text": output.text,
        "choice_logprobs": None if output.choice_logprobs is None else list(output.choice_logprobs),
        "logprob": output.logprob,
        "prompt_tokens": output.prompt_tokens,
        "completion_tokens": output.completion_tokens,
        "cached": output.cached,
        **({} if output.payload is None else {"payload": output.payload}),
    }


def answer_from_json(entry: Json) -> tuple[tuple[str, str, int], TargetOutput]:
    """Returns the (prompt, example id, sample) and the answer of `answer_to_json`.

    Raises:
        CheckpointError: something else.
    """
    try:
        logprobs = entry["choice_logprobs"]
        output = TargetOutput(
            text=entry["text"],
            choice_logprobs=None if logprobs is None else tuple(logprobs),
            logprob=entry["logprob"],
            prompt_tokens=entry["prompt_tokens"],
            completion_tokens=entry["completion_tokens"],
            cached=entry["cached"],
            payload=entry.get("payload"),
        )
        return (entry["prompt"], entry["example_id"], entry["sample"]), output
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"the checkpoint's answers to the original prompt cannot be read: {error!r}") from error
