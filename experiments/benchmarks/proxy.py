"""What `rlprompt serve` adds to a request: latency over a direct call, without generation.

Command: python experiments/benchmarks/proxy.py [--rate 100] [--seconds 10] [--rounds 3]
The upstream answers at once. Requests come at a fixed rate, whether the ones before were answered or not, and each has
another text: directly; through the proxy with the opt-out header; and with a fixed prompt put in front by the
rewriter's process. Rounds alternate between the three. Client, upstream, proxy and rewriter are processes on one
machine, and share its cores. Rewrites its part of experiments/README.md.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import numpy as np
from rich.console import Console

# The checkout replaces this script's folder on the path.
sys.path[0] = str(Path(__file__).resolve().parents[2])

from experiments.benchmarks.concurrency import server
from experiments.report import machine, publish, write_json
from rlprompt.config import PolicyConfig
from rlprompt.policies import build_policy
from rlprompt.served import Served
from rlprompt.types import Json

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results" / "proxy"
WARM_S = 2.0
AIM_MS = {50: 2.0, 99: 8.0}
NAMES = {"direct": "direct", "opt-out": "through the proxy, as it is", "rewritten": "through the proxy, rewritten"}


@contextmanager
def proxy(upstream: str) -> Iterator[str]:
    """Serves a run with one fixed prompt; yields the base URL."""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("API_KEY")}
    with tempfile.TemporaryDirectory() as folder:
        policy = build_policy(PolicyConfig(kind="categorical", model="planted-50"), prompt_length=3, seed=0)
        served = Served(mode="task", template="Answer briefly. {prompt} {input}", prompt="w01 w02")
        policy.save(Path(folder) / "best", served.model_dump(mode="json"))
        command = [sys.executable, "-m", "rlprompt", "serve", folder, "--upstream", upstream, "--port", "0"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
            if process.stderr is None:
                raise RuntimeError("the proxy has no output")
            for line in process.stderr:
                if " at http" in line:
                    yield line.split(" at ")[1].split(" ")[0]
                    break
            else:
                raise RuntimeError("the proxy did not start")
            process.terminate()


async def measure(session: aiohttp.ClientSession, url: str, kind: str, rate: float, seconds: float) -> list[float]:
    """Returns the seconds of each request, from when it was due to its last byte."""
    headers = {"x-rlprompt-rewrite": "0"} if kind == "opt-out" else {}
    began = time.perf_counter()

    async def one(number: int) -> float:
        due = began + number / rate
        await asyncio.sleep(max(due - time.perf_counter(), 0))
        text = f"question {number} of {began}"
        body = {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 4}
        async with session.post(f"{url}/chat/completions", json=body, headers=headers) as reply:
            await reply.read()
            if reply.status != 200:
                raise RuntimeError(f"status {reply.status}")
            expected = {"direct": None, "opt-out": "0", "rewritten": "1"}[kind]
            if reply.headers.get("x-rlprompt-rewritten") != expected:
                raise RuntimeError(f"{kind}: rewritten {reply.headers.get('x-rlprompt-rewritten')}")
        return time.perf_counter() - due

    return list(await asyncio.gather(*(one(number) for number in range(int(rate * seconds)))))


async def rounds(urls: dict[str, str], rate: float, seconds: float, times: int) -> dict[str, list[float]]:
    """Alternates between the ways; returns all times of each."""
    found: dict[str, list[float]] = {kind: [] for kind in urls}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        for kind, url in urls.items():
            await measure(session, url, kind, rate, WARM_S)
        for _ in range(times):
            for kind, url in urls.items():
                found[kind] += await measure(session, url, kind, rate, seconds)
    return found


def table(found: dict[str, list[float]], rate: float) -> str:
    """Returns the Markdown table."""
    percentiles = (50, 95, 99)
    values = {kind: np.percentile(np.array(times) * 1000, percentiles) for kind, times in found.items()}
    lines = [
        f"| {rate:g} requests a second | requests | p50, ms | p95, ms | p99, ms | added p50 | added p99 |",
        "|---" * 7 + "|",
    ]
    for kind, row in values.items():
        added = row - values["direct"]
        more = ["", ""] if kind == "direct" else [f"{added[0]:.2f}", f"{added[2]:.2f}"]
        entries = [NAMES[kind], str(len(found[kind])), *(f"{value:.2f}" for value in row), *more]
        lines.append(f"| {' | '.join(entries)} |")
    lines += ["", f"Aim: at most {AIM_MS[50]:g} ms at p50 and {AIM_MS[99]:g} ms at p99; {machine()}."]
    return "\n".join(lines)


def main() -> int:
    """Measures and rewrites the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=100.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=10.0, help="of one way in one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--readme", type=Path, default=HERE.parent / "README.md", help="file with the table's section")
    options = parser.parse_args()

    def make(console: Console) -> tuple[str, str] | None:
        with server(0.0) as upstream, proxy(upstream) as proxied:
            urls = {"direct": upstream, "opt-out": proxied, "rewritten": proxied}
            found = asyncio.run(rounds(urls, options.rate, options.seconds, options.rounds))
        written: Json = {kind: [round(1000 * value, 3) for value in times] for kind, times in found.items()}
        write_json(options.results / f"{options.rate:g}.json", {"machine": machine(), "milliseconds": written})
        return "proxy", table(found, options.rate)

    return publish(make, options.readme)


if __name__ == "__main__":
    raise SystemExit(main())
