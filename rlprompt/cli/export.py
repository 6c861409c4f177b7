"""`rlprompt export`: a run's policy as a folder with a model card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlprompt.cli.console import quiet_stdout, say


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or a saved policy's folder.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to make.")],
) -> int:
    """Write the policy that RUN serves into DIR, as Hugging Face folders are: weights, policy.json, a model card."""
    with quiet_stdout():
        from rlprompt.serving.export import export_policy

        files = export_policy(run, folder)
    for file in files:
        say(str(folder / file))
    return 0
