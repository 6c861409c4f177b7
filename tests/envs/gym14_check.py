"""Run by test_gym14.py inside .venv-gym14: the environment under the newest gymnasium, without ray."""

from __future__ import annotations

import importlib.util
import json
import sys
import warnings

import gymnasium
import numpy as np
from gymnasium.utils.env_checker import check_env

import rlprompt.envs  # noqa: F401  registers the ids
from rlprompt.config import parse_config
from rlprompt.scoring import scorer_spec

SETTINGS = {
    "task": {"name": "planted", "shots": 4, "dev_shots": 4},
    "target": {"name": "planted:separable", "dtype": "float32"},
    "env": {"prompt_length": 3},
}


def main() -> None:
    """Prints what was seen as one JSON object."""
    kwargs = {
        "scorer": scorer_spec(parse_config(SETTINGS)),
        "tokenizer": "planted-50",
        "prompt_length": 3,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        check_env(gymnasium.make("rlprompt/TokenPrompt-v0", **kwargs).unwrapped, skip_render_check=True)
    envs = gymnasium.make_vec("rlprompt/TokenPrompt-v0", num_envs=4, vectorization_mode="vector_entry_point", **kwargs)
    observations, _ = envs.reset(seed=0)
    steps, rewards = 0, np.zeros(4)
    while True:
        _, reward, terminated, truncated, _ = envs.step(np.full(4, steps))
        rewards, steps = rewards + reward, steps + 1
        if (terminated | truncated).all():
            break
    json.dump(
        {
            "gymnasium": gymnasium.__version__,
            "ray": importlib.util.find_spec("ray") is not None,
            "shape": list(observations["tokens"].shape),
            "steps": steps,
            "finite": bool(np.isfinite(rewards).all()),
            "num_envs": envs.num_envs,
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main()
