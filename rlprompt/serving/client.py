"""Rewriting without a proxy: within a client, or before any function that takes messages.

The rewriter is in the process of whoever calls, and so is its memory; failures leave the text as it was.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlprompt.serving.preserve import KINDS, Kept, lost
from rlprompt.serving.rewriter import Message, Rewriter
from rlprompt.serving.triggers import Trigger

logger = logging.getLogger(__name__)


class SafeRewriter:
    """A rewriter that never raises: messages in, messages out.

    Calls come from any thread or event loop; the policy writes for one of them after the other.

    Args:
        rewriter: a `Rewriter`, or the folder that one is loaded from.
        trigger: which texts are touched.
        preserve: what a rewrite must keep of a text that it replaces.
        deadline_s: until a text goes on as it is; of `acall` only.
        options: of `Rewriter.results`.
    """

    def __init__(
        self,
        rewriter: Rewriter | str | Path,
        *,
        trigger: Trigger | None = None,
        preserve: Sequence[Kept] = KINDS,
        deadline_s: float = 10.0,
        **options: Any,
    ) -> None:
        self.rewriter = rewriter if isinstance(rewriter, Rewriter) else Rewriter.load(rewriter)
        self.trigger = Trigger() if trigger is None else trigger
        self._preserve, self._deadline_s, self._options = tuple(preserve), deadline_s, options
        self._one = threading.Lock()

    def __call__(self, messages: Sequence[Message], *, model: str | None = None) -> list[Message]:
        """Returns the messages with the last user text rewritten, or as they are; waits however long it takes."""
        try:
            return self._rewritten(messages, model)
        except Exception as error:  # the request behind it must not fail because of the rewriter
            logger.warning("the text is not rewritten: %s", type(error).__name__)
            return list(messages)

    async def acall(self, messages: Sequence[Message], *, model: str | None = None) -> list[Message]:
        """As a call, without blocking the event loop, and within the deadline."""
        work = asyncio.get_running_loop().run_in_executor(None, functools.partial(self, messages, model=model))
        try:
            async with asyncio.timeout(self._deadline_s):
                return await asyncio.shield(work)
        except TimeoutError:
            logger.warning("the text is not rewritten: timeout")
            return list(messages)

    def _rewritten(self, messages: Sequence[Message], model: str | None) -> list[Message]:
        place = next((at for at in reversed(range(len(messages))) if messages[at].get("role") == "user"), None)
        text = None if place is None else _text(messages[place])
        if text is None or self.trigger.refusal(text, model) is not None:
            return list(messages)
        with self._one:
            changed, result = self.rewriter.messages_result(messages, **self._options)
        if result.rewritten and text not in result.text and lost(text, result.text, self._preserve) is not None:
            return list(messages)
        return changed


def _text(message: Message) -> str | None:
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = [part for part in content or () if isinstance(part, Mapping) and isinstance(part.get("text"), str)]
    return str(parts[0]["text"]) if len(parts) == 1 else None


def rewriting(create: Callable[..., Any], rewriter: SafeRewriter) -> Callable[..., Any]:
    """Returns a function that rewrites `messages` and calls another one.

    `client.chat.completions.create = rewriting(client.chat.completions.create, SafeRewriter("runs/..."))` is all that
    the official OpenAI client needs; its async one as well.

    Args:
        create: takes `messages`, and perhaps `model`, by keyword; may be a coroutine function.
        rewriter: for its messages.
    """
    if asyncio.iscoroutinefunction(create):

        @functools.wraps(create)
        async def later(*args: Any, **kwargs: Any) -> Any:
            if "messages" in kwargs:
                kwargs["messages"] = await rewriter.acall(kwargs["messages"], model=kwargs.get("model"))
            return await create(*args, **kwargs)

        return later

    @functools.wraps(create)
    def now(*args: Any, **kwargs: Any) -> Any:
        if "messages" in kwargs:
            kwargs["messages"] = rewriter(kwargs["messages"], model=kwargs.get("model"))
        return create(*args, **kwargs)

    return now
