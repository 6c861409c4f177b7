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
import sys
import time
from pathlib import Path

import aiohttp
import numpy as np
from rich.console import Console

# The checkout replaces this script's folder on the path.
sys.path[0] = str(Path(__file__).resolve().parents[2])

from experiments.report import machine, publish, write_json
from experiments.serving import server_in, serving
from rlprompt.served import Served
from rlprompt.types import Json

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results" / "proxy"
WARM_S = 2.0
PERCENTILES = (50, 95, 99)
AIM_MS = {50: 2.0, 99: 8.0}
NAMES = {"direct": "direct", "opt-out": "through the proxy, as it is", "rewritten": "through the proxy, rewritten"}


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


def summary(times: list[float]) -> Json:
    """Returns the number of requests and percentiles of their times in ms."""
    values = np.percentile(np.array(times) * 1000, PERCENTILES)
    return {
        "requests": len(times),
        **{f"p{q}": round(float(value), 3) for q, value in zip(PERCENTILES, values, strict=True)},
    }


def table(found: Json, rate: float) -> str:
    """Returns the Markdown table."""
    lines = [
        f"| {rate:g} requests a second | requests | p50, ms | p95, ms | p99, ms | added p50 | added p99 |",
        "|---" * 7 + "|",
    ]
    for kind, row in found.items():
        added = ["" if kind == "direct" else f"{row[q] - found['direct'][q]:.2f}" for q in ("p50", "p99")]
        entries = [NAMES[kind], str(row["requests"]), *(f"{row[f'p{q}']:.2f}" for q in PERCENTILES), *added]
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
        served = Served(mode="task", template="Answer briefly. {prompt} {input}", prompt="w01 w02")
        with server_in(HERE / "latency_server.py", "0") as upstream, serving(upstream, served) as (address, _):
            urls = {"direct": upstream, "opt-out": f"{address}/v1", "rewritten": f"{address}/v1"}
            found = asyncio.run(rounds(urls, options.rate, options.seconds, options.rounds))
        written: Json = {kind: summary(times) for kind, times in found.items()}
        write_json(options.results / f"{options.rate:g}.json", {"machine": machine(), **written})
        return "proxy", table(written, options.rate)

    return publish(make, options.readme)


if __name__ == "__main__":
    raise SystemExit(main())
