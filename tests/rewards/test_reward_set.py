import asyncio
import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlprompt.config import RewardConfig
from rlprompt.errors import CheckpointError, ConfigError, RewardError
from rlprompt.rewards import Component, RewardResult, RewardSet
from rlprompt.types import Failure, TargetOutput

NAN = math.nan


def make_set(*rewards: Callable[..., Any], weights: Sequence[float] = (), timeout: float = 5.0) -> RewardSet:
    return RewardSet(
        [
            Component(f"r{index}", reward, weights[index] if weights else 1.0, timeout_seconds=timeout)
            for index, reward in enumerate(rewards)
        ]
    )


def run(rewards: RewardSet, texts: Sequence[str | None] = ("a", "b", "c"), **columns: list[Any]) -> RewardResult:
    """Runs the rewards on texts; None stands for a failed target call."""
    failed = TargetOutput(failure=Failure("target", "timeout", "too slow"))
    return rewards(
        prompts=["context"] * len(texts),
        completions=[f"prompt {index}" for index in range(len(texts))],
        outputs=[failed if text is None else TargetOutput(text=text) for text in texts],
        references=["a"] * len(texts),
        columns={"input": [f"input {index}" for index in range(len(texts))], **columns},
    )


def fixed(*values: Any) -> Callable[..., Any]:
    def reward(*, outputs: list[TargetOutput], **columns: list[Any]) -> Any:
        return list(values)

    return reward


def assert_values(got: Any, expected: Sequence[float]) -> None:
    np.testing.assert_array_equal(got, np.array(expected))


def module(folder: Path, name: str, text: str) -> Path:
    (folder / f"{name}.py").write_text(text, encoding="utf-8")
    return folder


def load(folder: Path, name: str, **kwargs: Any) -> RewardSet:
    return RewardSet.from_config([RewardConfig(name=name, kwargs=kwargs)], search_path=folder)


# --- the weighted sum ---


def test_components_are_added_up_with_their_weights() -> None:
    result = run(make_set(fixed(1, 2, 3), fixed(10.0, 0.0, -1.0), weights=(2.0, 0.5)))
    assert_values(result.rewards, [2 * 1 + 5, 2 * 2, 2 * 3 - 0.5])
    assert_values(result.components["r0"], [1, 2, 3])
    assert_values(result.components["r1"], [10, 0, -1])
    assert result.failures == {}


def test_a_component_with_weight_zero_is_recorded_and_excludes_nothing() -> None:
    result = run(make_set(fixed(1, 2, 3), fixed(None, NAN, 5), weights=(1.0, 0.0)))
    assert_values(result.rewards, [1, 2, 3])
    assert_values(result.components["r1"], [NAN, NAN, 5])
    assert result.failures == {}


def test_a_set_without_components_or_weights_is_refused() -> None:
    with pytest.raises(ConfigError, match="name at least one reward"):
        RewardSet([])
    with pytest.raises(ConfigError, match="all weights are 0"):
        make_set(fixed(1), weights=(0.0,))
    with pytest.raises(ConfigError, match="two components have the same name"):
        RewardSet([Component("x", fixed(1)), Component("x", fixed(1))])
    with pytest.raises(ConfigError, match="weight must be a finite number, got nan"):
        Component("x", fixed(1), NAN)


def test_lists_of_different_lengths_are_refused() -> None:
    with pytest.raises(ConfigError, match="1 input for 3 outputs"):
        run(make_set(fixed(1, 2, 3)), input=["one"])


def test_no_pairs_give_empty_arrays() -> None:
    result = run(make_set(fixed()), [])
    assert result.rewards.shape == (0,)
    assert result.components["r0"].shape == (0,)


# --- what a reward gets ---


def test_a_reward_gets_all_keywords_as_fresh_lists() -> None:
    seen: list[dict[str, list[Any]]] = []

    def greedy(**given: list[Any]) -> list[float]:
        seen.append({key: list(values) for key, values in given.items()})
        for values in given.values():
            values.clear()
        return [0.0, 0.0]

    rewards = make_set(greedy, greedy)
    run(rewards, ["x", "y"], difficulty=[1, 2])
    assert seen[0] == seen[1]
    assert set(seen[0]) == {"prompts", "completions", "outputs", "references", "input", "difficulty"}
    assert seen[0]["prompts"] == ["context", "context"]
    assert seen[0]["completions"] == ["prompt 0", "prompt 1"]
    assert seen[0]["difficulty"] == [1, 2]


def test_a_reward_without_double_star_gets_only_what_it_names() -> None:
    def short(completions: list[str], difficulty: list[int]) -> list[float]:
        return [float(len(text) * hard) for text, hard in zip(completions, difficulty, strict=True)]

    assert_values(run(make_set(short), ["x", "y"], difficulty=[1, 2]).rewards, [8, 16])


