"""A target with a known optimum, for tests, benches and ablations: no language model, only a landscape.

It reads the words w00, w01, ... in the request's text as the prompt x_1 ... x_n and "item 17" as the example.
The quality f(x) in [0, 1] comes from one of four landscapes over the first L words, o_t being the planted word
at position t (1 to L) and [.] being 1 if true, else 0:

- separable: f = sum_t a_t [x_t = o_t], with seeded weights a_t in (0.5, 1.5) / sum.
- chained:   f = sum_t a_t [x_1 = o_1] ... [x_t = o_t]: a word counts only if all before it are right.
- deceptive: f = 1 if all words are right, else (0.4 right + 0.7 decoys) / L, where each position has a decoy
             word: every single step towards the decoys pays more than one towards the optimum, and ends at 0.7.
- pairs:     f = sum_t b_t j(t, t+1) over neighbours: j is 1 with both words right, 0.2 with one, 0 with none;
             seeded weights b_t. Most of a word's worth depends on its neighbour.

Example e has a seeded difficulty d_e in [0.1, 0.9] and scale s_e in [2, 20] (log-uniform), and the
log-probability of the right choice is log sigmoid(s_e (f - d_e)): examples differ in level and in spread, so
that a raw mean is dominated by a few of them. The best prompt is right on every example, the empty one on none.
"""

from __future__ import annotations

import math
import re
import time
import zlib
from collections.abc import Sequence

import numpy as np

from rlprompt.errors import ConfigError, UnknownNameError
from rlprompt.seeding import generator
from rlprompt.tasks.planted import CHOICES, planted_label
from rlprompt.types import Failure, FloatArray, IntArray, Json, TargetOutput, TargetRequest

LANDSCAPES = ("separable", "chained", "deceptive", "pairs")
_WORD = re.compile(r"\bw(\d{2,})\b")
_ITEM = re.compile(r"\bitem (\d+)\b")
_HALF_PAIR = 0.2
_DECOY_LEVEL = 0.7
_RIGHT_LEVEL = 0.4


