"""A success model: the probability that a prompt makes the target right on an input, from their embeddings alone.

It is learnt offline from logged (input, prompt, outcome) triples, and then ranks prompts for an input without asking
the target. Trained by `rlprompt.rewards.learned.success_training`.

Reference: Prompt-OIRL, Sun et al. 2023, arXiv:2309.06553, which takes gradient-boosted trees on the two embeddings side
by side; here their product and difference are added, and the classifier is logistic regression or a small network.

Shapes: N pairs, I inputs, P prompts, D of an embedding, F = 4 D features, H hidden units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from rlprompt.errors import CheckpointError, ConfigError
from rlprompt.rewards.encoder import Encoder
from rlprompt.rewards.learned import files
from rlprompt.types import FloatArray, Json, TargetOutput

DESCRIPTION = "success-model.json"
WEIGHTS = "success-model.safetensors"
WHAT = "success model"
SHAPES: dict[str, dict[str, tuple[str, ...]]] = {
    "logistic": {"mean": ("F",), "scale": ("F",), "weight": ("F",), "bias": ("1",)},
    "mlp": {
        **{"mean": ("F",), "scale": ("F",)},
        **{"hidden_weight": ("H", "F"), "hidden_bias": ("H",), "weight": ("H",), "bias": ("1",)},
    },
}
"""The tensors of each kind of classifier."""
_BLOCK = 1024
"""Rows whose features are held at once."""
_OWN = ("format_version", "kind", "encoder", "classifier", "files")


class Embedder(Protocol):
    """What makes embeddings."""

    name: str

    def __call__(self, texts: Sequence[str]) -> Any:
        """Returns the embeddings of N texts, (N, D)."""


class SuccessModel:
    """P(right | input, prompt).

    Args:
        encoder: makes the embeddings.
        classifier: "logistic" (w . z + b) or "mlp" (w . tanh(V z + c) + b), with z the standardised features.
        tensors: of that classifier, see `SHAPES`.
        facts: what is known about it beside that, as JSON values.

    Raises:
        ConfigError: an unknown classifier, or tensors that do not fit it.
    """

    def __init__(
        self, encoder: Embedder, classifier: str, tensors: Mapping[str, FloatArray], facts: Json | None = None
    ) -> None:
        if classifier not in SHAPES:
            raise ConfigError(f"a success model is one of {', '.join(SHAPES)}, got '{classifier}'")
        _check_shapes(classifier, tensors)
        self.encoder = encoder
        self.classifier = classifier
        self.tensors = {name: np.asarray(value, dtype=np.float64) for name, value in tensors.items()}
        self.facts = dict(facts or {})

    def probabilities(self, inputs: Sequence[str], prompts: Sequence[str]) -> FloatArray:
        """Returns the probability of success of N (input, prompt) pairs, (N,)."""
        if len(inputs) != len(prompts):
            raise ConfigError(f"one prompt for each input is wanted, got {len(inputs)} inputs, {len(prompts)} prompts")
        if not len(inputs):
            return np.zeros(0)
        return sigmoid(logits_of(self.classifier, self.tensors, self.encoder(inputs), self.encoder(prompts)))

    def rank(self, inputs: Sequence[str], prompts: Sequence[str]) -> FloatArray:
        """Returns the probability of success of every prompt on every input, (I, P); the target is not asked."""
        pairs = [(text, prompt) for text in inputs for prompt in prompts]
        flat = self.probabilities([text for text, _ in pairs], [prompt for _, prompt in pairs])
        return flat.reshape(len(inputs), len(prompts))

    def best_of(self, inputs: Sequence[str], prompts: Sequence[str]) -> list[str]:
        """Returns the best of N prompts for each input; of equal ones the first.

        Raises:
            ConfigError: there are no prompts.
        """
        if not prompts:
            raise ConfigError("there is no prompt to choose from; give at least one")
        return [prompts[index] for index in self.rank(inputs, prompts).argmax(axis=1)]

    def save(self, folder: str | Path) -> None:
        """Writes the model into a folder; raises RunError where that fails."""
        from safetensors.numpy import save

        values = {"kind": "success", "encoder": self.encoder.name, "classifier": self.classifier, **self.facts}
        files.save_folder(folder, DESCRIPTION, values, {WEIGHTS: save(self.tensors)})

    @classmethod
    def load(cls, folder: str | Path, *, encoder: str | Embedder | None = None, device: str = "auto") -> SuccessModel:
        """Reads what `save` wrote.

        Args:
            folder: where it is.
            encoder: the encoder or its name, where it is not the saved one (the same model in another place).
            device: of the encoder: "auto", "cpu", "cuda", ...

        Raises:
            ConfigError: no success model is there.
            CheckpointError: a file is damaged, or the encoder has embeddings of another size.
            ModelNotFoundError: the encoder is not here.
        """
        values, contents = files.read_folder(folder, DESCRIPTION, WHAT)
        where = str(Path(folder) / DESCRIPTION)
        classifier = files.field(values, "classifier", str, where)
        named = files.field(values, "encoder", str, where)
        tensors = files.tensors_of(contents.get(WEIGHTS, b""), str(Path(folder) / WEIGHTS))
        chosen = named if encoder is None else encoder
        made = Encoder(chosen, device=device) if isinstance(chosen, str) else chosen
        facts = {key: value for key, value in values.items() if key not in _OWN}
        try:
            model = cls(made, classifier, {name: value.double().numpy() for name, value in tensors.items()}, facts)
        except ConfigError as error:
            raise CheckpointError(f"{folder}: {error}; train it again") from error
        features = 4 * np.asarray(made(["size"])).shape[1]
        if features != len(model.tensors["mean"]):
            raise CheckpointError(
                f"{folder} was trained on embeddings of size {len(model.tensors['mean']) // 4}, encoder '{made.name}' "
                f"has {features // 4}; give the encoder that it was trained with"
            )
        return model


def logits_of(classifier: str, tensors: Mapping[str, FloatArray], inputs: Any, prompts: Any) -> FloatArray:
    """Returns the log-odds of success, (N,), for embeddings of N inputs and N prompts, (N, D) each."""
    blocks = [
        _logits(classifier, tensors, pair_features(inputs[start : start + _BLOCK], prompts[start : start + _BLOCK]))
        for start in range(0, len(inputs), _BLOCK)
    ]
    return np.concatenate(blocks) if blocks else np.zeros(0)


def _logits(classifier: str, tensors: Mapping[str, FloatArray], features: FloatArray) -> FloatArray:
    """Row by row: a product of matrices may round a row differently with other rows beside it."""
    z = (features - tensors["mean"]) / tensors["scale"]
    if classifier == "mlp":
        units = [
            np.tanh((z * weight).sum(axis=1) + bias)
            for weight, bias in zip(tensors["hidden_weight"], tensors["hidden_bias"], strict=True)
        ]
        z = np.stack(units, axis=1)
    return np.asarray((z * tensors["weight"]).sum(axis=1) + tensors["bias"][0])


def pair_features(inputs: Any, prompts: Any) -> FloatArray:
    """Returns [x, p, x p, x - p] of embeddings x and p, (N, D) each, as (N, 4 D).

    A classifier that is linear in x and p alone would rank the prompts alike for every input; the product is what lets
    it prefer one prompt here and another there.
    """
    x, p = np.asarray(inputs, dtype=np.float64), np.asarray(prompts, dtype=np.float64)
    return np.concatenate([x, p, x * p, x - p], axis=1)


def sigmoid(logits: FloatArray) -> FloatArray:
    """Returns 1 / (1 + exp(-logits)), without overflow.

    >>> sigmoid(np.array([-1000.0, 0.0, 1000.0])).tolist()
    [0.0, 0.5, 1.0]
    """
    small = np.exp(-np.abs(logits))
    return np.asarray(np.where(logits >= 0, 1 / (1 + small), small / (1 + small)))


def _check_shapes(classifier: str, tensors: Mapping[str, Any]) -> None:
    wanted = SHAPES[classifier]
    if set(tensors) != set(wanted):
        wrong = ", ".join(sorted(set(tensors) ^ set(wanted)))
        raise ConfigError(f"a {classifier} success model has other tensors: {wrong} missing or not expected")
    sizes: dict[str, int] = {"1": 1}
    for name, letters in wanted.items():
        shape = tensors[name].shape
        fits = len(shape) == len(letters)
        fits = fits and all(sizes.setdefault(key, size) == size for key, size in zip(letters, shape, strict=True))
        if not fits:
            raise ConfigError(f"a {classifier} success model cannot have {name} of the shape {tuple(shape)}")


class SuccessModelReward:
    """The predicted probability that the written prompt makes the target right on the example's input, in (0, 1).

    What the target answered is not looked at.

    Args:
        model: the folder of a success model.
        encoder: name of its encoder, where it is not found under the saved name.
        log_odds: log(p / (1 - p)) instead of p: unbounded, and it does not flatten out where p is near 0 or 1.
        device: of the encoder: "auto", "cpu", "cuda", ...

    Raises:
        ConfigError: no success model is there.
        CheckpointError: a damaged one.
        ModelNotFoundError: its encoder is not here.
    """

    needs: ClassVar[str] = "any"
    gold_not_ordered: ClassVar[bool] = True

    def __init__(self, model: str, *, encoder: str | None = None, log_odds: bool = False, device: str = "auto") -> None:
        self.model = SuccessModel.load(Path(model).expanduser(), encoder=encoder, device=device)
        self.log_odds = log_odds

    def __call__(
        self, *, completions: Sequence[str], outputs: Sequence[TargetOutput], **columns: Any
    ) -> list[float | None]:
        """Scores N samples.

        Raises:
            ValueError: the task has no inputs.
        """
        if "input" not in columns:
            raise ValueError(f"the task has no column 'input'; it has {', '.join(columns)}")
        probabilities = self.model.probabilities([str(text) for text in columns["input"]], list(completions))
        if not self.log_odds:
            return [float(value) for value in probabilities]
        held = np.clip(probabilities, 1e-9, 1 - 1e-9)
        return [float(value) for value in np.log(held) - np.log1p(-held)]
