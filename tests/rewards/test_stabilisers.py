import json
import math
from collections.abc import Callable

import numpy as np
import pytest

from rlprompt.config import StabiliserConfig
from rlprompt.errors import CheckpointError, ConfigError
from rlprompt.rewards import build_stabilisers
from rlprompt.rewards.stabilisers import Clip, LeaveOneOut, LinearRange, RunningNormalisation, ZScore
from rlprompt.types import FloatArray, Stabiliser, masked_mean

ALL: dict[str, Callable[[], Stabiliser]] = {
    "z-score over the step": lambda: ZScore(over="step"),
    "z-score per input": lambda: ZScore(over="input"),
    "running normalisation": RunningNormalisation,
    "clip": lambda: Clip(low=-1.0, high=2.0),
    "linear range": lambda: LinearRange(old=(0.0, 1.0), new=(0.0, 5.0)),
    "leave-one-out": LeaveOneOut,
    "leave-one-out, scaled": lambda: LeaveOneOut(scale="std"),
}
every = pytest.mark.parametrize("make", ALL.values(), ids=ALL.keys())
centring = pytest.mark.parametrize("make", [make for name, make in ALL.items() if name not in ("clip", "linear range")])


def run(stabiliser: Stabiliser, rows: list[list[float]], invalid: list[tuple[int, int]] | None = None) -> FloatArray:
    rewards = np.array(rows, dtype=np.float64)
    valid = np.ones(rewards.shape, dtype=np.bool_)
    for index in invalid or []:
        valid[index] = False
    return stabiliser(rewards, valid)


def test_z_score_over_the_step_is_that_of_the_prompts_means() -> None:
    # means 2, 4, 6: mean 4, population variance (4 + 0 + 4) / 3 = 8/3, std 1.632993
    # z = -2 / (1.632993 + 0.0001) = -1.2246699, 0, 1.2246699
    got = run(ZScore(), [[1.0, 3.0], [4.0, 4.0], [5.0, 7.0]])
    assert got == pytest.approx(np.array([[-1.2246699] * 2, [0.0] * 2, [1.2246699] * 2]), abs=1e-6)


def test_z_score_per_input_standardises_each_example_over_the_prompts() -> None:
    # first example 1, 3: mean 2, std 1, z = -1 / 1.0001; second example 10, 30: std 10, z = -10 / 10.0001
    got = run(ZScore(over="input"), [[1.0, 10.0], [3.0, 30.0]])
    first, second = 1 / 1.0001, 10 / 10.0001
    assert got == pytest.approx(np.array([[-first, -second], [first, second]]), abs=1e-12)


def test_leave_one_out_compares_with_the_mean_of_the_other_prompts() -> None:
    # means 1, 2, 6: 1 - (2 + 6) / 2 = -3; 2 - (1 + 6) / 2 = -1.5; 6 - (1 + 2) / 2 = 4.5
    got = run(LeaveOneOut(), [[0.0, 2.0], [2.0, 2.0], [5.0, 7.0]])
    assert got == pytest.approx(np.array([[-3.0] * 2, [-1.5] * 2, [4.5] * 2]))


def test_leave_one_out_can_be_scaled_by_the_standard_deviation() -> None:
    # means 1, 3: differences -2, 2; population std 1; -2 / 1.0001
    assert run(LeaveOneOut(scale="std"), [[1.0], [3.0]]) == pytest.approx(np.array([[-2 / 1.0001], [2 / 1.0001]]))


def test_leave_one_out_of_a_single_valid_prompt_is_zero() -> None:
    assert run(LeaveOneOut(), [[7.0, 9.0]]).tolist() == [[0.0, 0.0]]
    got = run(LeaveOneOut(scale="std"), [[7.0, 9.0], [1.0, 2.0]], invalid=[(1, 0), (1, 1)])
    assert got.tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_running_normalisation_follows_a_hand_computed_sequence() -> None:
    stabiliser = RunningNormalisation(epsilon=1e-4)
    # step 1: 1, 3: mean 2, std 1
    assert run(stabiliser, [[1.0, 3.0]]) == pytest.approx(np.array([[-1 / 1.0001, 1 / 1.0001]]))
    # step 2: 8 is added: mean 4, squared deviations 9 + 1 + 16 = 26, std sqrt(26 / 3) = 2.943920
    assert run(stabiliser, [[8.0]]) == pytest.approx(np.array([[4 / (math.sqrt(26 / 3) + 1e-4)]]))
    assert stabiliser.state_dict() == pytest.approx({"count": 3, "mean": 4.0, "squares": 26.0})


def test_running_statistics_equal_those_of_all_rewards_at_once() -> None:
    rng = np.random.Generator(np.random.Philox(7))
    steps = [rng.normal(1e4, 3.0, (4, size)) for size in (1, 5, 2)]
    stabiliser = RunningNormalisation()
    for step in steps:
        stabiliser(step, np.ones(step.shape, dtype=np.bool_))
    together = np.concatenate([step.ravel() for step in steps])
    assert stabiliser.count == together.size
    assert stabiliser.mean == pytest.approx(together.mean(), rel=1e-12)
    assert math.sqrt(stabiliser.squares / stabiliser.count) == pytest.approx(together.std(), rel=1e-9)


