"""The classifiers that a success model may be, and how they are fitted to embedded triples."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from rlprompt.rewards.learned.success_model import logits_of, pair_features, sigmoid
from rlprompt.seeding import generator
from rlprompt.types import BoolArray, FloatArray, IntArray

_HIDDEN = 32
_EPOCHS = 20
_BATCH = 128
_LR = 1e-3
_DECAY = 0.1


@dataclass(frozen=True)
class Candidate:
    """A classifier with its regularisation."""

    kind: str
    """"logistic" or "mlp"."""
    regularisation: float = 1.0
    """Logistic regression: scikit-learn's C; smaller keeps the weights smaller."""


CANDIDATES = {
    "logistic-0.0001": Candidate("logistic", 1e-4),
    "logistic-0.001": Candidate("logistic", 1e-3),
    "logistic-0.01": Candidate("logistic", 1e-2),
    "logistic-0.1": Candidate("logistic", 1e-1),
    "mlp": Candidate("mlp"),
}
"""By name; of equal ones the first is taken, which is the simplest."""


@dataclass(frozen=True)
class Triples:
    """N (input, prompt, outcome) triples over tables of embeddings."""

    inputs: npt.NDArray[np.float32]
    """(I, D)."""
    prompts: npt.NDArray[np.float32]
    """(P, D)."""
    first: IntArray
    """Row of the input, (N,)."""
    second: IntArray
    """Row of the prompt, (N,)."""
    right: BoolArray
    """(N,)."""

    def part(self, rows: BoolArray) -> Triples:
        """Returns some of the triples, by a mask (N,)."""
        return replace(self, first=self.first[rows], second=self.second[rows], right=self.right[rows])

    def features(self) -> FloatArray:
        """Returns the features, (N, F)."""
        return pair_features(self.inputs[self.first], self.prompts[self.second])

    def logits(self, kind: str, tensors: dict[str, FloatArray]) -> FloatArray:
        """Returns the log-odds of success under a fitted classifier, (N,)."""
        return logits_of(kind, tensors, self.inputs[self.first], self.prompts[self.second])

    def losses(self, kind: str, tensors: dict[str, FloatArray]) -> FloatArray:
        """Returns -log of the probability of what happened, (N,), in nats."""
        signs = np.where(self.right, 1.0, -1.0)
        return np.asarray(np.logaddexp(0.0, -signs * self.logits(kind, tensors)))


def fit_classifier(name: str, triples: Triples, seed: int) -> dict[str, FloatArray]:
    """Fits one of `CANDIDATES`; returns its tensors (see `rlprompt.rewards.learned.success_model.SHAPES`).

    Features are standardised by what is fitted on. With only one outcome, the result is a constant.
    """
    candidate = CANDIDATES[name]
    features = triples.features()
    mean, scale = features.mean(axis=0), features.std(axis=0)
    scale = np.where(scale > 1e-12, scale, 1.0)
    z = (features - mean) / scale
    shared = {"mean": mean, "scale": scale}
    if triples.right.all() or not triples.right.any():
        return {**shared, **_constant(candidate.kind, triples.right, z.shape[1])}
    if candidate.kind == "mlp":
        return {**shared, **_fit_mlp(z, triples.right, seed)}
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=candidate.regularisation, max_iter=1000)
    model.fit(z, triples.right)
    return {**shared, "weight": np.array(model.coef_[0]), "bias": np.array(model.intercept_)}


def _constant(kind: str, right: BoolArray, size: int) -> dict[str, FloatArray]:
    """One success and one failure are added, so that the log-odds stay finite."""
    bias = np.array([np.log((right.sum() + 1) / ((~right).sum() + 1))])
    if kind == "logistic":
        return {"weight": np.zeros(size), "bias": bias}
    hidden = {"hidden_weight": np.zeros((_HIDDEN, size)), "hidden_bias": np.zeros(_HIDDEN)}
    return {**hidden, "weight": np.zeros(_HIDDEN), "bias": bias}


def _fit_mlp(z: FloatArray, right: BoolArray, seed: int) -> dict[str, FloatArray]:
    """AdamW on minibatches; start and order are keyed by the seed."""
    import torch

    size = z.shape[1]
    rng = generator(seed, "success-mlp")
    start = {
        "hidden_weight": rng.normal(0.0, size**-0.5, size=(_HIDDEN, size)),
        "hidden_bias": np.zeros(_HIDDEN),
        "weight": rng.normal(0.0, _HIDDEN**-0.5, size=_HIDDEN),
        "bias": np.zeros(1),
    }
    own = {name: torch.tensor(value, dtype=torch.float32, requires_grad=True) for name, value in start.items()}
    features, labels = torch.tensor(z, dtype=torch.float32), torch.tensor(right, dtype=torch.float32)
    optimizer = torch.optim.AdamW(own.values(), lr=_LR, weight_decay=_DECAY)
    for epoch in range(_EPOCHS):
        order = torch.from_numpy(generator(seed, "success-mlp-order", epoch).permutation(len(z)))
        for first in range(0, len(z), _BATCH):
            batch = order[first : first + _BATCH]
            hidden = torch.tanh(features[batch] @ own["hidden_weight"].T + own["hidden_bias"])
            logits = hidden @ own["weight"] + own["bias"]
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # untyped there
            optimizer.step()
    return {name: value.detach().double().numpy() for name, value in own.items()}


def probabilities(triples: Triples, name: str, tensors: dict[str, FloatArray]) -> FloatArray:
    """Returns the probability of success of N triples, (N,)."""
    return sigmoid(triples.logits(CANDIDATES[name].kind, tensors))
