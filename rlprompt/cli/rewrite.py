"""`rlprompt rewrite`: what a run's policy makes of a text, of the lines of a file, or of standard input."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlprompt.cli.console import note, quiet_stdout, say
from rlprompt.errors import ConfigError

if TYPE_CHECKING:
    from rlprompt.serving import RewriteResult


def rewrite(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or a saved policy's folder.")],
    lines_of: Annotated[
        str | None, typer.Argument(metavar="[-]", help="A dash: rewrite the lines of standard input.")
    ] = None,
    text: Annotated[str | None, typer.Option(help="One text.")] = None,
    file: Annotated[
        str | None, typer.Option(metavar="F", help="A UTF-8 file with one text a line; - as above.")
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A further field of the run's template; repeatable."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line: text, rewritten, reason and prompt.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts that the policy writes for at once.")] = 8,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="0 writes the most probable text; above, one is drawn.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Most tokens that the policy writes (those of its training).")
    ] = None,
    meta_prompt: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="What the policy reads in the place of its meta-prompt, with the same slots."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The policy's frozen LM, where it is not found under its saved name.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
) -> int:
    r"""Rewrite texts with a run's policy: one line in, one line out.

    Line breaks within a result are written as the two characters \n, except for --text. A text that cannot be
    rewritten comes out as it is; the reason is on standard error, or in the JSON object.
    """
    options: dict[str, Any] = {
        "columns": dict(_column(given) for given in column or ()),
        "temperature": temperature,
        "seed": seed,
        "max_tokens": max_tokens,
        "batch_size": batch_size,
    }
    with _texts(text, file, lines_of) as lines:
        with quiet_stdout():
            from rlprompt.serving import Rewriter

            rewriter = Rewriter.load(run, model=model, device=device, meta_prompt=meta_prompt)
        number = 0
        while batch := list(islice(lines, batch_size)):
            with quiet_stdout():
                results = rewriter.results(batch, **options)
            for result in results:
                number += 1
                _say(result, number, as_json=as_json, whole=text is not None)
    return 0


def _texts(text: str | None, file: str | None, lines_of: str | None) -> AbstractContextManager[Iterator[str]]:
    """Returns the texts of the one source that was given."""
    sources = [given for given in (lines_of, file) if given is not None]
    if len(sources) + (text is not None) != 1 or lines_of not in (None, "-"):
        raise ConfigError("give one of --text T, --file F or - (standard input)")
    return _lines(sources[0]) if text is None else _one(text)


def _say(result: RewriteResult, number: int, *, as_json: bool, whole: bool) -> None:
    if as_json:
        values = {
            "text": result.text,
            "rewritten": result.rewritten,
            "reason": result.reason,
            "prompt": result.prompt,
        }
        say(json.dumps(values))
        return
    say(result.text if whole else result.text.replace("\r", "\\r").replace("\n", "\\n"))
    if not result.rewritten:
        note(f"line {number} is unchanged: {result.reason}")


def _column(given: str) -> tuple[str, str]:
    name, equals, value = given.partition("=")
    if not equals or not name:
        raise ConfigError(f"--column takes NAME=VALUE, got '{given}'")
    return name, value


@contextmanager
def _one(text: str) -> Iterator[Iterator[str]]:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError("--text is not UTF-8; give it in a file") from error
    yield iter([text])


@contextmanager
def _lines(source: str) -> Iterator[Iterator[str]]:
    """Opens what holds one text a line; the line's end is no part of the text."""
    if source == "-":
        yield _decoded(sys.stdin.buffer, "standard input")
        return
    with ExitStack() as stack:
        try:
            stream = stack.enter_context(Path(source).open("rb"))
        except OSError as error:
            raise ConfigError(f"--file: cannot read {source}: {error.strerror or error}") from error
        yield _decoded(stream, source)


def _decoded(stream: Iterable[bytes], name: str) -> Iterator[str]:
    for number, line in enumerate(stream, start=1):
        try:
            yield line.decode("utf-8").removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise ConfigError(f"{name}, line {number} is not UTF-8; convert the file") from error
