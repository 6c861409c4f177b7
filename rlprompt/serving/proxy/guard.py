"""Who may ask: keys, hosts and origins, looked at before a body is read."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from rlprompt.errors import ConfigError
from rlprompt.serving.proxy.replies import error

KEYS = "RLPROMPT_API_KEY"
UPSTREAM_KEYS = ("RLPROMPT_UPSTREAM_API_KEY", "OPENAI_API_KEY")
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
OPEN = frozenset({"/", "/playground.js", "/playground.css", "/health/liveness", "/health/readiness"})
"""Paths that need no key: they say and do nothing that is worth one."""
SHORTEST = 16
TENANT = "rlprompt.tenant"
"""Key of the scope: which of the keys was used."""


def keys_from_environment() -> list[str]:
    """Returns the keys that clients may use; several stand apart by commas.

    Raises:
        ConfigError: one is too short to be secret.
    """
    keys = [key.strip() for key in os.environ.get(KEYS, "").split(",") if key.strip()]
    for key in keys:
        if len(key) < SHORTEST:
            raise ConfigError(f"a key in {KEYS} has {len(key)} characters; take at least {SHORTEST}")
    return keys


def upstream_key() -> str | None:
    """Returns the key that the upstream gets, which is never one of a client."""
    return next((found for name in UPSTREAM_KEYS if (found := os.environ.get(name, "").strip())), None)


def is_loopback(host: str) -> bool:
    """Returns whether only this machine can reach an address."""
    return host in LOOPBACK or host.startswith("127.")


def check_exposure(host: str, keys: Sequence[str]) -> None:
    """Refuses to be reached from elsewhere without a key.

    Raises:
        ConfigError: that would be so.
    """
    if not is_loopback(host) and not keys:
        raise ConfigError(
            f"--host {host} can be reached from other machines; set {KEYS} to a secret first, or leave --host out"
        )


class Guard:
    """Lets requests through to an application.

    With keys, a request needs one of them. Without, only programs on this machine may ask: a page in a browser may not,
    whatever name it gave this machine's address.

    Args:
        app: what is guarded.
        keys: of clients.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._keys = [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 401 or 403, or hands the request on."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return  # no websockets: the connection is refused
        refusal = self._refusal(scope)
        if refusal is not None:
            await error(*refusal)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        refusal = self._stranger(scope)
        if refusal is None and _raw_path(scope) != scope["path"]:  # a path has one spelling: encoded ones are others
            return 404, "there is no such route"
        return refusal

    def _stranger(self, scope: Scope) -> tuple[int, str] | None:
        headers = [(name.lower(), value) for name, value in scope["headers"]]
        if self._keys:
            if scope["path"] in OPEN and _raw_path(scope) == scope["path"]:
                scope[TENANT] = ""
                return None
            given = [value for name, value in headers if name == b"authorization"]
            tenant = self._tenant(given[0]) if len(given) == 1 else None
            if tenant is None:
                return 401, "no valid key; send one header 'Authorization: Bearer KEY'"
            scope[TENANT] = tenant
            return None
        scope[TENANT] = ""
        hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
        if len(hosts) != 1 or _name(hosts[0]) not in LOOPBACK:
            return 401, "without a key, the server is asked as localhost only"
        origins = [value.decode("latin-1") for name, value in headers if name == b"origin"]
        if any(origin.partition("://")[2] != hosts[0] for origin in origins):
            return 403, "pages of other origins may not ask this server"
        return None

    def _tenant(self, header: bytes) -> str | None:
        scheme, _, key = header.partition(b" ")
        if scheme.lower() != b"bearer" or not key:
            return None
        digest, found = _digest(key), None
        for place, known in enumerate(self._keys):  # all of them, in the same time
            if hmac.compare_digest(digest, known):
                found = str(place)
        return found


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _raw_path(scope: Scope) -> str:
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    return raw.decode("latin-1").partition("?")[0]


def _name(host: str) -> str:
    """The name in a Host header, without the port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if ":" in host else host
