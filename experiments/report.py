"""What the recipes share: train, run the baselines, test everything once, and print one table."""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from rlprompt.config import BudgetConfig, RunConfig, load_config
from rlprompt.errors import RLPromptError, RunError
from rlprompt.evaluation import Evaluation, evaluate_calibrated, paired_bootstrap, seed_summary
from rlprompt.runs import RunResult, load_run, train
from rlprompt.scoring import build_scorer
from rlprompt.targets import target_from_config
from rlprompt.targets.ledger import Ledger
from rlprompt.tasks import task_from_config
from rlprompt.types import FloatArray

MANUAL_PROMPTS = (
    "It was",
    "The film was absolutely",
    "In one word, it was",
    "All in all, it was",
    "Overall, the movie was",
    "I thought it was",
    "This movie is",
    "In summary, the film is",
    "My verdict:",
    "The acting was",
    "What a film! It was",
    "I found this film to be",
)
"""Written before any was measured, in the wordings of the field ("It was", arXiv:2205.12548, table 8)."""


@dataclass
class Entry:
    """One line of the table before it is tested: a prompt, how it came about and what that cost."""

    name: str
    kind: str
    prompt: str
    target_calls: int
    seconds: float
    calibration: str | None = None
    """None: the prompt is shown under every calibration."""


def arguments(description: str, default_config: Path) -> argparse.ArgumentParser:
    """Returns the options that all recipes share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("overrides", nargs="*", help="section.key=value, as for rlprompt train")
    parser.add_argument("--config", type=Path, default=default_config)
    return parser


def with_algorithm(config: RunConfig, name: str, suffix: str) -> RunConfig:
    """Returns the same run with another algorithm: same prompts per step, same budget, same selection."""
    algorithm = config.algorithm.model_copy(update={"name": name, "kl_coeff": 0.0})
    return config.model_copy(update={"algorithm": algorithm, "name": f"{config.name}-{suffix}"})


def timed_train(config: RunConfig) -> tuple[RunResult, float]:
    """Trains and returns the result with the seconds it took."""
    started = time.perf_counter()
    result = train(config)
    return result, time.perf_counter() - started


def test_entries(config: RunConfig, entries: Sequence[Entry], console: Console) -> list[dict[str, Any]]:
    """Tests every prompt once on the test rows, raw and with thresholds fitted on train; returns summary rows."""
    task, target, ledger = task_from_config(config.task), target_from_config(config.target), Ledger()
    prompts = list(dict.fromkeys(entry.prompt for entry in entries))
    started = time.perf_counter()
    console.print(f"testing {len(prompts)} prompts on {len(task.test)} rows ...")
    tested = evaluate_calibrated(task, target, prompts, ("none", "median"), ledger=ledger)
    console.print(f"tested in {time.perf_counter() - started:.0f} s, {ledger.snapshot()['test']} (not in the budgets)")
    rows = []
    for calibration, evaluations in tested.items():
        found = dict(zip(prompts, evaluations, strict=True))
        shown = [entry for entry in entries if entry.calibration in (None, calibration)]
        rows += [_row(entry, found[entry.prompt], calibration) for entry in shown]
        rows += _manual_rows([entry for entry in shown if entry.name.startswith("manual: ")], found, calibration)
    return rows


def _row(entry: Entry, evaluation: Evaluation, calibration: str) -> dict[str, Any]:
    return {
        "name": entry.name,
        "kind": entry.kind,
        "calibration": calibration,
        "prompt": entry.prompt,
        "test_accuracy": evaluation.accuracy,
        "ci95": list(evaluation.accuracy_ci95),
        "target_calls": entry.target_calls,
        "seconds": round(entry.seconds, 1),
        "num_examples": evaluation.num_examples,
        "num_failed": evaluation.num_failed,
    }


def _manual_rows(manual: Sequence[Entry], found: dict[str, Evaluation], calibration: str) -> list[dict[str, Any]]:
    """The mean over the manual prompts, and the best on test: an oracle, no method may choose so."""
    if not manual:
        return []
    accuracies = np.array([found[entry.prompt].accuracy for entry in manual])
    half = 1.96 * accuracies.std(ddof=1) / np.sqrt(len(accuracies))
    best = manual[int(accuracies.argmax())]
    mean_row = _row(manual[0], found[manual[0].prompt], calibration) | {
        "name": f"manual, mean of {len(manual)}",
        "prompt": None,
        "test_accuracy": float(accuracies.mean()),
        "ci95": [float(accuracies.mean() - half), float(accuracies.mean() + half)],
        "target_calls": 0,
    }
    oracle = _row(best, found[best.prompt], calibration) | {
        "name": "manual, best on TEST (oracle)",
        "kind": "oracle",
        "target_calls": 0,
    }
    return [mean_row, oracle]


def best_manual_on_dev(config: RunConfig) -> dict[str, str]:
    """Returns the manual prompt with the best dev accuracy, per calibration."""
    task, target = task_from_config(config.task), target_from_config(config.target)
    tested = evaluate_calibrated(task, target, MANUAL_PROMPTS, ("none", "median"), split="dev")
    return {
        calibration: max(evaluations, key=lambda found: (found.accuracy, found.gap_reward)).prompt
        for calibration, evaluations in tested.items()
    }


def calibrated_pick(result: RunResult, config: RunConfig) -> tuple[str, int]:
    """Chooses the best prompt of a run again, by calibrated scores; returns it and the target calls this took.

    Train answers are read from the run's records, so only dev answers that the run's own choice did not ask for cost
    calls. Same rule as the run's: the top prompts by train reward, the best of them by dev accuracy, then reward.
    """
    run = load_run(result.folder)
    scorer = build_scorer(config.model_copy(update={"calibration": "median", "budget": BudgetConfig()}))
    scorer.remember((answer.prompt, answer.example_id, answer.sample, answer.output) for answer in run.answers())
    prompts = [
        prompt
        for prompt in dict.fromkeys(record.prompt for record in run.prompts())
        if not scorer.new_pairs([prompt], scorer.task.train)
    ]
    on_train = scorer.score(prompts, scorer.task.train).mean_rewards
    top = [prompts[index] for index in np.argsort(-on_train, kind="stable")[: config.selection.top]]
    on_dev = scorer.score(top, scorer.task.dev, phase="dev")
    order = np.lexsort((-on_dev.mean_rewards, -on_dev.accuracies))
    return top[int(order[0])], int(scorer.ledger.snapshot()["used"]["calls"])


def publish(make: Callable[[Console], tuple[str, str] | None], page: Path) -> int:
    """Makes a table, writes it into its section and prints it; returns the exit code.

    Args:
        make: Returns the section's name and the table as Markdown, or None after a Ctrl-C.
        page: Markdown file with the section.
    """
    console = Console()
    try:
        made = make(console)
        if made is None:
            return 130
        section, text = made
        replace_section(page, section, text)
    except RLPromptError as error:
        Console(stderr=True).print(f"error: {error}", highlight=False, markup=False, soft_wrap=True)
        return error.exit_code
    console.print(text, markup=False, highlight=False)
    return 0


def write_json(path: Path, values: Any) -> None:
    """Writes measured values; the file is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def read_json(path: Path) -> Any:
    """Reads measured values."""
    return json.loads(path.read_text(encoding="utf-8"))


