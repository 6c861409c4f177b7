"""Bodies: the text is found, and every other byte stays."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlprompt.serving.proxy.bodies import (
    Body,
    BodyError,
    Nothing,
    UserText,
    chat_text,
    completion_text,
    response_text,
)

ODD = b"""{ "model" :"m",  "seed": 12345678901234567890.10, "x":{"messages":[{"role":"user","content":"no"}]},
  "messages":[ {"role":"system","content":"S"},{"content" : "caf\\u00e9 \\"q\\"" , "role":"user","name":"n"},
  {"role":"assistant","content":null,"tool_calls":[1e400, {}]} ],"\\u0074emperature":0.10}"""


def test_only_the_bytes_of_the_text_change() -> None:
    body = Body.parse(ODD)
    found = chat_text(body)
    assert isinstance(found, UserText)
    assert found.text == 'caf\u00e9 "q"'
    assert body.with_text(found.span, 'new\n"\u00fc"') == ODD.replace(
        b'"caf\\u00e9 \\"q\\""', '"new\\n\\"\u00fc\\""'.encode()
    )


TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner),
    max_leaves=8,
)


@given(
    before=st.dictionaries(TEXTS.filter(lambda key: key != "messages"), JSON),
    others=st.lists(st.dictionaries(TEXTS.filter(lambda key: key not in ("role", "content")), JSON), max_size=3),
    text=TEXTS,
    new=TEXTS,
    ascii_only=st.booleans(),
)
def test_any_body_keeps_everything_else(
    before: dict[str, Any], others: list[Any], text: str, new: str, ascii_only: bool
) -> None:
    messages = [*others, {"role": "user", "content": text}, {"role": "assistant", "content": "?"}]
    values = {**before, "messages": messages}
    source = json.dumps(values, ensure_ascii=ascii_only)
    body = Body.parse(source.encode())
    found = chat_text(body)
    assert isinstance(found, UserText)
    assert found.text == text
    raw = body.with_text(found.span, new)
    messages[-2] = {"role": "user", "content": new}
    assert json.loads(raw) == values
    start, end = found.span
    assert raw.decode().startswith(source[:start])
    assert raw.decode().endswith(source[end:])


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "no message of the role user"),
        ("text", "has no messages"),
        ([{"role": "system", "content": "x"}], "no message of the role user"),
        ([{"role": "user"}], "no content"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "0 parts of text"),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}] * 2}], "several-texts"),
        ([3, {"role": "user", "content": 5}], "no content"),
    ],
)
def test_where_there_is_no_one_text_the_reason_is_given(messages: Any, reason: str) -> None:
    found = chat_text(Body.parse(json.dumps({"messages": messages}).encode()))
    assert isinstance(found, Nothing)
    assert reason in found.reason


def test_the_one_part_that_is_a_text_is_found_among_others() -> None:
    parts = [{"type": "image_url", "image_url": {"url": "data:,"}}, {"text": "look", "type": "text"}]
    body = Body.parse(json.dumps({"messages": [{"role": "user", "content": parts}]}).encode())
    found = chat_text(body)
    assert isinstance(found, UserText)
    new = json.loads(body.with_text(found.span, "see"))
    assert new["messages"][0]["content"] == [parts[0], {"text": "see", "type": "text"}]


def test_another_role_may_be_the_one_that_is_rewritten() -> None:
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    found = chat_text(Body.parse(json.dumps({"messages": messages}).encode()), "system")
    assert isinstance(found, UserText)
    assert found.text == "S"


def test_completions_and_responses() -> None:
    assert completion_text(Body.parse(b'{"prompt": "p"}')) == UserText("p", (11, 14))  # type: ignore[arg-type]
    assert isinstance(completion_text(Body.parse(b'{"prompt": ["p", "q"]}')), Nothing)
    assert response_text(Body.parse(b'{"input": "p"}')) == UserText("p", (10, 13))  # type: ignore[arg-type]
    parts = [{"role": "user", "content": [{"type": "input_text", "text": "p"}]}, {"type": "function_call_output"}]
    found = response_text(Body.parse(json.dumps({"input": parts}).encode()))
    assert isinstance(found, UserText)
    assert found.text == "p"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"\xff{}", "not UTF-8"),
        (b"", "no JSON"),
        (b"[]", "must be a JSON object"),
        (b'{"a": NaN}', "no JSON"),
        (b'{"a": 1} {}', "no JSON"),
        (b'{"messages": [], "messages": []}', "'messages' twice"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    ],
)
def test_what_is_no_body_is_refused(raw: bytes, message: str) -> None:
    with pytest.raises(BodyError, match=message):
        Body.parse(raw)


def test_a_key_that_stands_twice_on_the_way_leaves_the_body_alone() -> None:
    raw = b'{"messages": [{"role": "user", "content": "a", "content": "b"}]}'
    found = chat_text(Body.parse(raw))
    assert isinstance(found, Nothing)
    assert "twice" in found.reason
