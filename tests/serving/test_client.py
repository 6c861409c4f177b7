"""Rewriting within a client: it never fails, never waits longer than its deadline, and touches one text."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlprompt.serving import Rewriter
from rlprompt.serving.client import SafeRewriter, rewriting
from rlprompt.serving.triggers import Trigger

MESSAGES = [{"role": "system", "content": "S"}, {"role": "user", "content": "w03 w04"}]


@pytest.fixture(scope="module")
def rewriter(save: Callable[..., Path]) -> Rewriter:
    return Rewriter.load(save())


def test_the_last_user_text_is_what_the_rewriter_makes_of_it(rewriter: Rewriter) -> None:
    expected = rewriter.rewrite_messages(MESSAGES)
    safe = SafeRewriter(rewriter)
    assert safe(MESSAGES) == asyncio.run(safe.acall(MESSAGES)) == expected != MESSAGES


def test_what_the_trigger_leaves_alone_is_not_written_for(rewriter: Rewriter) -> None:
    assert SafeRewriter(rewriter, trigger=Trigger(min_chars=100))(MESSAGES) == MESSAGES
    assert SafeRewriter(rewriter, trigger=Trigger(models=("a",)))(MESSAGES, model="b") == MESSAGES


@pytest.mark.parametrize("messages", [[], [{"role": "user"}], [{"role": "user", "content": [{"type": "image_url"}]}]])
def test_messages_without_a_text_come_back(rewriter: Rewriter, messages: list[Any]) -> None:
    assert SafeRewriter(rewriter)(messages) == messages


def test_what_is_lost_or_raised_leaves_the_messages_as_they_were(
    save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    replacing = Rewriter.load(save(template="{prompt}"))
    number = [{"role": "user", "content": "add 5"}]
    assert SafeRewriter(replacing)(number) == number
    assert SafeRewriter(replacing, preserve=())(number) != number

    def fails(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(replacing, "messages_result", fails)
    assert SafeRewriter(replacing)(MESSAGES) == MESSAGES


def test_nobody_waits_longer_than_the_deadline(rewriter: Rewriter, monkeypatch: pytest.MonkeyPatch) -> None:
    safe = SafeRewriter(rewriter, deadline_s=0.1)
    monkeypatch.setattr(rewriter, "messages_result", lambda *_, **__: time.sleep(1))

    async def timed() -> float:
        began = time.perf_counter()
        assert await safe.acall(MESSAGES) == MESSAGES
        return time.perf_counter() - began

    assert asyncio.run(timed()) < 0.8


def test_a_clients_create_is_wrapped_in_one_line(rewriter: Rewriter) -> None:
    def create(**kwargs: Any) -> Any:
        return kwargs

    async def acreate(**kwargs: Any) -> Any:
        return kwargs

    safe, expected = SafeRewriter(rewriter), rewriter.rewrite_messages(MESSAGES)
    assert rewriting(create, safe)(model="m", messages=MESSAGES) == {"model": "m", "messages": expected}
    assert asyncio.run(rewriting(acreate, safe)(messages=MESSAGES, n=2)) == {"messages": expected, "n": 2}
    assert rewriting(create, safe)(other=1) == {"other": 1}
