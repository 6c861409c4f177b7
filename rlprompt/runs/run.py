"""`Run`: what an algorithm works for. It records iterations, keeps the state to go back to, says when to stop."""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlprompt.calibration import CONTENT_FREE
from rlprompt.config import RunConfig
from rlprompt.errors import BudgetExceededError, CheckpointError, TooManyFailuresError
from rlprompt.runs.artefacts import meta_examples, plain_name
from rlprompt.runs.checkpoints import decode, encode, save_checkpoint, settle
from rlprompt.runs.events import EventLog
from rlprompt.runs.folder import RunFolder, remove, replace_folder, sync_tree, write_json, writing_errors
from rlprompt.runs.journal import Journals
from rlprompt.runs.limits import budget_is_short
from rlprompt.runs.monitor import Monitor, warn
from rlprompt.runs.records import (
    Answer,
    AnswerBook,
    PromptRecord,
    as_record,
    given_pairs,
    prompt_records,
    write_answers,
    write_prompts,
)
from rlprompt.runs.result import RunResult
from rlprompt.runs.resume import config_hash, later_answers, read_tables, rewind
from rlprompt.runs.selection import Candidates, PolicyChoice, describe_best, measure_affordable, select
from rlprompt.runs.signals import StopSignals
from rlprompt.runs.tracking import Callback
from rlprompt.served import Served
from rlprompt.types import Example, FloatArray, Json, Scores

if TYPE_CHECKING:
    from rlprompt.scoring import Scorer

_LEAST_SAMPLES = 50
"""Scored pairs before the share of failures means anything."""


