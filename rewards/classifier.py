"""A classifier that is trained here: sentence embeddings and logistic regression, kept as safetensors and JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlprompt.errors import CheckpointError, ConfigError, RunError
from rlprompt.rewards.encoder import DEFAULT_ENCODER, Encoder
from rlprompt.tasks.sources import permutation
from rlprompt.types import Example, FloatArray, IntArray

if TYPE_CHECKING:
    from rlprompt.tasks import Task

SETTINGS = "classifier.json"
WEIGHTS = "classifier.safetensors"
_FORMAT = 1


class SentenceClassifier:
    """Softmax regression on the sentence embedding of a text.

    Args:
        encoder: makes the embeddings, (N, D).
        weights: (K, D), one row per label.
        bias: (K,).
        labels: names, in the order of the rows.
        facts: what is known about it beside that, as JSON values: rows, held-out accuracy, ...

    Raises:
        ConfigError: shapes that do not fit each other.
    """

    independent = False

    def __init__(
        self,
        encoder: Encoder,
        weights: FloatArray,
        bias: FloatArray,
        labels: Sequence[str],
        facts: dict[str, Any] | None = None,
    ) -> None:
        if weights.ndim != 2 or bias.shape != (len(weights),) or len(labels) != len(weights):
            raise ConfigError(
                f"a classifier takes weights (K, D), bias (K,) and K labels, got {weights.shape}, {bias.shape} and "
                f"{len(labels)}"
            )
        self.encoder = encoder
        self.weights = weights
        self.bias = bias
        self.labels = tuple(labels)
        self.facts = dict(facts or {})

    def __call__(self, texts: Sequence[str]) -> FloatArray:
        """Returns the probability of each label, (N, K)."""
        embedded = self.encoder(texts).astype(np.float64)
        # Row by row: a product of matrices may round a row differently with other rows beside it.
        logits = np.stack([self.weights @ row + self.bias for row in embedded]) if len(texts) else np.zeros((0, 1))
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))

    def accuracy(self, examples: Sequence[Example]) -> float:
        """Returns the share of examples whose label is the most probable one."""
        chosen = self([example.input for example in examples]).argmax(axis=1)
        return float(np.mean([label == example.reference for label, example in zip(chosen, examples, strict=True)]))

    def save(self, folder: str | Path) -> None:
        """Writes the classifier into a folder; the settings last, so a folder that has them is complete.

        Raises:
            RunError: the folder cannot be written.
        """
        from safetensors.numpy import save_file

        place = Path(folder)
        settings = {
            "format_version": _FORMAT,
            "encoder": self.encoder.name,
            "labels": list(self.labels),
            **self.facts,
        }
        try:
            place.mkdir(parents=True, exist_ok=True)
            (place / SETTINGS).unlink(missing_ok=True)
            save_file({"weights": self.weights, "bias": self.bias}, str(place / WEIGHTS))
            made = place / f"{SETTINGS}.tmp"
            made.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            os.replace(made, place / SETTINGS)
        except OSError as error:
            raise RunError(f"cannot write a classifier into {place}: {error.strerror or error}; free it") from error

    @classmethod
    def load(cls, folder: str | Path, *, device: str = "auto") -> SentenceClassifier:
        """Reads what `save` wrote.

        Raises:
            CheckpointError: files that are missing, damaged or of another version.
            ModelNotFoundError: its encoder is not here.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        place = Path(folder)
        try:
            settings = json.loads((place / SETTINGS).read_text(encoding="utf-8"))
            tensors = load_file(str(place / WEIGHTS))
            if settings.pop("format_version") != _FORMAT:
                raise CheckpointError(f"{place / SETTINGS} has another format_version than {_FORMAT}; train it again")
            encoder, labels = settings.pop("encoder"), settings.pop("labels")
            weights, bias = tensors["weights"].astype(np.float64), tensors["bias"].astype(np.float64)
        except (OSError, ValueError, KeyError, AttributeError, SafetensorError) as error:
            raise CheckpointError(f"{place} holds no classifier that can be read: {error!r}; train it again") from error
        return cls(Encoder(str(encoder), device=device), weights, bias, [str(label) for label in labels], settings)


@dataclass(frozen=True)
class AttributeTraining:
    """A trained classifier and how good it is."""

    classifier: SentenceClassifier
    accuracy: float
    """On the held-out split."""
    majority: float
    """Share of the most frequent label there: what a constant answer would reach."""
    train_rows: int
    held_out_rows: int