def test_frozen_statistics_do_not_move() -> None:
    stabiliser = RunningNormalisation()
    run(stabiliser, [[1.0, 3.0]])
    before = stabiliser.state_dict()
    stabiliser.frozen = True
    # mean 2 and std 1 from before: (102 - 2) / 1.0001
    assert run(stabiliser, [[102.0]]) == pytest.approx(np.array([[100 / 1.0001]]))
    assert stabiliser.state_dict() == before


def test_running_normalisation_without_any_statistics_changes_nothing() -> None:
    stabiliser = RunningNormalisation()
    stabiliser.frozen = True
    assert run(stabiliser, [[5.0]]).tolist() == [[5.0]]


def test_a_state_that_went_through_json_continues_bit_for_bit() -> None:
    first, second = RunningNormalisation(), RunningNormalisation()
    run(first, [[0.1, 1 / 3, 1e9]])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert run(first, [[0.7, 2.0]]).tolist() == run(second, [[0.7, 2.0]]).tolist()


@pytest.mark.parametrize(
    "state",
    [{}, {"count": 1}, {"count": -1, "mean": 0.0, "squares": 0.0}, {"count": 1, "mean": math.nan, "squares": 0}],
)
def test_a_state_that_does_not_fit_is_refused(state: dict[str, float]) -> None:
    with pytest.raises(CheckpointError, match="running-normalisation"):
        RunningNormalisation().load_state_dict(state)


def test_a_state_for_a_stabiliser_without_one_is_refused() -> None:
    Clip(high=1.0).load_state_dict({})
    with pytest.raises(CheckpointError, match="for Clip, which has none"):
        Clip(high=1.0).load_state_dict({"count": 1})


def test_clip_limits_both_sides_or_one() -> None:
    rows = [[-5.0, 0.5, 5.0]]
    assert run(Clip(low=-1.0, high=2.0), rows).tolist() == [[-1.0, 0.5, 2.0]]
    assert run(Clip(low=0.0), rows).tolist() == [[0.0, 0.5, 5.0]]


def test_linear_range_maps_the_ends_and_goes_on_outside() -> None:
    # [0, 1] to [-20, 80] is 100 r - 20: the published shaping of style transfer
    assert run(LinearRange(old=(0, 1), new=(-20, 80)), [[0.0, 1.0, 0.5, 2.0]]).tolist() == [[-20.0, 80.0, 30.0, 180.0]]


@every
def test_failed_samples_change_the_others_as_if_they_were_removed(make: Callable[[], Stabiliser]) -> None:
    rng = np.random.Generator(np.random.Philox(3))
    rewards = rng.normal(0.0, 2.0, (5, 4))
    valid = np.ones((5, 4), dtype=np.bool_)
    valid[1, :] = False  # a prompt that failed on every example
    valid[:, 2] = False  # an example that failed with every prompt
    kept = np.delete(np.delete(rewards, 1, axis=0), 2, axis=1)
    rewards[~valid] = 1e6
    got = make()(rewards, valid)
    assert got[~valid].tolist() == [0.0] * 8
    expected = make()(kept, np.ones(kept.shape, dtype=np.bool_))
    assert np.delete(np.delete(got, 1, axis=0), 2, axis=1) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("over", ["step", "input"])
def test_single_failed_samples_enter_no_mean(over: str) -> None:
    # prompt 0 failed on example 1. Over the step: means 4, 2, 6. Per input: example 1 has 2, 6 only.
    got = run(ZScore(over=over), [[4.0, 99.0], [2.0, 2.0], [6.0, 6.0]], invalid=[(0, 1)])
    step, pair = 2 / (math.sqrt(8 / 3) + 1e-4), 2 / (2 + 1e-4)
    expected = [[0.0, 0.0], [-step, -step], [step, step]] if over == "step" else [[0, 0], [-step, -pair], [step, pair]]
    assert got == pytest.approx(np.array(expected), abs=1e-12)


@every
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_spoil_nothing(make: Callable[[], Stabiliser], bad: float) -> None:
    stabiliser, clean = make(), make()
    got = run(stabiliser, [[1.0, bad], [2.0, 3.0]])
    assert got.tolist() == run(clean, [[1.0, 0.0], [2.0, 3.0]], invalid=[(0, 1)]).tolist()
    assert np.isfinite(got).all()
    assert stabiliser.state_dict() == clean.state_dict()


@every
def test_a_batch_without_a_valid_sample_is_zero_and_warns_of_nothing(make: Callable[[], Stabiliser]) -> None:
    with np.errstate(all="raise"):
        got = run(make(), [[1.0], [2.0]], invalid=[(0, 0), (1, 0)])
    assert got.tolist() == [[0.0], [0.0]]


