"""Gymnasium environments in which a policy writes prompts; importing this package registers their ids.

`gymnasium.make("rlprompt.envs:rlprompt/TokenPrompt-v0", ...)` imports it, which is what remote workers need.
"""

from __future__ import annotations

import gymnasium

from rlprompt.envs.sequence_action import SequenceAction, SequenceActionVector
from rlprompt.envs.token_prompt import TokenPromptEnv
from rlprompt.envs.vector import TokenPromptVectorEnv

__all__ = ["SequenceAction", "SequenceActionVector", "TokenPromptEnv", "TokenPromptVectorEnv"]

gymnasium.register(
    id="rlprompt/TokenPrompt-v0",
    entry_point="rlprompt.envs.sequence_action:make_env",
    vector_entry_point="rlprompt.envs.sequence_action:make_vector_env",
)
