"""What workers bring on this machine: target replicas, env runners, and what Ray and RLlib cost an episode.

Command: python experiments/benchmarks/workers.py [--workers 1 2] [--repeats 3]
Target: SmolLM2 scores new prompts on inputs that it has read before, in this process and in replicas of one thread.
Writing: SmolLM2 with LoRA rewrites a draft, in this process and in env runners of one thread. Both against their ideal:
as many times one thread as there are workers, up to the machine's cores. Overhead: the planted task, whose models take
next to no time. Ratios only mean something. Rewrites its part of experiments/README.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import torch
from rich.console import Console

# The checkout replaces this script's folder on the path.
sys.path[0] = str(Path(__file__).resolve().parents[2])

from experiments.benchmarks.scoring import PROMPT_TOKENS, requests, texts, words
from experiments.report import machine, publish, write_json
from rlprompt.cluster import RayConfig
from rlprompt.config import RunConfig, TargetConfig, parse_config
from rlprompt.models import load_tokenizer
from rlprompt.ray_session import start_ray
from rlprompt.runs import load_run, train
from rlprompt.seeding import generator
from rlprompt.targets import load_target, pooled_target
from rlprompt.types import Json, Target

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results" / "workers"
MODEL = "smollm2-135m-instruct"
PROMPTS, INPUTS = 16, 32


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Has this process compute with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def pairs_a_second(target: Target, repeats: int) -> float:
    """Returns scored (prompt, input) pairs a second; the median over batches of new prompts."""
    vocabulary = words(load_tokenizer(MODEL))
    lengths = generator(0, "lengths").integers(15, 36, size=INPUTS).tolist()
    inputs, rates = texts(vocabulary, INPUTS, lengths, "inputs", 0), []
    for repeat in range(repeats + 1):
        asked = requests(texts(vocabulary, PROMPTS, [PROMPT_TOKENS] * PROMPTS, "prompts", repeat), inputs)
        started = time.perf_counter()
        target.run(asked)
        rates.append(len(asked) / (time.perf_counter() - started))
    return statistics.median(rates[1:])  # the first reads the inputs


def target_rows(workers: list[int], repeats: int) -> list[Json]:
    """Measures the target in this process and in replicas."""
    with threads(1):
        rows = [
            {"part": "target", "where": "one process, 1 thread", "rate": pairs_a_second(load_target(MODEL), repeats)}
        ]
    for count in workers:
        ray.shutdown()
        settings = RayConfig(num_target_replicas=count)
        start_ray(settings)
        pool: Any = pooled_target(TargetConfig(name=MODEL), settings)
        rows.append({"part": "target", "where": f"{count} replicas", "rate": pairs_a_second(pool, repeats)})
        pool.close()
    if (cores := os.cpu_count() or 1) > 1:
        with threads(cores):
            rate = pairs_a_second(load_target(MODEL), repeats)
        rows.append({"part": "target", "where": f"one process, {cores} threads", "rate": rate})
    return _with_ideal(rows, workers)


def timed_iterations(config: RunConfig) -> list[Json]:
    """Trains in a folder of its own; returns the times of every iteration after the first."""
    ray.shutdown()
    with tempfile.TemporaryDirectory() as folder:
        settings = config.run.model_copy(update={"dir": folder, "tensorboard": False})
        result = train(config.model_copy(update={"run": settings}), progress=False)
        events = load_run(result.folder).events()
    return [event["time"] for event in events if "iteration_s" in event.get("time", {})][1:]


def writing_config(runners: int, repeats: int) -> RunConfig:
    """Returns a run whose time goes into rewrites of a draft."""
    return parse_config(
        {
            "task": {"name": "rotten-tomatoes", "shots": 2, "dev_shots": 1},
            "target": {"name": MODEL},
            "policy": {"kind": "causal-lm", "model": MODEL, "kwargs": {"lora": {"r": 8, "alpha": 16}}},
            "env": {
                "kind": "rewrite",
                "meta_prompt": "prewrite",
                "draft": "Is this review positive or negative?",
                "prompt_length": 24,
                "num_envs": 32,
                "action": "sequence",
                "examples_per_step": 2,
            },
            "reward": [{"name": "gap"}],
            "algorithm": {"name": "reinforce", "lr": 1e-5, "iterations": repeats + 1},
            "selection": {"top": 1},
            "ray": {"num_env_runners": runners},
        }
    )


def writing_rows(workers: list[int], repeats: int) -> list[Json]:
    """Measures rewrites a second, in this process and in env runners."""

    def rate(runners: int) -> float:
        times = timed_iterations(writing_config(runners, repeats))
        return 32 / statistics.median(entry["policy_s"] for entry in times)

    with threads(1):
        rows = [{"part": "writing", "where": "one process, 1 thread", "rate": rate(0)}]
    rows += [{"part": "writing", "where": f"{count} env runners", "rate": rate(count)} for count in workers]
    if (cores := os.cpu_count() or 1) > 1:
        with threads(cores):
            rows.append({"part": "writing", "where": f"one process, {cores} threads", "rate": rate(0)})
    return _with_ideal(rows, workers)


def overhead_rows(workers: list[int], repeats: int) -> list[Json]:
    """Measures milliseconds an episode where models take next to no time."""
    rows = []
    for runners in (0, *workers):
        config = parse_config(
            {
                "task": {"name": "planted", "shots": 4, "dev_shots": 4},
                "target": {"name": "planted:separable"},
                "policy": {"kind": "categorical", "model": "planted-50"},
                "env": {"prompt_length": 3, "num_envs": 64, "action": "sequence"},
                "stabilisers": [{"name": "leave-one-out"}],
                "algorithm": {"name": "reinforce", "lr": 0.01, "iterations": 10 * repeats},
                "ray": {"num_env_runners": runners},
            }
        )
        seconds = statistics.median(entry["iteration_s"] for entry in timed_iterations(config))
        where = "one process" if not runners else f"{runners} env runners"
        rows.append({"part": "overhead", "where": where, "ms": 1000 * seconds / 64})
    return rows


def _with_ideal(rows: list[Json], workers: list[int]) -> list[Json]:
    """Adds to the rows of several workers which share of the ideal they reach."""
    cores = os.cpu_count() or 1
    for row, count in zip(rows[1:], workers, strict=False):
        row["ideal"] = min(count, cores) * rows[0]["rate"]
        row["share"] = row["rate"] / row["ideal"]
    return rows


def table(rows: list[Json]) -> str:
    """Returns the Markdown tables."""
    unit = {"target": "pairs a second", "writing": "rewrites a second"}
    lines = ["| what | where | a second | against one thread | share of the ideal |", "|---" * 5 + "|"]
    first: dict[str, float] = {}
    for row in rows:
        if row["part"] not in unit:
            continue
        base = first.setdefault(row["part"], row["rate"])
        share = f"{100 * row['share']:.0f} %" if "share" in row else ""
        lines.append(
            f"| {unit[row['part']]} | {row['where']} | {row['rate']:.2f} | {row['rate'] / base:.2f} | {share} |"
        )
    lines += ["", "| planted task, 64 episodes an iteration | ms an episode |", "|---|---|"]
    lines += [f"| {row['where']} | {row['ms']:.2f} |" for row in rows if row["part"] == "overhead"]
    return "\n".join([*lines, "", f"Medians of the repeats; {machine()}."])


def main() -> int:
    """Measures and rewrites the tables; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--parts", nargs="+", choices=["target", "writing", "overhead"], default=None)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--readme", type=Path, default=HERE.parent / "README.md", help="file with the table's section")
    options = parser.parse_args()
    measures = {"target": target_rows, "writing": writing_rows, "overhead": overhead_rows}

    def make(console: Console) -> tuple[str, str] | None:
        rows: list[Json] = []
        for part in options.parts or measures:
            rows += measures[part](options.workers, options.repeats)
            console.print(f"{part}: measured", markup=False)
        write_json(options.results / "rows.json", {"rows": rows, "machine": machine()})
        return "workers", table(rows)

    return publish(make, options.readme)


if __name__ == "__main__":
    raise SystemExit(main())
