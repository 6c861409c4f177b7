"""Text style transfer, negative to positive, on Rotten Tomatoes: a manual prompt, the untrained and the trained policy.

Command: python experiments/style_transfer.py [--seeds 0] [section.key=value ...]
Makes runs/style-transfer/ first: the negative sentences of the task's own splits, and two classifiers of positive and
negative that share no row, one for the reward and one for the report. One run a seed; what is in
experiments/results/style-transfer/ is skipped. Rewrites its part of experiments/README.md.

Every method gets one greedy answer of the target for each test sentence. "Copy" is the sentence itself. "Best of" at
test spends what the training spent: so many drawn answers to the manual prompt, of which the training reward takes one.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
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
from rlprompt.config import RewardConfig, RunConfig
from rlprompt.evaluation import evaluate_written
from rlprompt.policies import build_policy, load_policy
from rlprompt.rewards.classifier import train_attribute_classifier
from rlprompt.rewards.component import load_component
from rlprompt.runs import train
from rlprompt.scoring import build_scorer
from rlprompt.search.random import greedy_prompts
from rlprompt.targets import target_from_config
from rlprompt.tasks import load_task, task_from_config
from rlprompt.types import Json, TargetOutput

HERE = Path(__file__).resolve().parent
WORK = Path("runs") / "style-transfer"
"""Beside the runs, and named so in the recipe."""
LABELS = ("negative", "positive")
NAMES = {
    "copy": "copy of the sentence",
    "manual": "manual prompt (the draft)",
    "best-of": "manual prompt, best of {} by the training reward",
    "untrained": "untrained policy",
    "trained": "trained policy",
}
MEASURES = ("content", "style", "fluency")
CARD = """name: rotten-tomatoes-to-positive
splits: {train: train.jsonl, dev: dev.jsonl, test: test.jsonl}
columns: {input: text, reference: text}
metric: rouge
max_tokens: 40
sampling_temperature: 0.7
stop: ["\\n"]
template:
  - {role: user, content: "Review: {input}\\n\\n{prompt}"}
