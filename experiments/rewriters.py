"""PRewrite: the draft, the untrained rewriter and rewriters trained by PPO and GRPO, at equal target calls.

Command: python experiments/rewriters.py [--config experiments/rlprompt/prewrite.yaml] [--seeds 0 1 2] [a.b=c ...]
One run a (seed, method); what is in experiments/results/rewriters/NAME/ is skipped, so a stop loses one run at most.
Prompts are tested once for each seed, all in one pass. Rewrites its part of experiments/README.md.

"I" is the policy's most probable rewrite; "S" is the best on dev of all that were scored (for the untrained rewriter:
of as many samples as the budget allows). Trained rewriters and the untrained S have the same budget.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

# The checkout replaces this script's folder on the path: experiments/rlprompt holds recipes, not the package.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from experiments.report import (
    arguments,
    difference,
    machine,
    numbers,
    publish,
    read_config,
    read_json,
    spread,
    write_json,
)
from rlprompt.config import RunConfig
from rlprompt.errors import RunError
from rlprompt.evaluation import Evaluation, evaluate
from rlprompt.policies import build_policy, load_policy
from rlprompt.runs import train
from rlprompt.scoring import build_scorer
from rlprompt.search.random import greedy_prompts
from rlprompt.targets import target_from_config
from rlprompt.tasks import task_from_config
from rlprompt.types import FloatArray, Json

HERE = Path(__file__).resolve().parent
METHODS = ("random", "ppo", "grpo")
"""Algorithms of the runs; "random" samples the untrained rewriter."""
NAMES = {"random": "untrained rewriter", "ppo": "PPO", "grpo": "GRPO"}
GRPO_LR = 5.0
"""Times the recipe's learning rate: GRPO takes one gradient step an iteration, where PPO takes several."""


def configured(config: RunConfig, method: str) -> RunConfig:
    """Returns the recipe with another algorithm; GRPO makes its own advantages of the scaled rewards."""
    algorithm: dict[str, Any] = {"name": method}
    stabilisers = config.stabilisers
    if method == "random":
        algorithm["kl_coeff"] = 0.0
    if method == "grpo":
        algorithm["lr"] = GRPO_LR * config.algorithm.lr
        stabilisers = [entry for entry in stabilisers if entry.name != "leave-one-out"]
    return config.model_copy(
        update={
            "name": f"{config.name}-{method}",
            "algorithm": config.algorithm.model_copy(update=algorithm),
            "stabilisers": stabilisers,
        }
    )


def run_cell(config: RunConfig, method: str) -> Json | None:
    """Makes one run; returns its two prompts and what they cost, None after a Ctrl-C."""
    started = time.perf_counter()
    run = configured(config, method)
    result = train(run)
    if result.exit_code in (130, 143):
        return None
    if result.best_prompt is None:
        raise RunError(f"{result.folder} chose no prompt")
    if method == "random":
        policy = build_policy(run.policy, prompt_length=run.env.prompt_length, seed=run.seed)
    else:
        policy = load_policy(result.folder)
    (greedy,), _ = greedy_prompts(policy.eval(), run, build_scorer(run))
    return {
        "method": method,
        "seed": run.seed,
        "I": greedy,
        "S": result.best_prompt,
        "target_calls": result.target_calls,
        "iterations": result.iterations,
        "seconds": round(time.perf_counter() - started, 1),
        "machine": machine(),
    }


def test(config: RunConfig, cells: dict[str, Json]) -> Json:
    """Tests the draft and all prompts of one seed on the test rows, raw; returns row by row results."""
    prompts = {"draft": config.env.draft}
    for method, cell in cells.items():
        prompts |= {f"{method} I": cell["I"], f"{method} S": cell["S"]}
    task, target = task_from_config(config.task), target_from_config(config.target)
    distinct = list(dict.fromkeys(prompts.values()))
    started = time.perf_counter()
    found: dict[str, Evaluation] = dict(zip(distinct, evaluate(task, target, distinct), strict=True))
    return {
        "seed": config.seed,
        "seconds": round(time.perf_counter() - started, 1),
        "rows": {
            name: {
                "prompt": prompt,
                "accuracy": found[prompt].accuracy,
                "ci95": list(found[prompt].accuracy_ci95),
                "num_failed": found[prompt].num_failed,
                "correct": [None if np.isnan(value) else int(value) for value in found[prompt].correct],
            }
            for name, prompt in prompts.items()
        },
    }


