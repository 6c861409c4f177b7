"""`rlprompt train`: one training or search run from a configuration."""

from __future__ import annotations

from typing import Annotated

import typer

from rlprompt.cli.console import say
from rlprompt.cli.options import AllowModules, ConfigFile, Overrides


def train(
    config: ConfigFile,
    overrides: Overrides = None,
    resume: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Continue this run folder, or its copy at a URL, from its last checkpoint."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved configuration and leave.")] = False,
    allow_module: AllowModules = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress display.")] = False,
) -> int:
    """Train a policy, or search, as CONFIG says."""
    from rlprompt.config import dump_config, load_config

    resolved = load_config(config, overrides or [])
    if dry_run:
        say(dump_config(resolved).rstrip())
        return 0
    from rlprompt.runs import train as start

    result = start(
        resolved,
        resume=resume,
        progress=not quiet,
        allow_modules=tuple(allow_module or ()),
        search_path=config.resolve().parent,
    )
    say(str(result))
    return result.exit_code
