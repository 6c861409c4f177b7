"""Arguments and options that several verbs take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

ConfigFile: TypeAlias = Annotated[Path, typer.Argument(metavar="CONFIG", help="The configuration (YAML).")]

Overrides: TypeAlias = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, for example algorithm.lr=1e-4 seed=1."),
]

AllowModules: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-module",
        metavar="M",
        help="A module that my_module:my_name may come from, besides those beside CONFIG; repeatable.",
    ),
]
