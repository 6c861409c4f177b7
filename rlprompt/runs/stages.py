"""Stages of one run: what comes before its own algorithm, one behind the other on one axis of iterations.

Each stage sees the run through a `StageContext`, in which its first iteration is 0. A stage that has ended leaves
`stages/<name>/` behind: the policy as it was then, which `load_policy` reads, and the same weights as the reference of
what follows (`reference.safetensors`), so that a checkpoint need not hold them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlprompt.algorithms.preference_rounds import OFFLINE
from rlprompt.config import AlgorithmConfig, RunConfig, StageConfig
from rlprompt.errors import CheckpointError, ConfigError
from rlprompt.registry import BUILT_IN, resolve
from rlprompt.runs.folder import remove, replace_folder, sync_tree, write_bytes, writing_errors
from rlprompt.runs.run import Run
from rlprompt.types import FloatArray, Json, Scores

Fit = Callable[[Any], Any]
_REFERENCE = "reference.safetensors"


@dataclass(frozen=True)
class Stage:
    """One stage and its place."""

    name: str
    algorithm: AlgorithmConfig
    data: Mapping[str, Any]
    first: int
    """Its first iteration in the run."""
    fit: Fit

    @property
    def end(self) -> int:
        """The iteration behind its last one."""
        return self.first + self.algorithm.iterations


def total_iterations(config: RunConfig) -> int:
    """Returns the iterations of all stages together.

    >>> total_iterations(RunConfig())
    40
    """
    return sum(stage.algorithm.iterations for stage in config.stages) + config.algorithm.iterations


def build_stages(config: RunConfig, *, allow_modules: Sequence[str], search_path: str | Path | None) -> list[Stage]:
    """Returns the stages in order; the last one is the run's own algorithm.

    Raises:
        ConfigError: two stages have one name, a name is no folder name, or a stage has data that it does not read.
        UnknownNameError: an algorithm is not registered.
    """
    found: list[Stage] = []
    for stage in (*config.stages, StageConfig(name="main", algorithm=config.algorithm, data=config.data)):
        if not stage.name.replace("-", "").replace("_", "").isalnum():
            raise ConfigError(f"stage name '{stage.name}' is no folder name; use letters, digits, '-' and '_'")
        if any(stage.name == other.name for other in found):
            raise ConfigError(
                f"two stages have the name '{stage.name}' ('main' is the run's own algorithm); rename one"
            )
        if stage.data and stage.algorithm.name in BUILT_IN["algorithms"] and stage.algorithm.name not in OFFLINE:
            raise ConfigError(
                f"stage '{stage.name}' has data, but {stage.algorithm.name} learns from rewards; remove data, or take "
                f"one of {', '.join(sorted(OFFLINE))}"
            )
        fit = resolve("algorithms", stage.algorithm.name, allow_modules=allow_modules, search_path=search_path)
        first = found[-1].end if found else 0
        found.append(Stage(stage.name, stage.algorithm, stage.data, first, fit))
    return found


class StageContext:
    """A run as one of its stages sees it; implements `rlprompt.types.RunContext`.

    Args:
        run: the run.
        stage: the stage.
        restored: what the run's `restored_state` said when the session began.
    """

    def __init__(self, run: Run, stage: Stage, restored: tuple[int, Json] | None) -> None:
        self._run = run
        self._stage = stage
        self._restored = restored
        self._config = run.config.model_copy(update={"algorithm": stage.algorithm})

    @property
    def name(self) -> str:
        """The stage's name."""
        return self._stage.name

    @property
    def data(self) -> Mapping[str, Any]:
        """What the stage's configuration has under `data`."""
        return self._stage.data

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self._run.folder

    @property
    def config(self) -> RunConfig:
        """The run's configuration with the stage's algorithm."""
        return self._config

    @property
    def scorer(self) -> Any:
        """The run's scorer."""
        return self._run.scorer

    @property
    def policy(self) -> Any:
        """The policy in training."""
        return self._run.policy

    def restored_state(self) -> tuple[int, Json] | None:
        """The (next iteration of the stage, algorithm state) where the session resumes within the stage."""
        if self._restored is None or not self._stage.first < self._restored[0] <= self._stage.end:
            return None
        return self._restored[0] - self._stage.first, self._restored[1]

    def stop_reason(self) -> str | None:
        """As of the run."""
        return self._run.stop_reason()

    def begin_ahead(self, num_prompts: int) -> bool:
        """As of the run."""
        return self._run.begin_ahead(num_prompts)

    def end_ahead(self) -> None:
        """As of the run."""
        self._run.end_ahead()

    def end_iteration(
        self,
        iteration: int,
        *,
        scores: Scores | None,
        metrics: Mapping[str, float],
        state: Any,
        training_rewards: FloatArray | None = None,
        weight_lag: int = 0,
    ) -> None:
        """Records an iteration of the stage."""
        self._run.end_iteration(
            self._stage.first + iteration,
            scores=scores,
            metrics=metrics,
            state=state,
            training_rewards=training_rewards,
            weight_lag=weight_lag,
        )


def fit_stages(run: Run, stages: Sequence[Stage]) -> None:
    """Lets the stages work in order, from where the run is; stops with the stage that was stopped."""
    if len(stages) == 1:
        stages[0].fit(run)
        return
    restored = run.restored_state()
    for stage in stages:
        folder = run.folder / "stages" / stage.name
        if run.completed > stage.end:
            _load_reference(run, folder)
            continue
        if run.completed <= stage.first:
            run.announce_stage(stage.name, stage.algorithm.name)
        stage.fit(StageContext(run, stage, restored))
        if run.stopped_by is not None:
            return
        if stage is not stages[-1]:
            _leave(run, folder)


def _leave(run: Run, folder: Path) -> None:
    """Keeps the policy at the end of a stage, and makes it the reference of what follows."""
    import safetensors.torch

    run.policy.freeze_reference()
    temporary = folder.with_name(f".tmp-{folder.name}")
    with writing_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        remove(temporary)
        run.policy.save(temporary)
        sync_tree(temporary)
        replace_folder(temporary, folder / "policy")
    write_bytes(folder / _REFERENCE, safetensors.torch.save(run.policy.reference_state()))


def _load_reference(run: Run, folder: Path) -> None:
    import safetensors
    import safetensors.torch

    path = folder / _REFERENCE
    try:
        state = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({' '.join(str(error).split())}); put it back, or start a new run"
        ) from error
    run.policy.load_reference_state(state)