def train_attribute_classifier(
    task: Task,
    folder: str | Path | None = None,
    *,
    encoder: str = DEFAULT_ENCODER,
    labels: Sequence[str] | None = None,
    part: tuple[int, int] = (0, 1),
    limit: int | None = None,
    held_out: str = "dev",
    regularisation: float = 1.0,
    device: str = "auto",
) -> AttributeTraining:
    """Trains a classifier of a task's inputs on its train split.

    The result is the same on every run: the rows come in a fixed order, and the solver starts at zero. Two disjoint
    classifiers, one for the reward and one to report with, are trained with `part=(0, 2)` and `part=(1, 2)`.

    Args:
        task: a task with choices.
        folder: where it is saved; None keeps it in memory.
        encoder: name of the sentence encoder (see `rlprompt.rewards.encoder`).
        labels: names of the labels; the task's choices without white space by default.
        part: (k, n): of every n train rows (in a fixed shuffled order) the k-th, from 0.
        limit: at most so many rows of that part.
        held_out: the split whose accuracy is reported, "dev" or "test".
        regularisation: scikit-learn's C, above 0: larger fits closer.
        device: "auto", "cpu", "cuda", ...

    Raises:
        ConfigError: a task without choices, or an argument that does not fit.
    """
    from sklearn.linear_model import LogisticRegression

    names = _label_names(labels, task)
    _check_training(part, held_out, regularisation)
    # Files are often sorted by class; the order is fixed.
    rows = [task.train[index] for index in permutation(len(task.train), "attribute")][part[0] :: part[1]][:limit]
    answers = _label_numbers(rows)
    if len(set(answers.tolist())) < len(names):
        raise ConfigError(f"the {len(rows)} rows to train on lack a label; take more of them")
    embed = Encoder(encoder, device=device)
    model = LogisticRegression(C=regularisation, max_iter=1000)
    model.fit(embed([row.input for row in rows]).astype(np.float64), answers)
    weights, bias = _one_row_per_label(model)
    rest = task.dev if held_out == "dev" else task.test
    counts = np.bincount(_label_numbers(rest), minlength=len(names))
    classifier = SentenceClassifier(embed, weights, bias, names)
    accuracy = classifier.accuracy(rest)
    classifier.facts = {
        "task": task.name,
        "train_rows": len(rows),
        "part": list(part),
        "held_out": held_out,
        "held_out_rows": len(rest),
        "held_out_accuracy": accuracy,
    }
    if folder is not None:
        classifier.save(folder)
    return AttributeTraining(classifier, accuracy, float(counts.max() / len(rest)), len(rows), len(rest))


def _check_training(part: tuple[int, int], held_out: str, regularisation: float) -> None:
    if held_out not in ("dev", "test"):
        raise ConfigError(f"held_out must be dev or test, got {held_out!r}")
    if not 0 <= part[0] < part[1]:
        raise ConfigError(f"part must be (k, n) with 0 <= k < n, got {part}")
    if not regularisation > 0:
        raise ConfigError(f"regularisation must be above 0, got {regularisation}")


def _label_numbers(rows: Sequence[Example]) -> IntArray:
    return np.array([int(row.reference or 0) for row in rows], dtype=np.int64)


def _label_names(labels: Sequence[str] | None, task: Task) -> tuple[str, ...]:
    if task.choices is None:
        raise ConfigError(f"task '{task.name}' has no labels to learn; use a task with choices")
    names = tuple(labels) if labels is not None else tuple(choice.strip() for choice in task.choices)
    if len(names) != len(task.choices):
        raise ConfigError(f"labels: {len(names)} names for {len(task.choices)} choices; give one for each")
    return names


def _one_row_per_label(model: Any) -> tuple[FloatArray, FloatArray]:
    """Weights (K, D) and bias (K,); of two labels scikit-learn keeps one row, the logit of the second."""
    weights = np.asarray(model.coef_, dtype=np.float64)
    bias = np.asarray(model.intercept_, dtype=np.float64)
    if len(weights) == 1:
        weights, bias = np.concatenate([np.zeros_like(weights), weights]), np.concatenate([np.zeros(1), bias])
    return np.ascontiguousarray(weights), bias
