"""The body of a request: where the user's text stands in it, and the body with another text there.

A body is never written anew. The text's own bytes are replaced, and all others stay as the client sent them: unknown
fields, the order of keys, spaces and numbers of any precision.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from rlprompt.errors import RLPromptError
from rlprompt.types import Json

_SPACE = " \t\n\r"
_DECODER = json.JSONDecoder()


class BodyError(RLPromptError):
    """The body is nothing that an OpenAI-compatible server would understand.

    Args:
        message: what is wrong, for the client.
        param: the field.
    """

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class Span(NamedTuple):
    """Where a value stands in the body's text: from its first character to behind its last one."""

    start: int
    end: int


@dataclass(frozen=True)
class Body:
    """A request's body."""

    source: str
    values: Json
    """What `source` says."""

    @classmethod
    def parse(cls, raw: bytes) -> Body:
        """Reads a JSON object.

        Raises:
            BodyError: it is none, is not UTF-8, is nested too deeply, or has a key of the top level twice.
        """
        try:
            source = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BodyError("the body is not UTF-8") from error
        try:
            values = json.loads(source, parse_constant=_refuse)
        except RecursionError as error:
            raise BodyError("the body is nested too deeply") from error
        except ValueError as error:
            raise BodyError(f"the body is no JSON: {error}") from error
        if not isinstance(values, dict):
            raise BodyError("the body must be a JSON object")
        body = cls(source, values)
        keys = [key for key, _ in body.members(_start(source))]
        if len(set(keys)) < len(keys):  # which of them counts is not said anywhere: the upstream may read another one
            twice = next(key for key in keys if keys.count(key) > 1)
            raise BodyError(f"the body has '{twice}' twice", twice)
        return body

    def with_text(self, span: Span, text: str) -> bytes:
        """Returns the body with another string in the place of one."""
        written = json.dumps(text, ensure_ascii=False)
        return (self.source[: span.start] + written + self.source[span.end :]).encode()

    def members(self, start: int) -> Iterator[tuple[str, Span]]:
        """Yields keys and the places of the values of the object that begins at `start`."""
        at = _skip(self.source, start + 1)
        while self.source[at] != "}":
            key, at = _DECODER.raw_decode(self.source, at)
            at = _skip(self.source, _skip(self.source, at) + 1)  # behind the colon
            _, end = _DECODER.raw_decode(self.source, at)
            yield key, Span(at, end)
            at = self._next(end)

    def items(self, start: int) -> Iterator[Span]:
        """Yields the places of the values of the list that begins at `start`."""
        at = _skip(self.source, start + 1)
        while self.source[at] != "]":
            _, end = _DECODER.raw_decode(self.source, at)
            yield Span(at, end)
            at = self._next(end)

    def place(self, *path: str | int) -> Span | None:
        """Returns where the value at a path of keys and numbers stands; None where a key stands twice on the way."""
        span = Span(_start(self.source), len(self.source))
        for step in path:
            if isinstance(step, int):
                span = list(self.items(span.start))[step]
                continue
            found = [place for key, place in self.members(span.start) if key == step]
            if len(found) != 1:
                return None
            span = found[0]
        return span

    def _next(self, end: int) -> int:
        at = _skip(self.source, end)
        return _skip(self.source, at + 1) if self.source[at] == "," else at


@dataclass(frozen=True)
class UserText:
    """The text that a policy rewrites, and where it stands."""

    text: str
    span: Span


@dataclass(frozen=True)
class Nothing:
    """Why a body has no text to rewrite."""

    reason: str


def chat_text(body: Body, role: str = "user") -> UserText | Nothing:
    """Returns the text of the last message of a role, as `Rewriter.messages_result` takes it."""
    messages = body.values.get("messages")
    if not isinstance(messages, list):
        return Nothing("no-text: the body has no messages")
    place = next((at for at in reversed(range(len(messages))) if _role(messages[at]) == role), None)
    if place is None:
        return Nothing(f"no-text: no message of the role {role}")
    return _content(body, messages[place].get("content"), ("messages", place, "content"), "text")


def completion_text(body: Body, role: str = "user") -> UserText | Nothing:
    """Returns the prompt of a completion; several prompts are left alone."""
    prompt = body.values.get("prompt")
    if not isinstance(prompt, str):
        return Nothing("no-text: the prompt is not one text")
    return _text(body, prompt, ("prompt",))


def response_text(body: Body, role: str = "user") -> UserText | Nothing:
    """Returns the text of the last message of a role in the input of a response."""
    given = body.values.get("input")
    if isinstance(given, str):
        return _text(body, given, ("input",))
    if not isinstance(given, list):
        return Nothing("no-text: the body has no input")
    place = next((at for at in reversed(range(len(given))) if _role(given[at]) == role), None)
    if place is None:
        return Nothing(f"no-text: no message of the role {role}")
    return _content(body, given[place].get("content"), ("input", place, "content"), "input_text")


FindText = Callable[[Body, str], UserText | Nothing]


def _content(body: Body, content: Any, path: tuple[str | int, ...], kind: str) -> UserText | Nothing:
    if isinstance(content, str):
        return _text(body, content, path)
    if not isinstance(content, list):
        return Nothing("no-text: the last message has no content")
    texts = [
        at
        for at, part in enumerate(content)
        if isinstance(part, dict) and part.get("type") == kind and isinstance(part.get("text"), str)
    ]
    if len(texts) != 1:
        what = "several-texts" if texts else "no-text"
        return Nothing(f"{what}: the last message has {len(texts)} parts of text")
    return _text(body, content[texts[0]]["text"], (*path, texts[0], "text"))


def _text(body: Body, text: str, path: tuple[str | int, ...]) -> UserText | Nothing:
    span = body.place(*path)
    if span is None:
        return Nothing("no-text: a key stands twice on the way to the text")
    return UserText(text, span)


def _role(message: Any) -> Any:
    return message.get("role") if isinstance(message, dict) else None


def _start(source: str) -> int:
    return _skip(source, 0)


def _skip(source: str, at: int) -> int:
    while at < len(source) and source[at] in _SPACE:
        at += 1
    return at


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
