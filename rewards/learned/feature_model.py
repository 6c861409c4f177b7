"""Bradley-Terry on named features: r(x) is a weighted sum of features that a person can read.

Reference: Nath et al. 2024, arXiv:2402.15473, whose reward model knows domain features and needs 940 preferences. There
a small network combines the features; here each has one weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from rlprompt.errors import CheckpointError, ConfigError
from rlprompt.preference_pairs import PreferencePair
from rlprompt.rewards.learned.bradley_terry import PairAccuracy, fit_bradley_terry, model_accuracy
from rlprompt.rewards.learned.features import DEFAULT_FEATURES, Feature, compute_features, load_features
from rlprompt.rewards.learned.files import field, read_folder, save_folder
from rlprompt.rewards.learned.pairs import hold_out, what_is_read
from rlprompt.rewards.learned.reading import LearnedReward
from rlprompt.types import FloatArray, Json

DESCRIPTION = "feature-model.json"
WHAT = "feature model"


@dataclass(frozen=True)
class Weighted:
    """One feature in the sum: weight * (value - mean) / scale."""

    name: str
    weight: float
    """Of the standardised feature: sizes can be compared."""
    mean: float
    """Over the texts of the pairs that it learnt from."""
    scale: float
    """Standard deviation there; 1 where the feature was constant, its weight is then 0."""


class FeatureModel:
    """r(x) = sum over the features of weight * (value - mean) / scale; 0 is an average text.

    Args:
        weights: one for each feature.
        features: what computes them, in the same order.
        reads: what the texts were written for: "input" or "context".
        facts: what is known about it beside that, as JSON values.
    """

    def __init__(
        self, weights: Sequence[Weighted], features: Sequence[Feature], *, reads: str, facts: Json | None = None
    ) -> None:
        self.weights = tuple(weights)
        self.features = tuple(features)
        self.reads = reads
        self.facts = dict(facts or {})

    def score(self, contexts: Sequence[str], texts: Sequence[str]) -> FloatArray:
        """Returns the reward of N texts, each for its own context, (N,).

        Raises:
            ConfigError: a feature raised, or returned something else than numbers.
        """
        if not texts:
            return np.zeros(0)
        values = compute_features([entry.name for entry in self.weights], self.features, contexts, texts)
        parts = [
            entry.weight * (values[:, index] - entry.mean) / entry.scale for index, entry in enumerate(self.weights)
        ]
        # Added one after the other: a product of matrices may round a row differently with other rows beside it.
        return np.asarray(sum(parts[1:], start=parts[0]))

    def save(self, folder: str | Path) -> None:
        """Writes the model into a folder, as JSON; raises RunError where that fails."""
        features = [
            {"name": entry.name, "weight": entry.weight, "mean": entry.mean, "scale": entry.scale}
            for entry in self.weights
        ]
        save_folder(folder, DESCRIPTION, {"kind": "features", "reads": self.reads, "features": features, **self.facts})

    @classmethod
    def load(
        cls, folder: str | Path, *, allow_modules: Sequence[str] = (), search_path: str | Path | None = None
    ) -> FeatureModel:
        """Reads what `save` wrote.

        Args:
            folder: where it is.
            allow_modules: modules that features of the form my_module:my_feature may come from.
            search_path: a folder whose modules are allowed too.

        Raises:
            ConfigError: nothing is there, or it has features of one's own that are not allowed here.
            CheckpointError: the file is damaged.
        """
        values, _ = read_folder(folder, DESCRIPTION, WHAT)
        where = str(Path(folder) / DESCRIPTION)
        reads = field(values, "reads", str, where)
        weights = [_weighted(entry, where) for entry in field(values, "features", list, where)]
        names = [entry.name for entry in weights]
        features = load_features(names, allow_modules=allow_modules, search_path=search_path)
        facts = {key: value for key, value in values.items() if key not in _OWN}
        return cls(weights, features, reads=reads, facts=facts)


_OWN = ("format_version", "kind", "reads", "features", "files")


@dataclass(frozen=True)
class FeatureTraining:
    """A trained feature model and how good it is."""

    model: FeatureModel
    held_out: PairAccuracy
    num_pairs: int
    """That it learnt from."""


def train_feature_model(
    pairs: Sequence[PreferencePair],
    folder: str | Path | None = None,
    *,
    features: Sequence[str] = DEFAULT_FEATURES,
    held_out: float = 0.2,
    seed: int = 0,
    regularisation: float = 1.0,
    allow_modules: Sequence[str] = (),
    search_path: str | Path | None = None,
) -> FeatureTraining:
    """Fits the weights of named features to preference pairs; see `fit_bradley_terry`.

    Args:
        pairs: that all read an input, or all a context; their weights count, their margins do not.
        folder: where the model is saved; None keeps it in memory.
        features: names; see `load_features`.
        held_out: share of the contexts whose pairs are kept for the accuracy.
        seed: of that draw.
        regularisation: C, above 0: larger fits closer.
        allow_modules: modules that features of the form my_module:my_feature may come from.
        search_path: a folder whose modules are allowed too.

    Raises:
        ConfigError: pairs, features or an argument that cannot be used.
    """
    reads = what_is_read(pairs)
    computed = load_features(features, allow_modules=allow_modules, search_path=search_path)
    learnt, rest = hold_out(pairs, held_out, seed)
    contexts = [pair.reading for pair in learnt]
    chosen = compute_features(features, computed, contexts, [pair.chosen for pair in learnt])
    rejected = compute_features(features, computed, contexts, [pair.rejected for pair in learnt])
    both = np.concatenate([chosen, rejected])
    mean, spread = both.mean(axis=0), both.std(axis=0)
    constant = np.ptp(both, axis=0) == 0
    scale = np.where(constant, 1.0, spread)
    differences = np.where(constant, 0.0, (chosen - rejected) / scale)
    if not differences.any():
        raise ConfigError(f"no feature differs within any pair, of {', '.join(features)}; name others")
    weights = fit_bradley_terry(differences, np.array([pair.weight for pair in learnt]), regularisation)
    entries = [
        Weighted(name, float(weights[index]), float(mean[index]), float(scale[index]))
        for index, name in enumerate(features)
    ]
    model = FeatureModel(entries, computed, reads=reads)
    accuracy = model_accuracy(model, rest)
    model.facts = {
        "regularisation": regularisation,
        "seed": seed,
        "pairs": len(learnt),
        "held_out": accuracy.to_json(),
    }
    if folder is not None:
        model.save(folder)
    return FeatureTraining(model, accuracy, len(learnt))


class FeatureModelReward(LearnedReward):
    """The reward of a text under a saved feature model; higher is better, 0 is an average text.

    Args:
        model: its folder.
        of: "prompt" (what the policy wrote) or "output" (what the target answered).
        allow_modules: modules that its features may come from; filled in by rlprompt.
        search_path: the folder of the user's configuration; filled in by rlprompt.

    Raises:
        ConfigError: no feature model, or one with code that is not allowed.
        CheckpointError: a damaged one.
    """

    resolves_code: ClassVar[bool] = True

    def __init__(
        self,
        model: str,
        of: str = "prompt",
        *,
        allow_modules: Sequence[str] = (),
        search_path: str | Path | None = None,
    ) -> None:
        loaded = FeatureModel.load(model, allow_modules=allow_modules, search_path=search_path)
        super().__init__("feature-model", loaded, of, loaded.reads)


def _weighted(entry: Any, where: str) -> Weighted:
    try:
        if not isinstance(entry, Mapping):
            raise TypeError("a feature is no object")
        made = Weighted(str(entry["name"]), *(float(entry[key]) for key in ("weight", "mean", "scale")))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: a feature lacks name, weight, mean or scale; train it again") from error
    if not np.isfinite([made.weight, made.mean, made.scale]).all() or made.scale <= 0:
        raise CheckpointError(f"{where}: the numbers of '{made.name}' cannot be; train it again")
    return made
