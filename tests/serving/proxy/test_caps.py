"""Caps, and fields and addresses that would send the upstream elsewhere."""

from typing import Any

import pytest

from rlprompt.serving.proxy.bodies import BodyError
from rlprompt.serving.proxy.caps import ELSEWHERE, Caps, check_request, is_public

USER = {"role": "user", "content": "hello"}


def refused(values: dict[str, Any], match: str, **caps: int) -> None:
    with pytest.raises(BodyError, match=match):
        check_request(values, Caps(**caps))


def test_a_usual_request_passes() -> None:
    image = {"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    message = {"role": "user", "content": [{"type": "text", "text": "see http://localhost/"}, image]}
    check_request({"model": "m", "messages": [USER, message], "tools": tools, "n": 2, "max_tokens": 9}, Caps())


def test_s2_numbers_have_caps() -> None:
    refused({"messages": [USER] * 4}, "4 messages, at most 3", messages=3)
    refused({"messages": [{"role": "user", "content": [{}] * 4}]}, "4 parts, at most 3", parts=3)
    refused({"n": 17}, "'n' is 17, at most 16")
    refused({"best_of": 17}, "'best_of' is 17")
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
        refused({name: 1e9}, f"'{name}' is")


@pytest.mark.parametrize("field", sorted(ELSEWHERE))
def test_s3_fields_that_name_another_server_are_refused(field: str) -> None:
    refused({"messages": [USER], field: "x"}, f"'{field}' is not allowed")


@pytest.mark.parametrize(
    ("url", "public"),
    [
        ("https://example.org/a.png", True),
        ("http://93.184.216.34/a.png", True),
        ("data:image/png;base64,AAAA", True),
        ("http://localhost/", False),
        ("http://LOCALHOST.:8080/", False),
        ("http://db.internal/", False),
        ("http://127.0.0.1/", False),
        ("http://127.1/", False),
        ("http://2130706433/", False),
        ("http://0x7f.0.0.1/", False),
        ("http://[::1]/", False),
        ("http://[::ffff:169.254.169.254]/", False),
        ("http://169.254.169.254/latest/meta-data", False),
        ("http://10.0.0.1/", False),
        ("http://user@10.0.0.1/", False),
        ("file:///etc/passwd", False),
        ("ftp://example.org/", False),
        ("//example.org/", False),
        ("http://[broken/", False),
        ("", False),
    ],
)
def test_s3_addresses_of_this_network_are_refused(url: str, public: bool) -> None:
    assert is_public(url) is public
    part = {"type": "image_url", "image_url": {"url": url}}
    values = {"messages": [{"role": "user", "content": [part]}]}
    if public:
        check_request(values, Caps())
    else:
        refused(values, "must be public")


def test_s3_a_tool_that_the_upstream_would_ask_is_public() -> None:
    tool = {"type": "mcp", "server_label": "a", "server_url": "http://169.254.169.254/"}
    refused({"messages": [USER], "tools": [tool]}, "address of a tool must be public")
    check_request({"messages": [USER], "tools": [{**tool, "server_url": "https://example.org/mcp"}]}, Caps())
    schema = {"type": "object", "properties": {"url": {"type": "string"}, "image_url": {"type": "string"}}}
    check_request({"tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}]}, Caps())


def test_s3_a_model_is_a_name() -> None:
    refused({"model": "http://169.254.169.254/"}, "'model' must be a name")
