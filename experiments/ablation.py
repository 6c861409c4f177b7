"""What stabilisation, the residual adaptor and the algorithm contribute, at the same budget.

Command: python experiments/ablation.py planted | smollm2 [--seeds 0 1 2]
One cell a run; a cell whose result is in experiments/results/ablation/ is skipped, so a stop loses one cell at most.
Rewrites its part of experiments/README.md. Planted: four landscapes, vocabulary 50, three tokens, 1,280 prompts a cell.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

# The checkout replaces this script's folder on the path: experiments/rlprompt holds recipes, not the package.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from experiments.report import machine, publish, read_json, spread, write_json
from rlprompt.config import RunConfig, load_config, parse_config
from rlprompt.errors import RLPromptError
from rlprompt.evaluation import evaluate_calibrated
from rlprompt.runs import train
from rlprompt.targets import target_from_config
from rlprompt.targets.planted import PlantedTarget
from rlprompt.tasks import task_from_config

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "ablation"
SMOLLM2_CALLS = 12288
"""Target calls of a SmolLM2 cell: with the quickstart's own budget the variants would have less time to part."""
LANDSCAPES = ("separable", "chained", "deceptive", "pairs")

STABLE = [{"name": "leave-one-out", "kwargs": {"scale": "std"}}]
RAW = [{"name": "linear-range", "kwargs": {"old": [0.0, 100.0], "new": [0.0, 1.0]}}]
Z_SCORE = [{"name": "z-score"}]

VARIANTS: dict[str, dict[str, Any]] = {
    "PPO, residual, stabilised": {"algorithm": "ppo", "mode": "residual", "stabilisers": STABLE},
    "PPO, residual, raw reward / 100": {"algorithm": "ppo", "mode": "residual", "stabilisers": RAW},
    "PPO, replace, stabilised": {"algorithm": "ppo", "mode": "replace", "stabilisers": STABLE},
    "SQL, residual, stabilised": {"algorithm": "sql", "mode": "residual", "stabilisers": Z_SCORE},
    "SQL, residual, raw reward / 100": {"algorithm": "sql", "mode": "residual", "stabilisers": RAW},
    "SQL, replace, stabilised": {"algorithm": "sql", "mode": "replace", "stabilisers": Z_SCORE},
    "random search": {"algorithm": "random", "mode": "residual", "stabilisers": RAW},
}


def planted_config(variant: dict[str, Any], landscape: str, seed: int, folder: str) -> RunConfig:
    """Returns one cell on a planted landscape; the landscape itself changes with the seed."""
    return parse_config(
        {
            "name": "ablation",
            "seed": seed,
            "task": {"name": "planted", "shots": 4, "dev_shots": 8},
            "target": {
                "name": f"planted:{landscape}",
                "kwargs": {"length": 3, "vocabulary": 50, "seed": seed, "noise": 0.5},
            },
            "policy": {
                "kind": "lm-adaptor",
                "model": "planted-50",
                "kwargs": {"mode": variant["mode"], "hidden": 128, "top_k": None},
            },
            "env": {"prompt_length": 3, "num_envs": 32, "action": "sequence"},
            "stabilisers": variant["stabilisers"],
            "algorithm": {
                "name": variant["algorithm"],
                "iterations": 40,
                "lr": 1e-2,
                "epochs": 4,
                "entropy_coeff": 0.01,
                "polyak": 0.1,
            },
            "run": {"dir": folder, "tensorboard": False, "checkpoint_every": 1000},
        }
    )


def planted_cell(variant: dict[str, Any], landscape: str, seed: int) -> dict[str, Any]:
    """Trains one cell; its value is the quality, in [0, 1], of the prompt that was chosen on dev."""
    with tempfile.TemporaryDirectory() as folder:
        config = planted_config(variant, landscape, seed, folder)
        result = train(config, progress=False)
    target = target_from_config(config.target)
    if not isinstance(target, PlantedTarget) or result.best_prompt is None:
        raise RLPromptError(f"the cell {landscape}, seed {seed} chose no prompt")
    return {"value": target.quality(result.best_prompt), "calls": result.target_calls, "seconds": result.seconds}


