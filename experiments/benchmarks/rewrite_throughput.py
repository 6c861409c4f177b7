"""What batching brings to `rlprompt serve`: rewrites a second for one client, and for 32 at once.

Command: python experiments/benchmarks/rewrite_throughput.py [--clients 32] [--single 6] [--many 96] [--rounds 2]
SmolLM2-135M-Instruct with LoRA rewrites film reviews, 32 tokens each, through the route /rewrite. Rounds alternate
between one client, who asks again when an answer is there, and many. No text is asked twice, so none is remembered.
Rewrites its part of experiments/README.md.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import aiohttp
from rich.console import Console

# The checkout replaces this script's folder on the path.
sys.path[0] = str(Path(__file__).resolve().parents[2])

from experiments.report import machine, publish, write_json
from experiments.serving import serving
from rlprompt.config import PolicyConfig, TaskConfig
from rlprompt.policies import build_policy
from rlprompt.served import Served
from rlprompt.tasks import task_from_config
from rlprompt.types import Json

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results" / "rewrite-throughput"
TOKENS = 32
NOBODY = "http://127.0.0.1:9/v1"
"""The upstream, which is not asked."""
SETTINGS = ("rewriting.deadline_s=600", "rewriting.hang_s=600", "rewriting.preserve=[]")
AIM = 8.0
MODEL = "smollm2-135m-instruct"
META = "Rewriting the review to make it more understandable, just give me the rewritten review: {input}"


async def measure(address: str, texts: Sequence[str], clients: int) -> float:
    """Returns rewrites a second."""
    waiting = list(texts)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:

        async def client() -> None:
            while waiting:
                async with session.post(f"{address}/rewrite", json={"text": waiting.pop()}) as reply:
                    values = await reply.json()
                if values["rewritten"] != "1":
                    raise RuntimeError(f"not rewritten: {values['reason']}")

        began = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
    return len(texts) / (time.perf_counter() - began)


def main() -> int:
    """Measures and rewrites the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--single", type=int, default=6, help="texts of the one client in a round")
    parser.add_argument("--many", type=int, default=96, help="texts of the many in a round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--readme", type=Path, default=HERE.parent / "README.md", help="file with the table's section")
    options = parser.parse_args()

    def make(console: Console) -> tuple[str, str] | None:
        task = task_from_config(TaskConfig(name="rotten-tomatoes", shots=None, test_limit=None))
        texts = [example.input for example in task.train]
        rates: dict[int, list[float]] = {1: [], options.clients: []}
        kwargs = {"lora": {"r": 8, "alpha": 16}}
        policy = build_policy(PolicyConfig(kind="causal-lm", model=MODEL, kwargs=kwargs), prompt_length=TOKENS, seed=0)
        served = Served(mode="instance", template="{prompt}", meta_prompt=META, max_context=1024)  # all its tokens
        with serving(NOBODY, served, policy, *SETTINGS) as (address, _):
            asyncio.run(measure(address, [texts.pop() for _ in range(4)], 4))  # warm
            for _ in range(options.rounds):
                for clients, count in ((1, options.single), (options.clients, options.many)):
                    rates[clients].append(asyncio.run(measure(address, [texts.pop() for _ in range(count)], clients)))
        found: Json = {"machine": machine(), "rates": {str(clients): values for clients, values in rates.items()}}
        write_json(options.results / f"{options.clients}.json", found)
        return "rewrite-throughput", table(rates)

    return publish(make, options.readme)


def table(rates: dict[int, list[float]]) -> str:
    """Returns the Markdown table."""
    lines = ["| clients | rewrites a second | tokens a second | of one client |", "|---" * 4 + "|"]
    one = statistics.median(rates[1])
    for clients, values in rates.items():
        rate = statistics.median(values)
        lines.append(f"| {clients} | {rate:.2f} | {TOKENS * rate:.0f} | {rate / one:.1f} times |")
    lines += ["", f"Aim: {AIM:g} times; medians of {len(rates[1])} rounds; {machine()}."]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
