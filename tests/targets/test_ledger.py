import json
import threading
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlprompt.config import BudgetConfig
from rlprompt.errors import BudgetExceededError, CheckpointError, ConfigError
from rlprompt.targets.ledger import Ledger, Price
from rlprompt.types import Failure, TargetOutput


def answer(prompt: int = 0, completion: int = 0, *, cached: bool = False) -> TargetOutput:
    return TargetOutput(text="x", prompt_tokens=prompt, completion_tokens=completion, cached=cached)


def failed(kind: str, attempts: int = 1) -> TargetOutput:
    return TargetOutput(failure=Failure("target", kind, "no", attempts))


def spend(ledger: Ledger, outputs: Sequence[TargetOutput], tokens: int | Sequence[int] = 0, **kwargs: str) -> None:
    with ledger.reserve(len(outputs), tokens, **kwargs) as reservation:
        reservation.settle(outputs)


def test_a_cache_hit_is_used_but_not_paid() -> None:
    ledger = Ledger(prices={"target": Price(1e-6, 2e-6)})
    spend(ledger, [answer(10, 5), answer(7, 3, cached=True)], 100)
    report = ledger.snapshot()
    assert report["used"] == {"calls": 2, "tokens": 25}  # 10 + 5 + 7 + 3
    # 10 * 1e-6 + 5 * 2e-6 = 2e-5
    assert report["paid"] == {"calls": 1, "tokens": 15, "cost_usd": 2e-5, "unpriced_calls": 0}
    assert report["cache_hits"] == 1


def test_a_missing_usage_is_charged_at_the_reservation() -> None:
    ledger = Ledger(prices={"target": Price(1e-6, 3e-6)})
    spend(ledger, [answer(), answer(10, 2)], [40, 20])
    report = ledger.snapshot()
    assert report["used"]["tokens"] == 52  # 40 reserved + 12 reported
    # 40 tokens at the dearer price 3e-6 = 1.2e-4, and 10 * 1e-6 + 2 * 3e-6 = 1.6e-5
    assert report["paid"]["cost_usd"] == pytest.approx(1.36e-4, abs=1e-12)


def test_a_missing_usage_is_used_alike_with_and_without_a_cache() -> None:
    fresh, replayed = Ledger(), Ledger()
    spend(fresh, [answer()], 30)
    spend(replayed, [answer(cached=True)], 30)
    assert fresh.snapshot()["used"] == replayed.snapshot()["used"] == {"calls": 1, "tokens": 30}
    assert replayed.snapshot()["paid"]["tokens"] == 0


def test_a_guess_for_a_missing_usage_never_passes_the_reservation() -> None:
    ledger = Ledger(BudgetConfig(max_target_tokens=100))
    spend(ledger, [answer(), answer(80, 10)], 100)  # the share of each is 50, but only 100 - 90 is left
    assert ledger.snapshot()["used"]["tokens"] == 100


@pytest.mark.parametrize(
    ("output", "paid_calls", "tokens"),
    [
        (failed("timeout"), 1, 20),
        (failed("connection"), 1, 20),
        (failed("rate-limit"), 1, 0),
        (failed("http"), 1, 0),
        (failed("too-long", attempts=0), 0, 0),
    ],
    ids=["timeout", "connection", "rate-limit", "http", "never-sent"],
)
def test_a_failed_call_is_used_and_charged_only_if_it_may_be_billed(
    output: TargetOutput, paid_calls: int, tokens: int
) -> None:
    ledger = Ledger()
    spend(ledger, [output], 20)
    report = ledger.snapshot()
    assert report["used"] == {"calls": 1, "tokens": tokens}
    assert (report["paid"]["calls"], report["failed"]) == (paid_calls, 1)


def test_t10_it_refuses_to_overdraw_calls_and_counts_what_is_in_flight() -> None:
    ledger = Ledger(BudgetConfig(max_target_calls=10))
    first = ledger.reserve(6)
    assert ledger.remaining_calls() == 4
    with pytest.raises(BudgetExceededError, match=r"max_target_calls .* 5 wanted, 0 used and 6 reserved of 10"):
        ledger.reserve(5)
    first.settle([answer()] * 6)
    assert ledger.remaining_calls() == 4
    ledger.reserve(4)
    assert ledger.remaining_calls() == 0


def test_tokens_and_money_are_limited_by_the_reservation() -> None:
    tokens = Ledger(BudgetConfig(max_target_tokens=100))
    with pytest.raises(BudgetExceededError, match="max_target_tokens"):
        tokens.reserve(1, 101)
    money = Ledger(BudgetConfig(max_cost_usd=1e-4), prices={"target": Price(1e-6, 2e-6)})
    money.reserve(1, 50)  # 50 tokens at the dearer price are exactly 1e-4
    with pytest.raises(BudgetExceededError, match="max_cost_usd"):
        money.reserve(1, 1)


def test_leaving_unsettled_gives_everything_back() -> None:
    ledger = Ledger(BudgetConfig(max_target_calls=5, max_target_tokens=50))
    with ledger.reserve(5, 50):
        assert ledger.remaining_calls() == 0
    assert ledger.remaining_calls() == 5
    assert ledger.snapshot()["used"] == {"calls": 0, "tokens": 0}
    ledger.reserve(5, 50).release()
    assert ledger.remaining_calls() == 5


