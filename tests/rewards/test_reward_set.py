"""The weighted sum of rewards: what they get, state, needs, and the code of the user."""

import math
from pathlib import Path
from typing import Any

import pytest
from reward_sets import NAN, assert_values, fixed, load, make_set, module, run

from rlprompt.config import RewardConfig
from rlprompt.errors import CheckpointError, ConfigError, RewardError
from rlprompt.rewards import Component, RewardSet
from rlprompt.types import TargetOutput

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
