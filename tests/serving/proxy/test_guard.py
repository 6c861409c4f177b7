"""Who may ask: raw requests over a socket, so that nothing is normalised on the way."""

import contextlib
import json
import socket
import time
from collections.abc import Iterator

import pytest
from raw_upstream import RawUpstream
from running_proxy import running_proxy

from rlprompt.errors import ConfigError
from rlprompt.serving.proxy.guard import check_exposure, keys_from_environment

KEY = "a-key-of-sixteen-characters"
BODY = json.dumps({"model": "ok", "messages": [{"role": "user", "content": "Name a colour"}]}).encode()


def raw(address: str, request: bytes, *, wait_s: float = 10.0) -> bytes:
    """Sends bytes; returns all that comes back until the server closes or says nothing more."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=wait_s) as connection:
        connection.sendall(request)
        found = b""
        while True:
            try:
                piece = connection.recv(65536)
            except TimeoutError:
                return found
            found += piece
            head, _, rest = found.partition(b"\r\n\r\n")
            length = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
            if not piece or (length and len(rest) >= int(length[0].split(b":")[1])):
                return found


def request(*headers: str, path: str = "/v1/chat/completions", host: str = "localhost", body: bytes = BODY) -> bytes:
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}", "Connection: close", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode("latin-1") + body


def status(reply: bytes) -> int:
    return int(reply.split(b" ")[1])


@pytest.fixture
def with_key(upstream: RawUpstream) -> Iterator[str]:
    with running_proxy(upstream.url, keys=(KEY,)) as (address, _):
        yield address


@pytest.mark.parametrize(
    "headers",
    [
        (),
        ("Authorization:",),
        ("Authorization: Bearer",),
        ("Authorization: Bearer ",),
        ("Authorization: Bearer wrong-key-of-many-characters",),
        (f"Authorization: Bearer {KEY}x",),
        (f"Authorization: Basic {KEY}",),
        (f"Authorization: {KEY}",),
        (f"Authorization: Bearer {KEY}", f"Authorization: Bearer {KEY}"),
        (f"X-Api-Key: {KEY}",),
    ],
)
def test_s1_without_the_key_nothing_is_read_or_asked(
    with_key: str, upstream: RawUpstream, headers: tuple[str, ...]
) -> None:
    unfinished = request(*headers, body=BODY)[:-10]  # an answer before the body has come whole
    assert status(raw(with_key, unfinished)) == 401
    assert upstream.seen == []


@pytest.mark.parametrize(
    "path",
    [
        "//v1/chat/completions",
        "/v1//chat/completions",
        "/v1/chat/completions/",
        "/v1/chat%2Fcompletions",
        "/V1/chat/completions",
        "/health/../v1/chat/completions",
        "/health/liveness/../../v1/chat/completions",
        "/%68ealth/liveness",
        "/./",
        "/admin",
    ],
)
def test_s1_odd_paths_are_401_without_and_404_with_a_key(with_key: str, upstream: RawUpstream, path: str) -> None:
    assert status(raw(with_key, request(path=path))) == 401
    assert status(raw(with_key, request(f"Authorization: Bearer {KEY}", path=path))) in (404, 405)
    assert upstream.seen == []


def test_s1_the_right_key_is_let_in_by_any_name_of_the_host(with_key: str, upstream: RawUpstream) -> None:
    assert status(raw(with_key, request(f"Authorization: Bearer {KEY}", host="proxy.example"))) == 200
    assert len(upstream.seen) == 1


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "169.254.169.254"]
)
def test_s1_without_keys_only_this_machine_may_ask(upstream: RawUpstream, host: str) -> None:
    with running_proxy(upstream.url) as (address, _):
        assert status(raw(address, request(host=host))) == 401
        assert status(raw(address, request("Host: localhost", host="localhost"))) in (400, 401)  # twice
        assert status(raw(address, request("Origin: https://evil.example"))) == 403
        assert upstream.seen == []
        for name in ("localhost:1", "127.0.0.1", "[::1]:9"):
            assert status(raw(address, request(host=name))) == 200


def test_s4_a_browser_cannot_send_a_plain_form(upstream: RawUpstream) -> None:
    with running_proxy(upstream.url) as (address, _):
        plain = request().replace(b"application/json", b"text/plain")
        assert status(raw(address, plain)) == 415
        assert upstream.seen == []


def test_s1_other_machines_need_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for host in ("127.0.0.1", "localhost", "::1", "127.9.9.9"):
        check_exposure(host, [])
    for host in ("0.0.0.0", "::", "192.168.0.2", "example.org"):
        with pytest.raises(ConfigError, match="set RLPROMPT_API_KEY"):
            check_exposure(host, [])
        check_exposure(host, [KEY])
    monkeypatch.setenv("RLPROMPT_API_KEY", f"{KEY}, another-key-of-sixteen")
    assert keys_from_environment() == [KEY, "another-key-of-sixteen"]
    monkeypatch.setenv("RLPROMPT_API_KEY", "short")
    with pytest.raises(ConfigError, match="has 5 characters; take at least 16"):
        keys_from_environment()


def test_s2_large_bodies_are_refused_by_their_length_and_by_what_comes(upstream: RawUpstream) -> None:
    with running_proxy(upstream.url, caps={"body_bytes": 1000}) as (address, _):
        head = b"POST /rewrite HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        assert status(raw(address, head + b"Content-Length: 1001\r\n\r\n")) == 413
        chunks = b"Transfer-Encoding: chunked\r\n\r\n" + b"190\r\n" + b"x" * 400 + b"\r\n"
        assert status(raw(address, head + chunks + (b"190\r\n" + b"x" * 400 + b"\r\n") * 2)) == 413


def test_s2_slow_headers_and_slow_bodies_do_not_stay(upstream: RawUpstream) -> None:
    with running_proxy(upstream.url, receive_timeout_s=0.5) as (address, _):
        for begun in (b"", b"POST /rewrite HTTP/1.1\r\nHost: loc"):
            started = time.perf_counter()
            assert raw(address, begun, wait_s=5) == b""  # closed without a word
            assert time.perf_counter() - started < 3
        assert status(raw(address, request()[:-5], wait_s=5)) == 408


def test_s2_headers_without_end_are_cut_off(upstream: RawUpstream) -> None:
    with running_proxy(upstream.url) as (address, _):
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
            sent = 0
            with contextlib.suppress(OSError):  # reset, or a broken pipe
                for number in range(1000):
                    connection.sendall(b"X-%d: " % number + b"y" * 1000 + b"\r\n")
                    time.sleep(0.001)
                    sent += 1
            assert sent < 1000


def test_s4_credentials_stay_on_their_side(upstream: RawUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "upstream-canary-0123456789"
    monkeypatch.setenv("RLPROMPT_UPSTREAM_API_KEY", secret)
    upstream.error = json.dumps({"error": {"message": f"Incorrect key {secret} given"}}).encode()
    with running_proxy(upstream.url, keys=(KEY,)) as (address, _):
        more = (f"Authorization: Bearer {KEY}", "Cookie: c=client-canary", "X-Forwarded-For: 1.2.3.4", "X-Other: o")
        reply = raw(address, request(*more, "Accept: application/json", "OpenAI-Beta: b", "X-Request-Id: abc"))
        failed = raw(address, request(*more, body=BODY.replace(b'"ok"', b'"status-401"')))
    got = {name.lower(): value for name, value in upstream.seen[0].headers}
    assert got["authorization"] == f"Bearer {secret}"
    assert (got["openai-beta"], got["x-request-id"]) == ("b", "abc")
    assert set(got) == {
        *("host", "accept", "openai-beta", "x-request-id", "accept-encoding", "content-type", "content-length"),
        "authorization",
    }
    head = reply.partition(b"\r\n\r\n")[0].lower()
    for name in (b"x-request-id: r1", b"x-ratelimit-remaining: 7", b"x-rlprompt-rewritten: 1"):
        assert name in head
    for name in (b"set-cookie", b"x-secret", b"location", b"server:"):
        assert name not in head
    assert secret.encode() not in reply + failed
    assert status(failed) == 401
    assert b"[redacted]" in failed


def test_s4_a_header_cannot_hold_another_one(upstream: RawUpstream) -> None:
    with running_proxy(upstream.url) as (address, _):
        reply = raw(address, request("X-Request-Id: a\rX-Secret: b"))
        assert status(reply) in (200, 400)
        assert all(name.lower() != "x-secret" for one in upstream.seen for name, _ in one.headers)