def run_seed(config: RunConfig, folder: Path, console: Console) -> bool:
    """Makes what is missing of one seed; False after a Ctrl-C."""
    config = config.model_copy(update={"task": config.task.model_copy(update={"split_seed": config.seed})})
    cells: dict[str, Json] = {}
    for method in METHODS:
        path = folder / f"{method}-{config.seed}.json"
        if not path.is_file():
            cell = run_cell(config, method)
            if cell is None:
                return False
            write_json(path, cell)
            console.print(f"seed {config.seed}, {method}: {cell['seconds']:.0f} s, S = {cell['S']!r}", markup=False)
        cells[method] = read_json(path)
    path = folder / f"test-{config.seed}.json"
    if not path.is_file():
        write_json(path, test(config, cells))
    return True


def table(folder: Path) -> str:
    """Returns the table over the seeds that were tested, with the paired difference to the untrained rewriter."""
    tests = [read_json(path) for path in sorted(folder.glob("test-*.json"))]
    cells = {
        (method, found["seed"]): read_json(folder / f"{method}-{found['seed']}.json")
        for found in tests
        for method in METHODS
    }
    seeds = [found["seed"] for found in tests]
    rows = len(tests[0]["rows"]["draft"]["correct"])
    minutes = (sum(cell["seconds"] for cell in cells.values()) + sum(found["seconds"] for found in tests)) / 60
    lines = [
        f"Seeds {', '.join(map(str, seeds))} (the few-shot split changes with the seed); {rows} test rows; "
        f"{next(iter(cells.values()))['machine']}; {minutes:.0f} minutes in all. Test accuracy, mean ± standard "
        "deviation over the seeds; difference to the untrained rewriter's prompt of the same kind with a paired 95 % "
        "bootstrap interval over the test rows.",
        "",
        "| method | accuracy | difference | target calls |",
        "|---|---|---|---|",
        f"| draft instruction | {spread([found['rows']['draft']['accuracy'] for found in tests])} | | 0 |",
    ]
    for kind, words in (("I", "most probable rewrite"), ("S", "best on dev")):
        for method in METHODS:
            name = f"{method} {kind}"
            calls = max(cells[method, seed]["target_calls"] for seed in seeds)
            shown = 0 if name == "random I" else calls
            gain = "" if method == "random" else _difference(tests, name, f"random {kind}")
            accuracies = [found["rows"][name]["accuracy"] for found in tests]
            lines.append(f"| {NAMES[method]}, {words} ({kind}) | {spread(accuracies)} | {gain} | {shown:,} |")
    return "\n".join(lines)


def _difference(tests: list[Json], first: str, second: str) -> str:
    """Resamples test rows: a row's value is its mean over the seeds, so that its answers stay together."""

    def answers(name: str) -> FloatArray:
        found: FloatArray = np.mean([numbers(test["rows"][name]["correct"]) for test in tests], axis=0)
        return found

    return difference(answers(first), answers(second))


def main() -> int:
    """Makes the missing runs and rewrites the table; returns the exit code."""
    parser = arguments(__doc__ or "", HERE / "rlprompt" / "prewrite.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=HERE / "results" / "rewriters")
    parser.add_argument("--readme", type=Path, default=HERE / "README.md", help="file with the table's section")
    options = parser.parse_args()

    def make(console: Console) -> tuple[str, str] | None:
        config = read_config(options)
        folder = options.results / config.name
        for seed in options.seeds:
            if not run_seed(config.model_copy(update={"seed": seed}), folder, console):
                return None
        return config.name, table(folder)

    return publish(make, options.readme)


if __name__ == "__main__":
    raise SystemExit(main())
