"""`rlprompt init`: writes the first version of a file of yours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlprompt.cli.console import say
from rlprompt.errors import UnknownNameError

KINDS = ("reward",)


def init(
    kind: Annotated[str, typer.Argument(help="What to write: reward.")],
    name: Annotated[str, typer.Argument(help="Its name, a Python identifier.")],
    folder: Annotated[Path, typer.Option(help="Where to write it.")] = Path(),
) -> int:
    """Write a reward function NAME and its test, ready to be edited and named in a configuration."""
    if kind not in KINDS:
        raise UnknownNameError("kind", kind, KINDS)
    from rlprompt.rewards.scaffold import write_reward

    for path in write_reward(name, folder):
        say(f"wrote {path}")
    say(f"name it in a configuration beside it:  reward: [{{name: '{name}:{name}'}}]")
    return 0
