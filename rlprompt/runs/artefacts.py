"""What a run writes into `best/policy.json` beside the policy itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rlprompt.agents import settled
from rlprompt.config import RunConfig
from rlprompt.meta_prompts import load_meta_prompt

if TYPE_CHECKING:
    from rlprompt.scoring import Scorer


def meta_examples(config: RunConfig, scorer: Scorer) -> str:
    """Returns what the policy's meta-prompt shows in `{examples}`; nothing where it has no such slot."""
    env = config.env
    if env.kind == "token-prompt":
        return ""
    if env.kind == "multi":
        agents = settled(env.agents, per_input=env.per_input, model=config.policy.model)
        texts = [agent.meta_prompt for agent in agents if agent.meta_prompt is not None]
        read = [load_meta_prompt(text, per_input=env.per_input, composed=False) for text in texts]
    else:
        read = [load_meta_prompt(env.meta_prompt, per_input=env.per_input, turns=env.turns)]
    if all("examples" not in meta.slots for meta in read):
        return ""
    from rlprompt.envs.contexts import shown_examples

    return shown_examples(scorer)


def plain_name(name: str) -> str:
    """Returns a target's name; a local folder goes by its last part: artefacts that are passed on hold no paths."""
    return Path(name).name if Path(name).exists() else name
