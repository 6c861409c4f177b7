"""`rlprompt serve`: a trained rewriter in front of an OpenAI-compatible LLM."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlprompt.cli.console import note
from rlprompt.errors import ConfigError

if TYPE_CHECKING:
    from rlprompt.serving.proxy.settings import ServeSettings


def serve(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or a saved policy's folder.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings, for example rewriting.deadline_s=2 caps.n=4."),
    ] = None,
    upstream: Annotated[str | None, typer.Option(metavar="URL", help="The LLM's API, up to and with /v1.")] = None,
    host: Annotated[
        str | None, typer.Option(help="The address to listen on; 127.0.0.1 by default, others need a key.")
    ] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="8800 by default; 0 takes any free one.")] = None,
    settings: Annotated[
        Path | None, typer.Option(metavar="FILE", help="All settings as YAML; options and overrides go before it.")
    ] = None,
) -> int:
    """Rewrite users' texts on their way to an LLM behind the OpenAI API.

    Clients only change their base URL. A request never fails because of the rewriter: where there is no rewrite in
    time, it goes on as it came. RLPROMPT_API_KEY holds the keys that clients need, RLPROMPT_UPSTREAM_API_KEY (or
    OPENAI_API_KEY) the one that the upstream gets. SIGHUP loads RUN again.
    """
    try:
        import starlette  # noqa: F401  # tells early what is missing
        import uvicorn  # noqa: F401

        from rlprompt.serving.proxy.guard import check_exposure, keys_from_environment
        from rlprompt.serving.proxy.server import new_server
        from rlprompt.serving.proxy.server import serve as run_server
    except ImportError as error:
        raise ConfigError(
            f"rlprompt serve needs further packages ({error}); install them with pip install 'rlprompt[serve]'"
        ) from error
    from rlprompt.listening import listening

    given = {"upstream": upstream, "host": host, "port": port}
    parsed = _settings(settings, {key: value for key, value in given.items() if value is not None}, overrides or [])
    keys = keys_from_environment()
    check_exposure(parsed.host, keys)
    if not run.is_dir():
        raise ConfigError(f"no run folder at {run}; give a run's folder, or one with a policy.json")
    with listening(parsed.host, parsed.port) as listener:
        shown = f"[{parsed.host}]" if ":" in parsed.host else parsed.host
        address = f"http://{shown}:{listener.getsockname()[1]}"
        note(f"loading {run} ...")
        run_server(
            new_server(str(run), parsed),
            keys,
            listener,
            tell=lambda: note(f"rewriting for {parsed.upstream} at {address}/v1 (page: {address}/)"),
        )
    return 0


def _settings(file: Path | None, given: dict[str, Any], overrides: list[str]) -> ServeSettings:
    from pydantic import ValidationError

    from rlprompt.config import describe, read_mapping
    from rlprompt.overrides import apply_overrides
    from rlprompt.serving.proxy.settings import ServeSettings

    data = {} if file is None else read_mapping(file)
    merged = apply_overrides({**data, **given}, overrides)
    if "upstream" not in merged:
        raise ConfigError("no upstream; give --upstream URL, the LLM's API up to and with /v1")
    try:
        return ServeSettings.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(f"{file or 'settings'}: {describe(error, ServeSettings)}") from error
