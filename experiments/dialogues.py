"""Dialogues with scripted partners: policies that advise the target against their untrained selves, and no advice.

Command: python experiments/dialogues.py [section.key=value ...] [--tasks negotiation workflow] [--seeds 0 1 2]
One run a (task, seed); what is in experiments/results/dialogues/ is skipped, so a stop loses one run at most. Rewrites
its part of experiments/README.md.

All play the test scenarios with the most probable advice; the score is the partner's, in [0, 1]. A recipe whose
algorithm is SFT learns from turns that raised the score, in sampled dialogues of the untrained policy with the train
scenarios.
"""

from __future__ import annotations

import argparse
import re
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
from rlprompt.envs.turns import DialogueTurns
from rlprompt.errors import ConfigError
from rlprompt.json_lines import write_json_lines
from rlprompt.policies import build_policy, load_policy
from rlprompt.runs import train
from rlprompt.scoring import build_scorer
from rlprompt.search.dialogues import Played, demonstrations, play
from rlprompt.types import Json, Scores

HERE = Path(__file__).resolve().parent
TASKS = ("negotiation", "workflow")
NAMES = {"none": "no advice", "untrained": "untrained policy", "ppo": "PPO", "sft": "SFT on its good turns"}
SAMPLES = 2
"""Dialogues of each train scenario that SFT chooses from."""
ADVICE = re.compile(r"\(Advice:.*?\)\n")
"""The line of a template that is left out where there is no advice."""


def configured(task: str, seed: int, overrides: list[str]) -> RunConfig:
    """Returns the recipe of a task; tests are not charged to the run's budget."""
    return load_config(HERE / "rlprompt" / f"{task}.yaml", [f"seed={seed}", *overrides])


def test(config: RunConfig, policy: Any) -> Json:
    """Plays the test scenarios; returns row by row scores and a few dialogues to read."""
    scorer = build_scorer(config)
    examples = scorer.task.test
    played: Played = play(policy, config, scorer, examples, phase="eval")
    scores = scores_of(played.scores)
    return {
        "scores": scores,
        "num_failed": sum(score is None for score in scores),
        "first_advice": [one.prompt for one in played.turns if one.turn == 0][:5],
        "said": [list(map(list, said)) for said in played.said[:3]],
    }


def scores_of(scores: Scores) -> list[float | None]:
    """Returns the partners' scores of dialogues that were played; None where the target failed."""
    found = zip(scores.accuracies.tolist(), scores.prompt_valid.tolist(), strict=True)
    return [float(score) if valid else None for score, valid in found]


def no_advice(config: RunConfig) -> Json:
    """Plays the test scenarios without advice, and without its line in the template."""
    template, count = ADVICE.subn("{prompt}", str(config.task.template))
    if count != 1:
        raise ConfigError(f"task.template must have one line '(Advice: ...)', got {config.task.template!r}")
    task = config.task.model_copy(update={"template": template})
    scorer = build_scorer(config.model_copy(update={"task": task}))
    examples = scorer.task.test
    turns = DialogueTurns(len(examples), config.env.turns, examples)
    while True:
        scores = scorer.score_pairs([""] * len(examples), turns.asked(examples), phase="eval")
        if not (turns.left and turns.open_rows(scores).any()):
            break
        turns.advance(scores, scorer.task, examples, per_input=True)
    rows = scores_of(scores)
    return {"scores": rows, "num_failed": sum(score is None for score in rows)}


def with_demonstrations(config: RunConfig, untrained: Any) -> tuple[RunConfig, Json]:
    """Plays the train scenarios; returns the run on the turns that raised the score, and how many there were."""
    scorer = build_scorer(config)
    examples = scorer.task.train
    lines: list[Json] = []
    for number in range(SAMPLES):
        played = play(untrained, config, scorer, examples, phase="train", iteration=number)
        lines += demonstrations(played, examples, at_least=0.0, gaining=True)
    path = Path(config.run.dir) / f"{config.name}-demonstrations-{config.seed}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json_lines(path, lines)
    calls = scorer.ledger.snapshot()["used"]["calls"]
    chosen = {"dialogues": SAMPLES * len(examples), "turns": len(lines), "calls": calls}
    return config.model_copy(update={"data": {"pairs": str(path)}}), chosen


