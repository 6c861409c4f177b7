"""Rounds: the policy writes texts, the run's scorer scores them, and the policy learns from which are better.

One round is one iteration of the run. Texts, draws, masks and calls are those of the other algorithms; what is learnt
from the scored texts is the learner's business (`online_dpo`, `expert_iteration`). Where all rounds have the same
inputs, the newest texts and scores of each input are part of the checkpoint.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from rlprompt.algorithms.diagnostics import iteration_metrics
from rlprompt.algorithms.preference_rounds import (
    answer_of,
    disagreement,
    draw_items,
    inputs_of_round,
    known_scores,
    low_initial_reward,
    lowest_items,
    mean_scores,
    regret,
    same_inputs,
    top_items,
)
from rlprompt.algorithms.trl.common import Adam, begin, check_dropout, check_groups, surroundings
from rlprompt.algorithms.trl.dpo import text_logps
from rlprompt.algorithms.trl.model import PolicyModel
from rlprompt.algorithms.trl.rollout import Rollout, opened
from rlprompt.config import RunConfig
from rlprompt.envs.contexts import MetaContexts
from rlprompt.errors import CheckpointError, ConfigError, did_you_mean
from rlprompt.masks import NOT_WRITTEN, decode
from rlprompt.rewards.aggregate import best_of as expected_best
from rlprompt.seeding import generator
from rlprompt.types import Example, FloatArray, Json, RunContext, Scores

logger = logging.getLogger(__name__)

SCORED_AT_ONCE = 16
"""Texts whose log-probabilities are computed side by side."""


@dataclass
class Item:
    """One input with its newest texts, K of them."""

    place: int
    """Its number in the round that drew it; says which draws its texts have."""
    example: Example | None
    """None at task level."""
    context_ids: list[int] = field(default_factory=list)
    texts: list[list[int]] = field(default_factory=list)
    scores: FloatArray = field(default_factory=lambda: np.empty(0))
    """(K,), what pairs and picks; NaN where a text failed."""
    answers: list[str] = field(default_factory=list)
    """Of the target, those that failed left out."""
    first_mean: float = float("nan")
    """Mean score of the texts that the policy wrote before it learnt anything."""

    def to_json(self) -> Json:
        """Returns what a checkpoint keeps."""
        longest = max((len(text) for text in self.texts), default=0)
        rows = [[*text, *[NOT_WRITTEN] * (longest - len(text))] for text in self.texts]
        return {
            "example": None if self.example is None else self.example.id,
            "texts": np.array(rows, dtype=np.int64),
            "scores": self.scores,
            "answers": self.answers,
            "first_mean": self.first_mean,
        }


@dataclass(frozen=True)
class Parts:
    """What a learner works with."""

    rollout: Rollout
    model: PolicyModel
    adam: Adam
    folder: str
    """Temporary, for what a trainer insists on writing."""


class Learner(Protocol):
    """Learns from the scored texts of a round."""

    def __call__(self, number: int, items: Sequence[Item]) -> dict[str, float]:
        """Trains the policy in place.

        Args:
            number: the round.
            items: the inputs that take part, with their newest texts.

        Returns:
            The metrics of the round.
        """


def play(run: RunContext, make: Callable[[Parts], Learner]) -> None:
    """Plays rounds until the iterations, the budget or the user's patience end.

    Args:
        run: the run.
        make: builds the learner.

    Raises:
        ConfigError: a setting does not fit.
        BudgetExceededError: a round does not fit into the budget; nothing of it was spent.
    """
    config: RunConfig = run.config
    check(run)
    check_dropout(run)
    begun = begin(run)
    if begun is None:
        return
    start, state = begun
    with opened(run) as rollout, surroundings(run) as folder:
        model = rollout.model()
        adam = Adam(dict(model.trainable.named_parameters()), config.algorithm, state)
        rounds = Rounds(rollout, model)
        if state is not None:
            rounds.load_state_dict(state["rounds"])
        learn = make(Parts(rollout, model, adam, folder))
        for number in range(start, config.algorithm.iterations):
            if number > start and run.stop_reason() is not None:
                return
            began = time.perf_counter()
            metrics = rounds.write_and_score(number)
            learning = time.perf_counter()
            metrics |= learn(number, rounds.used)
            ended = time.perf_counter()
            spent = {**rollout.seconds, "learner": ended - learning, "iteration": ended - began}
            run.end_iteration(
                number,
                scores=rounds.scores,
                metrics=metrics | {f"time/{name}_s": seconds for name, seconds in spent.items()},
                state=lambda: {**adam.state_dict(), "rounds": rounds.state_dict()},
                training_rewards=rounds.rewards,
            )


def check(run: RunContext) -> None:
    """Refuses what rounds cannot work with.

    Raises:
        ConfigError: a setting does not fit.
    """
    config: RunConfig = run.config
    settings = config.algorithm
    check_groups(config)
    if same_inputs(settings) and not config.env.per_input:
        raise ConfigError(
            "algorithm.items and algorithm.regenerate choose among inputs, but this env writes one prompt for all of "
            "them; remove them, or set env.level=instance"
        )
    if settings.pair_by is not None:
        known = [component.name for component in run.scorer.rewards.components]
        if settings.pair_by not in known:
            raise ConfigError(
                f"algorithm.pair_by is '{settings.pair_by}', which is no reward of this run"
                f"{did_you_mean(settings.pair_by, known)}; add it to reward, with weight 0 to only pair by it"
            )
    if settings.items == "disagreement" and run.scorer.asks == "logprob":
        raise ConfigError(
            "algorithm.items is 'disagreement', but the target is asked for log-probabilities and gives no answers; "
            "take regret or low-initial-reward"
        )


class Rounds:
    """The inputs of the rounds with their newest texts and scores.

    Args:
        rollout: writes and scores.
        model: the policy, for the KL.
    """

    used: list[Item]
    """The inputs that take part in the newest round, as the next two."""
    scores: Scores
    rewards: FloatArray
    """What was learnt from, of every text that the round wrote; 0 where it failed."""

    def __init__(self, rollout: Rollout, model: PolicyModel) -> None:
        self._rollout, self._model = rollout, model
        self._config = rollout.config
        self._settings = rollout.config.algorithm
        self._items: list[Item] = []

    def write_and_score(self, number: int) -> dict[str, float]:
        """Chooses the inputs of a round, has texts written for them and scored; returns the metrics.

        Raises:
            BudgetExceededError: the calls do not fit into the budget.
        """
        self.used, fresh = self._choose(number)
        rollout, size = self._rollout, self._rollout.group_size
        chosen = [(item.place * size + turn, item.example) for item in fresh for turn in range(size)]
        read, written = rollout.write(number, chosen)
        prompts = [decode(rollout.policy.tokenizer, row) for row in written]
        before = rollout.run.scorer.target_seconds
        self.scores = rollout.ask(number, prompts)
        rollout.seconds["target"] = rollout.run.scorer.target_seconds - before
        values = self._values(prompts)
        self.rewards = np.nan_to_num(values)
        for place, item in enumerate(fresh):
            rows = slice(place * size, (place + 1) * size)
            self._renew(item, read[rows], written[rows], values[rows], self.scores.outputs[rows])
            if number == 0:
                item.first_mean = float(mean_scores(item.scores[None])[0])
        means = mean_scores(np.stack([item.scores for item in self.used]))
        return {
            **iteration_metrics(self.scores, self.rewards, None),
            "reward/items": float(np.nanmean(means)) if np.isfinite(means).any() else float("nan"),
            "items/used": float(len(self.used)),
            "items/regenerated": float(len(fresh)),
            "loss/kl": self._kl(read, written),
        }

    def state_dict(self) -> list[Json]:
        """Returns the inputs and their texts, where later rounds need them."""
        return [item.to_json() for item in self._items] if same_inputs(self._settings) else []

    def load_state_dict(self, state: list[Json]) -> None:
        """Restores what `state_dict` returned.

        Raises:
            CheckpointError: an example is not in train any more.
        """
        known = {example.id: example for example in self._rollout.run.scorer.task.train} if state else {}
        self._items = []
        for place, saved in enumerate(state):
            if saved["example"] not in known:
                raise CheckpointError(
                    f"the checkpoint has texts for the example '{saved['example']}', which train does not have; put "
                    "the data back, or start a new run"
                )
            item = Item(place, known[saved["example"]])
            item.context_ids = self._context(item.example)
            item.texts = [[token for token in row if token != NOT_WRITTEN] for row in saved["texts"].tolist()]
            item.scores, item.answers = np.array(saved["scores"]), list(saved["answers"])
            item.first_mean = float(saved["first_mean"])
            self._items.append(item)

    def _choose(self, number: int) -> tuple[list[Item], list[Item]]:
        """Returns the inputs of a round, and those of them that get new texts."""
        size = self._rollout.group_size
        if number == 0 or not same_inputs(self._settings):
            drawn = self._rollout.contexts.inputs(number, np.arange(self._config.env.num_envs))
            examples = [None] if drawn is None else drawn[::size]
            self._items = [Item(place, example) for place, example in enumerate(examples)]
            return self._items, self._items
        used, written = inputs_of_round(self._settings, len(self._items), number)
        taking_part = [self._items[place] for place in self._places(number, used)]
        means = mean_scores(np.stack([item.scores for item in taking_part]))
        return taking_part, [taking_part[place] for place in lowest_items(means, written)]

    def _places(self, number: int, count: int) -> Sequence[int]:
        items = self._items
        if self._settings.items == "all":
            return range(len(items))
        if self._settings.items == "regret":
            rng = generator(self._config.seed, "items", number)
            return draw_items(regret(np.stack([item.scores for item in items])), count, rng)
        if self._settings.items == "disagreement":
            return top_items(disagreement([item.answers for item in items]), count)
        return top_items(low_initial_reward(np.array([item.first_mean for item in items])), count)

    def _values(self, prompts: list[str]) -> FloatArray:
        """What pairs and picks, (P,): a component, or the reward; NaN for a text without a valid score."""
        scores, config = self.scores, self._config
        if self._settings.pair_by is not None:
            return mean_scores(scores.components[self._settings.pair_by])
        values = scores.mean_rewards
        if config.env.best_of is not None:
            values = expected_best(scores.rewards, scores.valid, config.env.best_of)
        return known_scores(values + self._rollout.keywords(prompts), scores.prompt_valid)

    def _renew(
        self, item: Item, read: list[list[int]], texts: list[list[int]], values: FloatArray, outputs: Sequence[Any]
    ) -> None:
        """Takes over new texts; texts that all failed leave those of an earlier round in their place."""
        if item.texts and np.isnan(values).all():
            return
        item.context_ids, item.texts, item.scores = read[0], texts, values
        answers = [answer_of(output) for row in outputs for output in row]
        item.answers = [answer for answer in answers if answer is not None]

    def _context(self, example: Example | None) -> list[int]:
        contexts = self._rollout.contexts
        if isinstance(contexts, MetaContexts):
            return contexts.one(example)[1]
        return list(self._rollout.policy.context_ids(contexts.text))

    def _kl(self, read: list[list[int]], written: list[list[int]]) -> float:
        """KL(policy || reference) in nats per text, estimated by the texts that the policy has just written."""
        rows = list(zip(read, written, strict=True))
        own, start = (
            text_logps(model, rows, SCORED_AT_ONCE) for model in (self._model, self._rollout.model(reference=True))
        )
        return float(np.mean(np.array(own) - np.array(start)))
