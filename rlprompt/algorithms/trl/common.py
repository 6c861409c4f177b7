"""What the trainers share: their surroundings, the optimiser and its state, and the report to the run."""

from __future__ import annotations

import logging
import random
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from rlprompt.config import AlgorithmConfig, RunConfig
from rlprompt.errors import ConfigError
from rlprompt.types import FloatArray, Json, RunContext, Scores

Parameters = Mapping[str, torch.nn.Parameter]


@contextmanager
def surroundings(run: RunContext) -> Iterator[str]:
    """Keeps the trainer of a run's policy to itself; see `isolated`."""
    training = run.policy.training
    try:
        with isolated() as folder:
            yield folder
    finally:
        run.policy.train(training)


@contextmanager
def isolated() -> Iterator[str]:
    """Keeps a trainer to itself; gives a temporary folder for what it insists on writing.

    transformers and TRL seed the global generators and warn about what is meant here; both are undone afterwards.
    """
    python, arrays = random.getstate(), np.random.get_state()
    speaker = logging.getLogger("trl")
    level = speaker.level
    speaker.setLevel(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(trl|transformers|accelerate|torch)\b")
            yield folder
    finally:
        random.setstate(python)
        np.random.set_state(arrays)
        speaker.setLevel(level)


def arguments(config: RunConfig, folder: str, device: torch.device, *, rows: int, steps: int) -> Json:
    """Returns the training arguments of all: nothing is saved, logged, sent or evaluated by the trainer."""
    return {
        "output_dir": folder,
        "max_steps": steps,
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": 1,
        "learning_rate": config.algorithm.lr,
        "max_grad_norm": config.algorithm.grad_clip,
        "seed": config.seed % 2**32,
        "use_cpu": device.type == "cpu",
        "bf16": False,
        "fp16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "eval_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "push_to_hub": False,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
    }


class Adam:
    """Adam with a constant learning rate over what the policy trains, with a state that a checkpoint can hold.

    Args:
        parameters: what is trained, by name.
        settings: learning rate.
        state: what `state_dict` returned, of an earlier session.
    """

    def __init__(self, parameters: Parameters, settings: AlgorithmConfig, state: Json | None = None) -> None:
        self._parameters = {name: value for name, value in parameters.items() if value.requires_grad}
        self.optimizer = torch.optim.Adam(self._parameters.values(), lr=settings.lr)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1.0)
        if state is None:
            return
        for name, saved in state["optimizer"].items():
            entries = {key: torch.as_tensor(value).clone() for key, value in saved.items()}
            self.optimizer.state[self._parameters[name]] = entries
        self.scheduler.last_epoch = int(state["scheduler"]["last_epoch"])

    def state_dict(self) -> Json:
        """Returns the optimiser's tensors by parameter, and the scheduler's numbers."""
        return {
            "optimizer": {
                name: {key: torch.as_tensor(value).clone() for key, value in self.optimizer.state[parameter].items()}
                for name, parameter in self._parameters.items()
                if parameter in self.optimizer.state
            },
            "scheduler": {"last_epoch": int(self.scheduler.last_epoch)},
        }


def check_dropout(run: RunContext) -> None:
    """Refuses dropout: torch draws it from the global generator, so a resumed run would draw other masks.

    Raises:
        ConfigError: the policy's adapter has some.
    """
    rate = getattr(getattr(run.policy.settings, "lora", None), "dropout", 0.0)
    if rate > 0:
        raise ConfigError(
            f"policy.kwargs.lora.dropout is {rate}, but {run.config.algorithm.name} trains without dropout, so that a "
            "resumed run is the same run; set it to 0"
        )


def check_groups(config: RunConfig) -> None:
    """Refuses an env that gives a prompt several rewards, or nothing to compare it with.

    Raises:
        ConfigError: it does.
    """
    name, env = config.algorithm.name, config.env
    if env.turns > 1 or env.step_reward != "terminal":
        raise ConfigError(
            f"{name} gives one reward to a whole prompt; set env.turns to 1 and env.step_reward to terminal"
        )
    group, key = env.num_envs, "env.num_envs"
    if env.per_input:
        group, key = env.rewrites_per_input, "env.rewrites_per_input"
    if group < 2 or env.num_envs % group:
        raise ConfigError(
            f"{name} compares prompts with each other: {key} must be at least 2 and divide env.num_envs "
            f"({env.num_envs}), got {group}"
        )


