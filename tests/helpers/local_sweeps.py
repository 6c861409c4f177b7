"""Sweeps without Ray: the trials run in this process, so that a test takes a second."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
from planted_runs import TASK

from rlprompt.sweeps import tuning
from rlprompt.sweeps.budget import Amounts, SweepBudget
from rlprompt.sweeps.settings import SweepConfig
from rlprompt.sweeps.trials import Job, run_trial

SMALL: dict[str, Any] = {**TASK, "env": {"prompt_length": 3, "num_envs": 4}}
"""A trial of 3 iterations of 4 prompts on 4 train rows, then 2 prompts on 4 dev rows: 3 * 16 + 2 * 4 = 56 calls."""


class LocalRuns:
    """Stands in for Ray Tune; `at` is called with the job and the number of a trial before it begins."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.at: Callable[[Job, int], None] = lambda job, number: None

    def __call__(self, job: Job, numbers: Sequence[int], settings: SweepConfig, watch: tuning.Watch) -> None:
        meter = LockedBudget(SweepBudget(settings.budget, job.folder.budget))
        waiting = iter(numbers)

        def work(numbers: Iterable[int]) -> None:
            for number in numbers:
                self.begun.append(number)
                self.at(job, number)
                watch.step()
                watch.ended(number, *run_trial(job, number, meter))

        if settings.max_concurrent == 1:
            work(waiting)
            return
        shared = _Shared(waiting)
        threads = [threading.Thread(target=work, args=(shared,)) for _ in range(settings.max_concurrent)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


class LockedBudget:
    """One caller at a time, as an actor has."""

    def __init__(self, budget: SweepBudget) -> None:
        self._budget, self._lock = budget, threading.Lock()
        self.limits_cost = budget.limits_cost

    def open(self, trial: str) -> None:
        with self._lock:
            self._budget.open(trial)

    def grant(self, trial: str, amounts: Amounts) -> str | None:
        with self._lock:
            return self._budget.grant(trial, amounts)

    def settle(self, trial: str, amounts: Amounts) -> None:
        with self._lock:
            self._budget.settle(trial, amounts)


class _Shared:
    """An iterator that several threads take from."""

    def __init__(self, items: Iterable[int]) -> None:
        self._items, self._lock = iter(items), threading.Lock()

    def __iter__(self) -> _Shared:
        return self

    def __next__(self) -> int:
        with self._lock:
            return next(self._items)


def without_ray(monkeypatch: pytest.MonkeyPatch) -> LocalRuns:
    """Has sweeps run their trials in this process from now on."""
    runs = LocalRuns()
    monkeypatch.setattr(tuning, "run_with_tune", runs)
    monkeypatch.setattr(tuning, "join_for", lambda settings, address: None)
    return runs
