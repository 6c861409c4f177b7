"""Scorers from configurations, and from their JSON specs in other places of this process or on other machines."""

from __future__ import annotations

import itertools
import json
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlprompt.config import RunConfig, parse_config
from rlprompt.rewards import RewardSet, build_stabilisers
from rlprompt.scoring.desk import RemoteScorer
from rlprompt.scoring.rules import ScoringRules
from rlprompt.scoring.scorer import Scorer
from rlprompt.targets import target_from_config, target_prices
from rlprompt.targets.ledger import Ledger
from rlprompt.tasks import Task, task_from_config
from rlprompt.types import Json, SharedBudget, Target

_SHARED: weakref.WeakValueDictionary[str, Scorer] = weakref.WeakValueDictionary()
_INSTANCES = itertools.count()


def scorer_spec(config: RunConfig) -> Json:
    """Returns the part of a configuration that a scorer is built from, as JSON values."""
    sections = ("seed", "task", "target", "reward", "stabilisers", "calibration", "budget", "env")
    dumped = config.model_dump(mode="json")
    return {"config": {section: dumped[section] for section in sections}}


def build_scorer(
    config: RunConfig,
    *,
    allow_modules: Sequence[str] = (),
    search_path: str | Path | None = None,
    task: Task | None = None,
    target: Target | None = None,
    rewards: RewardSet | None = None,
    shared: SharedBudget | None = None,
) -> Scorer:
    """Builds the scorer of a run and makes it reachable by its `spec`, so that envs in this process share it.

    The spec's `code` tells the algorithm where the run's own modules may come from.

    Args:
        config: the run's configuration.
        allow_modules: modules that a reward of the form my_module:my_name may come from.
        search_path: the folder of the user's configuration.
        task: used instead of the configured one (already loaded).
        target: used instead of the configured one (already loaded).
        rewards: used instead of the configured ones (already loaded).
        shared: a budget that other runs spend, too.
    """
    target = target if target is not None else target_from_config(config.target)
    scorer = Scorer(
        task if task is not None else task_from_config(config.task),
        target,
        rewards
        if rewards is not None
        else RewardSet.from_config(config.reward, allow_modules=allow_modules, search_path=search_path),
        build_stabilisers(config.stabilisers, allow_modules=allow_modules, search_path=search_path),
        ledger=Ledger(config.budget, prices=target_prices(target), shared=shared),
        calibration=config.calibration,
        seed=config.seed,
        compose=config.env.compose if config.env.per_input else "replace",
        draft=config.env.draft,
        best_of=config.env.best_of,
    )
    scorer.spec = {
        **scorer_spec(config),
        "instance": next(_INSTANCES),
        "code": {
            "allow_modules": list(allow_modules),
            "search_path": None if search_path is None else str(Path(search_path).resolve()),
        },
    }
    _SHARED[_key(scorer.spec)] = scorer
    return scorer


def shared_scorer(spec: Mapping[str, Any]) -> ScoringRules:
    """Returns this process's live scorer for a spec; builds it from the spec's configuration where there is none.

    Built here are built-in or installed parts only: a spec may come from anywhere, so its `code` allows nothing. A spec
    of a run with several workers makes one that has the run's own process do the scoring.
    """
    if "remote" in spec:
        return RemoteScorer(dict(spec))
    scorer = _SHARED.get(_key(spec))
    if scorer is None:
        scorer = build_scorer(parse_config(dict(spec["config"])))
        scorer.spec = dict(spec)
        _SHARED[_key(spec)] = scorer
    return scorer


def _key(spec: Mapping[str, Any]) -> str:
    return json.dumps(spec, sort_keys=True)
