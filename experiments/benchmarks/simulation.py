"""One synchronous iteration with W env runners, played event by event from the costs of its parts.

Nothing here measures or draws on its own: costs and generator come from outside, so every number can be worked out by
hand. The order of things is that of `rlprompt.algorithms.rllib.rollouts`: weights out, all write, all letters in, one
batch of target calls, answers out, all stabilise, episodes in, one update.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlprompt.types import FloatArray

WEIGHTS = "weights out"
WRITING = "env runners"
LETTERS = "letters and episodes"
CALLS = "driver's CPU for calls"
TARGET = "target"
REWARDS = "rewards"
LEARNER = "learner"
REST = "bookkeeping"
STAGES = (WEIGHTS, WRITING, LETTERS, CALLS, TARGET, REWARDS, LEARNER, REST)
"""What may be the slowest part; of a batch of calls either the driver's CPU or the target."""
EPOCHS = 2
"""Of the update that is measured."""


@dataclass(frozen=True)
class Costs:
    """Seconds of the parts; all but the first three are the driver's, one after another."""

    write_s: float
    """An env runner writes its share."""
    write_cv: float
    """Standard deviation over mean of that."""
    play_s: float
    """What else an env runner does with its share."""
    get_s: float
    """An env runner unpacks the weights that have arrived."""
    put_s: float
    """The weights are published, once an iteration."""
    weights_bytes: int
    message_s: float
    """Driver and mailbox, for one letter and its answer, or one order to play."""
    fetch_s: float
    """The episodes of a share."""
    call_s: float
    """CPU of one call over HTTP, its journal included."""
    score_s: float
    """What else a scored pair of prompt and example takes."""
    learn_s: float
    """The update, per prompt."""
    rest_s: float = 0.0
    """What else an iteration takes."""


@dataclass(frozen=True)
class Setting:
    """What is measured, and how often."""

    share: int
    examples: int
    concurrency: int
    latency_s: float
    iterations: int


@dataclass(frozen=True)
class Measured:
    """The costs, and what the sizes of larger models are worked out from."""

    costs: Costs
    parameters: int
    """Of the whole policy, frozen ones included."""
    context: int
    """Tokens that the policy reads."""
    written: int


@dataclass(frozen=True)
class Plan:
    """Sizes of a run, and what is assumed of network and target."""

    runners: int
    share: int
    """Prompts of one env runner in an iteration."""
    examples: int
    """Questions about each prompt."""
    concurrency: int
    """Calls that the target works on at a time."""
    latency_s: float
    """Mean of its answers."""
    latency_cv: float = 0.0
    """Standard deviation over mean; answers are log-normal."""
    runners_per_node: int = 16
    bytes_per_s: float = math.inf
    """Of the driver's network: every node gets a copy of the weights from it, one after another."""

    @property
    def prompts(self) -> int:
        """Of one iteration."""
        return self.runners * self.share


@dataclass(frozen=True)
class Outcome:
    """Where an iteration's time goes."""

    stages: dict[str, float]
    """Seconds, by what they wait for; they add up to the iteration."""
    samples_per_s: float

    @property
    def bottleneck(self) -> str:
        """What takes most of the time."""
        return max(self.stages, key=lambda name: self.stages[name])

    def share(self, stage: str) -> float:
        """Part of the iteration, from 0 to 1."""
        return self.stages[stage] / sum(self.stages.values())


def simulate(costs: Costs, plan: Plan, generator: np.random.Generator) -> Outcome:
    """Plays one iteration.

    Args:
        costs: of the parts.
        plan: the sizes.
        generator: draws the times of writing and of answers, where these vary.
    """
    starts = _starts(costs, plan)
    ready = starts + spread(costs.write_s, costs.write_cv, plan.runners, generator) + costs.play_s
    stages = dict.fromkeys(STAGES, 0.0)
    stages[WEIGHTS] = float(starts.max())
    stages[WRITING] = float(ready.max() - starts.max())
    # Letters that come while others still write are taken meanwhile; those for stabilised rewards come all at once.
    stages[LETTERS] = served(ready, costs.message_s) - float(ready.max())
    stages[LETTERS] += plan.runners * (costs.message_s + costs.fetch_s)
    pairs = plan.prompts * plan.examples
    latencies = spread(plan.latency_s, plan.latency_cv, pairs, generator)
    slower = CALLS if pairs * costs.call_s > target_bound(latencies, plan.concurrency) else TARGET
    stages[slower] = asked(latencies, plan.concurrency, costs.call_s)
    stages[REWARDS] = pairs * costs.score_s
    stages[LEARNER] = plan.prompts * costs.learn_s
    stages[REST] = costs.rest_s
    return Outcome(stages, plan.prompts / sum(stages.values()))


def _starts(costs: Costs, plan: Plan) -> FloatArray:
    """When each env runner has order and weights, (W,)."""
    index = np.arange(plan.runners)
    orders = (index + 1) * costs.message_s
    copies = (index // plan.runners_per_node + 1) * (costs.weights_bytes / plan.bytes_per_s)
    starts: FloatArray = costs.put_s + np.maximum(orders, copies) + costs.get_s
    return starts


def served(arrivals: FloatArray, seconds: float) -> float:
    """Returns when one server, who takes what arrives in turn, has done all of it.

    >>> served(np.array([5.0, 0.0, 0.5]), 1.0)  # 0 to 1, 1 to 2, 5 to 6
    6.0
    """
    free = 0.0
    for arrival in np.sort(arrivals).tolist():
        free = max(free, arrival) + seconds
    return free


def asked(latencies: Sequence[float] | FloatArray, concurrency: int, call_s: float) -> float:
    """Returns when the last of a batch of calls has been answered.

    Args:
        latencies: of the calls, in the order in which they are sent.
        concurrency: so many are on their way at most.
        call_s: the sender's CPU for each; it sends one after another.

    >>> asked([1.0, 1.0, 1.0], 2, 0.0), asked([1.0, 1.0, 1.0], 3, 0.5)
    (2.0, 2.5)
    """
    busy: list[float] = []
    sender = end = 0.0
    for latency in np.asarray(latencies).tolist():
        if len(busy) == concurrency:
            sender = max(sender, heapq.heappop(busy))
        sender += call_s
        heapq.heappush(busy, sender + latency)
        end = max(end, sender + latency)
    return end


def target_bound(latencies: FloatArray, concurrency: int) -> float:
    """Returns the seconds that a batch of calls takes at least, however fast the sender is.

    >>> target_bound(np.array([1.0, 1.0, 4.0]), 2), target_bound(np.array([2.0, 2.0, 2.0]), 2)
    (4.0, 3.0)
    """
    return max(float(latencies.sum()) / concurrency, float(latencies.max()))


def spread(mean: float, cv: float, count: int, generator: np.random.Generator) -> FloatArray:
    """Returns so many log-normal times of a mean and a coefficient of variation, (count,)."""
    if cv == 0 or mean == 0:
        return np.full(count, mean)
    variance = math.log1p(cv * cv)
    return generator.lognormal(math.log(mean) - variance / 2, math.sqrt(variance), count)
