"""The main job, once: train a prompt policy on real data and test it beside honest baselines.

Command: make quickstart (or: python experiments/quickstart.py [section.key=value ...])
Ends with a table of test accuracy and the same rows in the run folder's summary.json.
Under ten minutes on two cores.
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
    machine,
    markdown_table,
    print_table,
    read_config,
    replace_section,
    test_entries,
    timed_train,
    with_algorithm,
    write_summary,
)
from rlprompt.config import RunConfig
from rlprompt.errors import RLPromptError, RunError


def describe(config: RunConfig, rows: list[dict[str, Any]]) -> str:
    """Returns the README's table with what stands around it."""
    return (
        f"Test accuracy on {rows[0]['num_examples']} held-out Rotten Tomatoes reviews, target {config.target.name}, "
        f"seed {config.seed}, with 95 % intervals; `make quickstart ARGS=--readme` made this table ({machine()}):\n\n"
        f"{markdown_table(rows)}\n\n"
        "Calibrated: a threshold per prompt, fitted on the 32 train examples. Target calls: training and the choice "
        "on dev. One seed; look at the intervals before the order."
    )


def main() -> int:
    """Runs the recipe; returns the exit code."""
    parser = arguments(__doc__ or "", Path(__file__).parent / "rlprompt" / "quickstart.yaml")
    parser.add_argument("--readme", action="store_true", help="put the table into README.md")
    options = parser.parse_args()
    console = Console()
    started = time.perf_counter()
    try:
        config = read_config(options)
        trained, trained_seconds = timed_train(config)
        if trained.exit_code in (130, 143):
            return trained.exit_code
        sampled, sampled_seconds = timed_train(with_algorithm(config, "random", "random"))
        if sampled.exit_code in (130, 143):
            return sampled.exit_code
        if trained.best_prompt is None or sampled.best_prompt is None:
            raise RunError("the budget did not pay for one scored prompt; raise budget.max_target_calls")
        manual = best_manual_on_dev(config)
        entries = [Entry("empty prompt", "empty", "", 0, 0.0)]
        entries += [Entry(f"manual: {prompt}", "manual", prompt, 0, 0.0) for prompt in MANUAL_PROMPTS]
        dev_calls = len(MANUAL_PROMPTS) * config.task.dev_shots * 2 if config.task.dev_shots else 0
        entries += [
            Entry("manual, best on dev", "manual", prompt, dev_calls, 0.0, calibration)
            for calibration, prompt in manual.items()
        ]
        entries += [
            Entry("random search", "random", sampled.best_prompt, sampled.target_calls, sampled_seconds),
            Entry("trained policy", "trained", trained.best_prompt, trained.target_calls, trained_seconds),
        ]
        rows = test_entries(config, entries, console)
        path = write_summary(Path(trained.folder), rows)
    except RLPromptError as error:
        Console(stderr=True).print(f"error: {error}", highlight=False, markup=False, soft_wrap=True)
        return error.exit_code
    print_table(rows, console, f"{config.task.name}, target {config.target.name}, seed {config.seed}")
    if options.readme:
        replace_section(Path(__file__).resolve().parents[1] / "README.md", "quickstart", describe(config, rows))
    console.print(f"{machine()}; {time.perf_counter() - started:.0f} s in all; rows in {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
