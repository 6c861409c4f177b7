"""Who plays the episodes of an iteration: this process, or env runners that hand all scoring to it.

With several env runners each plays an equal share of the iteration's episodes. Every draw is keyed by the episode's
number, all scoring of a step is one call in the order of the episodes, and the learner sorts its batch by them: how
many runners there are changes nothing but the time. An iteration in which a runner was lost is played again from its
beginning, with the answers that were paid for.
"""

from __future__ import annotations

import logging
import time
import traceback
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import ray
from ray.exceptions import RayError, RayTaskError
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.execution.rollout_ops import synchronous_parallel_sample

from rlprompt import restarts
from rlprompt.algorithms.rllib.module import PromptModule
from rlprompt.errors import RLPromptError, RunError
from rlprompt.mailbox import Letter, open_mailbox
from rlprompt.scoring import Scorer
from rlprompt.scoring.desk import RemoteScorer, RoundAbandonedError, answer_letters
from rlprompt.scoring.parts import join_scores
from rlprompt.types import FloatArray, Scores

logger = logging.getLogger(__name__)

TAG = "rollout"
POLL_S = 0.01
"""Seconds between two looks at who has finished."""
DRAIN_S = 60.0
"""Seconds that runners of an abandoned iteration get to stop."""
PROBE_S = 5.0


Weights: TypeAlias = dict[str, dict[str, Any]]
"""By module id: `policy`, what it trains, and `masking`, that of NLPO's masking copy, or None."""


class Rollouts(Protocol):
    """Plays iterations."""

    @property
    def scores(self) -> Scores | None:
        """Of the newest iteration's prompts."""

    @property
    def training_rewards(self) -> FloatArray | None:
        """(P,), stabilised; None with step differences."""

    def prepare(self, iteration: int, weights: Weights) -> None:
        """Says which iteration comes next, and with which weights."""

    def play(self) -> list[Any]:
        """Returns the iteration's episodes."""

    @property
    def seconds(self) -> float:
        """Time that the sampling policies have taken so far; of several runners, of the slowest in each iteration."""

    def close(self) -> None:
        """Frees what it has beside the algorithm's runners."""


def env_of(runner: Any) -> Any:
    """Returns the environment of an env runner; one instance plays all its episodes."""
    env = runner.env
    return env.envs[0].unwrapped if _plays_games(runner) else env.unwrapped


def modules_of(runner: Any) -> dict[str, PromptModule]:
    """Returns the prompt modules of an env runner by their ids."""
    if not _plays_games(runner):
        return {DEFAULT_MODULE_ID: runner.module.unwrapped()}
    parts = {name: part.unwrapped() for name, part in runner.module.items()}
    return {name: part for name, part in parts.items() if isinstance(part, PromptModule)}


def weights_of(learner: Any) -> Weights:
    """Returns copies of what a learner's prompt modules train."""
    found: Weights = {}
    for name, module in learner.prompt_modules.items():
        masking = None if module.masking is None else module.masking.policy.trainable_state()
        found[name] = {"policy": module.policy.trainable_state(), "masking": masking}
    return found


def take_weights(modules: Mapping[str, PromptModule], weights: Weights) -> None:
    """Gives samplers their weights, and lets them forget the contexts of the iteration before."""
    for name, module in modules.items():
        module.policy.load_trainable_state(weights[name]["policy"])
        if module.masking is not None:
            module.masking.load(weights[name]["masking"])
        module.policy.forget()


def _plays_games(runner: Any) -> bool:
    return bool(runner.config.is_multi_agent)


@contextmanager
def our_own_errors() -> Iterator[None]:
    """Raises what rlprompt reports (an exceeded budget, say) as it is: RLlib wraps whatever an environment raises."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error.__cause__, RLPromptError):
            raise error.__cause__ from None
        raise


class LocalRollouts:
    """Plays in this process.

    Args:
        algorithm: with an env runner of its own.
    """

    def __init__(self, algorithm: Any) -> None:
        self._algorithm = algorithm
        self._env = env_of(algorithm.env_runner)
        self._modules = modules_of(algorithm.env_runner)

    @property
    def scores(self) -> Scores | None:
        """Of the newest iteration's prompts."""
        found: Scores | None = self._env.last_scores
        return found

    @property
    def training_rewards(self) -> FloatArray | None:
        """(P,), stabilised."""
        found: FloatArray | None = self._env.last_training_rewards
        return found

    @property
    def seconds(self) -> float:
        """Time that the sampling policies have taken so far."""
        return sum(module.seconds for module in self._modules.values())

    def prepare(self, iteration: int, weights: Weights) -> None:
        """Hands the weights to the sampler."""
        take_weights(self._modules, weights)
        self._env.set_iteration(iteration)

    def play(self) -> list[Any]:
        """Returns the iteration's episodes."""
        with our_own_errors():
            episodes, _ = synchronous_parallel_sample(
                worker_set=self._algorithm.env_runner_group, _uses_new_env_runners=True, _return_metrics=True
            )
        return list(episodes)

    def close(self) -> None:
        """There is nobody else."""


