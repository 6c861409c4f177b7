"""`rlprompt judge-report`: how far judges agree with labels, and what they cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlprompt.cli.console import number, quiet_stdout, say, say_error, say_json, say_table
from rlprompt.cli.options import AllowModules
from rlprompt.errors import ConfigError

if TYPE_CHECKING:
    from rlprompt.evaluation.agreement import AgreementReport
    from rlprompt.rewards import Component


def judge_report(
    items: Annotated[
        str,
        typer.Argument(
            metavar="CARD_OR_FILE", help="Labelled items (.jsonl, .csv, .tsv), or a task: its name or its card."
        ),
    ],
    judge: Annotated[Path, typer.Option(metavar="YAML", help="The judge, {name, kwargs}, or a list of several.")],
    split: Annotated[str, typer.Option(help="Of a task: train, dev or test.")] = "test",
    limit: Annotated[int | None, typer.Option(min=1, help="The first N items.")] = None,
    text: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Of a task: the column that is judged, by default the input.")
    ] = None,
    yes: Annotated[
        str | None, typer.Option(metavar="CHOICE", help="Of a task with choices: the one that yes stands for.")
    ] = None,
    allow_module: AllowModules = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on standard output and nothing else.")
    ] = False,
) -> int:
    """Report how far judges agree with labels, their position bias, and where they have no verdict.

    rlprompt judge-report labelled.jsonl --judge judge.yaml
    """
    with quiet_stdout():
        from rlprompt.evaluation.agreement import agreement_report, load_items

        labelled = load_items(items, split=split, limit=limit, text=text, yes=yes)
        judges = _load_judges(judge, tuple(allow_module or ()))
        reports = [agreement_report(component, labelled) for component in judges]
    if as_json:
        say_json({"items": items, "judges": [report.to_json() for report in reports]})
    else:
        _say_reports(reports)
    for report in reports:
        if report.num_failed == report.num_items:
            say_error(f"every call of the judge '{report.name}' failed; check its target")
            return 1
    return 0


def _load_judges(path: Path, allowed: tuple[str, ...]) -> list[Component]:
    import yaml

    from rlprompt.rewards.component import load_part

    try:
        data: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--judge: cannot read {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    entries = data if isinstance(data, list) else [data]
    if not entries or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(f"{path} must hold a judge, {{name: judge, kwargs: {{...}}}}, or a list of several")
    seen: dict[str, int] = {}
    judges = []
    for entry in entries:
        name = str(entry.get("name"))
        seen[name] = count = seen.get(name, 0) + 1
        label = name if count == 1 else f"{name}#{count}"
        judges.append(load_part(entry, label, allow_modules=allowed, search_path=path.resolve().parent))
    return judges


def _say_reports(reports: list[AgreementReport]) -> None:
    for index, report in enumerate(reports):
        if index:
            say()
        interval = f" [{number(report.low, 3)}, {number(report.high, 3)}]" if report.num_verdicts else ""
        kinds = ", ".join(f"{kind} {count}" for kind, count in report.abstained.items())
        rows = [
            ["judge", f"{report.name}, mode {report.mode}"],
            ["items", f"{report.num_items}, {report.num_verdicts} with a verdict"],
            ["agreement", f"{number(report.agreement, 3)}{interval}, {report.num_agreeing} of {report.num_verdicts}"],
            ["Cohen's kappa", number(report.kappa, 3)],
        ]
        if report.mode == "score":
            rows.append(["quadratic kappa", number(report.weighted_kappa, 3)])
        if report.mode == "pairwise":
            rows.append(["position bias", number(report.position_bias, 3)])
            rows.append(["of which for the first", number(report.prefers_first, 3)])
        rows += [
            ["no verdict", kinds or "none"],
            ["failed calls", str(report.num_failed)],
            ["spent", f"{report.calls:,} calls, {report.tokens:,} tokens"],
        ]
        say_table(rows)