class PlantedTarget:
    """A deterministic target whose best prompt is known.

    An answer depends only on its own request and on the arguments, never on the batch, the process or its hash
    seed.

    Args:
        landscape: "separable", "chained", "deceptive" or "pairs".
        length: planted words L, >= 1 (deceptive and pairs: >= 2). Words after the first L are ignored, unless
            `extra_penalty` makes them harmful.
        vocabulary: words w00 ... w(vocabulary - 1), as the tokenizer "planted-<vocabulary>" has them; at least
            2 L.
        seed: chooses the planted words, the weights, and each example's difficulty and scale.
        noise: standard deviation of Gaussian noise on the logit, keyed by (seed, prompt, example): asking the
            same twice gives the same answer.
        latency_s: seconds that one batched call takes.
        failure_rate: share of the (prompt, example) pairs that fail, in [0, 1], keyed like the noise.
        extra_penalty: quality taken off for each word after the first L, down to 0.

    Raises:
        ConfigError: an argument is out of range.
    """

    def __init__(
        self,
        landscape: str = "separable",
        length: int = 3,
        vocabulary: int = 50,
        seed: int = 0,
        noise: float = 0.0,
        latency_s: float = 0.0,
        failure_rate: float = 0.0,
        extra_penalty: float = 0.0,
    ) -> None:
        if landscape not in LANDSCAPES:
            raise UnknownNameError("landscape", landscape, LANDSCAPES)
        shortest = 2 if landscape in ("deceptive", "pairs") else 1
        if length < shortest:
            raise ConfigError(f"landscape '{landscape}' needs length >= {shortest}, got {length}")
        if vocabulary < 2 * length:
            raise ConfigError(f"vocabulary must be at least 2 * length = {2 * length}, got {vocabulary}")
        if not 0 <= failure_rate <= 1:
            raise ConfigError(f"failure_rate must be in [0, 1], got {failure_rate}")
        numbers = {"seed": seed, "noise": noise, "latency_s": latency_s, "extra_penalty": extra_penalty}
        for name, value in numbers.items():
            if value < 0:
                raise ConfigError(f"{name} must be >= 0, got {value}")
        self.landscape = landscape
        self.length = length
        self.vocabulary = vocabulary
        self.seed = seed
        self.noise = noise
        self.latency_s = latency_s
        self.failure_rate = failure_rate
        self.extra_penalty = extra_penalty
        chosen = generator(seed, "planted-words").permutation(vocabulary)[: 2 * length]
        self._right: IntArray = chosen[:length].astype(np.int64)
        self._decoys: IntArray = chosen[length:].astype(np.int64)
        self._weights = self._draw_weights()
        self._examples: dict[int, tuple[float, float]] = {}

    @property
    def optimum(self) -> str:
        """The only prompt of L words with quality 1, spelled as the tokenizer "planted-<vocabulary>" does."""
        digits = max(2, len(str(self.vocabulary - 1)))
        return " ".join(f"w{word:0{digits}d}" for word in self._right)

    @property
    def identity(self) -> Json:
        """What the answers depend on."""
        return {
            "kind": "planted",
            "landscape": self.landscape,
            "length": self.length,
            "vocabulary": self.vocabulary,
            "seed": self.seed,
            "noise": self.noise,
            "failure_rate": self.failure_rate,
            "extra_penalty": self.extra_penalty,
        }

    def quality(self, prompt: str) -> float:
        """Returns f(prompt) in [0, 1]; text that is not a word of the vocabulary is ignored."""
        return self._quality(_words(prompt))

    def difficulty_and_scale(self, number: int) -> tuple[float, float]:
        """Returns d_e in [0.1, 0.9] and s_e in [2, 20] of the example "item <number>"."""
        if number not in self._examples:
            first, second = generator(self.seed, "planted-example", number).random(2)
            self._examples[number] = (0.1 + 0.8 * float(first), 2.0 * 10.0 ** float(second))
        return self._examples[number]

    def run(self, requests: Sequence[TargetRequest]) -> list[TargetOutput]:
        """Answers all requests, in order; takes `latency_s`.

        Choices get log-probabilities (the wrong ones share the rest equally), a continuation gets the
        log-probability of the right answer, and generation answers " yes" or " no" (drawn at temperature > 0).
        """
        if self.latency_s > 0:
            time.sleep(self.latency_s)
        prompts: dict[tuple[int, ...], tuple[int, float]] = {}
        outputs = []
        for request in requests:
            text = _text(request)
            words = _words(text)
            if words not in prompts:
                prompts[words] = (zlib.crc32(repr(words).encode()), self._quality(words))
            outputs.append(self._answer(request, text, *prompts[words]))
        return outputs

    def count_tokens(self, requests: Sequence[TargetRequest]) -> list[int]:
        """Returns the words of each text plus one for the answer."""
        return [len(_text(request).split()) + 1 for request in requests]

    def _draw_weights(self) -> FloatArray:
        count = self.length - 1 if self.landscape == "pairs" else self.length
        weights = generator(self.seed, "planted-weights").uniform(0.5, 1.5, size=count)
        return np.asarray(weights / weights.sum(), dtype=np.float64)

    def _quality(self, words: tuple[int, ...]) -> float:
        padded = np.full(self.length, -1, dtype=np.int64)
        padded[: len(words)] = words[: self.length]
        right = padded == self._right
        if right.all():
            quality = 1.0  # exactly, whatever the rounding of the weights
        elif self.landscape == "separable":
            quality = float(self._weights @ right)
        elif self.landscape == "chained":
            quality = float(self._weights @ np.cumprod(right))
        elif self.landscape == "deceptive":
            decoys = int((padded == self._decoys).sum())
            quality = (_RIGHT_LEVEL * int(right.sum()) + _DECOY_LEVEL * decoys) / self.length
        else:
            joint = np.array([0.0, _HALF_PAIR, 1.0])[right[:-1].astype(int) + right[1:]]
            quality = float(self._weights @ joint)
        return max(0.0, quality - self.extra_penalty * max(0, len(words) - self.length))

    def _answer(self, request: TargetRequest, text: str, key: int, quality: float) -> TargetOutput:
        """Answers one request; `key` stands for its prompt in every draw."""
        item = _ITEM.search(text)
        number = -1 if item is None else int(item.group(1))
        keys = (key, number + 1)
        if self.failure_rate > 0 and generator(self.seed, "planted-failure", *keys).random() < self.failure_rate:
            return TargetOutput(failure=Failure("target", "timeout", "planted failure; lower failure_rate"))
        label, logit = 0, 0.0  # content-free inputs: nothing is known, nothing is preferred
        if item is not None:
            difficulty, scale = self.difficulty_and_scale(number)
            label, logit = planted_label(number), scale * (quality - difficulty)
            if self.noise > 0:
                logit += self.noise * float(generator(self.seed, "planted-noise", *keys).standard_normal())
        right, wrong = _log_sigmoid(logit), _log_sigmoid(-logit)
        tokens = len(text.split())
        if request.choices is not None:
            return TargetOutput(
                choice_logprobs=_choice_logprobs(len(request.choices), label, right, wrong), prompt_tokens=tokens
            )
        if request.continuation is not None:
            return TargetOutput(logprob=right, prompt_tokens=tokens)
        is_right = logit > 0
        if request.temperature > 0:
            draw = generator(request.seed, "planted-sample", *keys, request.sample).random()
            is_right = bool(draw < math.exp(right))
        answer = CHOICES[label if is_right else 1 - label]
        return TargetOutput(text=answer, prompt_tokens=tokens, completion_tokens=1)


def _log_sigmoid(value: float) -> float:
    return -math.log1p(math.exp(-value)) if value >= 0 else value - math.log1p(math.exp(value))


def _choice_logprobs(count: int, label: int, right: float, wrong: float) -> tuple[float, ...]:
    """The wrong choices share what the right one leaves."""
    if count == 1:
        return (0.0,)
    share = wrong - math.log(count - 1)
    return tuple(right if index == label else share for index in range(count))


def _text(request: TargetRequest) -> str:
    rendered = request.rendered
    if rendered.messages is not None:
        return "\n".join(content for _, content in rendered.messages)
    return rendered.text or ""


def _words(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in _WORD.findall(text))
