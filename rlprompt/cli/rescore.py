"""`rlprompt rescore`: other rewards for a run's stored prompts and answers, without a target call."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlprompt.cli.console import quiet_stdout, say_error, say_json, say_table
from rlprompt.cli.options import AllowModules
from rlprompt.errors import BudgetExceededError, ConfigError

if TYPE_CHECKING:
    from rlprompt.config import RewardConfig
    from rlprompt.runs.rescore import Rescored

_SUFFIXES = (".jsonl", ".parquet")


def rescore(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    reward: Annotated[
        list[str],
        typer.Option(
            metavar="NAME|YAML",
            help="A component: its name, '{name: rouge, weight: 2}', or a YAML file with a list of them; repeatable.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The scores to write: .jsonl or .parquet.")
    ],
    max_target_calls: Annotated[
        int | None,
        typer.Option(
            min=1, help="The most calls that judges among the rewards may make; the same command goes on where it ends."
        ),
    ] = None,
    allow_module: AllowModules = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on standard output and nothing else.")
    ] = False,
) -> int:
    """Score a run's stored prompts and answers with other rewards; the target is not asked.

    rlprompt rescore runs/demo/ID --reward log-probability -o scores.jsonl
    """
    if output.suffix not in _SUFFIXES:
        raise ConfigError(f"--output must end with .jsonl or .parquet, got '{output}'")
    configs, folder = _rewards(reward)
    with quiet_stdout():
        from rlprompt.runs import load_run
        from rlprompt.runs.rescore import rescore as score_again
        from rlprompt.runs.rescore import write_scores

        found = score_again(
            load_run(run),
            configs,
            allow_modules=tuple(allow_module or ()),
            search_path=folder,
            max_judge_calls=max_target_calls,
            verdicts=_kept_verdicts(output, configs),
        )
        _keep_verdicts(output, configs, found)
        if found.num_scored:
            write_scores(output, found)
        if not found.num_left:
            _verdicts_file(output).unlink(missing_ok=True)
    if as_json:
        say_json(_report(found))
    else:
        _say_report(found)
    if found.num_left:
        _say_left(found, max_target_calls)
        return BudgetExceededError.exit_code
    if not found.num_scored:
        reason = next(iter(found.failures), "every reward abstained")
        say_error(f"none of the {found.num_answers} answers has a score, so nothing is written: {reason}")
        return 1
    return 0


def _verdicts_file(output: Path) -> Path:
    return output.with_name(f"{output.name}.verdicts.json")


def _identity(configs: list[RewardConfig]) -> list[dict[str, Any]]:
    return [config.model_dump(mode="json") for config in configs]


def _kept_verdicts(output: Path, configs: list[RewardConfig]) -> dict[str, Any]:
    """Reads what judges said before a budget ended; nothing where the rewards were others."""
    from rlprompt.errors import RunError
    from rlprompt.runs.folder import read_json

    path = _verdicts_file(output)
    if not path.exists():
        return {}
    kept = read_json(path, "the judges' verdicts")
    if not isinstance(kept, dict) or not isinstance(kept.get("verdicts"), dict):
        raise RunError(f"{path} holds no verdicts; delete it")
    return dict(kept["verdicts"]) if kept.get("rewards") == _identity(configs) else {}


def _keep_verdicts(output: Path, configs: list[RewardConfig], found: Rescored) -> None:
    """Keeps what judges said beside the scores while prompts are left."""
    from rlprompt.runs.folder import write_json

    if found.num_left:
        write_json(_verdicts_file(output), {"rewards": _identity(configs), "verdicts": dict(found.verdicts)})


def _rewards(given: list[str]) -> tuple[list[RewardConfig], Path | None]:
    """Returns the components and, with a file, its folder, whose modules a file may name."""
    import yaml
    from pydantic import ValidationError

    from rlprompt.config import RewardConfig, describe

    folders: dict[Path, None] = {}
    configs: list[RewardConfig] = []
    for entry in given:
        text, where = entry, f"--reward '{entry}'"
        if entry.endswith((".yaml", ".yml")):
            try:
                text = Path(entry).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"{where} cannot be read: {getattr(error, 'strerror', None) or error}") from error
            folders[Path(entry).resolve().parent] = None
        try:
            for part in _parts(yaml.safe_load(text), where):
                configs.append(RewardConfig.model_validate(part))
        except yaml.YAMLError as error:
            raise ConfigError(f"{where} is not valid YAML: {error}") from error
        except ValidationError as error:
            raise ConfigError(f"{where}: {describe(error, RewardConfig)}") from error
    if len(folders) > 1:
        raise ConfigError("--reward: give one YAML file, since names may come from modules beside it")
    return configs, next(iter(folders), None)


def _parts(value: Any, where: str) -> list[dict[str, Any]]:
    if isinstance(value, dict) and "reward" in value and "name" not in value:
        value = value["reward"]  # a whole configuration, or its section
    entries = value if isinstance(value, list) else [value]
    named = [{"name": entry} if isinstance(entry, str) else entry for entry in entries]
    if not named or not all(isinstance(entry, dict) for entry in named):
        raise ConfigError(f"{where} is no reward; give a name, or {{name: NAME, weight: 1.0, kwargs: {{...}}}}")
    return named


def _report(found: Rescored) -> dict[str, Any]:
    return {
        "prompts": found.num_left + len(found.records),
        "scored": found.num_scored,
        "answers": found.num_answers,
        "failed": found.num_failed,
        "abstained": found.num_abstained,
        "failures": dict(found.failures),
        "rewards": dict(found.weights),
        "target_calls": 0,
        "judge_calls": found.judge_calls,
        "left": found.num_left,
    }


def _say_left(found: Rescored, limit: int | None) -> None:
    advice = "run the same command again to go on"
    if not found.judge_calls:
        advice = "it does not pay for a single one of them, so raise it"
    count = found.num_left + len(found.records)
    say_error(f"--max-target-calls {limit} did not hold for {found.num_left} of {count} prompts; {advice}")


def _say_report(found: Rescored) -> None:
    rows = [
        ["rewards", ", ".join(f"{name} (weight {weight:g})" for name, weight in found.weights.items())],
        ["prompts", f"{found.num_scored} of {found.num_left + len(found.records)} have a score"],
        ["answers", str(found.num_answers)],
        ["failed", str(found.num_failed)],
        ["abstained", str(found.num_abstained)],
        ["target calls", "0"],
    ]
    if found.judge_calls:
        rows.append(["judge calls", str(found.judge_calls)])
    rows += [["failure", f"{count} x {message}"] for message, count in list(found.failures.items())[:3]]
    say_table(rows)
