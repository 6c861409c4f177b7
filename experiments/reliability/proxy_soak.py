"""Fifteen minutes of `rlprompt serve` under load: memory, open files, latency, and whose text came back to whom.

Command: python experiments/reliability/proxy_soak.py [--minutes 15] [--rate 50] [--kill-every 60]
Requests come at a fixed rate from four tenants, half of them streamed; each has a text of its own that the upstream
sends back, so an answer that holds another request's text is seen. The rewriter puts a fixed prompt in front; its
process is killed now and then. Rewrites its part of experiments/README.md; exits 1 where a request failed, a text came
to somebody else, or memory or open files grew.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import aiohttp
import numpy as np
from rich.console import Console

# The checkout replaces this script's folder on the path.
sys.path[0] = str(Path(__file__).resolve().parents[2])

from experiments.report import machine, publish, write_json
from experiments.serving import server_in, serving
from rlprompt.errors import RunError
from rlprompt.served import Served
from rlprompt.types import Json

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results" / "proxy-soak"
TENANTS = tuple(f"soak-tenant-number-{number}" for number in range(4))
SAMPLE_S = 5.0
SETTLED = 0.2
"""Share of the time after which memory must have stopped growing."""
MOST_MIB_AN_HOUR, MOST_FILES_AN_HOUR = 20.0, 20.0
CANARY = re.compile(r"canary-\d+-end")


class Soak:
    """Asks, watches and kills.

    Args:
        url: of the proxy.
        server: number of the server's process.
        rate: requests a second.
        seconds: of the whole.
        kill_every: seconds between two kills of the rewriter.
        seed: of the order of things.
    """

    def __init__(self, url: str, server: int, *, rate: float, seconds: float, kill_every: float, seed: int) -> None:
        self._url, self._server = url, server
        self._rate, self._seconds, self._kill_every = rate, seconds, kill_every
        self._random = random.Random(seed)
        self.outcomes: Counter[str] = Counter()
        self.times: list[float] = []
        self.mixed = self.failed = self.kills = 0
        self.samples: list[tuple[float, float, int]] = []

    async def run(self) -> None:
        """Runs to the end."""
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            self._began = time.perf_counter()
            await asyncio.gather(self._ask_all(session), self._watch(), self._kill())

    async def _ask_all(self, session: aiohttp.ClientSession) -> None:
        running: set[asyncio.Task[None]] = set()
        for number in range(int(self._rate * self._seconds)):
            await asyncio.sleep(max(self._began + number / self._rate - time.perf_counter(), 0))
            task = asyncio.create_task(self._ask(session, number))
            running.add(task)
            task.add_done_callback(running.discard)
        await asyncio.gather(*running)

    async def _ask(self, session: aiohttp.ClientSession, number: int) -> None:
        stream, canary = number % 2 == 0, f"canary-{number}-end"
        body = {"model": "m", "messages": [{"role": "user", "content": f"{canary} colours"}], "stream": stream}
        headers = {"authorization": f"Bearer {TENANTS[number % len(TENANTS)]}"}
        began = time.perf_counter()
        try:
            async with session.post(f"{self._url}/chat/completions", json=body, headers=headers) as reply:
                text = (await reply.read()).decode()
                self.outcomes[str(reply.headers.get("x-rlprompt-rewritten"))] += 1
                self.failed += reply.status != 200
        except (aiohttp.ClientError, TimeoutError):
            self.failed += 1
            return
        self.times.append(time.perf_counter() - began)
        self.mixed += CANARY.findall(joined(text) if stream else text) != [canary]

    async def _watch(self) -> None:
        while (now := time.perf_counter() - self._began) < self._seconds:
            self.samples.append((now, memory_mib(self._server), len(os.listdir(f"/proc/{self._server}/fd"))))
            await asyncio.sleep(SAMPLE_S)

    async def _kill(self) -> None:
        while True:
            await asyncio.sleep(self._kill_every * self._random.uniform(0.5, 1.5))
            if time.perf_counter() - self._began > self._seconds - self._kill_every / 2:
                return
            for child in Path(f"/proc/{self._server}/task/{self._server}/children").read_text().split():
                os.kill(int(child), signal.SIGKILL)
                self.kills += 1

    def summary(self) -> Json:
        """Returns what is written down."""
        settled = [sample for sample in self.samples if sample[0] >= SETTLED * self._seconds]
        hours = np.array([sample[0] for sample in settled]) / 3600
        slopes = [float(np.polyfit(hours, [sample[place] for sample in settled], 1)[0]) for place in (1, 2)]
        times = 1000 * np.array(self.times)
        return {
            "requests": len(self.times) + self.failed,
            "failed": self.failed,
            "mixed": self.mixed,
            "outcomes": dict(self.outcomes),
            "kills": self.kills,
            "minutes": round(self._seconds / 60, 2),
            "rss_mib": [round(settled[0][1], 1), round(settled[-1][1], 1)],
            "files": [settled[0][2], settled[-1][2]],
            "mib_an_hour": round(slopes[0], 2),
            "files_an_hour": round(slopes[1], 2),
            "ms": {str(q): round(float(np.percentile(times, q)), 2) for q in (50, 95, 99)},
            "machine": machine(),
        }


def memory_mib(process: int) -> float:
    """Returns what a process holds in memory; Linux only, as the rest of this script."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def joined(stream: str) -> str:
    """Returns the text of a stream of events."""
    events = [line.removeprefix("data: ") for line in stream.splitlines() if line.startswith("data: {")]
    return "".join(json.loads(event)["choices"][0]["delta"]["content"] for event in events)


