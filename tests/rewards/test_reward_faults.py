"""T8: rewards that return nonsense, raise, wait or hang fail their pairs and nothing else."""

import asyncio
import logging
import math
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest
from reward_sets import NAN, assert_values, fixed, make_set, run

from rlprompt.errors import ConfigError
from rlprompt.rewards import Component, RewardResult
from rlprompt.types import TargetOutput

# --- T8: faults ---


@pytest.mark.parametrize("value", [NAN, math.inf, -math.inf, 10**400, np.float32("nan")])
def test_t8_a_number_that_is_not_finite_fails_its_pair_only(value: Any) -> None:
    result = run(make_set(fixed(1.0, value, 3.0)))
    assert_values(result.rewards, [1, NAN, 3])
    assert list(result.failures) == [1]
    assert (result.failures[1].where, result.failures[1].kind) == ("reward", "nan")
    assert "reward 'r0' returned" in result.failures[1].message


@pytest.mark.parametrize(("value", "kind"), [("1.0", "a str"), ([1.0], "a list"), ({}, "a dict"), (1j, "a complex")])
def test_t8_something_else_than_a_number_fails_its_pair_only(value: Any, kind: str) -> None:
    result = run(make_set(fixed(1.0, value, 3.0)))
    assert_values(result.rewards, [1, NAN, 3])
    assert result.failures[1].kind == "malformed"
    assert f"returned {kind}, not a number or None" in result.failures[1].message


def test_t8_none_abstains_and_is_no_failure() -> None:
    result = run(make_set(fixed(None, 2.0, 3.0), fixed(1.0, None, 1.0)))
    assert_values(result.rewards, [NAN, NAN, 4])
    assert result.failures == {}


@pytest.mark.parametrize("values", [(), (1.0, 2.0), (1.0, 2.0, 3.0, 4.0)])
def test_t8_a_wrong_length_fails_every_pair(values: tuple[float, ...]) -> None:
    result = run(make_set(fixed(*values)))
    assert_values(result.rewards, [NAN] * 3)
    assert {failure.kind for failure in result.failures.values()} == {"malformed"}
    assert result.failures[2].message == f"reward 'r0' returned {len(values)} values for 3 samples"


@pytest.mark.parametrize(
    ("returned", "kind"),
    [(None, "None"), (1.0, "a float"), ("abc", "a str"), ({0: 1.0}, "a dict"), (iter([1]), "a list")],
)
def test_t8_something_else_than_a_list_fails_every_pair(returned: Any, kind: str) -> None:
    result = run(make_set(lambda *, outputs, **columns: returned))
    assert sorted(result.failures) == [0, 1, 2]
    assert kind in result.failures[0].message
    assert "not a list of 3 numbers" in result.failures[0].message


@pytest.mark.parametrize("error", [ValueError("two\nlines"), KeyError("gold"), ZeroDivisionError(), StopIteration()])
def test_t8_an_exception_fails_every_pair_and_goes_no_further(error: Exception) -> None:
    def broken(*, outputs: list[TargetOutput], **columns: list[Any]) -> list[float]:
        raise error

    result = run(make_set(broken, fixed(1, 2, 3)))
    assert_values(result.rewards, [NAN] * 3)
    assert_values(result.components["r1"], [1, 2, 3])
    assert sorted(result.failures) == [0, 1, 2]
    assert {failure.kind for failure in result.failures.values()} == {"exception"}
    assert "reward 'r0' raised" in result.failures[0].message
    assert "\n" not in result.failures[0].message


def test_t8_sys_exit_in_a_reward_does_not_end_the_run() -> None:
    rewards = make_set(lambda *, outputs, **columns: sys.exit(3))
    started = time.perf_counter()
    result = run(rewards)
    assert result.failures[0].kind == "exception"
    assert "called sys.exit(3)" in result.failures[0].message
    assert time.perf_counter() - started < 2


def test_an_endless_message_is_cut() -> None:
    def broken(*, outputs: list[TargetOutput]) -> list[float]:
        raise ValueError("x" * 100_000)

    assert len(run(make_set(broken)).failures[0].message) < 400


@pytest.mark.parametrize("values", [(True, False, True), (np.bool_(1), np.int64(0), np.float32(1)), (1, 0, 1.0)])
def test_bools_and_numpy_numbers_are_numbers(values: tuple[Any, ...]) -> None:
    result = run(make_set(fixed(*values)))
    assert_values(result.rewards, [1, 0, 1])


