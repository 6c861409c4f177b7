"""What the meta-prompt contributes: PRewrite with every registered task-level meta-prompt, at the same budget.

Command: python experiments/meta_prompts.py [--config experiments/rlprompt/prewrite.yaml] [--seeds 0] [a.b=c ...]
One run a (meta-prompt, seed); a cell whose result is in experiments/results/meta-prompts/ is skipped, so a stop loses
one cell at most. Rewrites its part of experiments/README.md. Results of another budget: give --results another folder.

The meta-prompts are those named `prewrite*` that read the draft alone; the one with {feedback} is for several turns.
"I" is the trained policy's most probable rewrite, "S" the best on dev of all that were scored.
"""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

# The checkout replaces this script's folder on the path: experiments/rlprompt holds recipes, not the package.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from experiments.report import arguments, machine, publish, read_config, read_json, spread, write_json
from rlprompt.config import RunConfig
from rlprompt.errors import ConfigError, RunError
from rlprompt.evaluation import evaluate
from rlprompt.meta_prompts import META_PROMPTS, MetaPrompt
from rlprompt.policies import load_policy
from rlprompt.runs import load_run, train
from rlprompt.scoring import build_scorer
from rlprompt.search.random import greedy_prompts
from rlprompt.targets import target_from_config
from rlprompt.tasks import task_from_config
from rlprompt.types import Json

HERE = Path(__file__).resolve().parent
SECTION = "meta-prompts"
LAST = 10
"""Iterations at the end of a run that "final" means."""

STYLES = {
    "reason": r"\bstep|\bthink|\breason",
    "plan": r"\bplan",
    "code": r"\bcode\b|\bprogram|\bpseudo",
    "recall": r"\brecall|\bremember|\bfacts?\b|\bdefin",
    "null-example": r"\bexample|\bcases?\b|\bexception",
}
"""Words that show a style in a rewrite: the ablation's five, in the order of the table's columns."""


def task_level_names() -> list[str]:
    """Returns the registered meta-prompts of the sweep, `prewrite` first."""
    return sorted(
        name
        for name, entry in META_PROMPTS.items()
        if name.split("-")[0] == "prewrite" and MetaPrompt(entry.text).slots == {"draft"}
    )


def configured(config: RunConfig, name: str, seed: int) -> RunConfig:
    """Returns the recipe with another meta-prompt and seed; the few-shot split changes with the seed."""
    return config.model_copy(
        update={
            "name": f"meta-{name}",
            "seed": seed,
            "task": config.task.model_copy(update={"split_seed": seed}),
            "env": config.env.model_copy(update={"meta_prompt": name}),
        }
    )


def style(prompts: Sequence[str]) -> Json:
    """Returns features of rewrites: their mean number of words, and the share that shows each style.

    >>> found = style(["Think it through.", "Make a plan, then reason."])
    >>> found["words"], found["reason"], found["plan"], found["code"]
    (4.0, 1.0, 0.5, 0.0)
    """
    count = len(prompts)
    features = {"words": sum(len(prompt.split()) for prompt in prompts) / count if count else math.nan}
    for name, words in STYLES.items():
        shown = sum(re.search(words, prompt, flags=re.IGNORECASE) is not None for prompt in prompts)
        features[name] = shown / count if count else math.nan
    return features


def final_part(folder: Path) -> Json:
    """Returns the mean raw train reward and the style of what a run wrote in its last iterations."""
    records = [record for record in load_run(folder).prompts() if record.phase == "train"]
    newest = max((record.iteration for record in records), default=0)
    last = [record for record in records if record.iteration > newest - LAST]
    rewards = [record.raw_reward for record in last if record.num_valid]
    reward = sum(rewards) / len(rewards) if rewards else math.nan
    return {"final_reward": reward, "style": style([record.prompt for record in last])}


