"""How close the OpenAI target comes to what a server of fixed latency allows, from 1 to 256 calls at a time.

Command: python experiments/benchmarks/concurrency.py [--latency 0.2] [--concurrency 1 4 16 64 256] [--journal]
The ideal is concurrency / latency calls a second. Every call is another question; with --journal each is written down
before it is sent and when it is answered, as in a run. "Limit" is what one core of this machine could do at the
client's CPU time a call, if it did nothing else. Rewrites its part of experiments/README.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

# The checkout replaces this script's folder on the path.
sys.path[0] = str(Path(__file__).resolve().parents[2])

from experiments.report import machine, publish, write_json
from experiments.serving import server_in
from rlprompt.runs.journal import AnswerJournal
from rlprompt.targets.ledger import Ledger
from rlprompt.targets.openai import OpenAITarget
from rlprompt.targets.streaming import run_logged
from rlprompt.types import Json, Rendered, TargetRequest

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results" / "concurrency"
ROUNDS = 8
"""Calls a measurement makes, as multiples of the concurrency; at least 24 in all."""


def requests(count: int, start: int) -> list[TargetRequest]:
    """Returns so many different questions."""
    return [TargetRequest(Rendered(text=f"question {start + index}"), max_tokens=4) for index in range(count)]


def measure(url: str, concurrency: int, latency: float, repeats: int, journal: Path | None) -> Json:
    """Returns calls a second, the share of the ideal, and the client's CPU time a call; medians over the repeats."""
    target = OpenAITarget("latency", base_url=url, concurrency=concurrency, max_attempts=1)
    count = max(ROUNDS * concurrency, 24)
    log = None if journal is None else AnswerJournal(journal / f"{concurrency}.jsonl")
    target.run(requests(concurrency, -concurrency))  # connections are open from now on
    rates, busy = [], []
    for repeat in range(repeats):
        asked = requests(count, repeat * count)
        keys = [(str(request.rendered.text), "", 0) for request in asked]
        reservation = Ledger().reserve(count, 16 * count)
        wall, cpu = time.perf_counter(), time.process_time()
        outputs = run_logged(target, asked, keys, log, reservation, range(count))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        if any(output.failure is not None for output in outputs):
            raise RuntimeError("a call failed; is the machine busy?")
        rates.append(count / wall)
        busy.append(cpu / count)
    target.close()
    rate, cost = statistics.median(rates), statistics.median(busy)
    return {
        "concurrency": concurrency,
        "calls": count,
        "rate": rate,
        "ideal": concurrency / latency,
        "share": rate * latency / concurrency,
        "cpu_ms": 1000 * cost,
        "limit": 1 / cost,
    }


def table(found: list[Json], latency: float, journal: bool) -> str:
    """Returns the Markdown table."""
    lines = [
        "| calls at a time | calls a second | ideal | share of it | client's CPU a call, ms | limit of one core |",
        "|---" * 6 + "|",
    ]
    for row in found:
        lines.append(
            f"| {row['concurrency']} | {row['rate']:.1f} | {row['ideal']:.0f} | {100 * row['share']:.1f} % | "
            f"{row['cpu_ms']:.2f} | {row['limit']:.0f} |"
        )
    written = "every call and answer written down" if journal else "without a journal"
    lines += ["", f"Latency {1000 * latency:.0f} ms; {written}; medians of the repeats; {machine()}."]
    return "\n".join(lines)


def main() -> int:
    """Measures and rewrites the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency", type=float, default=0.2, help="seconds of every answer")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16, 64, 256])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--journal", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--readme", type=Path, default=HERE.parent / "README.md", help="file with the table's section")
    options = parser.parse_args()

    def make(console: Console) -> tuple[str, str] | None:
        found = []
        with (
            server_in(HERE / "latency_server.py", str(options.latency)) as url,
            tempfile.TemporaryDirectory() as folder,
        ):
            for concurrency in options.concurrency:
                journal = Path(folder) if options.journal else None
                row = measure(url, concurrency, options.latency, options.repeats, journal)
                found.append(row)
                console.print(f"{concurrency} at a time: {row['rate']:.1f}/s, {100 * row['share']:.1f} % of the ideal")
        write_json(options.results / "calls.json", {"latency_s": options.latency, "rows": found, "machine": machine()})
        return "concurrency", table(found, options.latency, options.journal)

    return publish(make, options.readme)


if __name__ == "__main__":
    raise SystemExit(main())
