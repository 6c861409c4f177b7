"""From a user's text to what is sent in its place, or to the reason why it is sent as it is."""

from __future__ import annotations

import hashlib
import logging
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal, Protocol

from rlprompt.serving.preserve import lost
from rlprompt.serving.proxy.breaker import Breaker
from rlprompt.serving.proxy.settings import ServeSettings
from rlprompt.serving.proxy.supervisor import RewriterError
from rlprompt.types import Json

logger = logging.getLogger(__name__)

Header = Literal["1", "0", "fallback"]
"""Value of x-rlprompt-rewritten: rewritten, left alone on purpose, or left alone because something failed."""
NOT_MEANT = frozenset({"empty-text"})
"""Reasons of the rewriter that are no failure."""
ALWAYS_ALLOWED = 2000
"""Characters that a result may have, however short the text is."""
SHOWN = 200


class Rewrites(Protocol):
    """Who answers; see `rlprompt.serving.proxy.supervisor.Supervisor`."""

    version: int
    """Counts the policies, so that rewrites of an older one are not remembered for a newer one."""

    async def ask(self, text: str, seconds: float) -> Json:
        """Returns the rewriter's answer, or raises RewriterError."""


@dataclass(frozen=True)
class Outcome:
    """What became of one text."""

    header: Header
    text: str
    """To be sent; the user's own but where `header` is "1"."""
    reason: str | None = None
    """Why it is the user's own: a word, and details behind a colon."""
    seconds: float = 0.0
    arm: str = "rewritten"
    """Of an experiment: "rewritten", "control" or "shadow"."""
    cached: bool = False

    @property
    def kind(self) -> str:
        """The reason's first word; "" where there is none."""
        return "" if self.reason is None else self.reason.partition(":")[0]


class Rewriting:
    """Decides about texts.

    Args:
        rewrites: who writes.
        settings: of the server.
    """

    def __init__(self, rewrites: Rewrites, settings: ServeSettings) -> None:
        self.settings = settings.rewriting
        self._experiment = settings.experiment
        self._log_prompts = settings.log_prompts
        self._rewrites = rewrites
        self.breaker = Breaker(self.settings.breaker_failures, self.settings.breaker_pause_s)
        self._cache: OrderedDict[tuple[int, str, str], Json] = OrderedDict()

    async def __call__(self, text: str, *, tenant: str, model: str | None) -> Outcome:
        """Returns what is sent for a text.

        Args:
            text: the user's.
            tenant: whose it is; answers are remembered for each alone.
            model: that is asked.
        """
        started = time.perf_counter()
        refusal = self.settings.trigger.refusal(text, model)
        if refusal is not None:
            return Outcome("0", text, refusal)
        arm = self._arm(text)
        if arm == "control":
            return Outcome("0", text, "control", arm=arm)
        outcome = await self._rewritten(text, tenant)
        seconds = time.perf_counter() - started
        if self._log_prompts:
            logger.warning(  # asked for, so it is said whatever the level is
                "%s: %r -> %r", outcome.header, text[:SHOWN], outcome.text[:SHOWN]
            )
        if arm == "shadow" and outcome.header == "1":
            return Outcome("0", text, "shadow", seconds, arm, outcome.cached)
        return Outcome(outcome.header, outcome.text, outcome.reason, seconds, arm, outcome.cached)

    def _arm(self, text: str) -> str:
        if self._experiment.mode == "shadow":
            return "shadow"
        if self._experiment.mode == "percentage":
            place = int.from_bytes(hashlib.sha256(text.encode("utf-8", "replace")).digest()[:8], "big") / 2**64
            return "rewritten" if 100 * place < self._experiment.percentage else "control"
        return "rewritten"

    async def _rewritten(self, text: str, tenant: str) -> Outcome:
        key = (self._rewrites.version, tenant, text)
        answer = self._cache.get(key)
        if answer is not None:
            self._cache.move_to_end(key)
            return self._judged(text, answer, cached=True)
        if not self.breaker.allows():
            return Outcome("fallback", text, "breaker: the rewriter failed too often")
        try:
            answer = await self._rewrites.ask(text, self.settings.deadline_s)
        except RewriterError as error:
            if error.counts:
                self.breaker.note(success=False)
            else:
                self.breaker.withdraw()
            return Outcome("fallback", text, error.reason)
        except BaseException:  # the client has gone
            self.breaker.withdraw()
            raise
        self.breaker.note(success=True)
        if self.settings.cache_entries:
            self._cache[key] = answer
            while len(self._cache) > self.settings.cache_entries:
                self._cache.popitem(last=False)
        return self._judged(text, answer, cached=False)

    def _judged(self, text: str, answer: Json, *, cached: bool) -> Outcome:
        """Checks what the rewriter made of a text."""
        found = answer["text"]
        if not answer["rewritten"]:
            kind = str(answer["reason"]).partition(":")[0]
            return Outcome("0" if kind in NOT_MEANT else "fallback", text, answer["reason"], cached=cached)
        reason = None
        if len(found) > self.settings.max_growth * len(text) + ALWAYS_ALLOWED:
            reason = f"too-long: {len(found)} characters for {len(text)}"
        elif text not in found:  # else all of it is there
            reason = lost(text, found, self.settings.preserve)
            floor, similarity = self.settings.min_similarity, answer.get("similarity")
            if reason is None and floor is not None and (similarity is None or not similarity >= floor):
                reason = f"similarity: {similarity} is below {floor}"
        if reason is not None:
            return Outcome("fallback", text, reason, cached=cached)
        return Outcome("1", found, cached=cached)
