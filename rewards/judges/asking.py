"""Asks a target as judge: each question once a run, on the run's account, with what was read remembered."""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from rlprompt.config import TargetConfig, describe
from rlprompt.errors import CheckpointError, ConfigError
from rlprompt.rewards.judges.formats import ABSTENTIONS, NO_PROBABILITIES, Form, Reading
from rlprompt.rewards.spending import Account
from rlprompt.targets import target_from_config, target_prices
from rlprompt.types import Failure, Json, Rendered, Target, TargetOutput, TargetRequest

WAYS = ("auto", "probabilities", "text")
_MAX_PROBES = 3
"""Questions that are asked one by one to find out whether the target gives probabilities."""
_LEAST_TOKENS = 8
_CANNOT = frozenset({"unsupported", "malformed"})
"""Failures of a question with choices that say something about the target, not about the moment."""
_SHARED: weakref.WeakValueDictionary[str, Target] = weakref.WeakValueDictionary()


def judge_target(target: str | Mapping[str, Any] | Target) -> Target:
    """Returns the target that judges; equal configurations share one.

    Args:
        target: a name, the keys of the section `target` (name, dtype, device, revision, cache, kwargs), or a target.

    Raises:
        ConfigError: an unknown key, or as `rlprompt.targets.load_target`.
    """
    if isinstance(target, Target) and not isinstance(target, Mapping):
        return target
    if not isinstance(target, str | Mapping):
        raise ConfigError(f"judge: target must be a name or a mapping, got {type(target).__name__}")
    try:
        config = TargetConfig.model_validate({"name": target} if isinstance(target, str) else dict(target))
    except ValidationError as error:
        raise ConfigError(f"judge: target: {describe(error, TargetConfig)}") from error
    if isinstance(target, Mapping) and "name" not in target:
        raise ConfigError("judge: target has no name; write target: {name: ...}")
    key = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    found = _SHARED.get(key)
    if found is None:
        found = _SHARED[key] = target_from_config(config)
    return found


def reads_messages(target: Target) -> bool:
    """Whether a target is asked with chat messages: not where it has no chat template, or is asked for completions."""
    inner = getattr(target, "target", target)  # without its cache
    tokenizer = getattr(inner, "tokenizer", None)
    if tokenizer is not None:
        return getattr(inner, "head", "causal") != "masked" and bool(getattr(tokenizer, "chat_template", None))
    return getattr(inner, "endpoint", "chat") == "chat"


class Asker:
    """Questions of one form to one target.

    Args:
        target: who judges.
        form: of the answers.
        ask: "probabilities" of the options; "text", a written reply; "auto", probabilities where the target gives some.
        max_tokens: of a written reply. It is read whole, so it must leave room for what makes a reply no verdict.

    Raises:
        ConfigError: an argument out of range.
    """

    def __init__(self, target: Target, form: Form, ask: str, max_tokens: int) -> None:
        if ask not in WAYS:
            raise ConfigError(f"judge: ask must be {', '.join(WAYS[:-1])} or {WAYS[-1]}, got {ask!r}")
        if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < _LEAST_TOKENS:
            raise ConfigError(
                f"judge: max_tokens must be at least {_LEAST_TOKENS}, got {max_tokens!r}; a reply that is cut off "
                "looks like a verdict"
            )
        self.target = target
        self.price = target_prices(target).get("target")
        self._form = form
        self._max_tokens = max_tokens
        self._ask = ask
        self._by_choices: bool | None = {"auto": None, "probabilities": True, "text": False}[ask]
        self._known: dict[str, Reading] = {}
        self._account = Account()

    def attach(self, account: Account) -> None:
        """Spends on this account from now on.

        Raises:
            ConfigError: its money is limited and the judge's price is unknown.
        """
        account.check_price(self.price, f"the judge ({_name(self.target)})")
        self._account = account

    def readings(self, questions: Sequence[Rendered]) -> list[Reading | Failure]:
        """Asks those of N questions that were not asked before, in one call; failures are forgotten.

        Raises:
            BudgetExceededError: they do not fit into the budget; nothing was spent on them.
        """
        keys = [_key(rendered) for rendered in questions]
        new = {key: rendered for key, rendered in zip(keys, questions, strict=True) if key not in self._known}
        failed = self._ask_new(new) if new else {}
        return [failed[key] if key in failed else self._known[key] for key in keys]

    def state_dict(self) -> Json:
        """Returns what was read, by question: a number, or the kind of the abstention."""
        readings = {
            key: reading.kind if reading.value is None else reading.value for key, reading in self._known.items()
        }
        return {"readings": readings, "by_choices": self._by_choices}

    def load_state_dict(self, state: Json) -> None:
        """Restores what `state_dict` returned.

        Raises:
            CheckpointError: something else.
        """
        try:
            known = {str(key): _reading(entry) for key, entry in state["readings"].items()}
            by_choices = state["by_choices"]
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise CheckpointError(f"the checkpoint's verdicts of a judge cannot be read: {error!r}") from error
        self._known, self._by_choices = known, by_choices

    def _ask_new(self, new: Mapping[str, Rendered]) -> dict[str, Failure]:
        outputs, left = self._probe(dict(new)) if self._by_choices is None else ({}, dict(new))
        by_choices = self._by_choices is not False
        if left:
            outputs |= dict(zip(left, self._run(list(left.values()), by_choices=by_choices), strict=True))
        failed: dict[str, Failure] = {}
        for key, output in outputs.items():
            if output.failure is not None:
                failed[key] = replace(output.failure, message=f"the judge's call failed: {output.failure.message}")
            else:
                self._known[key] = self._read(output, by_choices=by_choices)
        return failed

    def _probe(self, new: dict[str, Rendered]) -> tuple[dict[str, TargetOutput], dict[str, Rendered]]:
        """Finds out with the first questions whether the target gives probabilities; returns (answers, the rest)."""
        outputs: dict[str, TargetOutput] = {}
        for key in list(new)[:_MAX_PROBES]:
            (output,) = self._run([new[key]], by_choices=True)
            if output.choice_logprobs is not None:
                self._by_choices = True
            elif output.failure is None or output.failure.kind in _CANNOT:
                self._by_choices = False
                break  # the question is asked again, for a written reply
            outputs[key] = output
            del new[key]
            if self._by_choices is not None:
                break
        return outputs, new

    def _run(self, questions: Sequence[Rendered], *, by_choices: bool) -> list[TargetOutput]:
        if by_choices:
            requests = [TargetRequest(rendered, choices=self._form.choices) for rendered in questions]
        else:
            requests = [TargetRequest(rendered, max_tokens=self._max_tokens) for rendered in questions]
        return self._account.ask(self.target, requests, self.price)

    def _read(self, output: TargetOutput, *, by_choices: bool) -> Reading:
        if not by_choices:
            return self._form.read_text(output.text or "")
        if output.choice_logprobs is None and (self._ask == "probabilities" or self._by_choices is None):
            return Reading(None, NO_PROBABILITIES)
        return self._form.read_probabilities(output)


def _key(rendered: Rendered) -> str:
    canonical = json.dumps([rendered.text, rendered.messages], ensure_ascii=True)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()[:32]


def _reading(entry: Any) -> Reading:
    if isinstance(entry, str):
        if entry not in ABSTENTIONS:
            raise ValueError(f"unknown kind {entry!r}")
        return Reading(None, entry)
    return Reading(float(entry))


def _name(target: Target) -> str:
    return str(target.identity.get("model", target.identity.get("kind", "unnamed")))
