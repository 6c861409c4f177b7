"""Trains a success model on logged outcomes, and says how good it is on inputs and on prompts that it never saw.

Which classifier is taken is decided by cross-validation on the inputs that it learns from; see `train_success_model`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlprompt.errors import ConfigError
from rlprompt.rewards.encoder import DEFAULT_ENCODER, Encoder
from rlprompt.rewards.learned.ranking import (
    HeldOutRanking,
    Selection,
    measure_ranking,
    measure_selection,
)
from rlprompt.rewards.learned.success_fit import CANDIDATES, Triples, fit_classifier, probabilities
from rlprompt.rewards.learned.success_model import Embedder, SuccessModel
from rlprompt.seeding import generator
from rlprompt.types import BoolArray, FloatArray, IntArray

_FOLDS = 4


@dataclass(frozen=True, slots=True)
class LoggedOutcome:
    """Whether the target was right once, when it was asked about an input with a prompt."""

    input: str
    prompt: str
    right: bool


@dataclass(frozen=True)
class SuccessTraining:
    """A trained success model and how good it is. The numbers are of models that never saw the held-out part."""

    model: SuccessModel
    """Fitted on triples of all inputs and prompts."""
    by_input: HeldOutRanking
    """On inputs that it never saw, with known prompts."""
    by_prompt: HeldOutRanking | None
    """On prompts that it never saw, with known inputs; None with a single prompt."""
    selection: Selection | None
    """The best logged prompt for each held-out input, against the best fixed one; None where that cannot be told."""
    chosen: str
    """The classifier that cross-validation chose."""
    validation: dict[str, float]
    """Mean log loss of every classifier in cross-validation, in nats."""
    num_triples: int
    """That the saved model learnt from."""


def train_success_model(
    outcomes: Sequence[LoggedOutcome],
    folder: str | Path | None = None,
    *,
    encoder: str | Embedder = DEFAULT_ENCODER,
    held_out: float = 0.2,
    seed: int = 0,
    limit: int | None = 10_000,
    classifiers: Sequence[str] = tuple(CANDIDATES),
    resamples: int = 1000,
    device: str = "auto",
) -> SuccessTraining:
    """Trains a success model on logged (input, prompt, outcome) triples; the target is never asked.

    A share of the inputs is held out. Cross-validation on the others, in folds without a common input, chooses the
    classifier with the smallest log loss. It is fitted on them and measured on the held-out inputs. In the same way it
    is fitted and measured with a share of the prompts held out; the choice of the classifier has seen those. What is
    saved is fitted on triples of all inputs and prompts.

    Args:
        outcomes: at least two inputs, of both outcomes; see `rlprompt.runs.outcomes` for those of earlier runs.
        folder: where the model is saved; None keeps it in memory.
        encoder: makes the embeddings, or its name (see `rlprompt.rewards.encoder`).
        held_out: share of the inputs, and of the prompts, that is held out, between 0 and 1.
        seed: of all draws.
        limit: at most so many triples are learnt from, drawn by the seed; None takes all. All are measured.
        classifiers: what cross-validation chooses from, see `rlprompt.rewards.learned.success_fit`.
        resamples: of the bootstrap.
        device: of the encoder.

    Raises:
        ConfigError: too few triples, only one outcome, or an argument out of range.
    """
    _check(outcomes, held_out, limit, classifiers)
    embed = Encoder(encoder, device=device) if isinstance(encoder, str) else encoder
    logs = _Logs(*_embedded(outcomes, embed), limit, seed)
    outside = logs.held_out(logs.inputs, held_out, "held-out-inputs")
    within = logs.learnt(~outside)
    validation = _cross_validate(logs.triples.part(within), logs.inputs[within], classifiers, seed)
    chosen = min(classifiers, key=lambda name: validation[name])
    by_input, selection = _on_new_inputs(logs, chosen, outside, resamples)
    by_prompt = _on_new_prompts(logs, chosen, held_out, resamples)
    everything = np.ones(len(outcomes), dtype=np.bool_)
    count = int(logs.learnt(everything).sum())
    facts = {
        "triples": count,
        "inputs": int(logs.inputs.max()) + 1,
        "prompts": int(logs.prompts.max()) + 1,
        "seed": seed,
        "chosen": chosen,
        "validation": validation,
        "by_input": by_input.to_json(),
        "by_prompt": None if by_prompt is None else by_prompt.to_json(),
        "selection": None if selection is None else selection.to_json(),
    }
    model = SuccessModel(embed, CANDIDATES[chosen].kind, logs.fitted(everything, chosen), facts)
    if folder is not None:
        model.save(folder)
    return SuccessTraining(model, by_input, by_prompt, selection, chosen, validation, count)


@dataclass(frozen=True)
class _Logs:
    """The triples, with what limits those that are learnt from. Rows are chosen by booleans over all triples."""

    triples: Triples
    inputs: IntArray
    """Number of each triple's input, from 0."""
    prompts: IntArray
    limit: int | None
    seed: int

    def learnt(self, rows: BoolArray) -> BoolArray:
        """Returns which of some rows are learnt from: at most `limit`."""
        places = np.flatnonzero(rows)
        if self.limit is None or len(places) <= self.limit:
            return rows
        kept = np.zeros_like(rows)
        kept[places[generator(self.seed, "success-limit").permutation(len(places))[: self.limit]]] = True
        return kept

    def fitted(self, rows: BoolArray, classifier: str) -> dict[str, Any]:
        """Returns a classifier fitted on some rows, as tensors."""
        return fit_classifier(classifier, self.triples.part(self.learnt(rows)), self.seed)

    def predicted(self, rows: BoolArray, classifier: str) -> FloatArray:
        """Returns the probabilities of some rows, of a classifier fitted on the others."""
        return probabilities(self.triples.part(rows), classifier, self.fitted(~rows, classifier))

    def held_out(self, groups: IntArray, share: float, stream: str) -> BoolArray:
        """Returns the rows of a drawn share of the groups: at least one group, and not all."""
        count = int(groups.max()) + 1
        chosen = np.zeros(count, dtype=np.bool_)
        held = min(max(1, round(share * count)), count - 1)
        chosen[generator(self.seed, stream).permutation(count)[:held]] = True
        return chosen[groups]


