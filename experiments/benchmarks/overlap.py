"""What `algorithm.mode: async` brings, and what a lag of one update costs: the planted task, a target that lets wait.

Command: python experiments/benchmarks/overlap.py [--latencies 0 0.1 0.3 1] [--seeds 0 ... 9] [--iterations 24]
Time: seconds an iteration in both modes, one after the other; the limit is the longer of scoring and learning.
Learning: mean train reward at equal target calls, paired by seed. Rewrites its part of experiments/README.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console

# The checkout replaces this script's folder on the path.
sys.path[0] = str(Path(__file__).resolve().parents[2])

from experiments.report import difference, machine, publish, spread, write_json
from rlprompt.config import RunConfig, parse_config
from rlprompt.runs import load_run, train
from rlprompt.types import Json

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results" / "overlap"
MODES = ("sync", "async")
POINTS = (0.25, 0.5, 0.75, 1.0)
"""Shares of the calls at which the curves are compared."""


def make_config(mode: str, seed: int, iterations: int, latency: float) -> RunConfig:
    """PPO of eight words out of fifty with many small gradient steps; each scoring takes `latency` seconds longer."""
    return parse_config(
        {
            "seed": seed,
            "task": {"name": "planted", "shots": 4, "dev_shots": 4},
            "target": {
                "name": "planted:separable",
                "kwargs": {"length": 8, "vocabulary": 50, "latency_s": latency, "seed": seed},
            },
            "policy": {"kind": "categorical", "model": "planted-50"},
            "env": {"prompt_length": 8, "num_envs": 64, "action": "sequence"},
            "reward": [{"name": "log-probability"}],
            "stabilisers": [{"name": "leave-one-out", "kwargs": {"scale": "std"}}],
            "algorithm": {
                "name": "ppo",
                "mode": mode,
                "lr": 0.05,
                "iterations": iterations,
                "epochs": 4,
                "minibatch_size": 16,
            },
            "selection": {"top": 1},
            "run": {"tensorboard": False},
        }
    )


def trained(config: RunConfig) -> tuple[list[Json], list[float]]:
    """Trains in a folder of its own; returns the times of its iterations, and their prompts' mean rewards."""
    with tempfile.TemporaryDirectory() as folder:
        settings = config.run.model_copy(update={"dir": folder})
        run = load_run(train(config.model_copy(update={"run": settings}), progress=False).folder)
        times = [event["time"] for event in run.events() if "iteration_s" in event.get("time", {})]
        rewards: dict[int, list[float]] = {}
        for record in run.prompts():
            if record.phase == "train":
                rewards.setdefault(record.iteration, []).append(record.raw_reward)
    return times, [statistics.mean(rewards[iteration]) for iteration in sorted(rewards)]


def timing_row(latency: float, iterations: int) -> Json:
    """Measures both modes; the first and the last iteration, in which nothing overlaps, are left out."""
    sync, lagging = (trained(make_config(mode, 0, iterations, latency))[0][1:-1] for mode in MODES)
    parts = {name: statistics.median(entry[f"{name}_s"] for entry in sync) for name in ("target", "policy", "learner")}
    both = [statistics.median(entry["iteration_s"] for entry in times) for times in (sync, lagging)]
    rest = both[0] - sum(parts.values())
    return {
        "latency": latency,
        **parts,
        "sync": both[0],
        "async": both[1],
        "limit": max(parts["target"] + parts["policy"], parts["learner"]) + max(rest, 0.0),
    }


def table(timings: list[Json], curves: dict[str, list[list[float]]]) -> str:
    """Returns the two Markdown tables."""
    lines = [
        "| latency, s | scoring and writing, s | learning, s | sync, s an iteration | async | limit | faster |",
        "|---" * 7 + "|",
    ]
    for row in timings:
        lines.append(
            f"| {row['latency']:g} | {row['target'] + row['policy']:.3f} | {row['learner']:.3f} | {row['sync']:.3f} | "
            f"{row['async']:.3f} | {row['limit']:.3f} | {row['sync'] / row['async']:.2f} times |"
        )
    sync, lagging = (np.array(curves[mode]) for mode in MODES)
    lines += ["", "| share of the calls | sync | async | async less sync |", "|---|---|---|---|"]
    for share in POINTS:
        place = max(round(share * sync.shape[1]) - 1, 0)
        one, other = sync[:, place], lagging[:, place]
        lines.append(f"| {share:.0%} | {spread(one.tolist())} | {spread(other.tolist())} | {difference(other, one)} |")
    lines += ["", f"Mean train reward of an iteration's prompts, in nats; {len(sync)} seeds; {machine()}."]
    return "\n".join(lines)


def main() -> int:
    """Measures and rewrites the tables; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latencies", type=float, nargs="+", default=[0.0, 0.1, 0.3, 1.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--iterations", type=int, default=24)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--readme", type=Path, default=HERE.parent / "README.md", help="file with the table's section")
    options = parser.parse_args()

    def make(console: Console) -> tuple[str, str] | None:
        timings = []
        for latency in options.latencies:
            timings.append(timing_row(latency, options.iterations))
            console.print(f"latency {latency:g} s: measured", markup=False)
        curves = {
            mode: [trained(make_config(mode, seed, options.iterations, 0.0))[1] for seed in options.seeds]
            for mode in MODES
        }
        write_json(options.results / "rows.json", {"timings": timings, "curves": curves, "machine": machine()})
        return "overlap", table(timings, curves)

    return publish(make, options.readme)


if __name__ == "__main__":
    raise SystemExit(main())
