"""The `rlprompt` command: dispatches to the verbs and turns errors into one line and an exit code.

0 done; 1 failed; 2 wrong usage or configuration; 3 stopped by the budget, best saved; 130 and 143 after saving.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence

import typer

from rlprompt import __version__
from rlprompt.cli import (
    check,
    doctor,
    evaluate,
    export,
    init,
    judge_report,
    label,
    listing,
    pairs,
    rescore,
    rewrite,
    serve,
    sweep,
    train,
    train_reward,
)
from rlprompt.cli.console import say_error
from rlprompt.errors import ConfigError, RLPromptError
from rlprompt.redaction import RedactingFormatter

# Typer brings its own copy of click's classes; the base of its usage errors is not exported by name.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="rlprompt",
    help="Train a small policy LM to write prompts for a frozen target LLM.",
    add_completion=False,
    no_args_is_help=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("train")(train.train)
app.command("sweep")(sweep.sweep)
app.command("eval")(evaluate.evaluate)
app.command("rewrite")(rewrite.rewrite)
app.command("export")(export.export)
app.command("serve")(serve.serve)
app.command("pairs")(pairs.pairs)
app.command("rescore")(rescore.rescore)
app.command("label")(label.label)
app.command("check")(check.check)
app.command("judge-report")(judge_report.judge_report)
app.command("list")(listing.list_kind)
app.command("doctor")(doctor.doctor)
app.command("init")(init.init)
app.add_typer(train_reward.app, name="train-reward")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rlprompt {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version and leave."
    ),
) -> None:
    pass


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; a user's mistake is one line on standard error.

    Args:
        argv: the arguments without the program's name; those of the process by default.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        debug = _start_logging()
        return _dispatch(arguments or ["--help"], debug)
    except RLPromptError as error:
        say_error(str(error))
        return error.exit_code


def _dispatch(arguments: list[str], debug: bool) -> int:
    try:
        code = app(arguments, prog_name="rlprompt", standalone_mode=False)
    except RLPromptError:
        if debug:
            logging.getLogger(__name__).exception("the error in full")
        raise
    except _UsageError as error:
        say_error(f"{_usage_message(error).rstrip('.')}; see 'rlprompt --help'")
        return 2
    except (KeyboardInterrupt, typer.Abort):
        say_error("interrupted")
        return 128 + signal.SIGINT
    except BrokenPipeError:  # the reader of our output is gone, as in `rlprompt list tasks | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the flush at exit is silent
        return 128 + signal.SIGPIPE
    except OSError as error:
        if debug:
            logging.getLogger(__name__).exception("the error in full")
        say_error(str(error))
        return 1
    return code if isinstance(code, int) else 0


def _usage_message(error: Exception) -> str:
    formatted = getattr(error, "format_message", None)
    return str(formatted()) if callable(formatted) else str(error)


def _start_logging() -> bool:
    """Logs go to standard error; returns whether tracebacks of a user's mistakes are wanted."""
    name = os.environ.get("RLPROMPT_LOG_LEVEL", "warning").upper()
    levels = logging.getLevelNamesMapping()
    if name not in levels:
        raise ConfigError(f"RLPROMPT_LOG_LEVEL is '{name.lower()}'; use debug, info, warning or error")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(RedactingFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=levels[name], handlers=[handler])
    return levels[name] <= logging.DEBUG
