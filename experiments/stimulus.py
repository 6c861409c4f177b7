"""Directional Stimulus on XSum: no hint, extracted hints, and policies that write hints: untrained, SFT, SFT + RL.

Command: python experiments/stimulus.py [--seeds 0 1 2] [section.key=value ...]
One run a seed, whose warm-up stage is the SFT row; what is in experiments/results/stimulus/ is skipped, so a stop loses
one run at most. Rewrites its part of experiments/README.md.

The extractor reads the gold summary, so its row is an oracle: no method that must do without it can be told so.
"No hint" has a template of its own, without the line of keywords.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
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
from rlprompt.errors import ConfigError
from rlprompt.evaluation import Evaluation, evaluate_written
from rlprompt.policies import build_policy, load_policy
from rlprompt.runs import train
from rlprompt.scoring import build_scorer
from rlprompt.search.random import greedy_prompts
from rlprompt.targets import target_from_config
from rlprompt.tasks import task_from_config
from rlprompt.tasks.extractors import extract_hint
from rlprompt.types import Json

HERE = Path(__file__).resolve().parent
PLAIN = [{"role": "user", "content": "Article: {input}\n\nSummarize the article in one sentence.{prompt}"}]
"""What the target reads without a hint: the empty prompt stands in the slot that every template has."""
VARIANTS = ("rouge1", "rouge2", "rougeL")
NAMES = {
    "no hint": "no hint",
    "extractor": "extracted hint (oracle: reads the gold summary)",
    "untrained": "untrained policy",
    "sft": "SFT",
    "rl": "SFT + RL",
}


def rouge_rows(config: RunConfig, written: Mapping[str, Sequence[str]], template: Any = None) -> dict[str, Json]:
    """Returns ROUGE-1, 2 and L of every test row and method, failed rows as None, and the hints."""
    section = config.task if template is None else config.task.model_copy(update={"template": template})
    task, target = task_from_config(section), target_from_config(config.target)
    found = evaluate_written(task, target, written, keep_outputs=True)
    references = [str(example.reference) for example in task.test]
    return {name: _rows(found[name], references) | {"hints": list(texts)} for name, texts in written.items()}


def _rows(evaluation: Evaluation, references: Sequence[str]) -> Json:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(VARIANTS), use_stemmer=True)
    rows: dict[str, list[float | None]] = {name: [] for name in VARIANTS}
    for output, reference in zip(evaluation.outputs, references, strict=True):
        scores = None if output.failure is not None else scorer.score(reference, output.text or "")
        for name in VARIANTS:
            rows[name].append(None if scores is None else scores[name].fmeasure)
    return {**rows, "num_failed": evaluation.num_failed}


def hints_of(config: RunConfig, policy: Any) -> list[str]:
    """Returns a policy's most probable hint for every test row."""
    scorer = build_scorer(config)
    return greedy_prompts(policy.eval(), config, scorer, scorer.task.test)[0]


def baselines(config: RunConfig) -> Json:
    """Tests what needs no training."""
    task = task_from_config(config.task)
    data = config.stages[0].data
    extracted = [extract_hint(data["extractor"], row, **data.get("kwargs", {})) for row in task.test]
    untrained = build_policy(config.policy, prompt_length=config.env.prompt_length, seed=config.seed)
    started = time.perf_counter()
    rows = rouge_rows(config, {"no hint": [""] * len(task.test)}, PLAIN)
    rows |= rouge_rows(config, {"extractor": extracted, "untrained": hints_of(config, untrained)})
    return {"rows": rows, "machine": machine(), "seconds": round(time.perf_counter() - started, 1)}


def run_seed(config: RunConfig) -> Json | None:
    """Trains one seed and tests its SFT policy and its last one; None after a Ctrl-C."""
    started = time.perf_counter()
    result = train(config)
    if result.exit_code in (130, 143):
        return None
    trained = time.perf_counter() - started
    stage = result.folder / "stages" / config.stages[0].name / "policy"
    written = {"sft": hints_of(config, load_policy(stage)), "rl": hints_of(config, load_policy(result.folder))}
    return {
        "seed": config.seed,
        "rows": rouge_rows(config, written),
        "target_calls": result.target_calls,
        "training_seconds": round(trained, 1),
        "seconds": round(time.perf_counter() - started, 1),
        "machine": machine(),
    }


def table(folder: Path, seeds: Sequence[int]) -> str:
    """Returns the table over the measured seeds."""
    fixed = read_json(folder / "baselines.json")
    cells = [read_json(folder / f"seed-{seed}.json") for seed in seeds]
    total = (fixed["seconds"] + sum(cell["seconds"] for cell in cells)) / 60
    count = len(fixed["rows"]["no hint"]["rouge1"])
    lines = [
        f"Seeds {', '.join(map(str, seeds))}; {count} test articles; {fixed['machine']}; {total:.0f} minutes in all, "
        f"{max(cell['training_seconds'] for cell in cells) / 60:.0f} for the longest training. ROUGE F1 x 100 with "
        "stemming, mean ± standard deviation over the seeds. Difference: mean of ROUGE-1, 2 and L less that of SFT, "
        "with a paired 95 % bootstrap interval over the test articles.",
        "",
        "| method | ROUGE-1 | ROUGE-2 | ROUGE-L | difference to SFT | target calls of training |",
        "|---|---|---|---|---|---|",
    ]
    sft = _means([cell["rows"]["sft"] for cell in cells])
    for name, words in NAMES.items():
        entries = [cell["rows"][name] for cell in cells] if name in ("sft", "rl") else [fixed["rows"][name]]
        values = [spread([_mean(entry[variant]) for entry in entries], digits=2) for variant in VARIANTS]
        gain = "" if name == "sft" else difference(_means(entries), sft, digits=2)
        calls = max(cell["target_calls"] for cell in cells) if name == "rl" else 0
        lines.append(f"| {words} | {' | '.join(values)} | {gain} | {calls:,} |")
    return "\n".join(lines)


def _mean(values: Sequence[float | None]) -> float:
    return 100 * float(np.nanmean(numbers(values)))


def _means(entries: Sequence[Json]) -> Any:
    """The mean of the three variants and of the seeds, for every row."""
    return 100 * np.mean([[numbers(entry[variant]) for variant in VARIANTS] for entry in entries], axis=(0, 1))


def main() -> int:
    """Makes the missing runs and rewrites the table; returns the exit code."""
    parser = arguments(__doc__ or "", HERE / "rlprompt" / "stimulus.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=HERE / "results" / "stimulus")
    parser.add_argument("--readme", type=Path, default=HERE / "README.md", help="file with the table's section")
    options = parser.parse_args()

    def make(console: Console) -> tuple[str, str] | None:
        config = read_config(options)
        if not config.stages or "extractor" not in config.stages[0].data:
            raise ConfigError("the recipe needs a first stage with data: {extractor: NAME}, as stimulus.yaml has")
        if not (options.results / "baselines.json").is_file():
            write_json(options.results / "baselines.json", baselines(config))
        for seed in options.seeds:
            path = options.results / f"seed-{seed}.json"
            if path.is_file():
                continue
            cell = run_seed(config.model_copy(update={"seed": seed}))
            if cell is None:
                return None
            write_json(path, cell)
            console.print(f"seed {seed}: {cell['seconds']:.0f} s")
        return "stimulus", table(options.results, options.seeds)

    return publish(make, options.readme)


if __name__ == "__main__":
    raise SystemExit(main())