def test_settling_twice_or_more_than_reserved_is_refused() -> None:
    reservation = Ledger().reserve(1)
    with pytest.raises(ValueError, match="2 outputs for a reservation of 1"):
        reservation.settle([answer(), answer()])
    reservation.settle([answer()])
    with pytest.raises(ValueError, match="already"):
        reservation.settle([answer()])
    reservation.release()  # stays harmless


def test_the_test_phase_is_unlimited_and_metered_apart() -> None:
    ledger = Ledger(BudgetConfig(max_target_calls=2), prices={"target": Price(1e-6, 1e-6)})
    spend(ledger, [answer(3, 1)] * 2, 8)
    spend(ledger, [answer(5, 0)] * 7, 35, phase="test")
    report = ledger.snapshot()
    assert report["used"] == {"calls": 2, "tokens": 8}
    assert report["paid"]["calls"] == 2
    assert (report["test"]["calls"], report["test"]["tokens"]) == (7, 35)
    assert report["test"]["cost_usd"] == pytest.approx(3.5e-5)
    assert {phase: meter["calls"] for phase, meter in report["by_phase"].items()} == {"train": 2, "test": 7}
    assert ledger.remaining_calls() == 0


def test_all_roles_and_phases_share_one_budget() -> None:
    ledger = Ledger(BudgetConfig(max_target_calls=3))
    spend(ledger, [answer()], phase="dev")
    spend(ledger, [answer()], role="judge", phase="train")
    spend(ledger, [answer()], role="proposer", phase="calibration")
    assert {role: meter["calls"] for role, meter in ledger.snapshot()["by_role"].items()} == {
        "judge": 1,
        "proposer": 1,
        "target": 1,
    }
    with pytest.raises(BudgetExceededError):
        ledger.reserve(1, role="judge")


def test_t10_an_unknown_price_is_an_error_when_money_is_limited() -> None:
    with pytest.raises(ConfigError, match="price of the target is unknown"):
        Ledger(BudgetConfig(max_cost_usd=1.0))
    ledger = Ledger(BudgetConfig(max_cost_usd=1.0), prices={"big": Price(1e-6, 1e-6)})
    ledger.reserve(1, 1, model="big")
    with pytest.raises(ConfigError, match="price of 'small' is unknown"):
        ledger.reserve(1, 1, model="small")
    with pytest.raises(ConfigError, match="price of the judge is unknown"):
        ledger.reserve(1, 1, role="judge")


def test_without_a_limit_an_unknown_price_is_counted_and_not_taken_for_zero() -> None:
    ledger = Ledger()
    spend(ledger, [answer(5, 5)], 10)
    assert ledger.snapshot()["paid"]["unpriced_calls"] == 1


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), "1", True])
def test_a_price_must_be_a_finite_amount(value: object) -> None:
    with pytest.raises(ConfigError, match="prompt_usd_per_token must be"):
        Price(prompt_usd_per_token=value)  # type: ignore[arg-type]


def test_an_unknown_key_of_a_price_offers_the_right_one() -> None:
    with pytest.raises(ConfigError, match="did you mean 'prompt_usd_per_token'"):
        Price.from_config({"prompt_usd_per_tokens": 1e-6})


def test_the_state_survives_json_exactly_and_keeps_the_new_limits() -> None:
    ledger = Ledger(BudgetConfig(max_target_calls=5), prices={"target": Price(1.5e-7, 6e-7)})
    spend(ledger, [answer(3, 1), failed("timeout"), answer(1, 1, cached=True)], 50)
    spend(ledger, [answer(9, 9)], 20, phase="test", role="judge", model="target")
    restored = Ledger(BudgetConfig(max_target_calls=9), prices={"target": Price(1.5e-7, 6e-7)})
    restored.load_state_dict(json.loads(json.dumps(ledger.state_dict())))
    before, after = ledger.snapshot(), restored.snapshot()
    assert (before.pop("limits")["max_target_calls"], after.pop("limits")["max_target_calls"]) == (5, 9)
    assert before == after
    assert restored.remaining_calls() == 6


@pytest.mark.parametrize("state", [{}, {"phases": {"train": {"calls": -1}}, "roles": {}}, {"phases": 3}])
def test_a_damaged_state_is_a_checkpoint_error(state: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match="saved ledger is damaged"):
        Ledger().load_state_dict(state)


@settings(max_examples=15, deadline=None)
@given(
    max_calls=st.integers(1, 60),
    max_tokens=st.integers(1, 2000),
    sizes=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40), st.booleans()), min_size=64, max_size=64),
)
def test_t10_sixty_four_threads_never_overdraw(
    max_calls: int, max_tokens: int, sizes: list[tuple[int, int, bool]]
) -> None:
    price = Price(1e-6, 1e-6)
    budget = BudgetConfig(max_target_calls=max_calls, max_target_tokens=max_tokens, max_cost_usd=max_tokens * 5e-7)
    ledger = Ledger(budget, prices={"target": price})
    served = [0] * len(sizes)
    start = threading.Barrier(len(sizes))

    def work(index: int) -> None:
        calls, tokens, reported = sizes[index]
        start.wait()
        try:
            with ledger.reserve(calls, [tokens] * calls) as reservation:
                served[index] = calls  # the moment of the real call
                reservation.settle([answer(tokens if reported else 0)] * calls)
        except BudgetExceededError:
            served[index] = 0

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(sizes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    report = ledger.snapshot()
    assert sum(served) == report["used"]["calls"] <= max_calls
    assert report["used"]["tokens"] <= max_tokens
    assert report["paid"]["cost_usd"] <= max_tokens * 5e-7
    assert ledger.remaining_calls() == max_calls - sum(served)
