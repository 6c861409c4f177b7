"""What a run has stored beside its tables, and what its policy read; nothing is changed, and no code is imported."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from rlprompt.agents import settled
from rlprompt.config import RunConfig
from rlprompt.errors import CheckpointError
from rlprompt.runs.checkpoints import load_checkpoint
from rlprompt.runs.folder import RunFolder
from rlprompt.runs.journal import read_journal
from rlprompt.scoring.originals import answer_from_json
from rlprompt.types import Example

if TYPE_CHECKING:
    from rlprompt.scoring import AnswerRecord
    from rlprompt.tasks import Task

logger = logging.getLogger(__name__)


def unrecorded_answers(folder: RunFolder) -> list[AnswerRecord]:
    """Returns the answers that are in no part of `outputs/`: those to the original prompt, and those after a kill.

    They are in the journal, and those to the original prompt in the checkpoints too.
    """
    found: dict[tuple[str, str, int], AnswerRecord] = {}
    for _, path in reversed(folder.checkpoints()):
        try:
            state = load_checkpoint(path)
        except CheckpointError as error:
            logger.warning("%s; the one before it is read", error)
            continue
        for key, output in map(answer_from_json, state["scorer"].get("originals", ())):
            found[key] = (*key, output)
        break
    for record in read_journal(folder.journal):
        found.setdefault(record[:3], record)
    return list(found.values())


def readings(config: RunConfig, task: Task | None) -> Callable[[Example | None], str]:
    """Returns what says what the policy of a run read before it wrote: for an example, or (None) for the task.

    It is the text of the first turn, or of the first of several agents, in front of the chat template, with a long
    input as a whole.

    Args:
        config: of the run.
        task: of the run; not needed for token prompts.
    """
    env = config.env
    if env.kind == "token-prompt":
        return lambda example: config.policy.context
    from rlprompt.envs.contexts import MetaSettings, shown_examples

    settings = MetaSettings.from_config(env)
    if env.kind == "multi":
        first = settled(env.agents, per_input=env.per_input, model=config.policy.model)[0]
        if first.meta_prompt is None:
            return lambda example: config.policy.context
        settings = replace(settings, meta_prompt=first.meta_prompt, composed=False)
    meta = settings.load()
    fixed = {"draft": env.draft}
    if "examples" in meta.slots:
        holder: Any = SimpleNamespace(task=task, seed=config.seed)
        fixed["examples"] = shown_examples(holder)
    return lambda example: meta.fill({**fixed, "input": "" if example is None else example.input})
