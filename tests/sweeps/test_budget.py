"""One budget for several ledgers: never overdrawn, set aside in time, kept over a kill."""

import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from local_sweeps import LockedBudget

from rlprompt.config import BudgetConfig
from rlprompt.errors import BudgetExceededError, ConfigError, RunError
from rlprompt.sweeps.budget import Share, SweepBudget, read_grants
from rlprompt.targets.ledger import Ledger, Price
from rlprompt.types import TargetOutput


def make(tmp_path: Path, **limits: float) -> SweepBudget:
    return SweepBudget(BudgetConfig.model_validate(limits), tmp_path / "budget.json")


def ledger_of(budget: SweepBudget, trial: str, own: BudgetConfig | None = None, price: Price | None = None) -> Ledger:
    budget.open(trial)
    return Ledger(own, prices={} if price is None else {"target": price}, shared=Share(budget, trial))


def spend(ledger: Ledger, calls: int, tokens: int = 0) -> None:
    with ledger.reserve(calls, tokens * calls) as reservation:
        reservation.settle([TargetOutput(text="x", prompt_tokens=tokens)] * calls)


def test_two_ledgers_never_spend_more_than_there_is(tmp_path: Path) -> None:
    budget = make(tmp_path, max_target_calls=10)
    one, other = ledger_of(budget, "a"), ledger_of(budget, "b")
    spend(one, 6)
    with pytest.raises(
        BudgetExceededError,
        match="max_target_calls of the sweep would be overdrawn: 5 wanted in all, and the other trials have 6 of 10",
    ):
        spend(other, 5)
    spend(other, 4)
    with pytest.raises(BudgetExceededError):
        spend(one, 1)
    assert budget.grants["a"].refused
    assert one.snapshot()["used"]["calls"] + other.snapshot()["used"]["calls"] == 10


def test_what_an_iteration_may_cost_is_set_aside_and_the_rest_of_it_given_back(tmp_path: Path) -> None:
    budget = make(tmp_path, max_target_calls=10)
    one, other = ledger_of(budget, "a"), ledger_of(budget, "b")
    assert one.afford(7)
    assert not other.afford(4)  # 7 + 4 > 10
    assert other.afford(3)
    spend(one, 2)
    assert not other.afford(4)
    one.give_back()  # 2 of 7 were used
    assert budget.grants["a"].granted == (2, 0, 0)
    assert other.afford(8)
    assert not other.afford(9)


def test_looking_ahead_takes_tokens_and_money_at_what_a_call_has_cost_so_far(tmp_path: Path) -> None:
    budget = make(tmp_path, max_target_tokens=100, max_cost_usd=1.0)
    ledger = ledger_of(budget, "a", price=Price(1e-3, 1e-3))
    spend(ledger, 4, tokens=5)  # 20 tokens, 0.02 dollars
    assert ledger.afford(6)
    # 20 + 6 * 20 / 4 = 50 tokens; at 10^9 picodollars each
    assert budget.grants["a"].granted == (10, 50, 50 * 10**9)
    assert ledger.afford(16)  # 20 + 16 * 5 = 100
    assert not ledger.afford(17)


def test_a_runs_own_limit_holds_beside_the_shared_one(tmp_path: Path) -> None:
    budget = make(tmp_path, max_target_calls=10)
    ledger = ledger_of(budget, "a", BudgetConfig(max_target_calls=3))
    assert not ledger.afford(4)
    with pytest.raises(BudgetExceededError, match=r"budget\.max_target_calls would be overdrawn: 4 wanted"):
        ledger.reserve(4)
    assert not budget.grants["a"].refused  # it was not the sweep's budget that said no
    assert budget.grants["a"].granted == (0, 0, 0)


def test_the_final_test_costs_the_sweep_nothing(tmp_path: Path) -> None:
    budget = make(tmp_path, max_target_calls=1)
    ledger = ledger_of(budget, "a")
    with ledger.reserve(50, phase="test") as reservation:
        reservation.settle([TargetOutput(text="x")] * 50)
    assert budget.grants["a"].granted == (0, 0, 0)