def numbers(values: Sequence[float | None]) -> FloatArray:
    """Returns the values of rows, (N,); NaN where a row failed."""
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Returns "mean ± standard deviation" over the seeds; of one seed its value.

    >>> spread([0.5]), spread([0.4, 0.6], digits=2)
    ('0.500', '0.50 ± 0.14')
    """
    summary = seed_summary(list(values))
    mean = f"{summary.mean:.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {summary.std:.{digits}f}"


def difference(first: FloatArray, second: FloatArray, digits: int = 3) -> str:
    """Returns the mean difference of two methods on the same rows with its paired 95 % bootstrap interval."""
    found = paired_bootstrap(first, second)
    return f"{found.difference:+.{digits}f} ({found.low:+.{digits}f} to {found.high:+.{digits}f})"


def replace_section(path: Path, name: str, text: str) -> None:
    """Replaces what stands between `<!-- name -->` and `<!-- /name -->` in a Markdown file."""
    try:
        page = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path} cannot be read ({error}); give a Markdown file with --readme") from error
    before, opening, rest = page.partition(f"<!-- {name} -->")
    _, closing, after = rest.partition(f"<!-- /{name} -->")
    if not opening or not closing:
        raise RunError(f"{path} has no section '{name}'; add the lines <!-- {name} --> and <!-- /{name} -->")
    path.write_text(f"{before}{opening}\n{text}\n{closing}{after}", encoding="utf-8")


def print_table(rows: Sequence[dict[str, Any]], console: Console, title: str) -> None:
    """Prints the rows, single manual prompts left out."""
    table = Table(title=title)
    for column in ("method", "calibration", "test accuracy", "95 % interval", "target calls", "seconds", "prompt"):
        table.add_column(column)
    for row in rows:
        if row["kind"] == "manual" and row["name"].startswith("manual: "):
            continue
        low, high = row["ci95"]
        table.add_row(
            row["name"],
            row["calibration"],
            f"{row['test_accuracy']:.3f}",
            f"{low:.3f} to {high:.3f}",
            f"{row['target_calls']:,}",
            f"{row['seconds']:.0f}",
            "" if row["prompt"] is None else repr(row["prompt"]),
        )
    console.print(table)


def markdown_table(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the rows as Markdown, raw and calibrated side by side, single manual prompts left out."""
    shown = [row for row in rows if not row["name"].startswith("manual: ")]
    lines = ["| method | raw | calibrated | target calls | seconds | prompt |", "|---|---|---|---|---|---|"]
    for name in dict.fromkeys(row["name"] for row in shown):
        found = {row["calibration"]: row for row in shown if row["name"] == name}
        cells = [
            f"{row['test_accuracy']:.3f} ({row['ci95'][0]:.3f} to {row['ci95'][1]:.3f})"
            for row in (found["none"], found["median"])
        ]
        prompts = list(dict.fromkeys(row["prompt"] for row in found.values() if row["prompt"] is not None))
        text = " / ".join(f"`{prompt}`" if prompt else "(empty)" for prompt in prompts)
        raw = found["none"]
        lines.append(f"| {name} | {cells[0]} | {cells[1]} | {raw['target_calls']:,} | {raw['seconds']:.0f} | {text} |")
    return "\n".join(lines)


def write_summary(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Writes the rows into the run folder's summary.json."""
    path = folder / "summary.json"
    write_json(path, list(rows))
    return path


def machine() -> str:
    """Returns one line about the machine and the libraries."""
    import torch

    return (
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"Python {platform.python_version()}"
    )


def read_config(options: argparse.Namespace) -> RunConfig:
    """Reads the recipe with the command line's overrides."""
    return load_config(options.config, options.overrides)
