"""`rlprompt eval`: the best prompt of a run, or a literal prompt, on held-out rows."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlprompt.cli.console import note, number, quiet_stdout, say_error, say_json, say_table
from rlprompt.errors import ConfigError

if TYPE_CHECKING:
    from rlprompt.config import TargetConfig
    from rlprompt.evaluation import Evaluation
    from rlprompt.serving import Rewriter
    from rlprompt.targets import Ledger
    from rlprompt.tasks import Task
    from rlprompt.types import Example, Target

_CALIBRATION_SHOTS = 16
"""Train examples per class that "median" is fitted on, as in the few-shot setting of the runs."""


@dataclass(frozen=True)
class _Question:
    """What is asked, from the run or from the options."""

    task: Task
    target: TargetConfig
    prompt: str
    fit_on: tuple[Example, ...]
    rewriter: Rewriter | None = None
    """Writes a prompt for each row, in the place of `prompt`."""


def evaluate(
    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="A run folder: its best prompt, task and target.")
    ] = None,
    task: Annotated[str | None, typer.Option(metavar="NAME", help="A task's name or its card.")] = None,
    target: Annotated[str | None, typer.Option(metavar="NAME", help="The frozen LLM.")] = None,
    prompt: Annotated[str | None, typer.Option(help="A literal prompt; the empty text is one too.")] = None,
    template: Annotated[
        str | None, typer.Option(help="Replaces the task's template, for example '{input} {prompt}'.")
    ] = None,
    split: Annotated[str, typer.Option(help="train, dev or test.")] = "test",
    limit: Annotated[int | None, typer.Option(min=1, help="The first N rows in file order.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or auto.")] = "float32",
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, ... (auto unless the run says)")] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of a model on a hub.")] = None,
    calibration: Annotated[
        str | None, typer.Option(help="none, median or contextual (none unless the run says).")
    ] = None,
    cache: Annotated[str | None, typer.Option(help="on, read-only, refresh or off (off unless the run says).")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on standard output and nothing else.")
    ] = False,
) -> int:
    """Evaluate a run's best prompt, or a literal prompt.

    rlprompt eval --task rotten-tomatoes --target smollm2-135m-instruct --prompt "It was" --limit 500 --json
    """
    given = {"name": target, "dtype": dtype, "device": device, "revision": revision, "cache": cache}
    with quiet_stdout():
        if run is not None:
            question, run_calibration = _from_run(run, task, template, prompt, given)
        else:
            question, run_calibration = _from_options(task, template, prompt, given), "none"
        result, report = _measure(question, split, limit, calibration or run_calibration)
    if as_json:
        say_json(report)
    else:
        _say_report(report)
    if result.num_failed == result.num_examples and result.first_failure is not None:
        say_error(f"every one of the {result.num_failed} calls failed: {result.first_failure.message}")
        return 1
    return 0


def _from_options(task: str | None, template: str | None, prompt: str | None, given: dict[str, Any]) -> _Question:
    options = {"--task": task, "--target": given["name"], "--prompt": prompt}
    missing = [name for name, value in options.items() if value is None]
    if missing:
        raise ConfigError(
            f"{' and '.join(missing)} missing; give a run folder, or --task NAME --target NAME --prompt TEXT"
        )
    from rlprompt.tasks import load_task

    whole = load_task(str(task), template=template)
    return _Question(whole, _target_config({}, given), str(prompt), _few(whole))


def _from_run(
    run: Path, task: str | None, template: str | None, prompt: str | None, given: dict[str, Any]
) -> tuple[_Question, str]:
    """The options win over the run. Nothing that the run folder names is imported."""
    from rlprompt.runs import best_prompt, load_run_config
    from rlprompt.tasks import load_task, task_from_config

    config = load_run_config(run)
    if task is None:
        section = config.task if template is None else config.task.model_copy(update={"template": template})
        chosen = task_from_config(section)
        fit_on = chosen.train
    else:
        chosen = load_task(task, template=template)
        fit_on = _few(chosen)
    base = config.target.model_dump() if given["name"] is None else {}
    answering = _target_config(base, given)
    if config.env.per_input and prompt is None:
        from rlprompt.serving import Rewriter

        return _Question(chosen, answering, "", fit_on, Rewriter.load(run)), "none"
    written = best_prompt(run) if prompt is None else prompt
    return _Question(chosen, answering, written, fit_on), config.calibration


def _target_config(base: dict[str, Any], given: dict[str, Any]) -> TargetConfig:
    from pydantic import ValidationError

    from rlprompt.config import TargetConfig, describe

    settings = {**base, **{key: value for key, value in given.items() if value is not None}}
    try:
        return TargetConfig.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(f"--{describe(error, TargetConfig)}") from error


def _few(task: Task) -> tuple[Example, ...]:
    """The first 16 train examples of each class in file order: what "median" is fitted on."""
    taken: dict[Any, int] = {}
    chosen = []
    for example in task.train:
        taken[example.reference] = taken.get(example.reference, 0) + 1
        if taken[example.reference] <= _CALIBRATION_SHOTS:
            chosen.append(example)
    return tuple(chosen)


def _measure(question: _Question, split: str, limit: int | None, calibration: str) -> tuple[Evaluation, dict[str, Any]]:
    from rlprompt.evaluation import evaluate as measure
    from rlprompt.targets import Ledger, target_from_config, target_prices

    if question.rewriter is not None and calibration != "none":
        raise ConfigError(
            f"--calibration {calibration} needs one prompt for all rows, but the run writes one for each; omit it"
        )
    answering = target_from_config(question.target)
    ledger = Ledger(prices=target_prices(answering))
    left_alone: dict[str, int] = {}
    with _progress() as on_progress:
        if question.rewriter is not None:
            result, left_alone = _measure_rewriter(question, answering, question.rewriter, split, limit, ledger)
        else:
            (result,) = measure(
                question.task,
                answering,
                [question.prompt],
                split=split,
                limit=limit,
                calibration=calibration,
                calibration_examples=question.fit_on,
                ledger=ledger,
                on_progress=on_progress,
            )
    report = {
        "task": question.task.name,
        "target": question.target.name,
        "dtype": question.target.dtype,
        **result.to_json(),
        "prompt": None if question.rewriter is not None else result.prompt,
        "left_alone": left_alone,
        "warnings": list(question.task.warnings),
        "ledger": ledger.snapshot(),
    }
    return result, report


def _measure_rewriter(
    question: _Question, answering: Target, rewriter: Rewriter, split: str, limit: int | None, ledger: Ledger
) -> tuple[Evaluation, dict[str, int]]:
    """Evaluates what the run's policy writes for each row; rows that it leaves alone are counted by reason."""
    from rlprompt.evaluation import evaluate_written
    from rlprompt.evaluation.evaluate import rows_of

    results = rewriter.write_for(rows_of(question.task, split, limit))
    left_alone = Counter((result.reason or "").partition(":")[0] for result in results if not result.rewritten)
    written = [result.prompt if result.rewritten else None for result in results]
    served = rewriter.served
    found = evaluate_written(
        question.task,
        answering,
        {"rewriter": written},
        split=split,
        limit=limit,
        compose=served.compose,
        draft=served.draft,
        ledger=ledger,
    )
    return found["rewriter"], dict(left_alone)


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None] | None]:
    """A bar on standard error, only where a person looks at it."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        line = bar.add_task("rows")
        yield lambda done, total: bar.update(line, completed=done, total=total)


def _say_report(report: dict[str, Any]) -> None:
    low, high = report["accuracy_ci95"]
    rows = [
        ["prompt", "written for each row" if report["prompt"] is None else repr(report["prompt"])],
        ["task", f"{report['task']}, {report['split']}, {report['num_examples']} rows"],
        ["target", f"{report['target']}, {report['dtype']}"],
        ["calibration", report["calibration"]],
        ["accuracy", f"{number(report['accuracy'])}  95 % interval {number(low)} to {number(high)}"],
    ]
    if report["metric"] not in {"accuracy", "exact-match"}:
        rows.append([report["metric"], number(report["score"])])
    if report["gap_reward"] is not None:
        rows.append(["gap reward", number(report["gap_reward"], 2)])
    if report["left_alone"]:
        rows.append(["left alone", ", ".join(f"{count} {why}" for why, count in report["left_alone"].items())])
    rows.append(["failed", str(report["num_failed"])])
    rows.append(["target calls", str(report["ledger"]["test"]["calls"])])
    say_table(rows)
    for warning in report["warnings"]:
        note(f"warning: {warning}")