class Run:
    """One run and its folder; implements `rlprompt.types.RunContext`, and is the stage of a run that has no other.

    Args:
        folder: the run folder; this process must be its only writer.
        config: the resolved configuration.
        scorer: the run's scorer.
        policy: the policy in training.
        signals: Ctrl-C and SIGTERM.
        callbacks: told of every iteration, in order.
    """

    def __init__(
        self,
        folder: RunFolder,
        config: RunConfig,
        scorer: Scorer,
        policy: Any,
        *,
        signals: StopSignals | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.files = folder
        self.completed = 0
        """Iterations that ended and are recorded."""
        self.stopped_by: str | None = None
        self._config = config
        self._scorer = scorer
        self._policy = policy
        self._signals = signals if signals is not None else StopSignals()
        self._callbacks = list(callbacks)
        self._config_hash = config_hash(config)
        self._events = EventLog(folder.events)
        self._journals = Journals(folder, scorer)
        self._candidates = Candidates(len(scorer.task.dev), config.selection.by)
        self._choice = PolicyChoice(config.selection.by)
        self._monitor = Monitor(config.monitor)
        self._served = Served.from_run(
            config, template=scorer.task.template.source, examples=meta_examples(config, scorer)
        )
        basis = {"none": (), "median": scorer.task.train, "contextual": CONTENT_FREE}[config.calibration]
        self._book = AnswerBook(scorer, basis)
        self._records: list[PromptRecord] = []
        self._answers: list[Answer] = []
        self._num_prompts = self._num_answers = self._num_pairs = self._num_failed = 0
        self._snapshot: tuple[int, tuple[Any, Mapping[str, np.ndarray]]] | None = None
        self._saved: int | None = None
        self._restored: dict[str, Any] | None = None
        self._seconds_before = 0.0
        self._started = self._iteration_started = time.monotonic()

    name = "main"
    """The stage's name."""

    @property
    def data(self) -> Mapping[str, Any]:
        """What the algorithm learns from, besides rewards."""
        return self._config.data

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.files.root

    @property
    def config(self) -> RunConfig:
        """The resolved configuration."""
        return self._config

    @property
    def scorer(self) -> Scorer:
        """The run's scorer."""
        return self._scorer

    @property
    def policy(self) -> Any:
        """The policy in training."""
        return self._policy

    @property
    def seconds(self) -> float:
        """Wall-clock time of the run so far, earlier sessions included (as of their last checkpoint)."""
        return self._seconds_before + time.monotonic() - self._started

    def restore(self, checkpoint: tuple[int, Json] | None) -> None:
        """Goes back to a checkpoint, or to the very beginning; of what came later only the answers are kept.

        Raises:
            CheckpointError: it was made for another configuration, or the tables do not fit it.
        """
        iteration, state = checkpoint if checkpoint is not None else (-1, None)
        if state is not None and state["config_hash"] != self._config_hash:
            raise CheckpointError(
                f"{self.files.checkpoint(iteration)} was made for another configuration than config.yaml holds; "
                "put config.yaml back, or start a new run"
            )
        self.completed = iteration + 1
        # Before they are deleted with their parts: what was paid for is not asked again.
        self._journals.load(map(as_record, later_answers(self.files, self.completed)))
        rewind(self.files, self.completed, 0 if state is None else state["num_events"])
        self._events = EventLog(self.files.events)
        records, answers = read_tables(self.files, state)
        self._take_in(records, answers)
        self._monitor.take_in(records)
        self._book.add(answers)
        self._scorer.remember(map(as_record, answers))
        self._num_prompts, self._num_answers = len(records), len(answers)
        if state is not None:
            self._scorer.load_state_dict(state["scorer"])
            self._policy.load_trainable_state(state["policy"])
            self._seconds_before = float(state["seconds"])
            self._snapshot, self._saved = (iteration, encode(state)), iteration
            self._restored = state["algorithm"]
            self._choice.newest, self._choice.best = state["choice"]["newest"], state["choice"]["best"]
            settle(self.files, iteration, keep=self._config.run.keep)
        self._journals.restore(given_pairs(answers))

    def start(self) -> None:
        """Begins the session: the clock, the first event, the callbacks."""
        self._started = self._iteration_started = time.monotonic()
        if self._events.num_events == 0:
            task = self._scorer.task
            self._events.append(
                "start",
                {
                    "seed": self._config.seed,
                    "config_hash": self._config_hash,
                    "task": task.name,
                    "num_train": len(task.train),
                    "num_dev": len(task.dev),
                    "pid": os.getpid(),
                    "host": socket.gethostname(),
                },
            )
        for callback in self._callbacks:
            callback.on_start(self.completed)

    def announce_stage(self, name: str, algorithm: str) -> None:
        """Says in the events that a stage begins with the next iteration."""
        self._events.append("stage", {"name": name, "algorithm": algorithm, "iteration": self.completed})

    def restored_state(self) -> tuple[int, dict[str, Any]] | None:
        """The (next iteration, algorithm state) of the checkpoint being resumed, or None at a fresh start."""
        return None if self._restored is None else (self.completed, self._restored)

    def stop_reason(self) -> str | None:
        """Why to stop before the next iteration: a signal, the STOP file, the clock or the budget; else None."""
        self.stopped_by = self._asked_to_stop()
        if self.stopped_by is None and not self._scorer.is_held and self._budget_is_short(self.completed):
            self.stopped_by = "budget"  # what is scored already is paid for
        return self.stopped_by

    def begin_ahead(self, num_prompts: int) -> bool:
        """Lets the prompts of the next iteration be scored before this one is recorded, if nothing speaks against it.

        Until `end_ahead` all is reported and saved as if that had not begun: a resumed run plays it again, from the
        answers in the journal. `num_prompts` were scored in this iteration, and are not recorded yet.

        Returns:
            False where dev is scored first, a stop was asked for, or the budget might not hold; nothing has changed.
        """
        every, following = self._config.selection.every, self.completed + 1
        dev_comes_first = every is not None and following % every == 0
        if dev_comes_first or self._asked_to_stop() or self._budget_is_short(following, num_prompts):
            return False
        self._scorer.hold()
        self._journals.hold()
        return True

    def end_ahead(self) -> None:
        """The iteration that was scored ahead is the one in progress now; does nothing where none was."""
        self._scorer.release()
        self._journals.release()

    def _asked_to_stop(self) -> str | None:
        self._signals.hold()
        limit = self._config.budget.max_wall_s
        if self._signals.reason is not None:
            return self._signals.reason
        if self.files.stop.exists():
            return "stop-file"
        return "wall" if limit is not None and self.seconds >= limit else None

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
        """Records one finished iteration.

        `state` is called once per iteration: the state is kept in memory, so that a run that ends in the middle of an
        iteration (budget, second Ctrl-C, error) still saves the last completed one.

        Args:
            iteration: number of the iteration that ended, from 0; one more than the last one.
            scores: the prompts of this iteration with their scores; None when none was scored.
            metrics: numbers of the iteration, flat names; those under `time/` count as volatile.
            state: callable without arguments that returns the algorithm's state: nested dictionaries and lists of
                arrays, tensors and JSON values.
            training_rewards: (P,), what the algorithm learnt from; by default what the stabilisers make of `scores`
                without moving their statistics.
            weight_lag: how many updates the policy that wrote the prompts was behind.

        Raises:
            TooManyFailuresError: the failed share of the run passed `run.max_failed_fraction`; all is saved.
        """
        if iteration != self.completed:
            raise ValueError(f"iteration {iteration} ended, but {self.completed} was next")
        if scores is not None:
            rewards = training_rewards if training_rewards is not None else self._scorer.stabilised(scores)
            self._record(scores, iteration, "train", rewards, weight_lag)
        self._score_new_best(iteration)
        self._write_part(iteration)
        duration = time.monotonic() - self._iteration_started
        status = self._status(0 if scores is None else len(scores.prompts), duration)
        watched, event = self._monitor.look(iteration, self._records)
        metrics = {**metrics, **self._scorer.metrics(), **watched}
        self._log_iteration(iteration, metrics, status)
        if event is not None:
            self._events.append("divergence", event)
            warn(event)
        self._num_prompts += len(self._records)
        self._num_answers += len(self._answers)
        self._snapshot = (iteration, encode(self._state(iteration, state())))
        self._journals.settle(given_pairs(self._answers))
        self._records, self._answers = [], []
        self.completed = iteration + 1
        self._iteration_started = time.monotonic()
        for callback in self._callbacks:
            callback.on_iteration(iteration, metrics, status)
        if self.completed % self._config.run.checkpoint_every == 0:
            self.save()
        self.check_failures()
        self._signals.hold()

    def save(self) -> None:
        """Writes a checkpoint of the last completed iteration, unless there is one; the policy goes back to it."""
        if self._snapshot is None or self._snapshot[0] == self._saved:
            return
        iteration, encoded = self._snapshot
        self._policy.load_trainable_state(decode(*encoded)["policy"])
        save_checkpoint(self.files, iteration, encoded, keep=self._config.run.keep, save_policy=self._policy.save)
        self._saved = iteration
        self._journals.cut()
        for callback in self._callbacks:
            callback.on_checkpoint(iteration)

    def check_failures(self) -> None:
        """Raises TooManyFailuresError, with everything saved, where too many of the run's samples failed."""
        allowed = self._config.run.max_failed_fraction
        if self._num_pairs < _LEAST_SAMPLES or self._num_failed <= allowed * self._num_pairs:
            return
        self.save()
        raise TooManyFailuresError(
            f"{self._num_failed} of {self._num_pairs} samples failed, more than run.max_failed_fraction = {allowed}; "
            f"see the column 'failure' in {self.files.root / 'outputs'}, mend the cause, and resume"
        )

    def choose(self) -> None:
        """Scores the best prompts on dev, as far as the budget goes; what is found goes into the tables.

        Where prompts are written for single inputs, the policy's greedy ones for the dev inputs are scored instead.
        """
        self.end_ahead()
        if self._config.env.per_input:
            self._measure_policy(self.completed, self.completed)
            return
        select(
            self._candidates,
            self._scorer.task.dev,
            self._config.selection,
            self._config.seed,
            lambda prompts, examples: self._measure(prompts, examples, self.completed),
        )

    def finish(self, reason: str) -> RunResult:
        """Writes what the session leaves behind: tables, last event, best/, summary.json and result.json."""
        self.end_ahead()
        self._write_part(self.completed)
        best = self._best()
        ledger = self._scorer.ledger.snapshot()
        self._events.append(
            "end", {"reason": reason, "iterations": self.completed, "best": best, "used": ledger["used"]}
        )
        known = best if best is not None else dict.fromkeys(("prompt", "selected_on", "dev_accuracy", "dev_reward"))
        result = RunResult(
            folder=self.files.root,
            best_prompt=known["prompt"],
            selected_on=known["selected_on"],
            dev_accuracy=known["dev_accuracy"],
            dev_reward=known["dev_reward"],
            stop_reason=reason,
            iterations=self.completed,
            target_calls=ledger["used"]["calls"],
            seconds=self.seconds,
            ledger=ledger,
        )
        if best is not None:
            self._save_best(best)
        policy = self._choice.best  # chosen in the place of a prompt where prompts are written for single inputs
        write_json(self.files.summary, result.summary(self._config, None if policy is None else policy["iterations"]))
        write_json(self.files.result, result.to_json())
        return result

    def close(self) -> None:
        """Ends the session: nothing more is written, and the callbacks are told."""
        self._journals.close()
        for callback in self._callbacks:
            callback.on_end()

    def _budget_is_short(self, iteration: int, unrecorded: int = 0) -> bool:
        scorer, num_prompts = self._scorer, len(self._candidates) + unrecorded
        judged = scorer.rewards.judge_calls
        return budget_is_short(self._config, scorer.task, scorer.ledger, iteration, num_prompts, judged)

    def _record(
        self,
        scores: Scores,
        iteration: int,
        phase: str,
        training_rewards: FloatArray | None = None,
        weight_lag: int = 0,
    ) -> list[PromptRecord]:
        answers = self._book.collect(scores)
        found = prompt_records(scores, answers, iteration=iteration, phase=phase, training_rewards=training_rewards)
        records = [replace(record, weight_lag=weight_lag) for record in found]
        self._records += records
        self._answers += answers
        self._take_in(records, answers)
        return records

    def _take_in(self, records: Sequence[PromptRecord], answers: Sequence[Answer]) -> None:
        self._candidates.add(records)
        self._num_pairs += sum(record.num_examples for record in records)
        self._num_failed += sum(record.num_failed for record in records)

    def _measure(self, prompts: Sequence[str], examples: Sequence[Example], iteration: int) -> list[PromptRecord]:
        contexts = [self._config.policy.context] * len(prompts)
        scores = self._scorer.score(prompts, examples, phase="dev", contexts=contexts)
        return self._record(scores, iteration, "dev")

    def _best(self) -> Json | None:
        return self._choice.describe() if self._config.env.per_input else describe_best(self._candidates.best())

    def _measure_policy(self, completed: int, iteration: int) -> None:
        """Scores the policy's greedy prompts for the dev inputs, unless that was done or the budget does not hold."""
        from rlprompt.search.dialogues import scores_on_dev

        if self._choice.newest == completed:
            return
        try:
            scores = scores_on_dev(self._policy, self._config, self._scorer)
        except BudgetExceededError:
            return
        records = self._record(scores, iteration, "dev")
        self._choice.offer(completed, records, self._policy.trainable_state())

    def _score_new_best(self, iteration: int) -> None:
        every = self._config.selection.every
        if every is None or (iteration + 1) % every:
            return
        if self._config.env.per_input:
            self._measure_policy(iteration + 1, iteration)
            return
        newest = [candidate.prompt for candidate in self._candidates.top(1, unseen_on_dev=True)]
        try:
            measure_affordable(
                newest,
                self._scorer.task.dev,
                lambda prompts, examples: self._measure(prompts, examples, iteration),
            )
        except BudgetExceededError:
            return  # stop_reason tells the algorithm so before the next iteration

    def _write_part(self, iteration: int) -> None:
        if self._records:
            write_prompts(self.files.part("prompts", iteration), self._records)
        if self._answers:
            write_answers(self.files.part("outputs", iteration), self._answers)

    def _status(self, num_prompts: int, duration: float) -> Json:
        ledger = self._scorer.ledger
        return {
            "best": self._best(),
            "num_prompts": num_prompts,
            "duration_s": duration,
            "used_calls": ledger.snapshot()["used"]["calls"],
            "calls_left": ledger.remaining_calls(),
        }

    def _log_iteration(self, iteration: int, metrics: Mapping[str, float], status: Json) -> None:
        numbers = {name: float(value) for name, value in metrics.items()}
        timed = {name: value for name, value in numbers.items() if name.startswith("time/")}
        duration = status["duration_s"]
        self._events.append(
            "iteration",
            {
                "iteration": iteration,
                "metrics": {name: value for name, value in numbers.items() if name not in timed},
                "num_prompts": status["num_prompts"],
                "best": status["best"],
                "used": self._scorer.ledger.snapshot()["used"],
                "failed": self._num_failed,
                "time": {name.removeprefix("time/"): value for name, value in timed.items()},
                "duration_s": duration,
                "rate": status["num_prompts"] / duration if duration > 0 else math.nan,
            },
        )

    def _state(self, iteration: int, algorithm: Any) -> Json:
        return {
            "iteration": iteration,
            "config_hash": self._config_hash,
            "num_events": self._events.num_events,
            "num_prompts": self._num_prompts,
            "num_answers": self._num_answers,
            "seconds": self.seconds,
            "scorer": self._scorer.state_dict(),
            "policy": self._policy.trainable_state(),
            "choice": {"newest": self._choice.newest, "best": self._choice.best},
            "algorithm": algorithm,
        }

    def _save_best(self, best: Json) -> None:
        temporary = self.files.root / f".tmp-{os.getpid()}-best"
        extra = {
            **self._served.model_dump(mode="json"),
            **best,
            "task": self._scorer.task.name,
            "target": plain_name(self._config.target.name),
            "calibration": self._config.calibration,
            "iterations": self.completed,
            "seed": self._config.seed,
            "config_hash": self._config_hash,
        }
        with writing_errors(self.files.best):
            remove(temporary)
            if self._choice.best is not None:
                self._policy.load_trainable_state(self._choice.best["policy"])
            self._policy.save(temporary, extra=extra)
            sync_tree(temporary)
            replace_folder(temporary, self.files.best)