def run_cell(config: RunConfig) -> Json | None:
    """Trains once and tests the policy and its untrained self; None after a Ctrl-C."""
    started = time.perf_counter()
    untrained = build_policy(config.policy, prompt_length=config.env.prompt_length, seed=config.seed).eval()
    chosen: Json = {"calls": 0}
    if config.algorithm.name == "sft" and not config.data:
        config, chosen = with_demonstrations(config, untrained)
    result = train(config)
    if result.exit_code in (130, 143):
        return None
    trained_seconds = time.perf_counter() - started
    return {
        "seed": config.seed,
        "algorithm": config.algorithm.name,
        "demonstrations": chosen,
        "target_calls": result.target_calls + chosen["calls"],
        "training_seconds": round(trained_seconds, 1),
        "rows": {"untrained": test(config, untrained), "trained": test(config, load_policy(result.folder))},
        "seconds": round(time.perf_counter() - started, 1),
        "machine": machine(),
    }


def table(found: dict[str, tuple[Json, list[Json]]]) -> str:
    """Returns the Markdown table over tasks and seeds."""
    everything = [cell for _, cells in found.values() for cell in cells]
    minutes = sum(cell["seconds"] for cell in everything) / 60
    seeds = sorted({cell["seed"] for cell in everything})
    rows = len(everything[0]["rows"]["trained"]["scores"])
    lines = [
        f"Seeds {', '.join(map(str, seeds))}; {rows} test scenarios; {everything[0]['machine']}; {minutes:.0f} minutes "
        "in all. Mean score in [0, 1], mean ± standard deviation over the seeds; difference to the untrained policy "
        "with a paired 95 % bootstrap interval over the scenarios.",
        "",
        "| task | advice of | score | difference | target calls of training |",
        "|---|---|---|---|---|",
    ]
    for task, (none, cells) in found.items():
        by_name = {
            name: np.array([numbers(cell["rows"][name]["scores"]) for cell in cells])
            for name in ("untrained", "trained")
        }
        calls = max(cell["target_calls"] for cell in cells)
        lines.append(f"| {task} | {NAMES['none']} | {np.nanmean(numbers(none['scores'])):.3f} | | 0 |")
        for name, scores in by_name.items():
            gain, spent = "", 0
            label = NAMES[name] if name in NAMES else NAMES[cells[0]["algorithm"]]
            if name == "trained":
                gain = difference(np.nanmean(scores, axis=0), np.nanmean(by_name["untrained"], axis=0))
                spent = calls
            means = [float(value) for value in np.nanmean(scores, axis=1)]
            lines.append(f"| {task} | {label} | {spread(means)} | {gain} | {spent:,} |")
    return "\n".join(lines)


def main() -> int:
    """Makes the missing runs and rewrites the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=HERE / "results" / "dialogues")
    parser.add_argument("--readme", type=Path, default=HERE / "README.md", help="file with the table's section")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_args()

    def make(console: Console) -> tuple[str, str] | None:
        found: dict[str, tuple[Json, list[Json]]] = {}
        for task in options.tasks:
            baseline = options.results / f"{task}-none.json"
            if not baseline.is_file():
                write_json(baseline, no_advice(configured(task, 0, options.overrides)))
            cells: list[Json] = []
            for seed in options.seeds:
                path = options.results / f"{task}-{seed}.json"
                if not path.is_file():
                    cell = run_cell(configured(task, seed, options.overrides))
                    if cell is None:
                        return None
                    write_json(path, cell)
                    console.print(f"{path.stem}: {cell['seconds']:.0f} s")
                cells.append(read_json(path))
            found[task] = (read_json(baseline), cells)
        return "dialogues", table(found)

    return publish(make, options.readme)


if __name__ == "__main__":
    raise SystemExit(main())
