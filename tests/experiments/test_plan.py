"""Planning past the machine: the simulation and the sizes of larger models, against numbers worked out by hand."""

import re
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # experiments/ is no package that is installed

from experiments.benchmarks import plan as script  # noqa: E402
from experiments.benchmarks import sizes  # noqa: E402
from experiments.benchmarks.simulation import (  # noqa: E402
    CALLS,
    LEARNER,
    LETTERS,
    REST,
    REWARDS,
    TARGET,
    WEIGHTS,
    WRITING,
    Costs,
    Measured,
    Plan,
    asked,
    served,
    simulate,
    spread,
    target_bound,
)
from rlprompt.seeding import generator  # noqa: E402

COSTS = Costs(
    write_s=3.0,
    write_cv=0.0,
    play_s=1.0,
    get_s=0.5,
    put_s=0.25,
    weights_bytes=1000,
    message_s=0.125,
    fetch_s=0.0625,
    call_s=0.01,
    score_s=0.005,
    learn_s=0.5,
    rest_s=0.75,
)
PLAN = Plan(runners=4, share=2, examples=3, concurrency=6, latency_s=1.0, runners_per_node=2, bytes_per_s=2000.0)
DRAWS = generator(0, "test")


def test_an_iteration_is_the_sum_of_its_parts() -> None:
    stages = simulate(COSTS, PLAN, DRAWS).stages
    # The orders go out at 0.125, 0.25, 0.375, 0.5; the copies reach the two nodes at 0.5 and 1.0: all after 0.25 of
    # publishing, and 0.5 of unpacking. The first two start at 1.25, the others at 1.75.
    assert stages[WEIGHTS] == pytest.approx(1.75)
    assert stages[WRITING] == pytest.approx(4.0)
    # Letters at 5.25, 5.25, 5.75, 5.75: taken until 5.5, then until 6.0. Then 4 x (0.125 + 0.0625).
    assert stages[LETTERS] == pytest.approx(0.25 + 0.75)
    # 24 calls, six at a time and 1 s each: four waves; each wave's first call leaves 0.01 after the one before it.
    assert stages[TARGET] == pytest.approx(4 * 1.0 + 0.01 * (6 + 3), abs=0.07)
    assert stages[CALLS] == 0.0
    assert stages[REWARDS] == pytest.approx(24 * 0.005)
    assert stages[LEARNER] == pytest.approx(8 * 0.5)
    assert stages[REST] == 0.75


def test_samples_a_second_are_prompts_over_the_iteration() -> None:
    outcome = simulate(COSTS, PLAN, DRAWS)
    assert outcome.samples_per_s == pytest.approx(8 / sum(outcome.stages.values()))
    assert sum(outcome.share(name) for name in outcome.stages) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("change", "slowest"),
    [
        ({"write_s": 60.0}, WRITING),
        ({"learn_s": 60.0}, LEARNER),
        ({"message_s": 60.0}, LETTERS),
        ({"score_s": 60.0}, REWARDS),
        ({"call_s": 60.0}, CALLS),
        ({"weights_bytes": 10**6}, WEIGHTS),
        ({"rest_s": 60.0}, REST),
        ({"learn_s": 0.0, "write_s": 0.0}, TARGET),
    ],
    ids=str,
)
def test_the_slowest_part_is_named(change: dict[str, float], slowest: str) -> None:
    assert simulate(replace(COSTS, **change), PLAN, DRAWS).bottleneck == slowest


def test_calls_are_sent_one_after_another_and_so_many_at_a_time() -> None:
    assert asked([1.0], 4, 0.25) == 1.25
    # Sent at 0.25, 0.5; the third waits for the first, until 1.25, and leaves at 1.5.
    assert asked([1.0, 1.0, 1.0], 2, 0.25) == 2.5
    # The short one makes room: 3 and 1 begin at 0, the next at 1.
    assert asked([3.0, 1.0, 1.0], 2, 0.0) == 3.0
    # The sender is the slower one: 100 x 0.5, then the last answer.
    assert asked(np.full(100, 0.1), 16, 0.5) == pytest.approx(50.1)


def test_few_calls_wait_for_the_target_however_many_it_could_take() -> None:
    found = simulate(replace(COSTS, call_s=0.02), replace(PLAN, concurrency=4096), DRAWS)
    assert found.stages[TARGET] == pytest.approx(24 * 0.02 + 1.0)  # 0.48 s of CPU, 1 s of latency
    assert target_bound(np.full(24, 1.0), 4096) == 1.0


def test_letters_wait_for_their_turn() -> None:
    assert served(np.array([0.0, 0.0, 0.0]), 2.0) == 6.0
    assert served(np.array([10.0, 1.0]), 2.0) == 12.0


