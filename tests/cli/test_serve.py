"""`rlprompt serve` as a process: bad input, the address, the log, another policy by SIGHUP, and the end."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import torch
from raw_upstream import RawUpstream, raw_upstream

from rlprompt.cli.main import main
from rlprompt.config import PolicyConfig
from rlprompt.policies import build_policy
from rlprompt.served import Served

KEY = "a-canary-key-of-many-characters"
TEXT = "w03 a-canary-text"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    save(folder, "{input} {prompt}")
    return folder


def save(folder: Path, template: str) -> None:
    config = PolicyConfig(kind="causal-lm", model="planted-50", kwargs={"lora": {"r": 2, "targets": ["c_attn"]}})
    policy = build_policy(config, prompt_length=3, seed=0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.ones_like(parameter))
    served = Served.model_validate({"mode": "instance", "template": template, "meta_prompt": "w01 {input} w02"})
    policy.save(folder / "best", served.model_dump(mode="json"))


@contextmanager
def served(run: Path, *arguments: str, **environment: str) -> Iterator[tuple["subprocess.Popen[str]", str, list[str]]]:
    """Yields the process, its address, and the lines that it has said."""
    command = [sys.executable, "-m", "rlprompt", "serve", str(run), "--port", "0", *arguments]
    kept = {name: value for name, value in os.environ.items() if not name.endswith("API_KEY")}
    with raw_upstream() as upstream:
        process = subprocess.Popen(
            [*command, *(() if "--upstream" in arguments else ("--upstream", upstream.url))],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**kept, **environment},
        )
        lines: list[str] = []

        def read() -> None:
            assert process.stderr is not None
            lines.extend(iter(process.stderr.readline, ""))

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            wait_for(lambda: any(" at http" in line for line in lines) or process.poll() is not None)
            address = next(line for line in lines if " at http" in line).split(" at ")[1].split("/v1")[0]
            process.upstream = upstream  # type: ignore[attr-defined]
            yield process, address, lines
        finally:
            process.terminate()
            process.wait(30)
            reader.join()


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def post(address: str, text: str = TEXT) -> httpx.Response:
    body = {"model": "ok", "messages": [{"role": "user", "content": text}]}
    return httpx.post(
        f"{address}/v1/chat/completions", json=body, headers={"authorization": f"Bearer {KEY}"}, timeout=60
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no upstream; give --upstream URL"),
        (["--upstream", "localhost:8000"], "upstream must be http:// or https://"),
        (["--upstream", "http://a:b@c/v1"], "must not hold a password"),
        (["--upstream", "http://c/v1", "rewriting.deadline=3"], "unknown key 'rewriting.deadline'"),
        (["--upstream", "http://c/v1", "rewriting.deadline_s=0"], "rewriting.deadline_s"),
        (["--upstream", "http://c/v1", "--host", "0.0.0.0"], "set RLPROMPT_API_KEY to a secret first"),
        (["--upstream", "http://c/v1", "--settings", "none.yaml"], "configuration not found: none.yaml"),
    ],
)
def test_bad_input_is_one_line(
    run: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RLPROMPT_API_KEY", raising=False)
    assert main(["serve", str(run), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_a_run_that_is_none_is_told_before_anything_is_served(tmp_path: Path) -> None:
    for run, message in ((tmp_path / "none", "no run folder at"), (tmp_path, "policy.json")):
        command = [sys.executable, "-m", "rlprompt", "serve", str(run), "--upstream", "http://c/v1", "--port", "0"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert found.returncode == 2
        assert message in found.stderr.splitlines()[-1]
        assert "Traceback" not in found.stderr


def test_s10_it_serves_and_its_log_holds_neither_texts_nor_keys(run: Path) -> None:
    with served(run, RLPROMPT_API_KEY=KEY, RLPROMPT_UPSTREAM_API_KEY="upstream-canary-key") as (
        process,
        address,
        lines,
    ):
        assert address.startswith("http://127.0.0.1:")
        reply = post(address)
        assert (reply.status_code, reply.headers["x-rlprompt-rewritten"]) == (200, "1")
        upstream: RawUpstream = process.upstream  # type: ignore[attr-defined]
        content = json.loads(upstream.seen[-1].body)["messages"][0]["content"]
        assert content.startswith(TEXT + " ")
        metrics = httpx.get(f"{address}/metrics", headers={"authorization": f"Bearer {KEY}"}).text
        assert httpx.get(f"{address}/metrics").status_code == 401
    said = "".join(lines) + metrics + (process.stdout.read() if process.stdout else "")
    assert 'rlprompt_outcomes_total{arm="rewritten",rewritten="1"} 1.0' in said
    assert "canary" not in said
    assert process.returncode in (0, 143, -signal.SIGTERM)


def test_s10_texts_are_logged_where_it_is_asked_for_and_cut(run: Path) -> None:
    with served(run, "log_prompts=true", RLPROMPT_API_KEY=KEY) as (_, address, lines):
        post(address, TEXT + " x" * 500)
        wait_for(lambda: any("a-canary-text" in line for line in lines))
    assert max(len(line) for line in lines if "canary" in line) < 600


def test_s8_sighup_serves_what_the_folder_holds_now(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    with served(folder, RLPROMPT_API_KEY=KEY) as (process, address, lines):
        upstream: RawUpstream = process.upstream  # type: ignore[attr-defined]
        post(address)
        shutil.rmtree(folder)
        save(folder, "w49 {input} {prompt}")
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: any("another policy is served now" in line for line in lines))
        post(address)
        contents = [json.loads(one.body)["messages"][0]["content"] for one in upstream.seen]
        assert [content.startswith("w49 ") for content in contents] == [False, True]
        shutil.rmtree(folder)
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: any("the policy is not replaced" in line for line in lines))
        assert post(address, "w07").headers["x-rlprompt-rewritten"] == "1"


def test_s8_a_signal_lets_what_has_begun_end(run: Path) -> None:
    with served(run, RLPROMPT_API_KEY=KEY) as (process, address, _):
        upstream: RawUpstream = process.upstream  # type: ignore[attr-defined]
        upstream.gap_s = 0.3
        body = {"model": "stream", "messages": [{"role": "user", "content": TEXT}]}
        headers = {"authorization": f"Bearer {KEY}"}
        with httpx.stream("POST", f"{address}/v1/chat/completions", json=body, headers=headers, timeout=60) as reply:
            pieces = reply.iter_raw()
            first = next(pieces)
            process.terminate()
            assert first + b"".join(pieces) == b"".join(upstream.stream)
        process.wait(30)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{address}/health/liveness")