def test_a_numpy_array_is_a_list_of_numbers() -> None:
    assert_values(run(make_set(lambda *, outputs, **columns: np.array([1.5, 2.0, 3.0]))).rewards, [1.5, 2, 3])


def test_a_fault_is_logged_once_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    def broken(*, outputs: list[TargetOutput], **columns: list[Any]) -> list[float]:
        raise ValueError("look here")

    rewards = make_set(broken)
    with caplog.at_level(logging.WARNING, logger="rlprompt"):
        run(rewards)
        run(rewards)
    assert len(caplog.records) == 1
    assert "look here" in caplog.text
    assert "in broken" in caplog.text


# --- async and time-outs ---


def test_an_async_reward_is_awaited_always_in_the_same_loop() -> None:
    loops = []

    async def reward(*, completions: list[str], **columns: list[Any]) -> list[float]:
        loops.append(asyncio.get_running_loop())
        return await asyncio.gather(*(value(text) for text in completions))

    async def value(text: str) -> float:
        await asyncio.sleep(0)
        return float(text[-1])

    rewards = make_set(reward, reward)
    assert_values(run(rewards).rewards, [0, 2, 4])
    run(rewards)
    assert len(loops) == 4
    assert len(set(map(id, loops))) == 1


def test_an_async_reward_runs_where_a_loop_is_running_already() -> None:
    async def reward(*, outputs: list[TargetOutput], **columns: list[Any]) -> list[float]:
        await asyncio.sleep(0)
        return [1.0, 2.0, 3.0]

    async def notebook() -> RewardResult:
        return run(make_set(reward))

    assert_values(asyncio.run(notebook()).rewards, [1, 2, 3])


def test_a_class_may_be_called_asynchronously() -> None:
    class Judge:
        async def __call__(self, *, outputs: list[TargetOutput], **columns: list[Any]) -> list[float]:
            return [1.0] * len(outputs)

    assert_values(run(make_set(Judge())).rewards, [1, 1, 1])


def test_t8_an_async_reward_that_hangs_is_cancelled_and_fails_every_pair() -> None:
    cancelled = threading.Event()

    async def hang(*, outputs: list[TargetOutput], **columns: list[Any]) -> list[float]:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return [1.0] * len(outputs)

    started = time.perf_counter()
    result = run(make_set(hang, timeout=0.1))
    assert time.perf_counter() - started < 5
    assert cancelled.is_set()
    assert {failure.kind for failure in result.failures.values()} == {"timeout"}
    assert result.failures[0].message == "reward 'r0' took longer than 0.1 s"


def test_t8_a_plain_reward_that_hangs_is_left_behind_and_the_next_call_works() -> None:
    release = threading.Event()

    def hang(*, completions: list[str], **columns: list[Any]) -> list[float]:
        if "prompt 2" in completions:
            release.wait(30)
        return [1.0] * len(completions)

    rewards = make_set(hang, fixed(5.0, 5.0, 5.0), timeout=0.1)
    first = run(rewards)
    assert first.failures[0].kind == "timeout"
    assert_values(first.components["r1"], [5, 5, 5])
    second = run(rewards, ["a"])
    assert second.components["r0"].tolist() == [1.0]
    release.set()


def test_a_time_out_of_the_rewards_own_making_is_an_exception() -> None:
    async def reward(*, outputs: list[TargetOutput], **columns: list[Any]) -> list[float]:
        raise TimeoutError("the judge is asleep")

    failure = run(make_set(reward)).failures[0]
    assert failure.kind == "exception"
    assert "the judge is asleep" in failure.message


def test_a_reward_that_cancels_itself_is_an_exception() -> None:
    async def reward(*, outputs: list[TargetOutput], **columns: list[Any]) -> list[float]:
        raise asyncio.CancelledError

    assert run(make_set(reward)).failures[0].kind == "exception"


def test_the_private_thread_ends_with_its_set() -> None:
    names = []

    def reward(*, outputs: list[TargetOutput], **columns: list[Any]) -> list[float]:
        names.append(threading.current_thread())
        return [1.0] * len(outputs)

    rewards = make_set(reward)
    run(rewards)
    (thread,) = names
    assert thread.daemon
    assert thread is not threading.current_thread()
    del rewards
    thread.join(timeout=5)
    assert not thread.is_alive()


@pytest.mark.parametrize("seconds", [0, -1, math.inf, NAN, "10"])
def test_a_time_out_must_be_above_zero(seconds: Any) -> None:
    with pytest.raises(ConfigError, match="timeout_seconds must be above 0"):
        Component("x", fixed(1), timeout_seconds=seconds)
