"""What a request may ask for: sizes, numbers, and nothing that would send the upstream elsewhere."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field

from rlprompt.sections import Section
from rlprompt.serving.proxy.bodies import BodyError
from rlprompt.types import Json

ELSEWHERE = frozenset(
    {
        "api_base",
        "base_url",
        "api_key",
        "api_version",
        "api_type",
        "extra_headers",
        "extra_body",
        "extra_query",
        "headers",
        "organization",
        "custom_llm_provider",
        "proxy",
        "user_config",
    }
)
"""Fields by which some gateways are told to ask another server, or with other credentials."""
_LOCAL = (".localhost", ".local", ".internal", ".lan", ".home.arpa")


class Caps(Section):
    """The most that a request may ask for."""

    body_bytes: int = Field(default=4 * 2**20, ge=1)
    messages: int = Field(default=1000, ge=1)
    parts: int = Field(default=200, ge=1)
    """Of one message."""
    n: int = Field(default=16, ge=1)
    """Answers to one request."""
    max_tokens: int = Field(default=32768, ge=1)
    """Of one answer, where the request names a number."""


def check_request(values: Json, caps: Caps) -> None:
    """Refuses a request that asks for too much, or for another server.

    Raises:
        BodyError: it does.
    """
    for name in sorted(ELSEWHERE & set(values)):
        raise BodyError(f"'{name}' is not allowed: the upstream is configured on the server", name)
    model = values.get("model")
    if isinstance(model, str) and "://" in model:
        raise BodyError("'model' must be a name, not an address", "model")
    for name, most in (
        ("n", caps.n),
        ("best_of", caps.n),
        ("max_tokens", caps.max_tokens),
        ("max_completion_tokens", caps.max_tokens),
        ("max_output_tokens", caps.max_tokens),
    ):
        given = values.get(name)
        if isinstance(given, (int, float)) and not isinstance(given, bool) and given > most:
            raise BodyError(f"'{name}' is {given}, at most {most} are allowed", name)
    tools = values.get("tools")
    if isinstance(tools, list) and not all(map(is_public, _addresses(tools))):  # some upstreams ask them
        raise BodyError("an address of a tool must be public (https, http or data)", "tools")
    for name in ("messages", "input"):
        listed = values.get(name)
        if isinstance(listed, list):
            _check_messages(listed, name, caps)


def _check_messages(messages: list[Any], name: str, caps: Caps) -> None:
    if len(messages) > caps.messages:
        raise BodyError(f"'{name}' has {len(messages)} messages, at most {caps.messages} are allowed", name)
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        if not isinstance(content, list):
            continue
        if len(content) > caps.parts:
            raise BodyError(f"a message has {len(content)} parts, at most {caps.parts} are allowed", name)
        for url in _addresses(content):
            if not is_public(url):
                raise BodyError("an address in a message must be public (https, http or data)", name)


def _addresses(parts: list[Any]) -> Iterator[str]:
    """Yields every text under a key that names an address, however deep."""
    waiting: list[Any] = list(parts)
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            for key, inner in value.items():
                if isinstance(inner, str) and (key == "url" or key.endswith(("_url", "_uri"))):
                    yield inner
                else:
                    waiting.append(inner)


def is_public(url: str) -> bool:
    """Returns whether an address, as it is written, is of the public internet, or holds its data itself.

    Names are not looked up: the upstream does that, and may find another address.

    >>> [is_public(url) for url in ("https://example.org/a.png", "data:image/png;base64,AA", "http://169.254.169.254/")]
    [True, True, False]
    """
    try:
        parts = urlsplit(url.strip())
        host = parts.hostname
    except ValueError:
        return False
    if parts.scheme == "data":
        return True
    if parts.scheme not in ("http", "https") or not host:
        return False
    host = host.rstrip(".").lower()
    if host == "localhost" or host.endswith(_LOCAL):
        return False
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        # A name, unless a resolver would take it for a number: 2130706433, 0x7f.1, 127.1.
        return not all(label.isdigit() or label.startswith("0x") for label in host.split("."))
    return found.is_global