@dataclass(frozen=True)
class Played:
    """What an env runner brings back from an iteration."""

    first_episode: int
    episodes: list[Any]
    scores: Scores | None
    training_rewards: FloatArray | None
    policy_seconds: float


@dataclass(frozen=True)
class Crash:
    """A mistake in the program, met by an env runner."""

    runner: int
    trace: str


def play_share(
    runner: Any, *, iteration: int, attempt: int, share: int, weights: Weights
) -> Played | RLPromptError | Crash:
    """Plays an env runner's share of an iteration; runs in the runner's process.

    Args:
        runner: RLlib's env runner; its index, from 1, says which share is its own.
        iteration: from 0.
        attempt: how often runners were sent out before.
        share: episodes of each runner.
        weights: what the modules write with.
    """
    try:
        env, modules = env_of(runner), modules_of(runner)
        scorer: RemoteScorer = env.scorer
        first = (runner.worker_index - 1) * share
        env.first_episode = scorer.share = first
        scorer.attempt = attempt
        take_weights(modules, weights)
        before = sum(module.seconds for module in modules.values())
        env.set_iteration(iteration)
        with our_own_errors():
            episodes = runner.sample()
        spent = sum(module.seconds for module in modules.values()) - before
        return Played(first, episodes, env.last_scores, env.last_training_rewards, spent)
    except RLPromptError as error:
        return error
    except Exception:  # told to the run's process: it would come again in every restarted runner
        return Crash(runner.worker_index, traceback.format_exc())