def test_times_that_vary_have_the_mean_and_the_spread_they_are_said_to_have() -> None:
    drawn = spread(2.0, 0.5, 200_000, generator(1, "test"))
    assert drawn.mean() == pytest.approx(2.0, rel=0.01)
    assert drawn.std() / drawn.mean() == pytest.approx(0.5, rel=0.02)
    assert spread(2.0, 0.0, 2, generator(1, "test")).tolist() == [2.0, 2.0]


def test_the_slowest_of_many_env_runners_is_waited_for() -> None:
    varied = replace(COSTS, write_cv=0.5, message_s=0.0, weights_bytes=0)  # all begin together
    few, many = (simulate(varied, replace(PLAN, runners=size), generator(2, "test")) for size in (1, 1000))
    assert many.stages[WRITING] > 2 * few.stages[WRITING] > 0


def test_memory_follows_from_the_shape() -> None:
    shape = sizes.Shape("s", 1000.0, layers=2, hidden=8, inner=16, kv_heads=1, head_dim=4)
    assert shape.weight_bytes == 2000
    assert shape.kv_bytes == 2 * 2 * 1 * 4 * 2  # keys and values, 2 layers, 1 head of 4, 2 bytes
    # A layer: query and output 8 + 8, key and value 8 + 4, three of 8 + 16; rank 3, 2 layers.
    assert shape.adapter(3) == 2 * 3 * (2 * 16 + 2 * 12 + 3 * 24)
    assert sizes.training_bytes(shape, 3, 10) == 2000 + 16 * 768 + 10 * 32
    assert sizes.serving_bytes(shape, 10) == 2320
    assert sizes.EIGHT.kv_bytes == 131_072  # 2 x 32 layers x 8 heads x 128 x 2 bytes


def test_hours_follow_from_flop_and_utilisation() -> None:
    shape = sizes.Shape("s", 1e9, 1, 1, 1, 1, 1)
    gpu = sizes.Gpu(flops=1e12, memory_bytes=80e9, reading=0.5, writing=0.1, learning=0.25)
    work = sizes.Work(context=100, written=20, examples=4, question=50, answer=2, epochs=2)
    # 2e9 FLOP a token: 100 at 5e11 a second, 20 at 1e11.
    assert sizes.writing_hours(shape, work, gpu) == pytest.approx((0.4 + 0.4) / 3600)
    # 120 tokens: two times forwards before, then twice forwards and backwards: 6 x 2e9 each, at 2.5e11.
    assert sizes.learning_hours(shape, work, gpu) == pytest.approx(120 * 12e9 / 2.5e11 / 3600)
    assert sizes.asking_hours(shape, work, gpu) == pytest.approx(4 * (50 * 2e9 / 5e11 + 2 * 2e9 / 1e11) / 3600)
    assert sizes.asking_flop(1e9, work) == 4 * 52 * 2e9
    assert sizes.core_hours(shape, work, 1e9) == pytest.approx(240 / 3600)
    assert [sizes.gpus(size * 1e9, gpu) for size in (72, 73)] == [1, 2]  # nine tenths of 80 GB


def _options(*arguments: str) -> Namespace:
    return script.arguments().parse_args(list(arguments))


def test_the_tables_say_what_was_measured_and_what_is_predicted() -> None:
    measured = Measured(COSTS, parameters=10**6, context=10, written=5)
    options = _options("--runners", "1", "4", "--concurrency", "6", "--share", "2", "--examples", "3", "--gbit", "1")
    rows = [{"policy": "smollm2", "runners": 1, "simulated": 3.0, "measured": 2.0}]
    text = script.page({"smollm2": measured}, rows, options)
    assert "| the update, per prompt | 500 |" in text
    assert "| smollm2 | 1 | 3 | 2 | 1.50 |" in text
    assert len(re.findall(r"^\| (1|4) \| [0-9.]+, [a-z' A-Z]+ \|$", text, flags=re.MULTILINE)) == 4  # W = 1, 4, twice
    assert "| learner | " in text
    assert "its learner were 100 times as fast" in text
    # 2 x 1e6 x (10 + 2 x 5) FLOP in 3 s.
    assert script.core_speed(measured, 2) == pytest.approx(4e7 / 3)


def test_a_price_is_the_user_s_and_nothing_costs_anything_without_one() -> None:
    without, priced = script.sizes_table(1e9, _options()), script.sizes_table(1e9, _options("--usd-per-gpu-hour", "2"))
    assert "USD" not in without
    target = next(line for line in priced.splitlines() if line.startswith("| 70B target"))
    hours, _, dollars = (cell.strip().replace(",", "") for cell in target.split("|")[5:8])
    assert float(dollars) == pytest.approx(2 * float(hours), rel=0.01)