def run_cell(config: RunConfig, name: str, seed: int) -> Json | None:
    """Trains one cell and tests its prompts once; None after a Ctrl-C."""
    started = time.perf_counter()
    run = configured(config, name, seed)
    result = train(run)
    if result.exit_code in (130, 143):
        return None
    if result.best_prompt is None:
        raise RunError(f"{result.folder} chose no prompt")
    (greedy,), _ = greedy_prompts(load_policy(result.folder).eval(), run, build_scorer(run))
    prompts = {"draft": run.env.draft, "I": greedy, "S": result.best_prompt}
    task, target = task_from_config(run.task), target_from_config(run.target)
    distinct = list(dict.fromkeys(prompts.values()))
    tested = dict(zip(distinct, evaluate(task, target, distinct), strict=True))
    return {
        "meta_prompt": name,
        "seed": seed,
        "prompts": prompts,
        "accuracy": {kind: tested[prompt].accuracy for kind, prompt in prompts.items()},
        "test_rows": len(task.test),
        **final_part(result.folder),
        "target_calls": result.target_calls,
        "iterations": result.iterations,
        "seconds": round(time.perf_counter() - started, 1),
        "machine": machine(),
    }


def run_cells(config: RunConfig, seeds: Sequence[int], folder: Path, console: Console) -> bool:
    """Makes what is missing of the table; False after a Ctrl-C."""
    wanted = [(name, seed) for seed in seeds for name in task_level_names()]
    for number, (name, seed) in enumerate(wanted, start=1):
        path = _path(folder, name, seed)
        if path.is_file():
            continue
        cell = run_cell(config, name, seed)
        if cell is None:
            return False
        write_json(path, cell)
        console.print(
            f"{number}/{len(wanted)} {name}, seed {seed}: {cell['seconds']:.0f} s, S = {cell['prompts']['S']!r}",
            markup=False,
            highlight=False,
        )
    return True


def table(folder: Path, seeds: Sequence[int]) -> str:
    """Returns the Markdown table: means over the seeds, accuracies with their standard deviation."""
    cells: dict[str, list[Json]] = {
        name: [read_json(_path(folder, name, seed)) for seed in seeds] for name in task_level_names()
    }
    every = [cell for found in cells.values() for cell in found]
    one_each = next(iter(cells.values()))  # the draft is the same in all rows of a seed
    minutes = sum(cell["seconds"] for cell in every) / 60
    lines = [
        f"Seeds {', '.join(map(str, seeds))} (the few-shot split changes with the seed); {every[0]['test_rows']} test "
        f"rows; {every[0]['machine']}; {minutes:.0f} minutes in all. The draft instruction itself: test accuracy "
        f"{spread([cell['accuracy']['draft'] for cell in one_each])}. Reward: raw, on train, of what was written in "
        f"the last {LAST} iterations; words and styles (the share of rewrites with a word of that style) likewise.",
        "",
        f"| meta-prompt | test accuracy, I | test accuracy, S | reward | target calls | words | {' | '.join(STYLES)} |",
        "|---" * (6 + len(STYLES)) + "|",
    ]
    for name, found in cells.items():
        shown = [spread([cell["accuracy"][kind] for cell in found]) for kind in ("I", "S")]
        shown.append(f"{_mean([cell['final_reward'] for cell in found]):.1f}")
        shown.append(f"{max(cell['target_calls'] for cell in found):,}")
        shown.append(f"{_mean([cell['style']['words'] for cell in found]):.1f}")
        shown += [f"{_mean([cell['style'][key] for cell in found]):.2f}" for key in STYLES]
        lines.append(f"| `{name}` | {' | '.join(shown)} |")
    return "\n".join(lines)


def _path(folder: Path, name: str, seed: int) -> Path:
    return folder / f"{name}-{seed}.json"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def main() -> int:
    """Makes the missing cells and rewrites the table; returns the exit code."""
    parser = arguments(__doc__ or "", HERE / "rlprompt" / "prewrite.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--results", type=Path, default=HERE / "results" / SECTION)
    parser.add_argument("--readme", type=Path, default=HERE / "README.md", help="file with the table's section")
    options = parser.parse_args()

    def make(console: Console) -> tuple[str, str] | None:
        config = read_config(options)
        if config.env.kind != "rewrite" or config.env.per_input:
            raise ConfigError(f"{options.config} writes no task-level rewrites; set env.kind=rewrite, env.level=task")
        if not run_cells(config, options.seeds, options.results, console):
            return None
        return SECTION, table(options.results, options.seeds)

    return publish(make, options.readme)


if __name__ == "__main__":
    raise SystemExit(main())