def smollm2_cell(variant: dict[str, Any], seed: int) -> dict[str, Any]:
    """Trains one cell of the quickstart recipe on more target calls; its value is the chosen prompt's test accuracy."""
    config = load_config(HERE / "rlprompt" / "quickstart.yaml")
    update: dict[str, Any] = {"name": variant["algorithm"]}
    if variant["algorithm"] == "sql":
        update |= {"polyak": 0.1, "kl_coeff": 0.0, "entropy_coeff": 0.0}
    if variant["algorithm"] == "random":
        update |= {"kl_coeff": 0.0}
    dumped = config.model_dump(mode="json")
    dumped |= {"name": "ablation", "seed": seed, "stabilisers": variant["stabilisers"]}
    dumped["algorithm"] |= update
    dumped["policy"]["kwargs"]["mode"] = variant["mode"]
    dumped["budget"]["max_target_calls"] = SMOLLM2_CALLS
    config = parse_config(dumped)
    result = train(config)
    if result.best_prompt is None:
        raise RLPromptError("the cell chose no prompt")
    task, target = task_from_config(config.task), target_from_config(config.target)
    tested = evaluate_calibrated(task, target, [result.best_prompt])
    return {
        "value": tested["none"][0].accuracy,
        "calibrated": tested["median"][0].accuracy,
        "prompt": result.best_prompt,
        "calls": result.target_calls,
        "seconds": result.seconds,
    }


def run_cells(kind: str, seeds: Sequence[int], console: Console) -> dict[str, dict[str, Any]]:
    """Runs what is missing of a table; returns all cells by "variant | landscape | seed"."""
    path = RESULTS / f"{kind}.json"
    cells: dict[str, dict[str, Any]] = read_json(path) if path.is_file() else {}
    places = LANDSCAPES if kind == "planted" else ("rotten-tomatoes",)
    wanted = [(name, place, seed) for name in VARIANTS for place in places for seed in seeds]
    for number, (name, place, seed) in enumerate(wanted, start=1):
        key = f"{name} | {place} | {seed}"
        if key in cells:
            continue
        started = time.perf_counter()
        cell = planted_cell(VARIANTS[name], place, seed) if kind == "planted" else smollm2_cell(VARIANTS[name], seed)
        cells[key] = cell
        write_json(path, cells)
        console.print(f"{number}/{len(wanted)} {key}: {cell['value']:.3f}, {time.perf_counter() - started:.0f} s")
    return cells


def table(kind: str, cells: dict[str, dict[str, Any]], seeds: Sequence[int]) -> str:
    """Returns the Markdown table: mean and standard deviation over the seeds."""
    places = list(LANDSCAPES) if kind == "planted" else ["rotten-tomatoes"]
    what = "Quality in [0, 1] of the chosen prompt" if kind == "planted" else "Test accuracy, raw"
    total = sum(cell["seconds"] for cell in cells.values()) / 60
    lines = [
        f"{what}; seeds {', '.join(map(str, seeds))}; {machine()}; {total:.0f} minutes in all.",
        "",
        f"| variant | {' | '.join(places)} | target calls (most) |",
        "|---" * (len(places) + 2) + "|",
    ]
    for name in VARIANTS:
        row, calls = [], 0
        for place in places:
            found = [cells[f"{name} | {place} | {seed}"] for seed in seeds]
            calls = max([calls, *(cell["calls"] for cell in found)])
            row.append(spread([cell["value"] for cell in found], digits=2 if len(seeds) > 1 else 3))
        lines.append(f"| {name} | {' | '.join(row)} | {calls:,} |")
    return "\n".join(lines)


def main() -> int:
    """Runs one of the two tables; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["planted", "smollm2"])
    parser.add_argument("--seeds", type=int, nargs="+")
    options = parser.parse_args()
    seeds = options.seeds or ([0, 1, 2] if options.kind == "planted" else [0])

    def make(console: Console) -> tuple[str, str]:
        return f"ablation-{options.kind}", table(options.kind, run_cells(options.kind, seeds, console), seeds)

    return publish(make, HERE / "README.md")


if __name__ == "__main__":
    raise SystemExit(main())