def problems(found: Json) -> list[str]:
    """Returns what should not be."""
    wrong = [f"{found[name]} {name}" for name in ("failed", "mixed") if found[name]]
    if found["mib_an_hour"] > MOST_MIB_AN_HOUR:
        wrong.append(f"memory grows by {found['mib_an_hour']} MiB an hour")
    if found["files_an_hour"] > MOST_FILES_AN_HOUR:
        wrong.append(f"open files grow by {found['files_an_hour']} an hour")
    return wrong


def table(found: Json) -> str:
    """Returns the Markdown table."""
    outcomes, ms = found["outcomes"], found["ms"]
    rows = {
        "minutes": f"{found['minutes']:g}",
        "requests, half of them streamed, of four tenants": f"{found['requests']:,}",
        "failed": found["failed"],
        "with another request's text": found["mixed"],
        "rewritten / fallback": f"{outcomes.get('1', 0):,} / {outcomes.get('fallback', 0):,}",
        "kills of the rewriter": found["kills"],
        "server's memory, MiB, after a fifth and at the end": f"{found['rss_mib'][0]} / {found['rss_mib'][1]}",
        "its slope, MiB an hour": found["mib_an_hour"],
        "open files, after a fifth and at the end": f"{found['files'][0]} / {found['files'][1]}",
        "whole request, ms: p50, p95, p99": f"{ms['50']}, {ms['95']}, {ms['99']}",
    }
    lines = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
    return "\n".join([*lines, "", f"{found['machine']}."])


def main() -> int:
    """Soaks and rewrites the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--rate", type=float, default=50.0, help="requests a second")
    parser.add_argument("--kill-every", type=float, default=60.0, help="seconds between two kills, on average")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--readme", type=Path, default=HERE.parent / "README.md", help="file with the table's section")
    options = parser.parse_args()

    def make(console: Console) -> tuple[str, str] | None:
        served = Served(mode="task", template="{prompt} {input}", prompt="Be brief.")
        with (
            server_in(HERE / "echo_server.py") as upstream,
            serving(upstream, served, keys=",".join(TENANTS)) as (address, server),
        ):
            soak = Soak(
                f"{address}/v1",
                server,
                rate=options.rate,
                seconds=60 * options.minutes,
                kill_every=options.kill_every,
                seed=options.seed,
            )
            asyncio.run(soak.run())
        found = soak.summary()
        write_json(options.results / f"{options.seed}.json", found)
        wrong = problems(found)
        if wrong:
            console.print(table(found), markup=False)
            raise RunError(f"the soak failed: {'; '.join(wrong)}")
        return "proxy-soak", table(found)

    return publish(make, options.readme)


if __name__ == "__main__":
    raise SystemExit(main())