"""


def prepare(console: Console) -> Json:
    """Writes data, card and classifiers where they are missing; returns the classifiers' held-out accuracies."""
    report = WORK / "classifiers.json"
    if report.is_file():
        found: Json = read_json(report)
        return found
    WORK.mkdir(parents=True, exist_ok=True)
    task = load_task("rotten-tomatoes")
    for split in ("train", "dev", "test"):
        rows = [row.input for row in getattr(task, split) if row.reference == 0]
        lines = [json.dumps({"text": text}, ensure_ascii=False) for text in rows]
        (WORK / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (WORK / "card.yaml").write_text(CARD, encoding="utf-8")
    accuracies: Json = {}
    for place, name in enumerate(("train", "report")):
        made = train_attribute_classifier(task, WORK / f"classifier-{name}", labels=LABELS, part=(place, 2))
        accuracies[name] = made.accuracy
        console.print(f"classifier '{name}': accuracy {made.accuracy:.3f} on dev")
    write_json(report, accuracies)
    return accuracies


def best_of(config: RunConfig, count: int) -> list[TargetOutput]:
    """Draws `count` answers to the manual prompt for every test row; returns the one of the highest training reward."""
    scorer = build_scorer(config)
    rows = scorer.task.test
    scores = scorer.score_pairs([config.env.draft] * len(rows), rows, samples=count, phase="test")
    chosen = np.where(scores.valid, scores.rewards, -np.inf).argmax(axis=1)
    return [answers[place] for answers, place in zip(scores.outputs, chosen, strict=True)]


def measure(config: RunConfig, written: dict[str, Sequence[str]], drawn: list[TargetOutput]) -> dict[str, Json]:
    """Returns content, style and fluency of every test row and method; a failed row is None."""
    task, target = task_from_config(config.task), target_from_config(config.target)
    found = evaluate_written(task, target, {name: list(texts) for name, texts in written.items()}, keep_outputs=True)
    outputs = {"copy": [TargetOutput(text=row.input) for row in task.test], "best-of": drawn}
    outputs |= {name: list(evaluation.outputs) for name, evaluation in found.items()}
    judges = {
        "content": RewardConfig(name="similarity", kwargs={"to": "input", "floor": 0.0}),
        "style": RewardConfig(
            name="attribute", kwargs={"model": str(WORK / "classifier-report"), "label": "positive", "decide": True}
        ),
        "fluency": RewardConfig(name="fluency", kwargs={"of": "output"}),
    }
    rows: dict[str, Json] = {}
    for name, answers in outputs.items():
        answered = [place for place, answer in enumerate(answers) if answer.failure is None]
        known = [place for place in answered if (answers[place].text or "").strip()]
        blank = [place for place in answered if place not in known]
        values: Json = {"texts": [answer.text for answer in answers]}
        for measure_name, judge in judges.items():
            given = load_component(judge).call(
                {
                    "prompts": [""] * len(known),
                    "completions": [""] * len(known),
                    "outputs": [answers[place] for place in known],
                    "references": [task.test[place].reference for place in known],
                    "input": [task.test[place].input for place in known],
                }
            )
            column: list[float | None] = [None] * len(answers)
            for place, value in zip(known, given, strict=True):
                column[place] = value
            for place in blank:  # an answer without a word kept nothing and has no style; fluency is not defined
                column[place] = None if measure_name == "fluency" else 0.0
            values[measure_name] = column
        rows[name] = values
    return rows


def run_seed(config: RunConfig) -> Json | None:
    """Trains one seed and tests all methods; None after a Ctrl-C."""
    started = time.perf_counter()
    result = train(config)
    if result.exit_code in (130, 143):
        return None
    trained = time.perf_counter() - started
    untrained = build_policy(config.policy, prompt_length=config.env.prompt_length, seed=config.seed)
    task = task_from_config(config.task)
    written: dict[str, Sequence[str]] = {"manual": [config.env.draft] * len(task.test)}
    for name, policy in (("untrained", untrained), ("trained", load_policy(result.folder))):
        scorer = build_scorer(config)
        written[name] = greedy_prompts(policy.eval(), config, scorer, scorer.task.test)[0]
    count = math.ceil(result.target_calls / len(task.test))
    return {
        "seed": config.seed,
        "best_of": count,
        "rows": measure(config, written, best_of(config, count)),
        "prompts": {name: list(texts) for name, texts in written.items()},
        "target_calls": result.target_calls,
        "training_seconds": round(trained, 1),
        "seconds": round(time.perf_counter() - started, 1),
        "machine": machine(),
    }


def table(folder: Path, seeds: Sequence[int], accuracies: Json) -> str:
    """Returns the table over the measured seeds."""
    cells = [read_json(folder / f"seed-{seed}.json") for seed in seeds]
    count, best = len(cells[0]["rows"]["copy"]["texts"]), cells[0]["best_of"]
    lines = [
        f"Seeds {', '.join(map(str, seeds))}; {count} negative test sentences, one greedy answer each but for the best "
        f"of {best}; {cells[0]['machine']}; {sum(cell['seconds'] for cell in cells) / 60:.0f} minutes in all, "
        f"{max(cell['target_calls'] for cell in cells):,} target calls of training. Content: cosine of sentence "
        "embeddings with the source. Style: share that the reporting classifier calls positive (its accuracy on "
        f"held-out reviews {accuracies['report']:.3f}, that of the rewarding one {accuracies['train']:.3f}). Fluency: "
        "nats per token under SmolLM2-135M. Joint: content where the style is right, else 0; difference to the manual "
        "prompt with a paired 95 % bootstrap interval over the sentences.",
        "",
        "| method | content | style | fluency | joint | difference of joint |",
        "|---|---|---|---|---|---|",
    ]
    for name, words in NAMES.items():
        values = [[float(np.nanmean(numbers(cell["rows"][name][key]))) for cell in cells] for key in MEASURES]
        joint = [float(np.nanmean(_joint(cell["rows"][name]))) for cell in cells]
        gain = "" if name == "manual" else _difference(cells, name)
        lines.append(
            f"| {words.format(best)} | {' | '.join(spread(entry) for entry in values)} | {spread(joint)} | {gain} |"
        )
    return "\n".join(lines)


def _joint(rows: Json) -> Any:
    return numbers(rows["content"]) * numbers(rows["style"])


def _difference(cells: Sequence[Json], name: str) -> str:
    """Resamples sentences: a sentence's value is its mean over the seeds."""
    ours, manual = (np.mean([_joint(cell["rows"][key]) for cell in cells], axis=0) for key in (name, "manual"))
    return difference(ours, manual)


def main() -> int:
    """Makes the missing runs and rewrites the table; returns the exit code."""
    parser = arguments(__doc__ or "", HERE / "rlprompt" / "style-transfer.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--results", type=Path, default=HERE / "results" / "style-transfer")
    parser.add_argument("--readme", type=Path, default=HERE / "README.md", help="file with the table's section")
    options = parser.parse_args()

    def make(console: Console) -> tuple[str, str] | None:
        config = read_config(options)
        accuracies = prepare(console)
        for seed in options.seeds:
            path = options.results / f"seed-{seed}.json"
            if path.is_file():
                continue
            cell = run_seed(config.model_copy(update={"seed": seed}))
            if cell is None:
                return None
            write_json(path, cell)
            console.print(f"seed {seed}: {cell['seconds']:.0f} s")
        return "style-transfer", table(options.results, options.seeds, accuracies)

    return publish(make, options.readme)


if __name__ == "__main__":
    raise SystemExit(main())
