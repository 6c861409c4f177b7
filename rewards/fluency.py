"""How natural a text reads to a language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from rlprompt.errors import ConfigError
from rlprompt.types import TargetOutput

_ROWS = (4, 32)
"""Least and most rows of a batch: one of fewer than four rows may differ from larger ones in the last bits."""
_TOKENS_PER_BATCH = 1024
_BUCKET = 8


class Fluency:
    """Mean log-likelihood per token of a text under a named frozen LM, in nats, at most 0.

    The text stands after the LM's BOS token (or EOS, where it has no BOS), so that its first token counts as well.
    It abstains on a text without tokens. Each text is computed once; its value does not depend on its neighbours.

    Args:
        model: name of a causal LM (see `rlprompt.models.resolve_model`).
        of: "prompt" (what the policy wrote) or "output" (what the target wrote).
        revision: revision of the model.
        dtype: "auto", "float32", "bfloat16" or "float16".
        device: "auto", "cpu", "cuda", ...
        max_tokens: a longer text is judged by its first so many tokens.
    """

    gold_not_ordered: ClassVar[bool] = True

    def __init__(
        self,
        model: str = "smollm2-135m-instruct",
        of: str = "prompt",
        *,
        revision: str | None = None,
        dtype: str = "auto",
        device: str = "auto",
        max_tokens: int = 256,
    ) -> None:
        if of not in ("prompt", "output"):
            raise ConfigError(f"fluency: of must be prompt or output, got {of!r}")
        if max_tokens < 1:
            raise ConfigError(f"fluency: max_tokens must be at least 1, got {max_tokens}")
        from rlprompt import models

        self.of = of
        self.needs = "any" if of == "prompt" else "text"
        self.max_tokens = max_tokens
        self._tokenizer: Any = models.load_tokenizer(model, revision)
        self._model: Any = models.load_frozen(model, revision=revision, dtype=dtype, device=device)
        bos, eos = self._tokenizer.bos_token_id, self._tokenizer.eos_token_id
        if bos is None and eos is None:
            raise ConfigError(f"fluency: the tokenizer of '{model}' has neither BOS nor EOS; use another model")
        self._start: int = eos if bos is None else bos
        self._positions = int(getattr(self._model.config, "max_position_embeddings", max_tokens))
        self._known: dict[str, float | None] = {}

    def __call__(
        self, *, completions: Sequence[str], outputs: Sequence[TargetOutput], **columns: Any
    ) -> list[float | None]:
        """Scores N pairs by `completions` or the text of `outputs`."""
        texts = list(completions) if self.of == "prompt" else [output.text for output in outputs]
        self._compute([text for text in dict.fromkeys(texts) if text is not None and text not in self._known])
        return [None if text is None else self._known[text] for text in texts]

    def _compute(self, texts: Sequence[str]) -> None:
        """Computes texts that are new, in batches of one padded length."""
        buckets: dict[int, list[tuple[str, list[int]]]] = {}
        for text in texts:
            tokens = [int(token) for token in self._tokenizer.encode(text, add_special_tokens=False)]
            tokens = tokens[: min(self.max_tokens, self._positions)]
            self._known[text] = None
            if tokens:
                length = min(-(-len(tokens) // _BUCKET) * _BUCKET, self._positions)
                buckets.setdefault(length, []).append((text, tokens))
        for length, entries in sorted(buckets.items()):
            rows = min(max(_TOKENS_PER_BATCH // length, _ROWS[0]), _ROWS[1])
            for first in range(0, len(entries), rows):
                batch = entries[first : first + rows]
                means = self._mean_log_likelihoods([tokens for _, tokens in batch], length)
                self._known.update(zip((text for text, _ in batch), means, strict=True))

    def _mean_log_likelihoods(self, rows: list[list[int]], length: int) -> list[float]:
        """Mean log-likelihood per token of each row, padded on the right to `length` tokens."""
        import torch

        filled = rows + [rows[0]] * max(0, _ROWS[0] - len(rows))
        device = next(self._model.parameters()).device
        tokens = torch.tensor([row + [self._start] * (length - len(row)) for row in filled])
        written = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in filled])
        # Position t of the LM's input predicts token t; causal attention keeps the padding out of what counts.
        inputs = torch.cat([torch.full((len(filled), 1), self._start), tokens[:, :-1]], dim=1)
        inputs, tokens = inputs.to(device), tokens.to(device)
        with torch.inference_mode():
            output = self._model(input_ids=inputs, attention_mask=torch.ones_like(inputs), use_cache=False)
            logits = output.logits.float()  # (rows, length, V)
            chosen = logits.gather(2, tokens[..., None])[..., 0]
            logprobs = (chosen - logits.logsumexp(dim=2)).double().cpu() * written
        return [float(value) for value in (logprobs.sum(dim=1) / written.sum(dim=1))[: len(rows)]]