def test_a_limit_of_money_needs_a_price(tmp_path: Path) -> None:
    budget = make(tmp_path, max_cost_usd=1.0)
    with pytest.raises(ConfigError, match="the price of the target is unknown"):
        ledger_of(budget, "a")
    ledger = ledger_of(budget, "b", price=Price(0.1, 0.1))
    with pytest.raises(ConfigError, match="the price of the judge is unknown"):
        ledger.reserve(1, role="judge")
    # 11 tokens at 0.1 dollars are 1.1 > 1
    with pytest.raises(BudgetExceededError, match=r"max_cost_usd of the sweep would be overdrawn: 1\.1 wanted"):
        ledger.reserve(1, 11)


def test_the_grant_of_a_killed_trial_counts_as_spent_and_is_its_own_when_it_goes_on(tmp_path: Path) -> None:
    before = make(tmp_path, max_target_calls=10)
    killed = ledger_of(before, "a")
    assert killed.afford(6)
    spend(killed, 4)  # and then its process is gone, and so is the meter's

    budget = make(tmp_path, max_target_calls=10)
    assert budget.grants["a"].unreturned_calls == 6
    other = ledger_of(budget, "b")
    assert not other.afford(5)  # 6 + 5 > 10
    resumed = ledger_of(budget, "a")  # from a checkpoint before its 4 calls: it makes them again
    spend(resumed, 6)
    resumed.give_back()
    assert budget.grants["a"].granted == (6, 0, 0)
    assert budget.grants["a"].unreturned_calls == 0


def test_a_resumed_trial_gives_back_nothing_of_what_an_earlier_session_had(tmp_path: Path) -> None:
    budget = make(tmp_path, max_target_calls=10)
    first = ledger_of(budget, "a")
    spend(first, 6)
    first.give_back()
    resumed = ledger_of(budget, "a")  # its checkpoint is older than some of the 6 calls
    assert resumed.afford(8)
    spend(resumed, 1)
    resumed.give_back()  # interrupted before it came to them again
    assert budget.grants["a"].granted == (6, 0, 0)  # the 6 were made, whatever its own ledger says
    assert budget.grants["a"].unreturned_calls == 5


def test_a_raised_limit_lets_a_refused_trial_go_on(tmp_path: Path) -> None:
    budget = make(tmp_path, max_target_calls=2)
    assert not ledger_of(budget, "a").afford(3)
    raised = make(tmp_path, max_target_calls=3)
    assert raised.grants["a"].refused
    assert ledger_of(raised, "a").afford(3)
    assert not raised.grants["a"].refused


def test_a_grant_that_is_asked_for_twice_counts_once(tmp_path: Path) -> None:
    budget = make(tmp_path, max_target_calls=10)
    budget.open("a")
    assert budget.grant("a", (6, 0, 0)) is None
    assert budget.grant("a", (6, 0, 0)) is None
    assert budget.grants["a"].granted == (6, 0, 0)


def test_a_damaged_file_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "budget.json").write_text('{"trials": {"a": {"granted": [1]}}}')
    with pytest.raises(RunError, match=r"budget.json is damaged"):
        read_grants(tmp_path / "budget.json")


@settings(max_examples=15, deadline=None)
@given(
    limit=st.integers(1, 40),
    wishes=st.lists(st.lists(st.integers(1, 9), max_size=6), min_size=2, max_size=4),
)
def test_trials_at_once_never_overdraw(limit: int, wishes: list[list[int]], tmp_path_factory: object) -> None:
    folder = tmp_path_factory.mktemp("budget")  # type: ignore[attr-defined]
    budget = SweepBudget(BudgetConfig(max_target_calls=limit), folder / "budget.json")
    meter = LockedBudget(budget)
    spent: list[int] = []

    def trial(name: str, batches: list[int]) -> None:
        meter.open(name)
        ledger = Ledger(shared=Share(meter, name))
        for calls in batches:
            if ledger.afford(calls):
                spend(ledger, calls)  # what was set aside is there
        ledger.give_back()
        spent.append(ledger.snapshot()["used"]["calls"])

    threads = [threading.Thread(target=trial, args=(str(number), one)) for number, one in enumerate(wishes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(spent) == len(wishes)  # none of them was refused what it had set aside
    assert sum(spent) <= limit
    assert sum(grant.granted[0] for grant in budget.grants.values()) == sum(spent)
