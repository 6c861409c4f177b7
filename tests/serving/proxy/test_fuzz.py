"""Requests of any shape, made by schemathesis from the app's own document, and streams of any shape."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_upstream import RawUpstream, raw_upstream
from running_proxy import running_proxy

from rlprompt.serving.proxy.openapi import DOCUMENT

KEY = "a-canary-key-of-many-characters"
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much]


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[tuple[str, RawUpstream]]:
    with raw_upstream() as upstream, running_proxy(upstream.url, keys=(KEY,)) as (address, _):
        yield address, upstream


OPERATIONS = {found.ok().label: found.ok() for found in SCHEMA.get_all_operations()}


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_s13_every_answer_is_one_that_the_document_knows(name: str, fuzzed: tuple[str, RawUpstream]) -> None:
    @given(case=OPERATIONS[name].as_strategy())
    @settings(max_examples=25, deadline=None, suppress_health_check=QUIET, derandomize=True, database=None)
    def check(case: Any) -> None:
        reply = case.call(base_url=fuzzed[0], headers={"authorization": f"Bearer {KEY}"})
        assert reply.status_code < 500, reply.text
        assert "Traceback" not in reply.text
        assert KEY not in reply.text
        if reply.status_code >= 400:
            assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
        case.validate_response(reply, excluded_checks=[*_not_meant()])

    check()


@pytest.mark.parametrize("method", ["DELETE", "PUT", "TRACE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("path", sorted(DOCUMENT["paths"]))
def test_s13_other_methods_are_405_and_say_which_there_are(
    path: str, method: str, fuzzed: tuple[str, RawUpstream]
) -> None:
    reply = httpx.request(method, fuzzed[0] + path, headers={"authorization": f"Bearer {KEY}"})
    assert reply.status_code == 405
    assert next(iter(DOCUMENT["paths"][path])).upper() in reply.headers["allow"]


def _not_meant() -> Iterator[Any]:
    """Any Authorization that schemathesis makes up is replaced by a good one; upstreams answer what they like."""
    from schemathesis.checks import CHECKS

    for name in ("ignored_auth", "positive_data_acceptance", "negative_data_rejection", "missing_required_header"):
        try:
            yield CHECKS.get_one(name)
        except KeyError:
            continue


@given(raw=st.binary(max_size=200) | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
@settings(max_examples=60, deadline=None, suppress_health_check=QUIET, derandomize=True)
def test_s13_any_bytes_are_refused_in_openais_shape(raw: bytes, fuzzed: tuple[str, RawUpstream]) -> None:
    headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
    reply = httpx.post(f"{fuzzed[0]}/v1/chat/completions", content=raw, headers=headers)
    try:
        is_object = isinstance(json.loads(raw), dict)
    except ValueError:
        is_object = False
    assert reply.status_code == 200 if is_object else reply.status_code == 400
    if not is_object:
        assert reply.json()["error"]["type"] == "invalid_request_error"


@given(pieces=st.lists(st.binary(min_size=1, max_size=50), min_size=1, max_size=10))
@settings(max_examples=30, deadline=None, suppress_health_check=QUIET, derandomize=True)
def test_s13_any_stream_passes_as_it_is(pieces: list[bytes], fuzzed: tuple[str, RawUpstream]) -> None:
    address, upstream = fuzzed
    upstream.stream = pieces
    reply = httpx.post(
        f"{address}/v1/chat/completions",
        json={"model": "stream", "messages": [{"role": "user", "content": "Name a colour"}]},
        headers={"authorization": f"Bearer {KEY}"},
    )
    assert reply.content == b"".join(pieces)