_OPTIONAL = (
    "baseline",
    "entropy_coeff",
    "kl_coeff",
    "kl_target",
    "nlpo_top_p",
    "preference_loss",
    "beta",
    "label_smoothing",
    "pair_weights",
    "rank_weight",
    "pair_margin",
    "pairs_per_input",
    "pair_by",
    "regenerate",
    "items",
    "survivors",
)


def refuse_unused(settings: AlgorithmConfig, *used: str) -> None:
    """Refuses settings of other algorithms that are not what they are by default.

    Args:
        settings: the algorithm's section.
        used: what it uses, of baseline, weights of KL and entropy, and the settings of preferences and rounds.

    Raises:
        ConfigError: one is set.
    """
    for key in _OPTIONAL:
        value = getattr(settings, key)
        if key not in used and value != AlgorithmConfig.model_fields[key].default:
            raise ConfigError(f"algorithm.{key} is {value!r}, but {settings.name} does not use it; remove it")


Report = Callable[[], tuple[Scores | None, FloatArray | None, dict[str, float]]]


class Recorder(TrainerCallback):  # type: ignore[misc]  # untyped there
    """Ends one iteration of the run after every optimisation step, and stops the trainer when the run must stop.

    Args:
        run: the run.
        start: number of the first iteration.
        state: returns the algorithm's state.
        report: returns scores, training rewards and metrics of the step that ended.
    """

    def __init__(self, run: RunContext, start: int, state: Callable[[], Json], report: Report) -> None:
        self._run, self._start, self._state, self._report = run, start, state, report
        self._began = time.perf_counter()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the clock."""
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Records the iteration."""
        iteration = self._start + state.global_step - 1
        scores, training_rewards, metrics = self._report()
        metrics["time/iteration_s"] = time.perf_counter() - self._began
        self._run.end_iteration(
            iteration, scores=scores, metrics=metrics, state=self._state, training_rewards=training_rewards
        )
        last = iteration + 1 >= self._run.config.algorithm.iterations
        if not last and self._run.stop_reason() is not None:
            control.should_training_stop = True
        return control


class Notes(TrainerCallback):  # type: ignore[misc]  # untyped there
    """Keeps the metrics of every optimisation step, where many of them are one iteration of the run.

    Args:
        report: returns the metrics of the step that ended.
    """

    def __init__(self, report: Callable[[], dict[str, float]]) -> None:
        self._report = report
        self._steps: list[dict[str, float]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keeps those of the step."""
        self._steps.append(self._report())

    def means(self) -> dict[str, float]:
        """Returns the means over the steps."""
        names = {name for step in self._steps for name in step}
        return {name: float(np.mean([step[name] for step in self._steps if name in step])) for name in sorted(names)}


def drive(trainer: Any, recorder: TrainerCallback) -> None:
    """Runs the trainer's loop with the run's reports in place of its own."""
    for silent in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(silent)
    trainer.add_callback(recorder)
    trainer.train()


def begin(run: RunContext) -> tuple[int, Json | None] | None:
    """Returns (first iteration, state of an earlier session), or None where nothing is left to do."""
    restored = run.restored_state()
    start, state = (0, None) if restored is None else restored
    if start >= run.config.algorithm.iterations or run.stop_reason() is not None:
        return None
    return start, state


def mean_metrics(trainer: Any, names: Mapping[str, str]) -> dict[str, float]:
    """Returns the means of what TRL noted since the last call, under our names; TRL's notes are emptied."""
    notes = trainer._metrics["train"]
    found = {ours: float(np.mean(notes[theirs])) for theirs, ours in names.items() if notes.get(theirs)}
    notes.clear()
    return found
