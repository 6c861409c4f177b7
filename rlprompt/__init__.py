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
    "Rewriter": "rlprompt.serving",
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
    "parse_config": "rlprompt.config",
    "evaluate": "rlprompt.evaluation",
    "train": "rlprompt.runs",
}

__all__ = ["__version__", *_LAZY]

if TYPE_CHECKING:
    from rlprompt.config import RunConfig as RunConfig
    from rlprompt.config import load_config as load_config
    from rlprompt.config import parse_config as parse_config
    from rlprompt.evaluation import evaluate as evaluate
    from rlprompt.policies import load_policy as load_policy
    from rlprompt.runs import train as train
    from rlprompt.scoring import Scorer as Scorer
    from rlprompt.serving import Rewriter as Rewriter
    from rlprompt.targets import load_target as load_target
    from rlprompt.targets.ledger import Ledger as Ledger
    from rlprompt.tasks import Task as Task
    from rlprompt.tasks import load_task as load_task
    from rlprompt.types import (
        Example as Example,
    )
    from rlprompt.types import (
        Failure as Failure,
    )
    from rlprompt.types import (
        Scores as Scores,
    )
    from rlprompt.types import (
        TargetOutput as TargetOutput,
    )
    from rlprompt.types import (
        TargetRequest as TargetRequest,
    )


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'rlprompt' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