@centring
@pytest.mark.parametrize("value", [0.1, -1e6, 1 / 3, 0.0])
def test_t14_constant_rewards_become_zero_and_do_not_blow_up(make: Callable[[], Stabiliser], value: float) -> None:
    got = run(make(), [[value] * 7] * 6)
    assert np.abs(got).max() < 1e-6


@pytest.mark.parametrize("make", [lambda: ZScore(), lambda: ZScore(over="input"), lambda: LeaveOneOut(scale="std")])
def test_t14_equal_rewards_become_exactly_zero_although_their_mean_is_rounded(make: Callable[[], Stabiliser]) -> None:
    # (0.1 + 0.1 + 0.1) / 3 is not 0.1 in binary, and 1e12 + 0.1 is off by 1e-4: as large as epsilon
    for value in (0.1, 1e12 + 0.1):
        assert run(make(), [[value]] * 3).tolist() == [[0.0]] * 3


@pytest.mark.parametrize("make", [lambda: ZScore(), lambda: ZScore(over="input"), lambda: LeaveOneOut(scale="std")])
def test_t14_scaled_stabilisers_forget_the_scale_and_the_offset(make: Callable[[], Stabiliser]) -> None:
    rows = np.random.Generator(np.random.Philox(5)).normal(0.0, 1.0, (6, 3))
    every_pair = np.ones(rows.shape, dtype=np.bool_)
    # epsilon 1e-4 against a standard deviation of about 0.5 leaves a difference of some 1e-4
    assert make()(rows * 50 + 7, every_pair) == pytest.approx(make()(rows, every_pair), abs=2e-3)


@pytest.mark.parametrize("make", [lambda: ZScore(), lambda: ZScore(over="input"), lambda: LeaveOneOut()])
def test_training_rewards_of_a_step_add_up_to_zero(make: Callable[[], Stabiliser]) -> None:
    rows = np.random.Generator(np.random.Philox(9)).normal(3.0, 1.0, (6, 3))
    valid = np.ones(rows.shape, dtype=np.bool_)
    assert masked_mean(make()(rows, valid), valid).sum() == pytest.approx(0.0, abs=1e-12)


@every
def test_the_arguments_are_left_as_they_were(make: Callable[[], Stabiliser]) -> None:
    rewards, valid = np.array([[1.0, 2.0], [3.0, 5.0]]), np.array([[True, False], [True, True]])
    before = rewards.copy(), valid.copy()
    got = make()(rewards, valid)
    assert got.shape == rewards.shape
    assert (rewards == before[0]).all()
    assert (valid == before[1]).all()


def test_the_mask_must_have_the_shape_of_the_rewards() -> None:
    with pytest.raises(ConfigError, match=r"\(P, E\)"):
        ZScore()(np.zeros((2, 3)), np.ones((2, 2), dtype=np.bool_))


def test_stabilisers_are_built_in_the_order_of_the_configuration() -> None:
    built = build_stabilisers(
        [
            StabiliserConfig(name="z-score", kwargs={"over": "input", "epsilon": 0.01}),
            StabiliserConfig(name="linear-range", kwargs={"old": [0, 1], "new": [0, 5]}),
            StabiliserConfig(name="clip", kwargs={"high": 3}),
            StabiliserConfig(name="leave-one-out"),
            StabiliserConfig(name="running-normalisation"),
        ]
    )
    assert [type(entry) for entry in built] == [ZScore, LinearRange, Clip, LeaveOneOut, RunningNormalisation]
    assert isinstance(built[0], ZScore)
    assert (built[0].over, built[0].epsilon) == ("input", 0.01)


@pytest.mark.parametrize(
    ("name", "kwargs", "match"),
    [
        ("z-scor", {}, "did you mean 'z-score'"),
        ("z-score", {"ovr": "step"}, "has no argument 'ovr'; did you mean 'over'"),
        ("z-score", {"over": "batch"}, "over must be step or input, got 'batch'"),
        ("z-score", {"epsilon": 0}, "epsilon must be a number above 0, got 0"),
        ("z-score", {"epsilon": "small"}, "check its kwargs"),
        ("clip", {}, "give at least one"),
        ("clip", {"low": 1, "high": 1}, "low must be below high, got 1 and 1"),
        ("linear-range", {"old": [1, 1]}, "two different numbers"),
        ("linear-range", {"new": [1]}, "two finite numbers"),
        ("leave-one-out", {"scale": "max"}, "scale must be none or std, got 'max'"),
        ("running-normalisation", {"epsilon": -1}, "above 0"),
        ("os:system", {}, "outside the configuration's folder"),
    ],
)
def test_a_mistake_in_the_configuration_is_one_line(name: str, kwargs: dict[str, object], match: str) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        build_stabilisers([StabiliserConfig(name=name, kwargs=kwargs)])
    assert "\n" not in str(caught.value)
