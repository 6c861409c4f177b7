"""The long recipe: three seeds, 1,000 test rows, training and random search at the same budget; raw and calibrated.

Command: make reference (or: python experiments/reference.py [--seeds 0 1 2] [section.key=value ...])
Resumable: a seed whose rows are in experiments/results/reference/ is skipped. Rewrites its part of the README there.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console

# The checkout replaces this script's folder on the path: experiments/rlprompt holds recipes, not the package.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from experiments.report import (
    MANUAL_PROMPTS,
    Entry,
    arguments,
    best_manual_on_dev,
    calibrated_pick,
    machine,
    print_table,
    publish,
    read_config,
    read_json,
    spread,
    test_entries,
    timed_train,
    with_algorithm,
    write_json,
)
from rlprompt.config import RunConfig

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "reference"


def main() -> int:
    """Runs the missing seeds and rewrites the table; returns the exit code."""
    parser = arguments(__doc__ or "", HERE / "rlprompt" / "reference.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the measured rows")
    options = parser.parse_args()

    def make(console: Console) -> tuple[str, str] | None:
        config = read_config(options)
        for seed in options.seeds:
            path = options.results / f"seed-{seed}.json"
            if path.is_file():
                console.print(f"seed {seed}: measured already, {path}")
                continue
            rows = run_seed(config.model_copy(update={"seed": seed}), console)
            if rows is None:
                return None
            write_json(path, rows)
        return "reference", table(options.results)

    return publish(make, HERE / "README.md")


def run_seed(config: RunConfig, console: Console) -> dict[str, Any] | None:
    """Trains, searches and tests one seed; None after a Ctrl-C. The few-shot split has the seed's number too."""
    started = time.perf_counter()
    config = config.model_copy(update={"task": config.task.model_copy(update={"split_seed": config.seed})})
    entries = [Entry("empty prompt", "empty", "", 0, 0.0)]
    entries += [Entry(f"manual: {prompt}", "manual", prompt, 0, 0.0) for prompt in MANUAL_PROMPTS]
    dev_calls = len(MANUAL_PROMPTS) * 2 * (config.task.dev_shots or 0)
    for calibration, prompt in best_manual_on_dev(config).items():
        entries.append(Entry("manual, best on dev", "manual", prompt, dev_calls, 0.0, calibration))
    for kind, name, run in (
        ("random", "random search", with_algorithm(config, "random", "random")),
        ("trained", "trained policy", config),
        ("trained", "trained on calibrated rewards", config.model_copy(update={"calibration": "median"})),
    ):
        result, seconds = timed_train(run)
        if result.exit_code in (130, 143) or result.best_prompt is None:
            return None
        entries.append(Entry(name, kind, result.best_prompt, result.target_calls, seconds, "none"))
        # A run on calibrated rewards has chosen by calibrated scores already.
        prompt, calls = (result.best_prompt, 0) if run.calibration == "median" else calibrated_pick(result, run)
        entries.append(Entry(name, kind, prompt, result.target_calls + calls, seconds, "median"))
    rows = test_entries(config, entries, console)
    print_table(rows, console, f"{config.task.name}, target {config.target.name}, seed {config.seed}")
    return {"seed": config.seed, "machine": machine(), "seconds": time.perf_counter() - started, "rows": rows}


def table(folder: Path) -> str:
    """Returns mean and spread over the measured seeds as Markdown."""
    seeds = [read_json(path) for path in sorted(folder.glob("seed-*.json"))]
    values: dict[tuple[str, str], list[float]] = {}
    calls: dict[tuple[str, str], list[int]] = {}
    for seed in seeds:
        for row in seed["rows"]:
            if not row["name"].startswith("manual: "):
                values.setdefault((row["name"], row["calibration"]), []).append(row["test_accuracy"])
                calls.setdefault((row["name"], row["calibration"]), []).append(row["target_calls"])
    lines = [
        f"Seeds {', '.join(str(seed['seed']) for seed in seeds)}; the few-shot split changes with the seed; "
        f"{seeds[0]['rows'][0]['num_examples']} test rows; {seeds[0]['machine']}; "
        f"{', '.join(str(round(seed['seconds'] / 60)) for seed in seeds)} minutes. Test accuracy, mean and standard "
        "deviation over the seeds:",
        "",
        "| method | raw | calibrated (median) | target calls |",
        "|---|---|---|---|",
    ]
    for name in dict.fromkeys(name for name, _ in values):
        cells = []
        for calibration in ("none", "median"):
            cells.append(spread(values[(name, calibration)]))
        lines.append(f"| {name} | {cells[0]} | {cells[1]} | {max(calls[(name, 'none')]):,} |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
