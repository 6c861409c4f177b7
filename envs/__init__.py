"""Gymnasium environments in which a policy writes prompts; importing this package registers their ids.

The game of several agents, `rlprompt/MultiPrompter-v0`, is PettingZoo's kind of environment: `rlprompt.envs.multi`.

`gymnasium.make("rlprompt.envs:rlprompt/TokenPrompt-v0", ...)` imports it, which is what remote workers need.
"""

from __future__ import annotations

import gymnasium

from rlprompt.envs.configured import configured_env, configured_multi
from rlprompt.envs.rewrite import RewriteEnv, RewriteVectorEnv
from rlprompt.envs.sequence_action import SequenceAction, SequenceActionVector
from rlprompt.envs.stimulus import StimulusEnv, StimulusVectorEnv
from rlprompt.envs.token_prompt import TokenPromptEnv
from rlprompt.envs.vector import TokenPromptVectorEnv

__all__ = [
    "RewriteEnv",
    "RewriteVectorEnv",
    "SequenceAction",
    "SequenceActionVector",
    "StimulusEnv",
    "StimulusVectorEnv",
    "TokenPromptEnv",
    "TokenPromptVectorEnv",
    "configured_env",
    "configured_multi",
]

for _name, _module in {"TokenPrompt": "sequence_action", "Rewrite": "rewrite", "Stimulus": "stimulus"}.items():
    gymnasium.register(
        id=f"rlprompt/{_name}-v0",
        entry_point=f"rlprompt.envs.{_module}:make_env",
        vector_entry_point=f"rlprompt.envs.{_module}:make_vector_env",
    )
