"""Question Rewriter: raw inputs, the untrained rewriter, and SFT, DPO, IPO, RRHF and rounds at equal target calls.

Command: python experiments/question_rewriter.py [section.key=value ...] [--seeds 0 1 2] [--methods dpo ipo ...]
One cell a (method, seed): a run, its rewrites of the test rows, and the answers to them of two targets, of which the
second one (--transfer) was in no training. Cells in experiments/results/question-rewriter/ are skipped, so a stop loses
one cell at most. Rewrites its part of experiments/README.md.

What learns from files learns from one pool a seed: rewrites by the untrained policy, as many as all rounds of online
DPO write. Each of these methods is charged the whole pool. All make as many gradient steps as
`algorithm.epochs` passes over the pairs take, and RRHF has as many texts in a step as DPO.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
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
from rlprompt.config import AlgorithmConfig, RunConfig, TargetConfig
from rlprompt.errors import ConfigError
from rlprompt.evaluation import evaluate_written
from rlprompt.preferences import build_pairs, ranked_rows, sft_rows, write_json_lines, write_pairs
from rlprompt.rewards.classification import LogProbability
from rlprompt.runs import RunResult, load_run, train
from rlprompt.runs.candidates import candidates_of
from rlprompt.serving import Rewriter
from rlprompt.targets import target_from_config
from rlprompt.tasks import task_from_config
from rlprompt.types import FloatArray, Json

HERE = Path(__file__).resolve().parent
POOL = "pool"
OFFLINE: dict[str, Json] = {
    "sft": {"name": "sft"},
    "dpo": {"name": "dpo", "preference_loss": "sigmoid"},
    "dpo-norm": {"name": "dpo", "preference_loss": "sigmoid_norm"},
    "ipo": {"name": "dpo", "preference_loss": "ipo"},
    "rrhf": {"name": "rrhf"},
}
"""What learns from the pool's files, and the settings of its algorithm."""
SAME_INPUTS: dict[str, Json] = {
    "rounds-full": {"items": "regret", "items_share": 1.0},
    "rounds-selective": {"regenerate": 0.5},
}
"""Rounds that all have the inputs of the first one: all texts written again, or those of the worse half."""
NAMES = {
    "raw": "raw input",
    "untrained": "untrained rewriter",
    "sft": "SFT on the best",
    "dpo": "DPO",
    "dpo-norm": "DPO per token (Question Rewriter's)",
    "ipo": "IPO",
    "rrhf": "RRHF",
    "online-dpo": "online DPO per token, in rounds",
    "rounds-full": "all texts again",
    "rounds-selective": "texts of the worse half again",
}
FILES = {"sft": ("pairs", "sft.jsonl"), "dpo": ("pairs", "pairs.jsonl"), "rrhf": ("ranked", "ranked.jsonl")}
"""Algorithm -> its key in `data`, and the file beside the pool's run."""
TRANSFER = (
    '{variant: default, choices: [" negative", " positive"], template: "Review: {prompt}\\n\\nIs this review positive '
    'or negative? Answer with one word.\\nAnswer:"}'
)
"""The same question for a target without a chat template."""


def named(config: RunConfig, method: str, **sections: Any) -> RunConfig:
    """Returns the recipe under a method's name with other sections."""
    return config.model_copy(update={"name": f"{config.name}-{method}", **sections})


