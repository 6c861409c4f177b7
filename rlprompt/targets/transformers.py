"""Frozen models that run on this machine through transformers: causal, masked and encoder-decoder."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch

from rlprompt.errors import ConfigError, did_you_mean
from rlprompt.models import Head, load_config, load_frozen, load_tokenizer, pick_device, pick_dtype, resolve_model
from rlprompt.targets.encoding import Encoded, TextEncoder
from rlprompt.targets.generation import CausalWriter, Writing, end_tokens
from rlprompt.targets.masked import MaskedRow, MaskedScorer, masked_row
from rlprompt.targets.prefix import CausalScorer, Row
from rlprompt.targets.seq2seq import Seq2SeqRow, Seq2SeqScorer
from rlprompt.types import Failure, Json, Rendered, TargetOutput, TargetRequest

HEADS = ("auto", "causal", "masked", "seq2seq")
_CPU_BATCH_TOKENS = 512
_ACCELERATOR_BATCH_TOKENS = 16384
_OFFSET_POSITIONS = frozenset({"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm"})
"""Models that count positions from the id of their padding token + 1."""

_AnyRow: TypeAlias = Row | MaskedRow | Seq2SeqRow


@dataclass(frozen=True, slots=True)
class _Question:
    """A request that is answered by scoring rows: one row for all answers, or one per answer."""

    rows: tuple[_AnyRow, ...]
    places: tuple[tuple[int, int], ...]
    """For each answer its (row, answer in that row)."""
    prompt_tokens: int
    completion_tokens: int


class TransformersTarget:
    """A frozen model as a target.

    Choices. Each text is tokenised once, as a whole, and each choice on its own; the choice's tokens are appended. If
    all choices have one token, their probabilities are the softmax over just these tokens of the prediction. If any
    has more, every choice gets the sum of its tokens' log-probabilities over the vocabulary, and these are normalised
    over the choices. Masked models: see `rlprompt.targets.masked`. Numbers do not depend on which other requests are
    in the call.

    Args:
        name: installed package, folder, hub id or `planted-N`, as in `rlprompt.models`.
        dtype: "auto", "float32", "bfloat16" or "float16".
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        revision: of a hub id.
        head: "causal", "masked", "seq2seq", or "auto" for the one in the model's configuration.
        kv_cache_bytes: most bytes of shared prefixes kept between calls (causal models).
        batch_tokens: most tokens in one forward pass; None chooses 512 on a CPU, 16384 elsewhere.
        max_length: most tokens that the model reads; None takes it from the model's configuration. Longer requests
            fail, nothing is cut.

    Raises:
        ModelNotFoundError: the model is not found or cannot be loaded.
        ConfigError: an argument does not fit.
    """

    def __init__(
        self,
        name: str,
        *,
        dtype: str = "auto",
        device: str = "auto",
        revision: str | None = None,
        head: str = "auto",
        kv_cache_bytes: int = 2 * 1024**3,
        batch_tokens: int | None = None,
        max_length: int | None = None,
    ) -> None:
        if head not in HEADS:
            raise ConfigError(f"unknown head '{head}'{did_you_mean(head, HEADS)}")
        _check_number("kv_cache_bytes", kv_cache_bytes, 0)
        _check_number("batch_tokens", batch_tokens, 1)
        _check_number("max_length", max_length, 1)
        where = pick_device(device)
        number = pick_dtype(dtype, where)
        config = load_config(name, revision)
        self.head: Head = _head_of(config) if head == "auto" else head  # type: ignore[assignment]  # "auto" is gone
        self.tokenizer = load_tokenizer(name, revision)
        self.model: Any = load_frozen(name, revision=revision, dtype=dtype, device=device, head=self.head)
        self.max_length = _max_length(config, self.head) if max_length is None else max_length
        self._encoder = TextEncoder(self.tokenizer)
        self._lock = threading.Lock()
        self._requests = 0
        if batch_tokens is None:
            batch_tokens = _CPU_BATCH_TOKENS if where.type == "cpu" else _ACCELERATOR_BATCH_TOKENS
        self._scorer = self._make_scorer(batch_tokens, kv_cache_bytes)
        self._eos = end_tokens(self.model, self.tokenizer)
        self._writer: CausalWriter | Seq2SeqScorer | None = None
        if isinstance(self._scorer, CausalScorer):
            self._writer = CausalWriter(self._scorer, batch_tokens)
        elif isinstance(self._scorer, Seq2SeqScorer):
            self._writer = self._scorer
        reference = resolve_model(name, revision)
        self._identity: Json = {
            "kind": "transformers",
            "model": name if reference.source != "folder" else reference.sha256,
            "revision": reference.revision,
            "sha256": reference.sha256,
            "dtype": str(number).removeprefix("torch."),
            "device": where.type,
            "head": self.head,
            "max_length": self.max_length,
        }

    @property
    def identity(self) -> Json:
        """Model, revision, hash of its files, number type, kind of device, head and length limit."""
        return dict(self._identity)

    def run(self, requests: Sequence[TargetRequest]) -> list[TargetOutput]:
        """Answers all requests in one batched call, in order.

        Raises:
            ConfigError: a request that this model can never answer (messages without a chat template, generation by
                a masked model, a choice without tokens), or not enough memory for a batch.
        """
        with self._lock:  # the output layer holds what a pass asks for
            self._requests += len(requests)
            try:
                return self._run(requests)
            except torch.OutOfMemoryError as error:
                raise ConfigError(
                    "the device has too little memory for this target; lower target.kwargs.batch_tokens or "
                    "target.kwargs.kv_cache_bytes"
                ) from error

    def count_tokens(self, requests: Sequence[TargetRequest]) -> list[int]:
        """Returns the prompt tokens plus the tokens of the choices or continuation, or `max_tokens`."""
        with self._lock:
            counts = []
            for request, encoded in zip(requests, self._encode(requests), strict=True):
                if isinstance(encoded, Failure):
                    counts.append(0)
                    continue
                answers = self._answers(request)
                extra = _answer_tokens(answers) if answers else request.max_tokens
                # A masked text may gain a mask, and one per token of a choice.
                masks = len(answers) + 2 if self.head == "masked" else 0
                counts.append(len(encoded.tokens) + extra + masks)
            return counts

    def stats(self) -> Json:
        """Returns what was computed.

        `tokens_computed` counts padding and filled rows too. `perfect_tokens` is what a prefix cache that forgets
        nothing and pads nothing would compute: the size of the token trie over all rows ever asked (models without
        shared prefixes: the tokens of the different rows of each call). Generation is counted apart.
        """
        scorer = self._scorer
        found: Json = {"requests": self._requests, "tokens_computed": scorer.tokens_computed}
        if isinstance(scorer, CausalScorer):
            found["perfect_tokens"] = len(scorer.trie)
            found["prefix_hits"] = scorer.prefix_hits
            found["prefix_misses"] = scorer.prefix_misses
            found["kv_bytes"] = scorer.store.used_bytes
        else:
            found["perfect_tokens"] = scorer.perfect_tokens
        if isinstance(self._writer, CausalWriter):
            found["generation_tokens_computed"] = self._writer.tokens_computed
        return found

    def _make_scorer(self, batch_tokens: int, kv_cache_bytes: int) -> CausalScorer | MaskedScorer | Seq2SeqScorer:
        if self.head == "causal":
            return CausalScorer(
                self.model,
                kv_cache_bytes=kv_cache_bytes,
                batch_tokens=batch_tokens,
                max_length=self.max_length,
            )
        pad = self.tokenizer.pad_token_id
        pad = int(pad if pad is not None else self.model.config.pad_token_id or 0)
        if self.head == "seq2seq":
            return Seq2SeqScorer(self.model, pad=pad, batch_tokens=batch_tokens, max_length=self.max_length)
        if self.tokenizer.mask_token is None:
            raise ConfigError("this model's tokenizer has no mask token; use head=causal or another model")
        return MaskedScorer(self.model, pad=pad, batch_tokens=batch_tokens, max_length=self.max_length)

    def _run(self, requests: Sequence[TargetRequest]) -> list[TargetOutput]:
        outputs: list[TargetOutput | None] = [None] * len(requests)
        questions: dict[int, _Question] = {}
        writings: dict[int, Writing] = {}
        for index, (request, encoded) in enumerate(zip(requests, self._encode(requests), strict=True)):
            prepared = self._prepare(request, encoded)
            if isinstance(prepared, Failure):
                outputs[index] = TargetOutput(failure=prepared)
            elif isinstance(prepared, Writing):
                writings[index] = prepared
            else:
                questions[index] = prepared
        rows = [row for question in questions.values() for row in question.rows]
        scores = iter(self._scorer.score(rows)) if rows else iter(())  # type: ignore[arg-type]  # rows are of the head's kind
        for index, question in questions.items():
            values = [next(scores) for _ in question.rows]
            numbers = np.array([values[row][place] for row, place in question.places])
            outputs[index] = _scored(requests[index], question, numbers)
        if self._writer is not None and writings:
            self._writer.write(list(writings.values()))
            for index, writing in writings.items():
                outputs[index] = _written(writing)
        return [output for output in outputs if output is not None]

    def _encode(self, requests: Sequence[TargetRequest]) -> list[Encoded | Failure]:
        return self._encoder.encode([self._readable(request.rendered) for request in requests])

    def _readable(self, rendered: Rendered) -> Rendered:
        if self.head == "masked" and rendered.messages is not None:
            raise ConfigError("a masked model reads plain text; use a plain text template, not messages")
        return rendered

    def _answers(self, request: TargetRequest) -> tuple[tuple[int, ...], ...]:
        texts = request.choices if request.continuation is None else (request.continuation,)
        return tuple(self._encoder.continuation(text) for text in texts or ())

    def _prepare(self, request: TargetRequest, encoded: Encoded | Failure) -> _Question | Writing | Failure:
        if isinstance(encoded, Failure):
            return encoded
        if request.choices is None and request.continuation is None:
            return self._writing(request, encoded)
        if not request.choices and request.continuation is None:
            raise ConfigError("a request for choices names none; give the task at least one choice")
        answers = self._answers(request)
        if self.head == "masked":
            question = self._masked_question(request, answers)
        elif self.head == "seq2seq":
            question = _seq2seq_question(encoded, answers)
        else:
            question = _causal_question(encoded, answers, request.continuation is not None)
        if isinstance(question, Failure):
            return question
        longest = max(len(row.tokens) for row in question.rows)
        return self._too_long(longest) or question

    def _writing(self, request: TargetRequest, encoded: Encoded) -> Writing | Failure:
        if self.head == "masked":
            raise ConfigError("a masked model cannot generate text; use a task with choices or another target")
        if request.temperature < 0 or not math.isfinite(request.temperature):
            raise ConfigError(f"temperature must be 0 or more, got {request.temperature}")
        read = len(encoded.tokens) + (request.max_tokens if self.head == "causal" else 0)
        return self._too_long(read) or Writing(request, encoded.tokens, self.tokenizer, self._eos, encoded.split)

    def _masked_question(self, request: TargetRequest, answers: tuple[tuple[int, ...], ...]) -> _Question | Failure:
        full = request.continuation is not None or any(len(answer) > 1 for answer in answers)
        widths = sorted({len(answer) for answer in answers})
        text, rows = request.rendered.text or "", []
        for width in widths:
            same = tuple(dict.fromkeys(answer for answer in answers if len(answer) == width))
            row = masked_row(self.tokenizer, text, same, full=full)
            if isinstance(row, Failure):
                return row
            rows.append(row)
        places = [
            (widths.index(len(answer)), rows[widths.index(len(answer))].answers.index(answer)) for answer in answers
        ]
        return _Question(tuple(rows), tuple(places), len(rows[0].tokens), _answer_tokens(answers))

    def _too_long(self, tokens: int) -> Failure | None:
        if self.max_length is None or tokens <= self.max_length:
            return None
        return Failure("target", "too-long", f"{tokens} tokens, but the model reads at most {self.max_length}")


def _causal_question(encoded: Encoded, answers: tuple[tuple[int, ...], ...], is_continuation: bool) -> _Question:
    tokens = encoded.tokens
    splits = (encoded.split,) if encoded.split else ()
    places: tuple[tuple[int, int], ...]
    if not is_continuation and all(len(answer) == 1 for answer in answers):
        rows: tuple[Row, ...] = (Row(tokens, splits, answers, full=False),)
        places = tuple((0, index) for index in range(len(answers)))
    else:
        # All but the text's last token is shared by its answers, and computed once for them.
        shared = len(tokens) - 1
        if len(answers) > 1 and shared > encoded.split:
            splits = (*splits, shared)
        rows = tuple(Row(tokens + answer[:-1], splits, (answer,), full=True) for answer in answers)
        places = tuple((index, 0) for index in range(len(answers)))
    return _Question(rows, places, len(tokens), _answer_tokens(answers))


def _seq2seq_question(encoded: Encoded, answers: tuple[tuple[int, ...], ...]) -> _Question:
    places = tuple((0, index) for index in range(len(answers)))
    return _Question((Seq2SeqRow(encoded.tokens, answers),), places, len(encoded.tokens), _answer_tokens(answers))


def _answer_tokens(answers: tuple[tuple[int, ...], ...]) -> int:
    """Tokens to book for scored answers: one prediction if all have one token, else every token."""
    return 1 if all(len(answer) == 1 for answer in answers) else sum(map(len, answers))


def _scored(request: TargetRequest, question: _Question, numbers: np.ndarray) -> TargetOutput:
    output = TargetOutput(prompt_tokens=question.prompt_tokens, completion_tokens=question.completion_tokens)
    if not np.isfinite(numbers).all():
        return replace(output, failure=Failure("target", "nan", f"the model's scores are not finite: {numbers}"))
    if request.continuation is not None:
        return replace(output, logprob=float(numbers[0]))
    shifted = numbers - numbers.max()
    logprobs = shifted - np.log(np.exp(shifted).sum())
    return replace(output, choice_logprobs=tuple(float(value) for value in logprobs))


def _written(writing: Writing) -> TargetOutput:
    output = TargetOutput(prompt_tokens=len(writing.tokens), completion_tokens=len(writing.ids))
    if not writing.valid:
        return replace(output, failure=Failure("target", "nan", "the model's predictions are not finite"))
    return replace(output, text=writing.text)


def _head_of(config: Any) -> Head:
    """The head that a model was saved with."""
    if getattr(config, "is_encoder_decoder", False):
        return "seq2seq"
    architecture = (getattr(config, "architectures", None) or [""])[0]
    return "masked" if architecture.endswith(("ForMaskedLM", "ForPreTraining")) else "causal"


def _max_length(config: Any, head: Head) -> int | None:
    """Most positions of a model; None where positions are relative or the configuration does not say."""
    inner = config.get_text_config(decoder=head == "causal")
    limit = getattr(inner, "max_position_embeddings", None)
    if limit is None or int(limit) <= 0:
        return None
    if inner.model_type in _OFFSET_POSITIONS:
        return int(limit) - int(inner.pad_token_id) - 1
    return int(limit)


def _check_number(name: str, value: Any, least: int) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
        raise ConfigError(f"target.kwargs.{name} must be a whole number of at least {least}, got {value!r}")