def test_a_pair_whose_target_call_failed_is_shown_to_no_reward() -> None:
    def count(*, outputs: list[TargetOutput], **columns: list[Any]) -> list[float]:
        assert all(output.failure is None for output in outputs)
        return [float(columns["input"][index][-1]) for index in range(len(outputs))]

    result = run(make_set(count), ["a", None, "c"])
    assert_values(result.rewards, [0, NAN, 2])
    assert result.failures == {}


def test_nothing_is_called_when_every_target_call_failed() -> None:
    result = run(make_set(fixed("never read")), [None, None])
    assert_values(result.rewards, [NAN, NAN])
    assert result.failures == {}


def test_failures_are_numbered_by_pair_also_behind_failed_target_calls() -> None:
    result = run(make_set(fixed(1.0, NAN)), [None, "b", None, "d"])
    assert_values(result.rewards, [NAN, 1, NAN, NAN])
    assert {index: failure.kind for index, failure in result.failures.items()} == {3: "nan"}


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


# --- state ---


class Counting:
    def __init__(self, start: int = 0) -> None:
        self.count = start

    def __call__(self, *, outputs: list[TargetOutput], **columns: list[Any]) -> list[float]:
        self.count += len(outputs)
        return [float(self.count)] * len(outputs)

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.count = state["count"]


def test_the_state_of_a_set_is_that_of_its_components() -> None:
    first, second = make_set(fixed(1, 2, 3), Counting()), make_set(fixed(1, 2, 3), Counting())
    run(first)
    assert first.state_dict() == {"r1": {"count": 3}}
    second.load_state_dict(first.state_dict())
    assert_values(run(second).components["r1"], [6, 6, 6])


def test_the_state_of_other_rewards_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"state of rewards \['gone'\], the run has \['r0'\]"):
        make_set(Counting()).load_state_dict({"gone": {}})


# --- what the target must answer ---


def needing(*needs: str) -> RewardSet:
    rewards = []
    for need in needs:
        reward = fixed(1.0)
        reward.needs = need  # type: ignore[attr-defined]
        rewards.append(reward)
    return make_set(*rewards)


@pytest.mark.parametrize(
    ("needs", "expected"),
    [
        (("any",), "any"),
        (("any", "text"), "text"),
        (("choices", "any"), "choices"),
        (("logprob",), "logprob"),
        (("logprob", "choices"), "choices"),
    ],
)
def test_the_set_needs_what_its_components_need(needs: tuple[str, ...], expected: str) -> None:
    assert needing(*needs).needs == expected


@pytest.mark.parametrize("needs", [("text", "logprob"), ("choices", "text"), ("text", "any", "logprob", "choices")])
def test_needs_that_exclude_each_other_are_refused(needs: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="needs the target's text, but"):
        needing(*needs)


def test_an_unknown_need_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs must be one of choices, text, logprob, any, got 'image'"):
        needing("image")


def test_an_answer_without_what_the_reward_needs_is_a_failure_and_no_silent_abstention() -> None:
    gap = RewardSet.from_config([RewardConfig(name="gap")])
    result = run(gap, ["great"])
    assert result.failures[0].kind == "malformed"
    assert "reward 'gap' needs probabilities" in result.failures[0].message
    match = RewardSet.from_config([RewardConfig(name="exact-match")])
    output = TargetOutput(choice_logprobs=(math.log(0.5),) * 2)
    result = match(prompts=[""], completions=[""], outputs=[output], references=[0], columns={})
    assert "reward 'exact-match' needs the target's text" in result.failures[0].message


def test_accuracy_makes_do_with_a_text_where_choices_have_no_probabilities() -> None:
    result = run(RewardSet.from_config([RewardConfig(name="accuracy")]), ["a", "b"], choices=[("a", "b")] * 2)
    assert_values(result.rewards, [1, 0])
    assert result.failures == {}


# --- names and code of the user ---


def test_built_in_names_kwargs_and_repeated_names() -> None:
    configs = [
        RewardConfig(name="exact-match", weight=2.0),
        RewardConfig(name="length", weight=0.1, kwargs={"of": "output"}),
        RewardConfig(name="length", weight=0.0, kwargs={"unit": "characters"}),
    ]
    result = run(RewardSet.from_config(configs), ["a", "b c"])
    assert list(result.components) == ["exact-match", "length", "length#2"]
    assert result.rewards == pytest.approx([2.0 - 0.1, -0.2])
    assert_values(result.components["length#2"], [-8, -8])


def test_a_function_beside_the_configuration_gets_its_kwargs(tmp_path: Path) -> None:
    text = "def scaled(*, outputs, factor=1.0, **columns):\n    return [factor * len(o.text) for o in outputs]\n"
    folder = module(tmp_path, "user_scaled", text)
    assert_values(run(load(folder, "user_scaled:scaled", factor=3), ["a", "bb"]).rewards, [3, 6])


def test_the_attributes_of_a_function_survive_its_kwargs(tmp_path: Path) -> None:
    text = (
        "def f(*, outputs, factor=1.0):\n    return [factor] * len(outputs)\n"
        "f.needs = 'text'\nf.gold_not_ordered = True\nf.timeout_seconds = 7\n"
    )
    (component,) = load(module(tmp_path, "user_attributes", text), "user_attributes:f", factor=2).components
    assert (component.needs, component.gold_not_ordered, component.timeout_seconds) == ("text", True, 7.0)


