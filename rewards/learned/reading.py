"""What a learnt reward reads of a sample: the text that it scores, and what that was written for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from rlprompt.errors import ConfigError
from rlprompt.rewards.learned.bradley_terry import TextScorer
from rlprompt.types import TargetOutput


class LearnedReward:
    """A model learnt from pairs, as a reward; each (context, text) is computed once.

    Args:
        name: of the reward, for messages.
        model: scores texts.
        of: "prompt" (what the policy wrote) or "output" (what the target answered).
        reads: what the model learnt to read beside the text: "input" (the example's) or "context" (what the policy
            read).

    Raises:
        ConfigError: `of` is something else.
    """

    gold_not_ordered: ClassVar[bool] = True

    def __init__(self, name: str, model: TextScorer, of: str, reads: str) -> None:
        if of not in ("prompt", "output"):
            raise ConfigError(f"{name}: of must be prompt or output, got {of!r}")
        self.of = of
        self.reads = reads
        self.needs = "text" if of == "output" else "any"
        self.model = model
        self._known: dict[tuple[str, str], float] = {}

    def __call__(
        self,
        *,
        prompts: Sequence[str],
        completions: Sequence[str],
        outputs: Sequence[TargetOutput],
        **columns: Any,
    ) -> list[float | None]:
        """Scores N samples; None where the target answered without a text.

        Raises:
            ValueError: the task has no inputs, and the model reads them.
        """
        contexts = read_contexts(self.reads, prompts, columns)
        texts = list(completions) if self.of == "prompt" else [output.text for output in outputs]
        keys = [None if text is None else (context, text) for context, text in zip(contexts, texts, strict=True)]
        new = [key for key in dict.fromkeys(keys) if key is not None and key not in self._known]
        if new:
            values = self.model.score([context for context, _ in new], [text for _, text in new])
            self._known.update(zip(new, (float(value) for value in values), strict=True))
        return [None if key is None else self._known[key] for key in keys]


def read_contexts(reads: str, prompts: Sequence[str], columns: Mapping[str, Any]) -> list[str]:
    """Returns what the texts of N samples were written for.

    Raises:
        ValueError: the task has no inputs.
    """
    if reads == "context":
        return list(prompts)
    if "input" not in columns:
        raise ValueError(f"the task has no column 'input'; it has {', '.join(columns)}")
    return [str(text) for text in columns["input"]]
