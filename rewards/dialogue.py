"""How a dialogue with a scripted partner stands after the target's newest words: the partner's own score of it."""

from __future__ import annotations

from typing import Any, ClassVar

from rlprompt.dialogues import dialogue_of
from rlprompt.types import TargetOutput


class DialogueScore:
    """The score in [0, 1] that the partner gives; of a dialogue that goes on, what it has reached so far."""

    gold_not_ordered: ClassVar[bool] = True
    """A reference is a state: said aloud, it may happen to name what another dialogue is about."""

    def __call__(
        self,
        *,
        prompts: list[str],
        completions: list[str],
        outputs: list[TargetOutput],
        references: list[Any] | None = None,
        **columns: list[Any],
    ) -> list[float | None]:
        """Returns one score per pair.

        Raises:
            ConfigError: an example is no dialogue.
        """
        scores: list[float | None] = []
        for output, reference in zip(outputs, references or [], strict=True):
            if output.failure is not None or output.text is None:
                scores.append(None)
                continue
            partner, state = dialogue_of(reference)
            scores.append(float(partner.reply(state, output.text)["score"]))
        return scores
