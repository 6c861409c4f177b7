"""`rlprompt sweep`: many runs over the values of some keys, under Ray Tune, with one budget."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlprompt.cli.console import say, say_table
from rlprompt.cli.options import AllowModules

if TYPE_CHECKING:
    from rlprompt.sweeps.settings import SweepConfig


def sweep(
    config: Annotated[
        Path | None,
        typer.Argument(
            metavar="CONFIG", help="A sweep file, or the configuration of a run (YAML).", show_default=False
        ),
    ] = None,
    parameters: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="What to try, for example 'seed=[0,1]' 'algorithm.lr={loguniform: [1e-5, 1e-3]}'; one value is tried "
            "in all trials.",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A setting of the sweep, for example samples=8, max_concurrent=2, metric=dev_reward or "
            "budget.max_target_calls=50000; repeatable.",
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="SWEEP", help="Continue the sweep in this folder, from its trials' checkpoints."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the trials' parameters and leave.")] = False,
    allow_module: AllowModules = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress display.")] = False,
) -> int:
    """Train with several values of some keys, on one budget, and compare on dev."""
    from rlprompt.errors import ConfigError
    from rlprompt.sweeps.settings import load_sweep

    if config is None and resume is None:
        raise ConfigError("give a sweep file or a configuration, or --resume SWEEP; see 'rlprompt sweep --help'")
    wanted = None if config is None else load_sweep(config, parameters or [], settings or [])
    if dry_run:
        if wanted is None:
            raise ConfigError("--dry-run needs CONFIG; the trials of a sweep that has begun stand in its sweep.json")
        _say_trials(wanted)
        return 0
    from rlprompt.sweeps import sweep as start

    result = start(
        wanted,
        resume=resume,
        changes=() if wanted is not None else tuple(settings or ()),
        progress=not quiet,
        allow_modules=tuple(allow_module or ()),
        search_path=_beside(config, wanted),
    )
    say_table(result.table())
    say(str(result))
    return result.exit_code


def _beside(config: Path | None, settings: SweepConfig | None) -> Path | None:
    """Returns the folder of the base. The configuration in a sweep's folder allows no code: it may be anybody's."""
    if config is None or settings is None:
        return None
    return (Path(settings.base) if isinstance(settings.base, str) else config).resolve().parent


def _say_trials(settings: SweepConfig) -> None:
    from rlprompt.sweeps.plan import check_trials, draw_trials, say_parameters, trial_name

    base, trials = draw_trials(settings)
    check_trials(base, settings, trials)
    for number, parameters in enumerate(trials):
        say(f"{trial_name(number)}  {say_parameters(parameters)}")
