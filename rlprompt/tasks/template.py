"""Templates: how a prompt and an example become the text or the chat messages that the target reads.

A template is text with fields: `{prompt}` (exactly once), `{input}`, any further column of the task, and `{mask}`
(the place that a masked target fills in). `{{` and `}}` are literal braces. Fields are replaced in one pass and
never interpreted: braces in a user's text stay what they are, and there is no attribute or index access.

An empty prompt takes exactly one adjacent space of the template with it, so that no double or trailing space is
left: "{input} {prompt}" becomes "input", "{prompt} {input}" becomes "input", "{input} {prompt} {mask}" becomes
"input <mask>". Only a space of the template is removed, never one of the user's text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from rlprompt.errors import TaskError, did_you_mean
from rlprompt.types import Example, Rendered

MASK = "<mask>"
"""What `{mask}` becomes; a masked target puts its tokenizer's own mask token in its place."""

ROLES = ("system", "developer", "user", "assistant")
TemplateSource: TypeAlias = str | Sequence[Mapping[str, str]]

_TOKEN = re.compile(r"\{\{|\}\}|\{([A-Za-z_][A-Za-z0-9_]*)\}|[{}]")
# A part is (literal text, field): the literal first, then the field; field None ends the text.
_Part: TypeAlias = tuple[str, str | None]
_Parts: TypeAlias = tuple[_Part, ...]


class Template:
    """How `prompt` and the fields of an example become what the target reads.

    Attributes:
        source: the template as it was given: text, or a tuple of messages.
        fields: the example's fields that it names (without "prompt" and "mask").
        has_mask: whether it has a `{mask}`, which masked targets need.

    >>> template = Template("Review: {input} {prompt}")
    >>> example = Example(id="test/0", input="fine {really}")
    >>> template.render("It was", example).text
    'Review: fine {really} It was'
    >>> template.render("", example).text
    'Review: fine {really}'
    """

    source: str | tuple[dict[str, str], ...]
    fields: frozenset[str]
    has_mask: bool

    def __init__(self, source: TemplateSource) -> None:
        """Parses a template.

        Args:
            source: text, or chat messages [{"role": ..., "content": ...}, ...].

        Raises:
            TaskError: a lone brace, no or several `{prompt}`, a message that is not of this form.
        """
        if isinstance(source, str):
            self.source = source
            self._roles: tuple[str, ...] | None = None
            contents = [source]
        else:
            self.source = tuple(_message(index, message) for index, message in enumerate(source))
            self._roles = tuple(message["role"] for message in self.source)
            contents = [message["content"] for message in self.source]
        self._parts = tuple(_parse(content) for content in contents)
        names = [field for parts in self._parts for _, field in parts if field is not None]
        if names.count("prompt") != 1:
            raise TaskError(
                f"template {_short(source)} has {names.count('prompt')} {{prompt}} fields; it needs exactly one"
            )
        self.has_mask = "mask" in names
        if names.count("mask") > 1 or (self.has_mask and self._roles is not None):
            raise TaskError(f"template {_short(source)}: {{mask}} may stand once, in a plain-text template")
        self.fields = frozenset(names) - {"prompt", "mask"}
        self._empty = tuple(_without_space(parts) for parts in self._parts)
        fields_before = names[: names.index("prompt")]
        self._split_field = (
            "prompt"
            if any(name in self.fields for name in fields_before)
            else next((name for name in names if name in self.fields), None)
        )

    def check(self, example: Example) -> None:
        """Checks that the example has every field of the template.

        Raises:
            TaskError: a field that the example lacks, or that is no text or number; or a text with the mask in it.
        """
        for name in self.fields:
            text = self._value(name, example)
            if self.has_mask and MASK in text:
                raise TaskError(
                    f"{example.id}: '{name}' holds {MASK!r}, which stands for the template's {{mask}}; change it"
                )

    def render(self, prompt: str, example: Example) -> Rendered:
        """Fills the template in.

        Args:
            prompt: the prompt; an empty one takes one adjacent space of the template with it.
            example: the example whose fields are filled in.

        Returns:
            The text or messages, and `split`: where the prompt begins if a field of the example stands before it,
            else where the first field of the example begins (the end, if there is none).

        Raises:
            TaskError: the example lacks a field.
        """
        values = {name: self._value(name, example) for name in self.fields}
        values["mask"] = MASK
        values["prompt"] = prompt
        contents: list[str] = []
        split: int | None = None
        offset = 0
        for parts in self._parts if prompt else self._empty:
            pieces: list[str] = []
            for literal, field in parts:
                pieces.append(literal)
                offset += len(literal)
                if field is not None:
                    if split is None and field == self._split_field:
                        split = offset
                    pieces.append(values[field])
                    offset += len(values[field])
            contents.append("".join(pieces))
        place = offset if split is None else split
        if self._roles is None:
            return Rendered(text=contents[0], split=place)
        return Rendered(messages=tuple(zip(self._roles, contents, strict=True)), split=place)

    def _value(self, name: str, example: Example) -> str:
        if name == "input":
            return example.input
        if name not in example.columns:
            raise TaskError(
                f"{example.id} has no column for the template's field {{{name}}}"
                f"{did_you_mean(name, ['input', 'prompt', *example.columns])}"
            )
        value: Any = example.columns[name]
        if isinstance(value, str):
            return value
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return str(value)
        raise TaskError(
            f"{example.id}: the template's field {{{name}}} must be text or a number, got {type(value).__name__}"
        )

    def __eq__(self, other: object) -> bool:
        """Templates are equal when their sources are."""
        return isinstance(other, Template) and self.source == other.source

    def __hash__(self) -> int:
        """Agrees with equality."""
        return hash(repr(self.source))

    def __repr__(self) -> str:
        """Shows the source."""
        return f"Template({self.source!r})"


def _message(index: int, message: Mapping[str, str]) -> dict[str, str]:
    if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
        raise TaskError(f"template message {index} must have the keys role and content, got {message!r}")
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise TaskError(f"template message {index} has the role {role!r}{did_you_mean(str(role), ROLES)}")
    if not isinstance(content, str):
        raise TaskError(f"template message {index} must have text as content, got {type(content).__name__}")
    return {"role": role, "content": content}


def _parse(content: str) -> _Parts:
    parts: list[_Part] = []
    literal: list[str] = []
    position = 0
    for match in _TOKEN.finditer(content):
        literal.append(content[position : match.start()])
        position = match.end()
        token, name = match.group(0), match.group(1)
        if name is not None:
            parts.append(("".join(literal), name))
            literal = []
        elif token in ("{{", "}}"):
            literal.append(token[0])
        else:
            raise TaskError(
                f"template {_short(content)} has a lone '{token}' at character {match.start()}; a field is "
                "{name}, a literal brace is written twice"
            )
    parts.append(("".join(literal) + content[position:], None))
    return tuple(parts)


def _without_space(parts: _Parts) -> _Parts:
    """The parts for an empty prompt: one space beside it goes.

    The one after it where there are two: the text is the same, and what stands before the prompt then agrees with
    the text of every other prompt up to `split`.
    """
    place = next((index for index, (_, field) in enumerate(parts) if field == "prompt"), None)
    if place is None:
        return parts
    changed = list(parts)
    before, after = parts[place], parts[place + 1]
    if after[0].startswith(" "):
        changed[place + 1] = (after[0][1:], after[1])
    elif before[0].endswith(" "):
        changed[place] = (before[0][:-1], before[1])
    return tuple(changed)


def _short(source: object) -> str:
    text = repr(source)
    return text if len(text) <= 80 else text[:77] + "..."