def test_a_class_is_constructed_with_its_kwargs(tmp_path: Path) -> None:
    text = (
        "class Flat:\n"
        "    def __init__(self, value, *, bonus=0):\n        self.value = value + bonus\n"
        "    def __call__(self, *, outputs, **columns):\n        return [self.value] * len(outputs)\n"
        "instance = Flat(9)\n"
    )
    folder = module(tmp_path, "user_class", text)
    assert_values(run(load(folder, "user_class:Flat", value=1, bonus=2), ["a"]).rewards, [3])
    assert_values(run(load(folder, "user_class:instance"), ["a"]).rewards, [9])
    with pytest.raises(ConfigError, match="has no argument 'bonu'; did you mean 'bonus'"):
        load(folder, "user_class:Flat", value=1, bonu=2)
    with pytest.raises(ConfigError, match="needs the argument 'value'"):
        load(folder, "user_class:Flat")


def test_the_time_out_can_be_configured_where_the_reward_has_no_such_argument(tmp_path: Path) -> None:
    text = (
        "def plain(*, outputs, **columns):\n    return [0.0] * len(outputs)\n"
        "def own(*, outputs, timeout_seconds, **columns):\n    return [timeout_seconds] * len(outputs)\n"
    )
    folder = module(tmp_path, "user_timeout", text)
    assert load(folder, "user_timeout:plain", timeout_seconds=2).components[0].timeout_seconds == 2
    own = load(folder, "user_timeout:own", timeout_seconds=4)
    assert own.components[0].timeout_seconds == 300
    assert_values(run(own, ["a"]).rewards, [4])


def test_an_entry_point_offers_a_reward(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module(tmp_path, "offered_rewards", "def flat(*, outputs, **columns):\n    return [4.0] * len(outputs)\n")
    info = tmp_path / "offered-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: offered\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[rlprompt.rewards]\nflat = offered_rewards:flat\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert_values(run(RewardSet.from_config([RewardConfig(name="flat")]), ["a"]).rewards, [4])


@pytest.mark.parametrize(
    ("name", "kwargs", "error", "match"),
    [
        ("gapp", {}, ConfigError, "unknown reward 'gapp'; did you mean 'gap'"),
        ("gap", {"corect": 1}, ConfigError, "reward 'gap' has no argument 'corect'; did you mean 'correct'"),
        ("gap", {"correct": -1}, ConfigError, "must be a number above 0"),
        ("gap", {"correct": "high"}, RewardError, "reward 'gap' cannot be loaded: TypeError"),
        ("os:system", {}, ConfigError, "outside the configuration's folder"),
        ("user_bad:missing", {}, ConfigError, "has no 'missing'"),
        ("user_bad:NUMBER", {}, RewardError, "is an int; name a function or a class"),
        ("user_bad:positional", {}, RewardError, r"takes \(x, y\); write it as def reward"),
        ("user_bad:Broken", {}, RewardError, "cannot be loaded: ZeroDivisionError"),
        ("user_bad:flat", {"factr": 2}, ConfigError, "has no argument 'factr'; did you mean 'factor'"),
        ("user_bad:flat", {"outputs": []}, ConfigError, "kwargs may not set 'outputs'"),
        ("user_bad:flat", {"adapter": "trl"}, ConfigError, "unknown adapter 'trl'"),
        ("user_syntax:flat", {}, RewardError, "cannot be loaded: SyntaxError"),
        ("user_raises:flat", {}, RewardError, "cannot be loaded: NameError"),
    ],
)
def test_what_cannot_be_a_reward_is_refused_in_one_line(
    tmp_path: Path, name: str, kwargs: dict[str, Any], error: type[Exception], match: str
) -> None:
    text = (
        "NUMBER = 3\n"
        "def positional(x, y):\n    return 0.0\n"
        "def flat(*, outputs, factor=1.0):\n    return [factor] * len(outputs)\n"
        "class Broken:\n    def __init__(self):\n        1 / 0\n"
    )
    module(tmp_path, "user_bad", text)
    module(tmp_path, "user_syntax", "def flat(:\n")
    module(tmp_path, "user_raises", "undefined_name\n")
    with pytest.raises(error, match=match) as caught:
        load(tmp_path, name, **kwargs)
    assert "\n" not in str(caught.value)


def test_a_module_elsewhere_needs_to_be_allowed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module(tmp_path, "elsewhere_rewards", "def flat(*, outputs, **columns):\n    return [1.0] * len(outputs)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = [RewardConfig(name="elsewhere_rewards:flat")]
    with pytest.raises(ConfigError, match="allow it with --allow-module elsewhere_rewards"):
        RewardSet.from_config(config)
    allowed = RewardSet.from_config(config, allow_modules=["elsewhere_rewards"])
    assert_values(run(allowed, ["a"]).rewards, [1])
