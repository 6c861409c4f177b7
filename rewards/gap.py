"""What a written prompt gains over the original one, by any other reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from rlprompt.config import RewardConfig
from rlprompt.errors import ConfigError
from rlprompt.rewards.arguments import is_async
from rlprompt.rewards.component import load_component
from rlprompt.types import TargetOutput


class GapOverOriginal:
    """reward(target's answer to the written prompt) - reward(its answer to the original prompt).

    The scorer asks the target for the answers to the original prompt, once for each example (and sample), and they
    count in the budget. A prompt that is the original one has the same answers and gets exactly 0. The reward
    abstains where either value is missing.

    Reference: Wang et al. 2023, arXiv:2310.00898 (PIT) maximises the gap to a reference response of the model that
    is trained; here it is the gap to the original prompt.

    Args:
        reward: name of a built-in or installed reward without a state.
        kwargs: its arguments.
        original: the original prompt; by default the draft of the env, or at instance level what leaves the user's
            input as it is.

    Raises:
        ConfigError: a reward that cannot be compared so, or wrong arguments for it.
    """

    needs_original: ClassVar[bool] = True

    def __init__(self, reward: str, kwargs: Mapping[str, Any] | None = None, original: str | None = None) -> None:
        self._inner = load_component(RewardConfig(name=reward, kwargs=dict(kwargs or {})))
        inner = self._inner.reward
        stateful = hasattr(inner, "state_dict") or bool(self._inner.records)
        if self._inner.needs_original or stateful or is_async(inner):
            raise ConfigError(
                f"gap-over-original: reward '{reward}' has a state, is async, records further numbers or compares with "
                "the original itself; name another one"
            )
        self.original = original
        self.needs = self._inner.needs
        self.reads_text = bool(getattr(inner, "reads_text", False))
        self.gold_not_ordered = self._inner.gold_not_ordered
        self.timeout_seconds = 2 * self._inner.timeout_seconds

    def __call__(
        self,
        *,
        completions: Sequence[str],
        outputs: Sequence[TargetOutput],
        original_prompts: Sequence[str],
        originals: Sequence[TargetOutput],
        **columns: Any,
    ) -> list[float | None]:
        """Scores N pairs.

        Args:
            completions: what the policy wrote.
            outputs: the target's answers to that.
            original_prompts: what that is compared with.
            originals: the target's answers to the original prompts; one may be a failure.
            **columns: handed on to the reward, for both answers the same.

        Raises:
            ValueError: the reward did not return one value for each sample.
        """
        known = [
            index
            for index, original in enumerate(originals)
            if original.failure is None and self._inner.missing(original) is None
        ]
        ours = self._ask({**columns, "completions": list(completions), "outputs": list(outputs)}, len(outputs))
        chosen = {key: [values[index] for index in known] for key, values in columns.items()}
        chosen["completions"] = [original_prompts[index] for index in known]
        chosen["outputs"] = [originals[index] for index in known]
        theirs = dict(zip(known, self._ask(chosen, len(known)), strict=True))
        return [_difference(value, theirs.get(index)) for index, value in enumerate(ours)]

    def _ask(self, arguments: Mapping[str, Sequence[Any]], count: int) -> list[float | None]:
        if count == 0:
            return []
        values = list(self._inner.call({key: list(entries) for key, entries in arguments.items()}))
        if len(values) != count:
            raise ValueError(f"'{self._inner.name}' returned {len(values)} values for {count} samples")
        return values


def _difference(after: float | None, before: float | None) -> float | None:
    return None if after is None or before is None else float(after) - float(before)
