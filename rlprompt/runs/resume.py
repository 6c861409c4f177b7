"""Going on with a run: the same configuration, its newest whole checkpoint, and nothing that came after it."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from typing import Any

from rlprompt.config import RunConfig
from rlprompt.errors import CheckpointError, ConfigError, RunError
from rlprompt.runs.events import EventLog
from rlprompt.runs.folder import RunFolder, remove
from rlprompt.runs.records import Answer, PromptRecord, read_answers, read_prompts
from rlprompt.types import Json

logger = logging.getLogger(__name__)

MAY_CHANGE = ("run", "budget", "monitor", "ray", "algorithm.iterations")
"""Sections and keys that a resumed run may have other values of: none of them changes what an iteration does."""


def fixed_values(config: RunConfig) -> dict[str, Any]:
    """Returns the configuration as flat dotted keys, without those that may change."""
    flat = dict(_flatten(config.model_dump(mode="json"), ""))
    return {key: value for key, value in flat.items() if not _may_change(key)}


def config_hash(config: RunConfig) -> str:
    """Returns the SHA-256 of everything that determines what a run's iterations do."""
    return hashlib.sha256(json.dumps(fixed_values(config), sort_keys=True).encode()).hexdigest()


def check_same_config(saved: RunConfig, config: RunConfig) -> None:
    """Refuses to go on with another configuration.

    Raises:
        ConfigError: a key differs that may not; the message names it.
    """
    before, now = fixed_values(saved), fixed_values(config)
    for key in (*now, *before):
        if before.get(key) != now.get(key) or (key in before) != (key in now):
            raise ConfigError(
                f"cannot resume: {key} is {_say(now, key)}, but the run was started with {_say(before, key)}; "
                f"only {', '.join(_wildcard(name) for name in MAY_CHANGE)} may change"
            )


def later_answers(folder: RunFolder, next_iteration: int) -> list[Answer]:
    """Returns the answers in the parts that came after a checkpoint; a part that is damaged has none."""
    texts: dict[str, str] = {}
    answers: list[Answer] = []
    for table in ("prompts", "outputs"):
        for iteration, path in folder.parts(table):
            if iteration < next_iteration:
                continue
            try:
                if table == "prompts":
                    texts |= {record.prompt_id: record.prompt for record in read_prompts(path)}
                else:
                    answers += read_answers(path, texts)
            except RunError as error:
                logger.warning("answers from after the checkpoint are asked for again: %s", error)
    return answers


def rewind(folder: RunFolder, next_iteration: int, num_events: int) -> None:
    """Deletes parts and cuts events that came after a checkpoint, and the result that they led to."""
    EventLog(folder.events).cut(num_events)
    for path in (folder.result, folder.summary, folder.stop):
        remove(path)
    for table in ("prompts", "outputs"):
        for iteration, path in folder.parts(table):
            if iteration >= next_iteration:
                remove(path)


def read_tables(folder: RunFolder, state: Json | None) -> tuple[list[PromptRecord], list[Answer]]:
    """Reads all scored prompts and all answers up to the checkpoint.

    Raises:
        CheckpointError: rows are missing, so the numbers of the run could not be continued.
        RunError: a part is damaged.
    """
    records = [record for _, path in folder.parts("prompts") for record in read_prompts(path)]
    texts = {record.prompt_id: record.prompt for record in records}
    answers = [answer for _, path in folder.parts("outputs") for answer in read_answers(path, texts)]
    expected = (0, 0) if state is None else (state["num_prompts"], state["num_answers"])
    if (len(records), len(answers)) != tuple(expected):
        raise CheckpointError(
            f"{folder.root} has {len(records)} scored prompts and {len(answers)} answers, but its checkpoint was "
            f"written with {expected[0]} and {expected[1]}; put the missing parts back, or start a new run"
        )
    return records, answers


def _flatten(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flatten(item, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for index, item in enumerate(value):
            yield from _flatten(item, f"{prefix}.{index}")
    else:
        yield prefix, value


def _may_change(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in MAY_CHANGE)


def _wildcard(name: str) -> str:
    return name if "." in name else f"{name}.*"


def _say(values: dict[str, Any], key: str) -> str:
    return repr(values[key]) if key in values else "not set"
