"""The rewriter's own process: what it answers, how it dies, hangs and is replaced, and that nobody's request fails."""

import asyncio
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from raw_upstream import RawUpstream
from running_proxy import running_proxy

from rlprompt import restarts
from rlprompt.errors import ConfigError
from rlprompt.serving import Rewriter
from rlprompt.serving.proxy.supervisor import RewriterError, Supervisor, WorkerSettings

Save = Callable[..., Path]
TEXTS = ["w03 w04", "w10", "w07 w08 w09", "w30 w31"]


@pytest.fixture(scope="module")
def saved(save: Save) -> Path:
    return save()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restarts, "pause_before", lambda losses: 0.05)


@contextmanager
def serving(upstream: RawUpstream, run: Path, *, hang_s: float = 60.0, **settings: Any) -> Iterator[tuple[str, Any]]:
    supervisor = Supervisor(WorkerSettings(run=str(run)), most_waiting=10_000, hang_s=hang_s)
    settings = {"rewriting": {"deadline_s": 30.0, "preserve": []}, "max_requests": 10_000, **settings}
    with running_proxy(upstream.url, supervisor, **settings) as (address, server):
        yield address, server


def chat(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "ok", "messages": [{"role": "user", "content": text}], **more}


def post(address: str, text: str) -> httpx.Response:
    return httpx.post(f"{address}/v1/chat/completions", json=chat(text), timeout=60)


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_what_is_served_is_what_rewrite_writes_also_when_many_ask_at_once(upstream: RawUpstream, saved: Path) -> None:
    expected = Rewriter.load(saved).rewrite(TEXTS)
    with serving(upstream, saved) as (address, _):
        threads = [threading.Thread(target=post, args=(address, text)) for text in TEXTS * 3]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = {json.loads(one.body)["messages"][0]["content"] for one in upstream.seen}
    assert len(upstream.seen) == 12
    assert found == set(expected)


def test_s5_a_killed_rewriter_fails_no_request_and_comes_back(upstream: RawUpstream, saved: Path) -> None:
    statuses: list[tuple[int, str]] = []
    with serving(upstream, saved) as (address, server):
        stop = threading.Event()

        def load() -> None:
            with httpx.Client(timeout=60) as client:
                number = 0
                while not stop.is_set():
                    number += 1
                    text = f"w{number % 50:02d} w{id(client) % 50:02d} w{number // 50 % 50:02d}"
                    reply = client.post(f"{address}/v1/chat/completions", json=chat(text))
                    statuses.append((reply.status_code, reply.headers["x-rlprompt-rewritten"]))

        threads = [threading.Thread(target=load) for _ in range(4)]
        for thread in threads:
            thread.start()
        for kills in range(2):
            wait_for(lambda: server.supervisor.is_ready)
            seen = len(statuses)
            wait_for(lambda seen=seen: len(statuses) > seen + 20)  # type: ignore[misc]
            os.kill(server.supervisor.pid, signal.SIGKILL)
            wait_for(lambda kills=kills: server.supervisor.restarts == kills + 1)  # type: ignore[misc]
            wait_for(lambda seen=seen: len(statuses) > seen + 40)  # type: ignore[misc]
        wait_for(lambda: server.supervisor.is_ready and server.rewriting.breaker.state != "open")
        server.rewriting.breaker.note(success=True)  # in place of its pause of ten seconds
        assert post(address, "w01 w49").headers["x-rlprompt-rewritten"] == "1"
        stop.set()
        for thread in threads:
            thread.join()
    assert {status for status, _ in statuses} == {200}
    assert {header for _, header in statuses} == {"1", "fallback"}


def test_s5_a_rewriter_that_hangs_is_started_again(upstream: RawUpstream, saved: Path) -> None:
    with serving(upstream, saved, hang_s=0.4, rewriting={"deadline_s": 0.3, "preserve": []}) as (address, server):
        os.kill(server.supervisor.pid, signal.SIGSTOP)
        assert post(address, "w11").headers["x-rlprompt-reason"] == "timeout"
        wait_for(lambda: server.supervisor.restarts == 1)  # nobody waits any more, and yet it owes an answer
        wait_for(lambda: server.supervisor.is_ready)


