"""LiteLLM's own proxy with the hook of deploy/, in an environment of its own, before a recording upstream."""

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from raw_upstream import RawUpstream, raw_upstream
from running_proxy import FakeRewriter, running_proxy

ROOT = Path(__file__).parents[2]
LITELLM = ROOT / ".venv-litellm" / "bin" / "litellm"
KEY = "a-key-of-sixteen-characters"
MASTER = "sk-" + "0123456789abcdef" * 4


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[openai.OpenAI, RawUpstream, FakeRewriter]]:
    """A client of LiteLLM's proxy, the LLM behind it, and the rewriter that its hook asks."""
    if not LITELLM.exists():
        reason = "no LiteLLM; run 'make litellm' first"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("litellm")
    for name in ("litellm.yaml", "litellm_hook.py"):
        shutil.copy(ROOT / "deploy" / name, folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    rewriter = FakeRewriter()
    with raw_upstream() as upstream, running_proxy(upstream.url, rewriter, keys=(KEY,)) as (address, _):
        environment = {name: value for name, value in os.environ.items() if not name.endswith("API_KEY")} | {
            "TARGET_URL": upstream.url,
            "TARGET_API_KEY": "none",
            "RLPROMPT_SERVE_URL": address,
            "RLPROMPT_API_KEY": KEY,
            "RLPROMPT_DEADLINE_S": "1",
            "LITELLM_MASTER_KEY": MASTER,
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it asks for a newer table of prices
        }
        log = folder / "log.txt"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [str(LITELLM), "--config", "litellm.yaml", "--host", "127.0.0.1", "--port", str(port)],
                cwd=folder,
                env=environment,
                stdout=out,
                stderr=out,
            )
        try:
            _wait(f"http://127.0.0.1:{port}/health/liveliness", process, log)
            yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=MASTER), upstream, rewriter
        finally:
            process.terminate()
            process.wait(30)


def _wait(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + 180
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            if httpx.get(url, timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.3)
    raise AssertionError(log.read_text()[-3000:])


def ask(client: openai.OpenAI, text: str) -> str | None:
    messages = [
        {"role": "user", "content": text},
        {"role": "assistant", "content": "?"},
        {"role": "user", "content": text},
    ]
    reply = client.chat.completions.create(model="target", messages=messages)  # type: ignore[arg-type]
    return reply.choices[0].message.content


def sent(upstream: RawUpstream) -> list[str]:
    return [message["content"] for message in json.loads(upstream.seen[-1].body)["messages"]]


def test_the_last_user_text_is_rewritten(gateway: tuple[openai.OpenAI, RawUpstream, FakeRewriter]) -> None:
    client, upstream, _ = gateway
    assert ask(client, "Name a colour") == "fine"
    assert sent(upstream) == ["Name a colour", "?", "Please: Name a colour"]


def test_without_a_rewrite_in_time_the_request_goes_on_as_it_came(
    gateway: tuple[openai.OpenAI, RawUpstream, FakeRewriter],
) -> None:
    client, upstream, rewriter = gateway
    rewriter.delay_s = 5
    try:
        assert ask(client, "Name a number") == "fine"
    finally:
        rewriter.delay_s = 0
    assert sent(upstream) == ["Name a number", "?", "Name a number"]
