"""rlprompt: train a small policy LM to write prompts for a frozen target LLM.

Importing this package imports only the standard library; names are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_LAZY = {
    "Example": "rlprompt.types",
    "Failure": "rlprompt.types",
    "Ledger": "rlprompt.targets.ledger",
    "RunConfig": "rlprompt.config",
    "Scorer": "rlprompt.scoring",
    "Scores": "rlprompt.types",
    "TargetOutput": "rlprompt.types",
    "TargetRequest": "rlprompt.types",
    "Task": "rlprompt.tasks",
    "load_config": "rlprompt.config",
    "load_policy": "rlprompt.policies",
    "load_target": "rlprompt.targets",
    "load_task": "rlprompt.tasks",
    "evaluate": "rlprompt.evaluation",
    "train": "rlprompt.runs",
}

__all__ = ["__version__", *_LAZY]

if TYPE_CHECKING:
    from rlprompt.config import RunConfig, load_config
    from rlprompt.evaluation import evaluate
    from rlprompt.policies import load_policy
    from rlprompt.runs import train
    from rlprompt.scoring import Scorer
    from rlprompt.targets import load_target
    from rlprompt.targets.ledger import Ledger
    from rlprompt.tasks import Task, load_task
    from rlprompt.types import Example, Failure, Scores, TargetOutput, TargetRequest


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'rlprompt' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