def _on_new_inputs(
    logs: _Logs, classifier: str, outside: BoolArray, resamples: int
) -> tuple[HeldOutRanking, Selection | None]:
    right, inputs = logs.triples.right, logs.inputs
    scores = logs.predicted(outside, classifier)
    ranking = measure_ranking(right[outside], scores, inputs[outside], inputs[outside], logs.seed, resamples)
    return ranking, measure_selection(right, scores, inputs, logs.prompts, outside, logs.seed, resamples)


def _on_new_prompts(logs: _Logs, classifier: str, held_out: float, resamples: int) -> HeldOutRanking | None:
    if logs.prompts.max() == 0:
        return None
    unseen = logs.held_out(logs.prompts, held_out, "held-out-prompts")
    scores = logs.predicted(unseen, classifier)
    right, inputs, prompts = logs.triples.right, logs.inputs, logs.prompts
    return measure_ranking(right[unseen], scores, prompts[unseen], inputs[unseen], logs.seed, resamples)


def _check(outcomes: Sequence[LoggedOutcome], held_out: float, limit: int | None, classifiers: Sequence[str]) -> None:
    if not 0 < held_out < 1:
        raise ConfigError(f"held_out must be between 0 and 1, got {held_out}")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit must be at least 1, got {limit}")
    for name in classifiers:
        if name not in CANDIDATES:
            raise ConfigError(f"unknown classifier '{name}'; use some of {', '.join(CANDIDATES)}")
    if not classifiers:
        raise ConfigError(f"there is no classifier to choose from; name some of {', '.join(CANDIDATES)}")
    if not outcomes:
        raise ConfigError("there are no outcomes to learn from; give runs whose target has answered")
    if len({outcome.right for outcome in outcomes}) < 2:
        known = "right" if outcomes[0].right else "wrong"
        raise ConfigError(f"all {len(outcomes)} outcomes are {known}; a success model needs some of each")


def _embedded(outcomes: Sequence[LoggedOutcome], embed: Embedder) -> tuple[Triples, IntArray, IntArray]:
    """Returns the triples with embeddings, and the number of each one's input and prompt, from 0 in sorted order."""
    inputs, prompts = sorted({o.input for o in outcomes}), sorted({o.prompt for o in outcomes})
    if len(inputs) < 2:
        raise ConfigError("all outcomes are of one input; a success model needs several, or there is none to hold out")
    place = {text: index for index, text in enumerate(inputs)}
    prompt_place = {text: index for index, text in enumerate(prompts)}
    first = np.array([place[o.input] for o in outcomes], dtype=np.int64)
    second = np.array([prompt_place[o.prompt] for o in outcomes], dtype=np.int64)
    right = np.array([o.right for o in outcomes], dtype=np.bool_)
    triples = Triples(np.asarray(embed(inputs)), np.asarray(embed(prompts)), first, second, right)
    return triples, first, second


def _cross_validate(triples: Triples, groups: IntArray, classifiers: Sequence[str], seed: int) -> dict[str, float]:
    """Returns the mean log loss of each classifier on folds whose inputs it did not see."""
    different = np.unique(groups)
    folds = min(_FOLDS, len(different))
    order = generator(seed, "success-folds").permutation(len(different))
    if folds < 2:  # one input to learn from: nothing to choose by
        return dict.fromkeys(classifiers, math.log(2))
    of_group = dict(zip(different[order].tolist(), (np.arange(len(different)) % folds).tolist(), strict=True))
    fold = np.array([of_group[group] for group in groups.tolist()])
    losses: dict[str, float] = {}
    for name in classifiers:
        total = 0.0
        for number in range(folds):
            outside = fold == number
            tensors: dict[str, Any] = fit_classifier(name, triples.part(~outside), seed)
            total += float(triples.part(outside).losses(CANDIDATES[name].kind, tensors).sum())
        losses[name] = total / len(groups)
    return losses