def test_s8_another_policy_takes_over_without_a_lost_request(upstream: RawUpstream, saved: Path, save: Save) -> None:
    other = save(template="{input} w49 {prompt}")
    texts = {Rewriter.load(run).rewrite("w05 w06"): run for run in (saved, other)}
    assert len(texts) == 2
    statuses: list[int] = []
    with serving(upstream, saved) as (address, server):
        stop = threading.Event()

        def load() -> None:
            while not stop.is_set():
                reply = post(address, "w05 w06")
                statuses.append(reply.status_code)
                assert reply.headers["x-rlprompt-rewritten"] == "1"

        threads = [threading.Thread(target=load) for _ in range(2)]
        for thread in threads:
            thread.start()
        wait_for(lambda: len(statuses) > 5)
        asyncio.run_coroutine_threadsafe(server.supervisor.swap(WorkerSettings(run=str(other))), server.loop).result(60)
        wait_for(lambda: json.loads(upstream.seen[-1].body)["messages"][0]["content"] == list(texts)[1])
        stop.set()
        for thread in threads:
            thread.join()
    assert set(statuses) == {200}
    assert {json.loads(one.body)["messages"][0]["content"] for one in upstream.seen} == set(texts)


def test_a_rewrite_that_is_too_far_from_its_text_is_not_sent(upstream: RawUpstream, save: Save) -> None:
    run = save(template="{prompt}")
    settings = WorkerSettings(run=str(run), compares=True)
    found = []
    for floor in (-1.0, 0.99):
        supervisor = Supervisor(settings, most_waiting=10, hang_s=60)
        rewriting = {"deadline_s": 30.0, "preserve": [], "min_similarity": floor}
        with running_proxy(upstream.url, supervisor, rewriting=rewriting) as (address, _):
            reply = post(address, "Why is the sky blue?")
            found.append((reply.headers["x-rlprompt-rewritten"], reply.headers.get("x-rlprompt-reason")))
    assert found == [("1", None), ("fallback", "similarity")]


def test_the_rewriter_s_process_has_no_keys(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLPROMPT_UPSTREAM_API_KEY", "upstream-canary")
    monkeypatch.setenv("RLPROMPT_API_KEY", "client-canary-of-many-characters")

    async def check() -> bytes:
        supervisor = Supervisor(WorkerSettings(run=str(saved)), most_waiting=2, hang_s=60)
        await supervisor.start()
        found = Path(f"/proc/{supervisor.pid}/environ").read_bytes()
        await supervisor.close()
        return found

    found = asyncio.run(check())
    assert b"PATH=" in found
    assert b"canary" not in found


def test_a_policy_that_cannot_be_loaded_leaves_the_old_one_in_place(saved: Path, tmp_path: Path) -> None:
    async def check() -> None:
        supervisor = Supervisor(WorkerSettings(run=str(saved)), most_waiting=2, hang_s=60)
        await supervisor.start()
        with pytest.raises(ConfigError, match=r"policy\.json"):
            await supervisor.swap(WorkerSettings(run=str(tmp_path)))
        assert (await supervisor.ask("w03", 30))["rewritten"]
        await supervisor.close()
        with pytest.raises(RewriterError, match="down"):
            await supervisor.ask("w03", 30)

    asyncio.run(check())


def test_s8_the_queue_before_the_rewriter_is_bounded(saved: Path) -> None:
    async def check() -> list[Any]:
        supervisor = Supervisor(WorkerSettings(run=str(saved)), most_waiting=2, hang_s=60)
        await supervisor.start()
        found = await asyncio.gather(*(supervisor.ask(text, 30) for text in TEXTS), return_exceptions=True)
        await supervisor.close()
        return found

    found = asyncio.run(check())
    assert [isinstance(one, RewriterError) for one in found] == [False, False, True, True]
    assert found[2].reason == "overload"
    assert not found[2].counts


def test_s11_texts_of_tenants_never_mix(upstream: RawUpstream, save: Save) -> None:
    """Each request has its own canary; whatever was rewritten must hold its own and no other one."""
    run = save(template="{input} {prompt}", max_context=None)
    keys = tuple(f"key-number-{number}-of-many" for number in range(4))
    total = 400

    async def ask(address: str) -> None:
        gate = asyncio.Semaphore(64)
        async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=64)) as client:

            async def one(number: int) -> None:
                async with gate:
                    reply = await client.post(
                        f"{address}/v1/chat/completions",
                        json=chat(f"w{number % 50:02d} canary{number % (total // 2)}x", user=str(number)),
                        headers={"authorization": f"Bearer {keys[number % 4]}"},
                    )
                    assert reply.status_code == 200

            await asyncio.gather(*(one(number) for number in range(total)))

    with serving(upstream, run, keys=keys) as (address, _):
        asyncio.run(ask(address))
    assert len(upstream.seen) == total
    for one in upstream.seen:
        body = json.loads(one.body)
        canary = f"canary{int(body['user']) % (total // 2)}x"
        assert body["messages"][0]["content"].count("canary") == 1
        assert canary in body["messages"][0]["content"]


def test_the_server_imports_no_torch(saved: Path) -> None:
    import subprocess

    program = (
        "import sys\n"
        "import rlprompt.serving.proxy.server, rlprompt.cli.serve\n"
        "heavy = {'torch', 'transformers', 'ray', 'trl', 'gymnasium', 'sentence_transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