class RemoteRollouts:
    """Plays on env runners in processes of their own, on this machine or others.

    Args:
        scorer: of the run; all scoring is done by it, in this process.
        share: episodes of each runner.
        max_restarts: how often lost runners may be started again.
    """

    def __init__(self, scorer: Scorer, *, share: int, max_restarts: int) -> None:
        self.scores: Scores | None = None
        self.training_rewards: FloatArray | None = None
        self.seconds = 0.0
        self.restarts = 0
        """Runners that were lost and came back."""
        self.mailbox_name = f"rlprompt-{uuid.uuid4().hex}"
        self._scorer = scorer
        self._share = share
        self._max_restarts = max_restarts
        self._mailbox = open_mailbox(self.mailbox_name, scorer.task)
        self._algorithm: Any = None
        self._iteration = 0
        self._weights: Any = None
        self._attempts = 0
        self._turns: list[tuple[dict[int, Any], dict[int, Any]]] = []
        """Of the iteration, what was asked together and what was said, by share."""
        self._turn = 0
        self._arriving: Any = None

    def attach(self, algorithm: Any) -> None:
        """Says whose env runners play."""
        self._algorithm = algorithm

    def prepare(self, iteration: int, weights: Weights) -> None:
        """Publishes the weights once for all runners."""
        self._iteration, self._weights, self._turns = iteration, ray.put(weights), []

    def play(self) -> list[Any]:
        """Returns the iteration's episodes; plays it again where a runner was lost.

        Raises:
            BudgetExceededError: and other errors of scoring, when all runners have stopped.
            RunError: runners were lost too often, or did not come back.
        """
        lost, played = 0, self._attempt()
        while played is None:
            lost += 1
            self._restore(lost)
            played = self._attempt()
        played.sort(key=lambda part: part.first_episode)
        scores = [part.scores for part in played if part.scores is not None]
        self.scores = join_scores(scores) if scores else None
        rewards = [part.training_rewards for part in played if part.training_rewards is not None]
        self.training_rewards = np.concatenate(rewards) if rewards else None
        self.seconds += max(part.policy_seconds for part in played)
        return [episode for part in played for episode in part.episodes]

    def _attempt(self) -> list[Played] | None:
        """Lets all runners play; None where one was lost."""
        group = self._algorithm.env_runner_group
        count = group.num_remote_env_runners()
        self._attempts += 1
        self._turn = 0
        order = {"iteration": self._iteration, "attempt": self._attempts, "share": self._share}
        group.foreach_env_runner_async(play_share, tag=TAG, kwargs={**order, "weights": self._weights})
        finished: list[Played] = []
        letters: dict[int, Letter] = {}
        try:
            while len(finished) < count:
                for part in self._returned():
                    if not isinstance(part, Played):
                        raise part
                    finished.append(part)
                if group.num_healthy_remote_env_runners() < count:
                    raise RoundAbandonedError("an env runner was lost")
                self._collect(letters)
                if letters and len(letters) == count - len(finished):
                    answers = self._said(letters)
                    self._answer(answers)
                    for ticket in answers:
                        del letters[ticket]
        except RoundAbandonedError:
            self._abandon(letters)
            return None
        except BaseException:  # whatever ends the run, a second Ctrl-C too: runners must not wait for ever
            with suppress(RunError):
                self._abandon(letters)
            raise
        return finished

    def _said(self, letters: Mapping[int, Letter]) -> dict[int, Any]:
        """Returns the answers by ticket; what a lost attempt was told is told again.

        So rewards and stabilisers that keep a state see an iteration once, however often it is played.
        """
        asked = {letter.share: (letter.kind, letter.texts) for letter in letters.values()}
        if self._turn < len(self._turns) and self._turns[self._turn][0] != asked:
            del self._turns[self._turn :]  # a runner on another kind of machine may have written something else
        if self._turn == len(self._turns):
            answers = answer_letters(self._scorer, letters)
            self._turns.append((asked, {letters[ticket].share: answer for ticket, answer in answers.items()}))
        said = self._turns[self._turn][1]
        self._turn += 1
        return {ticket: said[letter.share] for ticket, letter in letters.items() if letter.share in said}

    def _returned(self) -> list[Played | Exception]:
        """What runners brought back since the last look; of mistakes in the program, an exception to raise."""
        parts: list[Played | Exception] = []
        for runner, part in self._algorithm.env_runner_group.fetch_ready_async_reqs(tags=TAG, timeout_seconds=0.0):
            if isinstance(part, Crash):
                part = RuntimeError(f"env runner {runner} failed:\n{part.trace}")
            parts.append(part)
        return parts

    def _answer(self, answers: Mapping[int, Any]) -> None:
        """Sends answers; raises RoundAbandonedError where the mailbox was lost, and all letters with it."""
        try:
            ray.get(self._mailbox.answer.remote(dict(answers)))
        except RayTaskError:
            raise
        except RayError as error:
            raise RoundAbandonedError("the mailbox was lost") from error

    def _collect(self, letters: dict[int, Letter]) -> None:
        """Adds letters that arrived; those of an abandoned attempt are sent back. Raises as `_answer`."""
        if self._arriving is None:
            self._arriving = self._mailbox.letters.remote()
        if not ray.wait([self._arriving], timeout=POLL_S)[0]:
            return
        arriving, self._arriving = self._arriving, None
        try:
            arrived: dict[int, Letter] = dict(ray.get(arriving))
        except RayTaskError:
            raise
        except RayError as error:
            raise RoundAbandonedError("the mailbox was lost") from error
        late = [ticket for ticket, letter in arrived.items() if letter.attempt != self._attempts]
        if late:
            self._answer(dict.fromkeys(late))
        letters |= {ticket: letter for ticket, letter in arrived.items() if ticket not in late}

    def _abandon(self, letters: Mapping[int, Letter]) -> None:
        """Sends all letters back, those that still come too, until nobody plays any more."""
        group, end = self._algorithm.env_runner_group, time.monotonic() + DRAIN_S
        self._attempts += 1
        with suppress(RoundAbandonedError):  # without a mailbox nobody waits at it
            self._answer(dict.fromkeys(letters))
        while group.num_in_flight_async_reqs(TAG):
            if time.monotonic() > end:
                raise RunError(f"an env runner has not stopped for {DRAIN_S:.0f} s; resume the run")
            self._returned()
            with suppress(RoundAbandonedError):
                self._collect({})

    def _restore(self, attempt: int) -> None:
        """Waits, longer each time, until lost runners have come back."""
        group = self._algorithm.env_runner_group
        lost = group.num_remote_env_runners() - group.num_healthy_remote_env_runners()
        self.restarts += max(lost, 1)  # or it was the mailbox
        if self.restarts > self._max_restarts:
            raise RunError(
                f"env runners were lost {self.restarts} times (ray.max_num_env_runner_restarts is "
                f"{self._max_restarts}); look for the cause in Ray's logs, then resume"
            )
        logger.warning("%d env runners were lost; iteration %d is played again", lost, self._iteration + 1)
        time.sleep(restarts.pause_before(attempt))
        end = time.monotonic() + restarts.COMES_UP_S
        while not self._is_complete():
            if time.monotonic() > end:
                raise RunError(
                    f"{lost} env runners did not come back within {restarts.COMES_UP_S:.0f} s; see whether the cluster "
                    "still has the CPUs and GPUs that ray.num_env_runners needs, then resume"
                )

    def _is_complete(self) -> bool:
        """Whether all runners and the mailbox are there; waits for those that are not, some seconds."""
        group = self._algorithm.env_runner_group
        if group.num_healthy_remote_env_runners() < group.num_remote_env_runners():
            group.probe_unhealthy_env_runners(timeout_seconds=PROBE_S)
        try:
            ray.get(self._mailbox.ping.remote(), timeout=PROBE_S)
        except RayError:  # lost, or not back in time
            time.sleep(POLL_S)
            return False
        return bool(group.num_healthy_remote_env_runners() == group.num_remote_env_runners())

    def close(self) -> None:
        """Frees the mailbox; the runners are the algorithm's."""
        ray.kill(self._mailbox)


__all__ = ["LocalRollouts", "Played", "RemoteRollouts", "Rollouts", "Weights", "env_of", "modules_of", "weights_of"]
