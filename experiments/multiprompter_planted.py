"""One agent against two and four on long planted prompts: how many target calls until the prompts are good?

Command: python experiments/multiprompter_planted.py [--landscape separable] [--seeds 0 1 2 3 4]
One run a (length, agents, critic, seed); what is in experiments/results/multiprompter-planted/ is skipped, so a stop
loses one run at most. Rewrites its part of experiments/README.md.

All runs of a length have the same prompts per iteration, examples, iterations and learning rate, so the same target
calls. The quality of a prompt is the planted target's own, in [0, 1]; a curve is its mean over an iteration's prompts.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

# The checkout replaces this script's folder on the path: experiments/rlprompt holds recipes, not the package.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from experiments.report import machine, publish, read_json, spread, write_json
from rlprompt.config import RunConfig, parse_config
from rlprompt.errors import RLPromptError
from rlprompt.runs import load_run, train
from rlprompt.targets import target_from_config
from rlprompt.targets.planted import PlantedTarget
from rlprompt.types import Json

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "multiprompter-planted"
LENGTHS, AGENTS, CRITICS = (8, 12), (1, 2, 4), ("central", "own")
ITERATIONS = 80
GOOD = 0.9
"""The quality that the calls are counted to."""
SHARES = (0.25, 0.5, 0.75, 1.0)
"""Of the budget, at which the curves are shown."""


def configured(landscape: str, length: int, agents: int, critic: str, seed: int, folder: str) -> RunConfig:
    """Returns one cell; the planted words change with the seed."""
    return parse_config(
        {
            "name": "multiprompter-planted",
            "seed": seed,
            "task": {"name": "planted", "shots": 4, "dev_shots": 4},
            "target": {
                "name": f"planted:{landscape}",
                "kwargs": {"length": length, "vocabulary": 50, "seed": seed},
            },
            "policy": {"kind": "lm-adaptor", "model": "planted-50", "kwargs": {"hidden": 64, "top_k": None}},
            "env": {
                "kind": "multi",
                "num_envs": 64,
                "action": "sequence",
                "agents": [{"name": f"agent-{place}", "length": length // agents} for place in range(agents)],
            },
            "team": {"critic": critic},
            "reward": [{"name": "log-probability"}],
            "algorithm": {
                "name": "ppo",
                "baseline": "critic",
                "iterations": ITERATIONS,
                "epochs": 2,
                "minibatch_size": 16,
                "lr": 3e-3,
            },
            "run": {"dir": folder, "tensorboard": False, "checkpoint_every": 1000},
        }
    )


def run_cell(landscape: str, length: int, agents: int, critic: str, seed: int) -> Json | None:
    """Makes one run; returns its curve, one mean quality an iteration, or None after a Ctrl-C."""
    with tempfile.TemporaryDirectory() as folder:
        config = configured(landscape, length, agents, critic, seed, folder)
        result = train(config, progress=False)
        if result.exit_code in (130, 143):
            return None
        records = [record for record in load_run(result.folder).prompts() if record.phase == "train"]
    target = target_from_config(config.target)
    if not isinstance(target, PlantedTarget) or result.best_prompt is None:
        raise RLPromptError(f"the cell of {agents} agents, length {length}, seed {seed} chose no prompt")
    by_iteration: list[list[float]] = [[] for _ in range(result.iterations)]
    for record in records:
        by_iteration[record.iteration].append(target.quality(record.prompt))
    return {
        "curve": [float(np.mean(qualities)) for qualities in by_iteration],
        "calls_per_iteration": sum(record.num_examples for record in records) / result.iterations,
        "chosen": target.quality(result.best_prompt),
        "target_calls": result.target_calls,
        "seconds": round(result.seconds, 1),
        "machine": machine(),
    }


def calls_until_good(cell: Json) -> float:
    """Returns the calls until an iteration's mean quality is good; infinite where it never is.

    >>> calls_until_good({"curve": [0.1, 0.95], "calls_per_iteration": 100.0})
    200.0
    """
    for iteration, quality in enumerate(cell["curve"], start=1):
        if quality >= GOOD:
            return float(iteration * cell["calls_per_iteration"])
    return float("inf")


def table(landscape: str, cells: dict[tuple[int, int, str], Sequence[Json]], seeds: Sequence[int]) -> str:
    """Returns the Markdown table: a row for each length, number of agents and critic."""
    everything = [cell for found in cells.values() for cell in found]
    shares = " | ".join(f"quality at {share:.0%}" for share in SHARES)
    minutes = sum(cell["seconds"] for cell in everything) / 60
    lines = [
        f"Landscape {landscape}; vocabulary 50; seeds {', '.join(map(str, seeds))}; {everything[0]['machine']}; "
        f"{minutes:.0f} minutes in all. Mean quality of an iteration's prompts at "
        "shares of the budget, mean ± standard deviation over the seeds; calls until that quality is 0.9: median over "
        "the seeds, and how many of them reach it.",
        "",
        f"| length | agents | critic | {shares} | calls to 0.9 | reached |",
        "|---" * (5 + len(SHARES)) + "|",
    ]
    for (length, agents, critic), found in cells.items():
        curve = [
            spread([cell["curve"][max(round(share * ITERATIONS) - 1, 0)] for cell in found], digits=2)
            for share in SHARES
        ]
        calls = [calls_until_good(cell) for cell in found]
        median = float(np.median(calls))
        budget = max(cell["calls_per_iteration"] for cell in found) * ITERATIONS
        shown = f"{median:,.0f}" if np.isfinite(median) else f"> {budget:,.0f}"
        reached = f"{sum(np.isfinite(calls))} of {len(calls)}"
        lines.append(f"| {length} | {agents} | {critic} | {' | '.join(curve)} | {shown} | {reached} |")
    return "\n".join(lines)


def main() -> int:
    """Makes the missing runs and rewrites the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--landscape", default="separable", choices=["separable", "chained", "deceptive", "pairs"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--readme", type=Path, default=HERE / "README.md", help="file with the table's section")
    options = parser.parse_args()

    def make(console: Console) -> tuple[str, str] | None:
        cells: dict[tuple[int, int, str], list[Json]] = {}
        for seed in options.seeds:
            for length in LENGTHS:
                for agents in AGENTS:
                    for critic in CRITICS:
                        path = options.results / options.landscape / f"{length}-{agents}-{critic}-{seed}.json"
                        if not path.is_file():
                            cell = run_cell(options.landscape, length, agents, critic, seed)
                            if cell is None:
                                return None
                            write_json(path, cell)
                            console.print(f"{path.stem}: {cell['curve'][-1]:.2f}, {cell['seconds']:.0f} s")
                        cells.setdefault((length, agents, critic), []).append(read_json(path))
        return f"multiprompter-{options.landscape}", table(
            options.landscape, dict(sorted(cells.items())), options.seeds
        )

    return publish(make, options.readme)


if __name__ == "__main__":
    raise SystemExit(main())
