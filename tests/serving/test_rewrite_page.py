"""The page docs/rewrite.md: its program runs, and its tables are complete."""

import re
from collections.abc import Callable
from pathlib import Path

import typer.main

from rlprompt.cli.main import app
from rlprompt.served import Served
from rlprompt.serving import Rewriter
from rlprompt.serving.rewriter import REASONS

PAGE = (Path(__file__).parents[2] / "docs" / "rewrite.md").read_text(encoding="utf-8")


def test_the_program_of_the_page_runs(save: Callable[..., Path]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    folder = save()
    names: dict[str, object] = {}
    exec(code.replace('"runs/NAME/ID"', repr(str(folder))), names)
    rewriter = Rewriter.load(folder)
    assert names["several"] == [names["one"], rewriter.rewrite("Is water wet?")]
    assert names["changed"] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": names["one"]},
    ]


def test_the_tables_name_every_option_and_every_reason() -> None:
    command = typer.main.get_command(app).commands["rewrite"]  # type: ignore[attr-defined]
    options = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
    table = PAGE.partition("| option | meaning |")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(--[a-z-]+)`", table)) == options - {"--help"}
    reasons = PAGE.partition("| reason | when |")[2].partition("\n\n")[0]
    assert tuple(re.findall(r"^\| `([a-z-]+)`", reasons, flags=re.MULTILINE)) == REASONS


def test_the_page_names_every_setting_of_policy_json() -> None:
    section = PAGE.partition("## policy.json")[2]
    assert set(re.findall(r"`(\w+)`", section)) >= set(Served.model_fields)
