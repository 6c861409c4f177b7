"""A stage that learns from a file (`dpo`, `rrhf`): its surroundings, its steps and its reports, whatever the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from rlprompt.algorithms.trl.common import Adam, Recorder, arguments, begin, check_dropout, drive, surroundings
from rlprompt.algorithms.trl.model import PolicyModel
from rlprompt.algorithms.trl.order import Order
from rlprompt.algorithms.trl.preference_data import check_data
from rlprompt.algorithms.trl.rollout import Rollout, opened
from rlprompt.config import RunConfig
from rlprompt.types import Json, RunContext

HeldOutMetrics: TypeAlias = Callable[[], dict[str, float]]


@dataclass(frozen=True)
class FileStage:
    """What a trainer of such a stage is built of."""

    run: RunContext
    rollout: Rollout
    model: PolicyModel
    adam: Adam
    source: str
    """Which of the sources `path` is."""
    path: Path
    held_out: Path | None
    """The file of what is not trained on, of the same source."""
    rows: int
    """Lines of one step."""
    first: int
    """The first step."""
    shared: Json
    """What `rlprompt.algorithms.trl.common.arguments` returned."""

    def order(self, count: int) -> Order:
        """Returns the order of so many lines, for all steps."""
        config: RunConfig = self.run.config
        return Order(count, self.rows, seed=config.seed, first=self.first, last=config.algorithm.iterations)


def fit_file(
    run: RunContext,
    algorithm: str,
    sources: Sequence[str],
    build: Callable[[FileStage], tuple[Any, HeldOutMetrics | None]],
) -> None:
    """Trains `run.policy` in place on the file of the stage.

    Args:
        run: the stage.
        algorithm: whose data it is.
        sources: what its file may be, by name.
        build: returns the trainer, and what measures it on the lines that are not trained on.

    Raises:
        ConfigError: the stage names no file, or one that cannot be used.
    """
    config: RunConfig = run.config
    begun = begin(run)
    if begun is None:
        return
    start, state = begun
    check_dropout(run)
    data: Mapping[str, Any] = getattr(run, "data", None) or {}
    source, path = check_data(data, algorithm, sources)
    rows, last = config.algorithm.minibatch_size or config.env.num_envs, config.algorithm.iterations
    with opened(run) as rollout, surroundings(run) as folder:
        model = rollout.model()
        adam = Adam(dict(model.trainable.named_parameters()), config.algorithm, state)
        shared = arguments(config, folder, rollout.policy.device, rows=rows, steps=last - start)
        held_out = Path(str(data["val"])) if "val" in data else None
        stage = FileStage(run, rollout, model, adam, source, path, held_out, rows, start, shared)
        trainer, measure = build(stage)

        def report() -> tuple[None, None, dict[str, float]]:
            step = start + int(trainer.state.global_step)
            due = measure is not None and (step % data.get("val_every", 10) == 0 or step == last)
            return None, None, trainer.metrics() | (measure() if measure is not None and due else {})

        drive(trainer, Recorder(run, start, adam.state_dict, report))