def configured(config: RunConfig, method: str, pool: Json | None = None) -> RunConfig:
    """Returns the run of a method; those that learn from files need the pool's cell."""
    settings = config.algorithm
    if method == POOL:
        return named(config, method, algorithm=settings.model_copy(update={"name": "random"}))
    if method not in OFFLINE:
        return named(config, method, algorithm=settings.model_copy(update=SAME_INPUTS.get(method, {})))
    if pool is None:
        raise ConfigError(f"{method} learns from the pool's files; make the pool first")
    algorithm = OFFLINE[method]["name"]
    key, file = FILES[algorithm]
    rows = settings.minibatch_size or config.env.num_envs
    steps = math.ceil(settings.epochs * pool["lines"][file] / rows)
    if algorithm == "rrhf":  # as many steps as with pairs, of as many texts
        rows = max(2 * rows // config.env.rewrites_per_input, 1)
    own = {"beta": settings.beta, "pair_weights": settings.pair_weights} if algorithm == "dpo" else {}
    learner = AlgorithmConfig(
        iterations=steps,
        minibatch_size=rows,
        lr=settings.lr,
        grad_clip=settings.grad_clip,
        **OFFLINE[method],
        **own,
    )
    return named(config, method, algorithm=learner, data={key: str(Path(pool["run"]) / "pairs" / file)})


def make_pool(config: RunConfig, path: Path) -> Json | None:
    """Returns the cell of the untrained policy's rewrites and the files made of them; None after a Ctrl-C."""
    if path.is_file() and Path(read_json(path)["run"]).is_dir():
        cell: Json = read_json(path)
        return cell
    started = time.perf_counter()
    result = train(configured(config, POOL))
    if result.exit_code in (130, 143):
        return None
    found = candidates_of(load_run(result.folder))
    pairs = build_pairs("best-worst", found.candidates, reward_weights=found.weights).pairs
    folder = result.folder / "pairs"
    write_pairs(folder / "pairs.jsonl", pairs)
    rows = {"sft.jsonl": sft_rows(pairs), "ranked.jsonl": ranked_rows(found.candidates)}
    for file, lines in rows.items():
        write_json_lines(folder / file, lines)
    cell = {
        **_costs(result, started),
        "train_calls": _train_calls(result),
        "lines": {"pairs.jsonl": len(pairs), **{file: len(lines) for file, lines in rows.items()}},
    }
    write_json(path, cell)
    return cell


def _train_calls(result: RunResult) -> int:
    calls: int = result.ledger["by_phase"]["train"]["calls"]
    return calls


def _costs(result: RunResult, started: float) -> Json:
    return {
        "run": str(result.folder),
        "target_calls": result.target_calls,
        "dev_reward": result.dev_reward,
        "seconds": round(time.perf_counter() - started, 1),
        "machine": machine(),
    }


def run_cell(config: RunConfig, method: str, pool: Json, transfer: RunConfig | None) -> Json | None:
    """Trains a method, lets it rewrite the test rows, and asks both targets; None after a Ctrl-C."""
    costs: Json = {"target_calls": 0, "dev_reward": None, "seconds": 0.0, "machine": machine()}
    if method == "untrained":  # the pool's run trained nothing: its policy is the untrained one
        costs |= {"run": pool["run"], "dev_reward": pool["dev_reward"]}
    elif method != "raw":
        started = time.perf_counter()
        result = train(configured(config, method, pool))
        if result.exit_code in (130, 143):
            return None
        costs = _costs(result, started)
        costs["target_calls"] += pool["train_calls"] if method in OFFLINE else 0
    started = time.perf_counter()
    test = task_from_config(config.task).test
    written: list[str | None] = [None] * len(test)  # None: the input as it is
    if method != "raw":
        results = Rewriter.load(costs["run"]).write_for(test)
        written = [result.prompt if result.rewritten else None for result in results]
    targets = {"own": config} if transfer is None else {"own": config, "transfer": transfer}
    return {
        "method": method,
        "seed": config.seed,
        **costs,
        "left_alone": sum(text is None for text in written),
        "rows": {name: answers(asked, written) for name, asked in targets.items()},
        "test_seconds": round(time.perf_counter() - started, 1),
    }


def answers(config: RunConfig, written: Sequence[str | None]) -> Json:
    """Returns for every test row whether a target's answer is right, and the right label's log-probability."""
    task, target = task_from_config(config.task), target_from_config(config.target)
    found = evaluate_written(
        task, target, {"texts": written}, compose=config.env.compose, draft=config.env.draft, keep_outputs=True
    )["texts"]
    blank = [""] * len(written)
    references = [example.reference for example in task.test]
    columns = task.columns(task.test)
    logp = LogProbability()(
        prompts=blank, completions=blank, outputs=list(found.outputs), references=references, **columns
    )
    return {
        "target": config.target.name,
        "correct": [None if np.isnan(value) else int(value) for value in found.correct],
        "logp": [None if value is None else round(float(value), 6) for value in logp],
        "num_failed": found.num_failed,
    }


def transferred(config: RunConfig, name: str, task: str) -> RunConfig | None:
    """Returns what the second target is asked; None without one."""
    if not name:
        return None
    return RunConfig.model_validate(
        config.model_dump()
        | {
            "target": TargetConfig(name=name).model_dump(),
            "task": {**config.task.model_dump(), **(yaml.safe_load(task) or {})},
        }
    )


def run_seed(
    config: RunConfig, methods: Sequence[str], folder: Path, transfer: tuple[str, str], console: Console
) -> bool:
    """Makes what is missing of one seed; False after a Ctrl-C."""
    config = config.model_copy(update={"task": config.task.model_copy(update={"split_seed": config.seed})})
    missing = [method for method in methods if not (folder / f"{method}-{config.seed}.json").is_file()]
    pool = make_pool(config, folder / f"{POOL}-{config.seed}.json") if missing else {}
    if pool is None:
        return False
    for method in missing:
        cell = run_cell(config, method, pool, transferred(config, *transfer))
        if cell is None:
            return False
        write_json(folder / f"{method}-{config.seed}.json", cell)
        spent = f"{cell['seconds']:.0f} s of training, {cell['test_seconds']:.0f} s of testing"
        console.print(f"seed {config.seed}, {method}: {spent}, {cell['target_calls']} target calls", markup=False)
    return True


def table(folder: Path, seeds: Sequence[int]) -> str:
    """Returns the two tables over the cells that were made: the methods, and selective regeneration."""
    cells = {
        (method, seed): read_json(path)
        for method in NAMES
        for seed in seeds
        if (path := folder / f"{method}-{seed}.json").is_file()
    }
    if not cells:
        raise ConfigError(f"{folder} has no cell of the seeds {', '.join(map(str, seeds))}; make one")
    first = next(iter(cells.values()))
    rows = first["rows"]
    pools = [read_json(path) for seed in seeds if (path := folder / f"{POOL}-{seed}.json").is_file()]
    minutes = sum(cell["seconds"] + cell.get("test_seconds", 0) for cell in [*cells.values(), *pools]) / 60
    longest = max(cell["seconds"] for cell in cells.values()) / 60
    lines = [
        f"Seeds {', '.join(map(str, seeds))} (the few-shot split changes with the seed); {len(rows['own']['correct'])} "
        f"test rows; {first['machine']}; {minutes:.0f} minutes in all, {longest:.0f} for the longest training. Test "
        "accuracy, mean ± standard deviation over the seeds; differences with paired 95 % bootstrap intervals over the "
        "test rows. Gain: log-probability of the right label less that under the raw input, in nats.",
        "",
        *_methods(cells, rows),
    ]
    selective = _selective(cells)
    return "\n".join([*lines, "", *selective] if selective else lines)


def _methods(cells: Mapping[tuple[str, int], Json], rows: Json) -> list[str]:
    own, other = rows["own"]["target"], rows.get("transfer", {}).get("target")
    head = ["method", "seeds", f"accuracy, {own}", "less untrained", "gain"]
    head += [f"accuracy, {other} (not trained on)", "less untrained"] if other else []
    head.append("target calls")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for method in NAMES:
        found = {seed: cell for (name, seed), cell in cells.items() if name == method}
        if not found or method in SAME_INPUTS:
            continue
        entries = [NAMES[method], str(len(found))]
        for target in ("own", "transfer") if other else ("own",):
            entries.append(spread([_mean(cell["rows"][target]["correct"]) for cell in found.values()]))
            entries.append("" if method == "untrained" else _less(cells, method, "untrained", target, "correct"))
            if target == "own":
                entries.append("" if method == "raw" else _less(cells, method, "raw", target, "logp"))
        calls = max(cell["target_calls"] for cell in found.values())
        lines.append(f"| {' | '.join([*entries, f'{calls:,}'])} |")
    return lines


def _selective(cells: Mapping[tuple[str, int], Json]) -> list[str]:
    found = {method: {seed: cells[method, seed] for name, seed in cells if name == method} for method in SAME_INPUTS}
    seeds = [seed for seed in found["rounds-full"] if seed in found["rounds-selective"]]
    if not seeds:
        return []
    lines = [
        f"Selective regeneration: all rounds have the inputs of the first one; seeds {', '.join(map(str, seeds))}.",
        "",
        "| from round 2 on | target calls | dev reward | gain on test | accuracy | gain less that of all texts |",
        "|---|---|---|---|---|---|",
    ]
    for method in SAME_INPUTS:
        chosen = [found[method][seed] for seed in seeds]
        less = "" if method == "rounds-full" else _less(cells, method, "rounds-full", "own", "logp")
        reward = spread([cell["dev_reward"] for cell in chosen])
        entries = [NAMES[method], f"{max(cell['target_calls'] for cell in chosen):,}", reward]
        entries += [_less(cells, method, "raw", "own", "logp")]
        entries += [spread([_mean(cell["rows"]["own"]["correct"]) for cell in chosen]), less]
        lines.append(f"| {' | '.join(entries)} |")
    return lines


def _mean(values: Sequence[float | None]) -> float:
    return float(np.nanmean(numbers(values)))


def _less(cells: Mapping[tuple[str, int], Json], first: str, second: str, target: str, what: str) -> str:
    """The paired difference of two methods over the seeds that both have; "" without one.

    A row's value is its mean over the seeds, so that its answers stay together when rows are resampled.
    """
    seeds = [seed for name, seed in cells if name == first and (second, seed) in cells]
    if not seeds:
        return ""

    def values(method: str) -> FloatArray:
        found: FloatArray = np.mean([numbers(cells[method, seed]["rows"][target][what]) for seed in seeds], axis=0)
        return found

    return difference(values(first), values(second))


def main() -> int:
    """Makes the missing cells and rewrites the tables; returns the exit code."""
    parser = arguments(__doc__ or "", HERE / "rlprompt" / "question-rewriter.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=list(NAMES), default=list(NAMES), metavar="METHOD")
    parser.add_argument("--transfer", default="gemma-3-270m", help="the second target; empty for none")
    parser.add_argument("--transfer-task", default=TRANSFER, help="what is other in its section task, as YAML")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of folders of cells")
    parser.add_argument("--readme", type=Path, default=HERE / "README.md", help="file with the table's section")
    options = parser.parse_args()

    def make(console: Console) -> tuple[str, str] | None:
        config = read_config(options)
        folder = options.results / config.name
        if config.algorithm.name != "online-dpo":
            raise ConfigError(f"the recipe's algorithm must be online-dpo, got {config.algorithm.name}")
        second = transferred(config, options.transfer, options.transfer_task)
        if second is not None:  # before anything is trained
            target_from_config(second.target)
        for seed in options.seeds:
            seeded = config.model_copy(update={"seed": seed})
            transfer = (options.transfer, options.transfer_task)
            if not run_seed(seeded, options.methods, folder, transfer, console):
                return None
        return config.name, table(folder, options.seeds)

    return publish(make, options.readme)


if __name__ == "__main__":
    raise SystemExit(main())
