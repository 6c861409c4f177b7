"""The official client before, and `transformers serve` with SmolLM2 behind: neither was written here."""

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import openai
import pytest
from running_proxy import FakeRewriter, running_proxy

from rlprompt.models import resolve_model

TOOL = {
    "type": "function",
    "function": {"name": "add", "description": "adds", "parameters": {"type": "object", "properties": {}}},
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Address and model of a server that computes on this machine."""
    model = resolve_model("smollm2-135m-instruct", None).path
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("transformers") / "log.txt"
    command = [str(Path(sys.executable).parent / "transformers"), "serve", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as out:
        process = subprocess.Popen([*command, "--default-seed", "0", model], stdout=out, stderr=out)
        address = f"http://127.0.0.1:{port}"
        try:
            _wait(lambda: httpx.get(f"{address}/health", timeout=5).status_code == 200, process, log)
            yield f"{address}/v1", model
        finally:
            process.terminate()
            process.wait(30)


def _wait(is_up: Callable[[], bool], process: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + 180
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            if is_up():
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise AssertionError(log.read_text()[-2000:])


@pytest.fixture(scope="module")
def asked(served: tuple[str, str]) -> Iterator[tuple[openai.OpenAI, openai.OpenAI, FakeRewriter]]:
    """Clients of the proxy and of the server itself, and the rewriter between."""
    rewriter = FakeRewriter(lambda text: f"Answer in French: {text}")
    with running_proxy(served[0], rewriter, keys=("a-key-of-sixteen-characters",)) as (address, _):
        yield (
            openai.OpenAI(base_url=f"{address}/v1", api_key="a-key-of-sixteen-characters", max_retries=0),
            openai.OpenAI(base_url=served[0], api_key="none", max_retries=0),
            rewriter,
        )


def test_chat_is_that_of_the_rewritten_text(asked: tuple[openai.OpenAI, ...], served: tuple[str, str]) -> None:
    proxy, direct, _ = asked
    fixed = {"model": served[1], "max_tokens": 6, "temperature": 0.0, "seed": 1}
    raw = proxy.chat.completions.with_raw_response.create(
        messages=[{"role": "system", "content": "Be short."}, {"role": "user", "content": "What is blue?"}],
        **fixed,  # type: ignore[arg-type]
    )
    expected = direct.chat.completions.create(
        messages=[
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "Answer in French: What is blue?"},
        ],
        **fixed,  # type: ignore[call-overload]
    )
    assert raw.headers["x-rlprompt-rewritten"] == "1"
    found = raw.parse()
    assert found.choices[0].message.content == expected.choices[0].message.content
    assert found.usage == expected.usage
    assert expected.choices[0].message.content


def test_a_stream_has_the_same_pieces(asked: tuple[openai.OpenAI, ...], served: tuple[str, str]) -> None:
    proxy, direct, _ = asked

    def pieces(client: openai.OpenAI, text: str) -> list[str | None]:
        stream = client.chat.completions.create(
            model=served[1],
            messages=[{"role": "user", "content": text}],
            max_tokens=6,
            temperature=0.0,
            stream=True,
        )
        return [event.choices[0].delta.content for event in stream if event.choices]

    found = pieces(proxy, "What is blue?")
    assert found == pieces(direct, "Answer in French: What is blue?")
    assert len(found) > 3


def test_tools_pass_through(asked: tuple[openai.OpenAI, ...], served: tuple[str, str]) -> None:
    proxy, _, rewriter = asked
    before = len(rewriter.asked)  # type: ignore[attr-defined]
    reply = proxy.chat.completions.create(
        model=served[1],
        messages=[
            {"role": "user", "content": "What is 2 + 2?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "t1", "type": "function", "function": {"name": "add", "arguments": "{}"}}],
            },
            {"role": "tool", "tool_call_id": "t1", "content": "4"},
        ],
        tools=[TOOL],  # type: ignore[list-item]
        max_tokens=3,
    )
    assert reply.choices[0].message is not None
    assert len(rewriter.asked) == before + 1  # type: ignore[attr-defined]


def test_errors_pass_through(asked: tuple[openai.OpenAI, ...]) -> None:
    proxy, direct, _ = asked
    messages = [{"role": "user", "content": "What is blue?"}]
    found = []
    for client in (proxy, direct):
        with pytest.raises(openai.APIStatusError) as caught:
            client.chat.completions.create(model="/no/such/model", messages=messages)  # type: ignore[arg-type]
        found.append((caught.value.status_code, caught.value.response.text))
    assert found[0] == found[1]


def test_a_wrong_key_is_an_authentication_error(asked: tuple[openai.OpenAI, ...], served: tuple[str, str]) -> None:
    wrong = asked[0].with_options(api_key="another-key-of-sixteen")
    with pytest.raises(openai.AuthenticationError):
        wrong.chat.completions.create(model=served[1], messages=[{"role": "user", "content": "What is blue?"}])
