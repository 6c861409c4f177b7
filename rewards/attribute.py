"""The probability that a text has an attribute, judged by a classifier: style, sentiment, topic, acceptability."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from rlprompt.errors import ConfigError, ModelNotFoundError, did_you_mean
from rlprompt.model_files import quiet
from rlprompt.rewards.classifier import SETTINGS, SentenceClassifier
from rlprompt.types import FloatArray, TargetOutput

_ROWS = (4, 32)
"""Least and most rows of a batch: one of fewer than four rows may differ from larger ones in the last bits."""
_BUCKET = 16


class Attribute:
    """Probability of a label for a text, in [0, 1], or the classifier's decision.

    Of a model with several independent labels (`problem_type: multi_label_classification`) each has its own
    probability. A model with a single output has no probabilities: its raw output is the reward (a reward model).
    Each text is computed once; its value does not depend on its neighbours. A text of white space only is judged
    like any other.

    Args:
        model: the folder of a `SentenceClassifier`, or a sequence-classification model of transformers: a local
            folder or a hub id.
        label: the label's name, or its index.
        of: "output" (what the target wrote) or "prompt" (what the policy wrote).
        decide: 1.0 where the label is the most probable one (of several independent ones: above 0.5), else 0.0.
        revision: of a hub id.
        device: "auto", "cpu", "cuda", ...
        max_tokens: a longer text is judged by its first so many tokens.

    Raises:
        ConfigError: an unknown label, or an argument out of range.
        ModelNotFoundError: not found, or no classifier.
    """

    gold_not_ordered: ClassVar[bool] = True

    def __init__(
        self,
        model: str,
        label: str | int,
        of: str = "output",
        *,
        decide: bool = False,
        revision: str | None = None,
        device: str = "auto",
        max_tokens: int = 256,
    ) -> None:
        if of not in ("output", "prompt"):
            raise ConfigError(f"attribute: of must be output or prompt, got {of!r}")
        if max_tokens < 8:
            raise ConfigError(f"attribute: max_tokens must be at least 8, got {max_tokens}")
        self.of = of
        self.needs = "text" if of == "output" else "any"
        self._classifier: SentenceClassifier | TransformersClassifier
        if (Path(model).expanduser() / SETTINGS).is_file():
            self._classifier = SentenceClassifier.load(Path(model).expanduser(), device=device)
        else:
            self._classifier = TransformersClassifier(model, revision=revision, device=device, max_tokens=max_tokens)
        self.label = _index(label, self._classifier.labels)
        self.decide = decide
        if decide and len(self._classifier.labels) == 1:
            raise ConfigError(f"attribute: '{model}' has a single output and decides nothing; remove decide")
        self._known: dict[str, float] = {}

    def __call__(
        self, *, completions: Sequence[str], outputs: Sequence[TargetOutput], **columns: Any
    ) -> list[float | None]:
        """Scores N pairs by `completions` or the text of `outputs`."""
        texts = list(completions) if self.of == "prompt" else [output.text for output in outputs]
        new = [text for text in dict.fromkeys(texts) if text is not None and text not in self._known]
        if new:
            self._known.update(zip(new, self._values(self._classifier(new)), strict=True))
        return [None if text is None else self._known[text] for text in texts]

    def _values(self, probabilities: FloatArray) -> list[float]:
        if not self.decide:
            return [float(value) for value in probabilities[:, self.label]]
        if self._classifier.independent:
            return [float(value > 0.5) for value in probabilities[:, self.label]]
        return [float(row.argmax() == self.label) for row in probabilities]


class TransformersClassifier:
    """A frozen sequence-classification model.

    Args:
        model: a local folder or a hub id.
        revision: of a hub id.
        device: "auto", "cpu", "cuda", ...
        max_tokens: a longer text is judged by its first so many tokens.
    """

    def __init__(self, model: str, *, revision: str | None, device: str, max_tokens: int) -> None:
        from rlprompt import models

        reference = models.resolve_model(model, revision)
        if reference.source == "generated":
            raise ConfigError(f"attribute: '{model}' is no classifier; give a folder or a hub id")
        self._model = _load_classifier(model, reference.path).to(models.pick_device(device))
        self._tokenizer: Any = models.load_tokenizer(model, revision)
        if self._tokenizer.pad_token is None:
            raise ConfigError(f"attribute: the tokenizer of '{model}' has no padding token; use another model")
        config = self._model.config
        positions = getattr(config, "max_position_embeddings", None) or max_tokens
        # RoBERTa's positions begin behind the padding id.
        spare = (config.pad_token_id or 0) + 1 if config.model_type in ("roberta", "xlm-roberta", "camembert") else 0
        self._max_tokens = min(max_tokens, int(positions) - spare)
        self.labels = tuple(str(config.id2label[index]) for index in range(config.num_labels))
        self.independent = config.problem_type == "multi_label_classification"

    def __call__(self, texts: Sequence[str]) -> FloatArray:
        """Returns the probability of each label, (N, labels); the raw output of a model with a single one."""
        ids = self._tokenizer(list(texts), truncation=True, max_length=self._max_tokens)["input_ids"]
        buckets: dict[int, list[int]] = {}
        for index, row in enumerate(ids):
            length = min(-(-max(1, len(row)) // _BUCKET) * _BUCKET, self._max_tokens)
            buckets.setdefault(length, []).append(index)
        found = np.zeros((len(texts), len(self.labels)))
        for length, entries in sorted(buckets.items()):
            for first in range(0, len(entries), _ROWS[1]):
                batch = entries[first : first + _ROWS[1]]
                found[batch] = self._forward([texts[index] for index in batch], length)
        return found

    def _forward(self, texts: list[str], length: int) -> FloatArray:
        import torch

        filled = texts + [texts[0]] * max(0, _ROWS[0] - len(texts))
        features = self._tokenizer(
            filled, truncation=True, max_length=length, padding="max_length", return_tensors="pt"
        )
        with torch.inference_mode():
            logits = self._model(**{key: value.to(self._model.device) for key, value in features.items()}).logits
            logits = logits[: len(texts)].double().cpu()
            if self.independent:
                logits = logits.sigmoid()
            elif len(self.labels) > 1:
                logits = logits.softmax(dim=1)
        return np.asarray(logits.numpy(), dtype=np.float64)


def _load_classifier(name: str, path: str) -> Any:
    import torch
    from transformers import AutoModelForSequenceClassification

    try:
        with quiet():
            model, loaded = AutoModelForSequenceClassification.from_pretrained(
                path, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelNotFoundError(f"attribute: classifier '{name}' cannot be loaded: {reason}") from error
    if loaded["missing_keys"]:
        # transformers fills a missing head with random numbers and goes on.
        absent = ", ".join(sorted(loaded["missing_keys"])[:3])
        raise ModelNotFoundError(f"attribute: '{name}' has no trained classifier (no {absent}); use one that has")
    return model.eval().requires_grad_(False)


def _index(label: str | int, labels: Sequence[str]) -> int:
    if isinstance(label, int) and not isinstance(label, bool):
        if not 0 <= label < len(labels):
            raise ConfigError(f"attribute: label {label} is out of range; there are {len(labels)}: {', '.join(labels)}")
        return label
    if label not in labels:
        raise ConfigError(f"attribute: unknown label {label!r}{did_you_mean(str(label), labels)}")
    return labels.index(label)
