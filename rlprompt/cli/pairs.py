"""`rlprompt pairs`: preference pairs from the scored prompts of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlprompt.cli.console import quiet_stdout, say_json, say_table
from rlprompt.errors import ConfigError, RunError

if TYPE_CHECKING:
    from rlprompt.preferences import Built, Candidate, PreferencePair
    from rlprompt.types import Json


def pairs(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The pairs file (JSONL) to write.")],
    builder: Annotated[
        str, typer.Option(metavar="NAME", help="Who makes the pairs; see rlprompt list pair-builders.")
    ] = "best-worst",
    arg: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="An argument of the builder (the value is YAML); repeatable."),
    ] = None,
    phase: Annotated[str, typer.Option(help="train or dev.")] = "train",
    scores: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Scores that replace the run's own; see rlprompt rescore.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(metavar="RUN", help="The second set of prompts, for builders that compare two.")
    ] = None,
    max_failed_fraction: Annotated[
        float, typer.Option(help="Prompts of which more examples failed are left out.")
    ] = 0.0,
    val_fraction: Annotated[
        float | None, typer.Option(help="Share of the examples whose pairs go to --val-output.")
    ] = None,
    val_output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The pairs held out; no example is in both files.")
    ] = None,
    sft_output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The chosen texts of --output as a file for SFT.")
    ] = None,
    ranked_output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="All texts of each group with their scores as a file for RRHF."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on standard output and nothing else.")
    ] = False,
) -> int:
    """Build preference pairs from the scored prompts of a run; nothing is asked of the target.

    rlprompt pairs runs/demo/ID -o pairs.jsonl --builder dominance --arg n=3
    """
    if (val_fraction is None) != (val_output is None):
        raise ConfigError("--val-fraction and --val-output belong together; give both or none")
    files = [path.resolve() for path in (output, val_output, sft_output, ranked_output) if path is not None]
    if len(set(files)) < len(files):
        raise ConfigError("--output, --val-output, --sft-output and --ranked-output must be different files")
    arguments = parse_arguments(arg or [])
    with quiet_stdout():
        candidates, built = _build(run, against, phase, scores, max_failed_fraction, builder, arguments)
        kept, held_out = _split(built, val_fraction, _seed(run))
        ranked = _ranked(candidates, arguments, held_out) if ranked_output is not None else []
        _write(kept, held_out, output, val_output)
        _write_rows(kept, ranked, sft_output, ranked_output)
    report = {**built.to_json(), "train_pairs": len(kept), "val_pairs": len(held_out)}
    if as_json:
        say_json(report)
    else:
        _say_report(built, len(held_out) if val_fraction is not None else None)
    return 0


def parse_arguments(given: list[str]) -> dict[str, Any]:
    """Returns the arguments of a builder that are given as KEY=VALUE; raises ConfigError for anything else."""
    from rlprompt.overrides import apply_overrides

    for entry in given:
        name, equals, _ = entry.partition("=")
        if not name or not equals:
            raise ConfigError(f"--arg takes KEY=VALUE, got '{entry}'")
    return apply_overrides({}, given)


def _build(
    run: Path,
    against: Path | None,
    phase: str,
    scores: Path | None,
    max_failed_fraction: float,
    builder: str,
    arguments: dict[str, Any],
) -> tuple[Sequence[Candidate], Built]:
    from rlprompt.preferences import build_pairs, check_builder
    from rlprompt.runs import load_run
    from rlprompt.runs.candidates import candidates_of

    for name in ("against", "reward_weights"):
        if name in arguments:
            raise ConfigError(f"--arg {name}: the run says that; for a second run give --against RUN")
    check_builder(builder, arguments)
    found = candidates_of(load_run(run), phase=phase, scores=scores, max_failed_fraction=max_failed_fraction)
    second: tuple[Candidate, ...] = ()
    if against is not None:
        second = candidates_of(load_run(against), phase=phase, max_failed_fraction=max_failed_fraction).candidates
    if not found.candidates:
        raise RunError(f"no pairs: {scores or run} has no scored prompt of phase '{phase}'")
    built = build_pairs(builder, found.candidates, against=second, reward_weights=found.weights, **arguments)
    if not built.pairs:
        raise RunError(f"no pairs: {built.why_empty()}")
    return found.candidates, built


def _seed(run: Path) -> int:
    from rlprompt.runs import load_run_config

    return load_run_config(run).seed


def _split(built: Built, fraction: float | None, seed: int) -> tuple[list[PreferencePair], list[PreferencePair]]:
    from rlprompt.preferences import split_pairs

    return (list(built.pairs), []) if fraction is None else split_pairs(built.pairs, fraction, seed=seed)


def _ranked(
    candidates: Sequence[Candidate], arguments: dict[str, Any], held_out: Sequence[PreferencePair]
) -> list[Json]:
    """The rankings by the builder's score, without the examples of pairs that are held out."""
    from rlprompt.preferences import ranked_rows

    options = {name: arguments[name] for name in ("score", "per_iteration") if name in arguments}
    elsewhere = {pair.example_id or pair.input for pair in held_out}
    rows = [row for row in ranked_rows(candidates, **options) if (row["example_id"] or row["input"]) not in elsewhere]
    if not rows:
        raise RunError("no rankings: all texts of each group tie; leave out --ranked-output")
    return rows


def _write(kept: list[PreferencePair], held_out: list[PreferencePair], output: Path, val_output: Path | None) -> None:
    from rlprompt.preferences import write_pairs

    write_pairs(output, kept)
    if val_output is not None:
        write_pairs(val_output, held_out)


def _write_rows(
    kept: list[PreferencePair], ranked: list[Json], sft_output: Path | None, ranked_output: Path | None
) -> None:
    from rlprompt.preferences import sft_rows, write_json_lines

    if sft_output is not None:
        write_json_lines(sft_output, sft_rows(kept))
    if ranked_output is not None:
        write_json_lines(ranked_output, ranked)


def _say_report(built: Built, held_out: int | None) -> None:
    unusable = f", {built.num_unusable} of them unusable" if built.num_unusable else ""
    again = f", and {built.num_repeated} again" if built.num_repeated else ""
    rows = [
        ["builder", built.builder],
        ["groups", str(built.num_groups)],
        ["candidates", f"{built.num_candidates}{unusable}"],
        ["pairs", f"{len(built.pairs)}{again}"],
        ["ties", str(built.ties)],
    ]
    others = {reason: count for reason, count in built.without_pair.items() if reason != "tie"}
    rows += [["no pair", f"{count} x {reason}"] for reason, count in others.items()]
    if held_out is not None:
        rows.append(["held out", f"{held_out} pairs"])
    say_table(rows)
