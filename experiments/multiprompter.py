"""One prompter against two and three that compose a prompt of the same total length, at equal target calls.

Command: python experiments/multiprompter.py [--roles] [--seeds 0 1 2] [section.key=value ...]
One run a (prompters, seed); what is in experiments/results/multiprompter/ is skipped, so a stop loses one run at most.
Rewrites its part of experiments/README.md. With --roles: a role line and an instruction rewriter against one rewriter.

"I" is the most probable composition of the trained prompters, "S" the best on dev of all that were scored.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

# The checkout replaces this script's folder on the path: experiments/rlprompt holds recipes, not the package.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from experiments.report import difference, machine, numbers, publish, read_json, spread, write_json
from rlprompt.config import RunConfig, load_config
from rlprompt.errors import RunError
from rlprompt.evaluation import evaluate
from rlprompt.policies import load_team
from rlprompt.runs import train
from rlprompt.scoring import build_scorer
from rlprompt.search.random import greedy_prompts
from rlprompt.targets import target_from_config
from rlprompt.tasks import task_from_config
from rlprompt.types import Json

HERE = Path(__file__).resolve().parent
TOKENS: dict[str, list[dict[str, Any]]] = {
    "one prompter, 6 tokens": [{"name": "only", "length": 6}],
    "two, 3 tokens each": [{"name": "first", "length": 3}, {"name": "second", "length": 3}],
    "three, 2 tokens each": [{"name": name, "length": 2} for name in ("first", "second", "third")],
}
ROLES: dict[str, list[dict[str, Any]]] = {
    "one rewriter, 24 tokens": [{"name": "what", "role": "instruction", "length": 24}],
    "role line and instruction, 12 tokens each": [
        {"name": "who", "role": "role-line", "length": 12},
        {"name": "what", "role": "instruction", "length": 12},
    ],
}


def configured(recipe: str, agents: list[dict[str, Any]], seed: int, overrides: list[str]) -> RunConfig:
    """Returns the recipe with other agents; the few-shot split changes with the seed."""
    path = HERE / "rlprompt" / f"{recipe}.yaml"
    return load_config(path, [f"env.agents={agents}", f"seed={seed}", f"task.split_seed={seed}", *overrides])


def run_cell(config: RunConfig) -> Json | None:
    """Makes one run and tests its two prompts; None after a Ctrl-C."""
    started = time.perf_counter()
    result = train(config)
    if result.exit_code in (130, 143):
        return None
    if result.best_prompt is None:
        raise RunError(f"{result.folder} chose no prompt")
    (greedy,), _ = greedy_prompts(load_team(result.folder), config, build_scorer(config))
    prompts = {"I": greedy, "S": result.best_prompt}
    distinct = list(dict.fromkeys(prompts.values()))
    task, target = task_from_config(config.task), target_from_config(config.target)
    found = dict(zip(distinct, evaluate(task, target, distinct), strict=True))
    return {
        "seed": config.seed,
        "target_calls": result.target_calls,
        "iterations": result.iterations,
        "rows": {
            kind: {
                "prompt": prompt,
                "accuracy": found[prompt].accuracy,
                "num_failed": found[prompt].num_failed,
                "correct": [None if np.isnan(value) else int(value) for value in found[prompt].correct],
            }
            for kind, prompt in prompts.items()
        },
        "seconds": round(time.perf_counter() - started, 1),
        "machine": machine(),
    }


def table(found: dict[str, list[Json]]) -> str:
    """Returns the Markdown table; differences are to the first row's prompts of the same kind."""
    everything = [cell for cells in found.values() for cell in cells]
    seeds = sorted({cell["seed"] for cell in everything})
    minutes = sum(cell["seconds"] for cell in everything) / 60
    rows = len(everything[0]["rows"]["S"]["correct"])
    lines = [
        f"Seeds {', '.join(map(str, seeds))} (the few-shot split changes with the seed); {rows} test rows; "
        f"{everything[0]['machine']}; {minutes:.0f} minutes in all. Raw test accuracy, mean ± standard deviation over "
        "the seeds; difference to one prompter's with a paired 95 % bootstrap interval over the test rows.",
        "",
        "| prompters | most probable (I) | difference | best on dev (S) | difference | target calls |",
        "|---|---|---|---|---|---|",
    ]
    first = next(iter(found))
    for name, cells in found.items():
        shown = [f"| {name} "]
        for kind in ("I", "S"):
            accuracies = [cell["rows"][kind]["accuracy"] for cell in cells]
            gain = "" if name == first else difference(_answers(cells, kind), _answers(found[first], kind))
            shown.append(f"| {spread(accuracies)} | {gain} ")
        lines.append("".join([*shown, f"| {max(cell['target_calls'] for cell in cells):,} |"]))
    return "\n".join(lines)


def _answers(cells: list[Json], kind: str) -> Any:
    return np.mean([numbers(cell["rows"][kind]["correct"]) for cell in cells], axis=0)


def main() -> int:
    """Makes the missing runs and rewrites the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--roles", action="store_true", help="rewriters with roles in the place of token prompters")
    parser.add_argument("--seeds", type=int, nargs="+", help="0 1 2 for tokens, 0 for roles")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "multiprompter")
    parser.add_argument("--readme", type=Path, default=HERE / "README.md", help="file with the table's section")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_args()
    recipe, variants = ("multiprompter-roles", ROLES) if options.roles else ("multiprompter", TOKENS)
    seeds = options.seeds or ([0] if options.roles else [0, 1, 2])

    def make(console: Console) -> tuple[str, str] | None:
        found: dict[str, list[Json]] = {name: [] for name in variants}
        for seed in seeds:
            for name, agents in variants.items():
                path = options.results / recipe / f"{len(agents)}-{seed}.json"
                if not path.is_file():
                    cell = run_cell(configured(recipe, agents, seed, options.overrides))
                    if cell is None:
                        return None
                    write_json(path, cell)
                    console.print(f"{name}, seed {seed}: {cell['seconds']:.0f} s", markup=False)
                found[name].append(read_json(path))
        return recipe, table(found)

    return publish(make, options.readme)


if __name__ == "__main__":
    raise SystemExit(main())
