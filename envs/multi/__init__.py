"""`rlprompt/MultiPrompter-v0`: agents take turns composing one prompt.

`env` is the game as a PettingZoo AEC environment, which defines it; `parallel_env` is derived from that one.
`rlprompt.envs.multi.rllib` plays many copies at once for RLlib, and `Game` does so without either library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlprompt.envs.multi.game import Game, Move

if TYPE_CHECKING:
    from pettingzoo import AECEnv, ParallelEnv

ENV_ID = "rlprompt/MultiPrompter-v0"

__all__ = ["ENV_ID", "Game", "Move", "env", "parallel_env", "raw_env"]


def raw_env(**arguments: Any) -> AECEnv[str, Any, Any]:
    """Returns the AEC environment itself, `rlprompt.envs.multi.aec.MultiPrompterEnv`."""
    from rlprompt.envs.multi.aec import MultiPrompterEnv

    return MultiPrompterEnv(**arguments)


def env(**arguments: Any) -> AECEnv[str, Any, Any]:
    """Returns the AEC environment, with PettingZoo's check of the order of calls around it.

    Args:
        **arguments: of `rlprompt.envs.multi.aec.MultiPrompterEnv`; `rlprompt.envs.configured_multi` gives those of a
            run's configuration.
    """
    from pettingzoo.utils.wrappers import OrderEnforcingWrapper

    return OrderEnforcingWrapper(raw_env(**arguments))


def parallel_env(**arguments: Any) -> ParallelEnv[str, Any, Any]:
    """Returns the game in PettingZoo's parallel form: all agents act, but only the one whose turn it is writes.

    Args:
        **arguments: as of `env`.
    """
    from pettingzoo.utils.conversions import turn_based_aec_to_parallel

    return turn_based_aec_to_parallel(env(**arguments))
