"""The one meter of target, judge and proposer calls, tokens and money; it refuses to overdraw.

Two meters. `used` is the budget of a run: each (prompt, example, sample) counts once, even if a cache of another
run answers it, so that a comparison does not depend on the order of runs. `paid` is real spending: a cache hit
costs nothing. Spending is reserved before it happens and settled to what was reported. The final test (phase
"test") is never limited and is metered apart from both.

Money is kept as whole picodollars, so that sums are exact and a reservation leaves nothing behind.
"""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rlprompt.errors import BudgetExceededError, CheckpointError, ConfigError, did_you_mean
from rlprompt.types import Json, SharedBudget, TargetOutput

if TYPE_CHECKING:
    from rlprompt.config import BudgetConfig

TEST_PHASE = "test"
_PICO = 10**12
_NOT_BILLED = frozenset({"too-long", "rate-limit", "http"})
"""Failures in which the server refused the request: no tokens are charged for them."""


@dataclass(frozen=True, slots=True)
class Price:
    """The listed price of a model, in US dollars per token; at least 0."""

    prompt_usd_per_token: float = 0.0
    completion_usd_per_token: float = 0.0

    def __post_init__(self) -> None:
        """Raises ConfigError for a value that is no price."""
        for name in ("prompt_usd_per_token", "completion_usd_per_token"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ConfigError(f"price: {name} must be a number of dollars, got {value!r}")
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"price: {name} must be 0 or more dollars, got {value}")

    @classmethod
    def from_config(cls, value: Price | Mapping[str, float]) -> Price:
        """Builds a price from a mapping with the names of the fields.

        Raises:
            ConfigError: no mapping, an unknown name or a value that is no price.
        """
        if isinstance(value, Price):
            return value
        known = [entry.name for entry in fields(cls)]
        if not isinstance(value, Mapping):
            raise ConfigError(f"price must be a mapping with {' and '.join(known)}, got {value!r}")
        for name in value:
            if name not in known:
                raise ConfigError(f"price: unknown key '{name}'{did_you_mean(str(name), known)}")
        return cls(**value)

    def pico(self, prompt_tokens: int, completion_tokens: int) -> int:
        """Returns the cost of a reported usage in picodollars."""
        prompt, completion = self._rates()
        return prompt_tokens * prompt + completion_tokens * completion

    def most_pico(self, tokens: int) -> int:
        """Returns the most that so many tokens can cost, whatever their kind, in picodollars."""
        return tokens * max(self._rates())

    def _rates(self) -> tuple[int, int]:
        return math.ceil(self.prompt_usd_per_token * _PICO), math.ceil(self.completion_usd_per_token * _PICO)


@dataclass(slots=True)
class _Meter:
    """Sums of one phase or one role."""

    calls: int = 0
    tokens: int = 0
    paid_calls: int = 0
    paid_tokens: int = 0
    unpriced_calls: int = 0
    cost_pico: int = 0

    def add(self, other: _Meter) -> None:
        for entry in fields(self):
            setattr(self, entry.name, getattr(self, entry.name) + getattr(other, entry.name))

    def report(self) -> Json:
        values = asdict(self)
        values["cost_usd"] = values.pop("cost_pico") / _PICO
        return values


@dataclass(frozen=True, slots=True)
class Charge:
    """What one call may cost at most: what is charged where nobody knows whether it was answered."""

    role: str
    phase: str
    tokens: int
    cost_pico: int | None
    """None: the price is unknown."""


@dataclass(slots=True)
class _Held:
    """What the open reservations hold."""

    calls: int = 0
    tokens: int = 0
    cost_pico: int = 0


class Reservation:
    """Spending that is set aside. Settle it with the outputs; leaving the `with` block unsettled releases it."""

    def __init__(self, ledger: Ledger, estimates: Sequence[int], *, role: str, phase: str, price: Price | None) -> None:
        self.calls = len(estimates)
        self.tokens = sum(estimates)
        self.estimates = tuple(estimates)
        self.role = role
        self.phase = phase
        self.price = price
        self.cost_pico = price.most_pico(self.tokens) if price is not None else 0
        self._ledger = ledger
        self._open = True

    def charge(self, index: int) -> Charge:
        """Returns the most that one of the reserved calls may cost."""
        tokens = self.estimates[index]
        return Charge(self.role, self.phase, tokens, None if self.price is None else self.price.most_pico(tokens))

    def settle(self, outputs: Sequence[TargetOutput]) -> None:
        """Books what was spent and gives the rest back.

        A call counts as used, failed or not; it is paid unless it was cached or never sent. Tokens count as
        reported; where no usage was reported they count at the reservation, unless the server refused the call.

        Args:
            outputs: one per reserved call, in order; fewer when the rest was never asked.

        Raises:
            ValueError: settled or released before, or more outputs than reserved calls.
        """
        if len(outputs) > self.calls:
            raise ValueError(f"{len(outputs)} outputs for a reservation of {self.calls} calls")
        self._ledger._close(self, self._spent(outputs), outputs)

    def release(self) -> None:
        """Gives everything back; does nothing on a reservation that is settled or released."""
        if self._open:
            self._ledger._close(self, _Meter(), ())

    def _spent(self, outputs: Sequence[TargetOutput]) -> _Meter:
        # What a missing usage may be charged: no more than the reservation less what the others reported.
        left = max(self.tokens - sum(_usage(output) for output in outputs), 0)
        spent = _Meter(calls=len(outputs))
        for output, estimate in zip(outputs, self.estimates, strict=False):
            tokens = _usage(output)
            guessed = not tokens and not _refused(output)
            if guessed:
                tokens = min(estimate, left)
                left -= tokens
            spent.tokens += tokens
            if output.cached or (output.failure is not None and output.failure.attempts == 0):
                continue
            spent.paid_calls += 1
            spent.paid_tokens += tokens
            if self.price is None:
                spent.unpriced_calls += 1
            elif guessed:
                spent.cost_pico += self.price.most_pico(tokens)
            else:
                spent.cost_pico += self.price.pico(output.prompt_tokens, output.completion_tokens)
        return spent

    def __enter__(self) -> Reservation:
        """Returns the reservation itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Releases what was not settled."""
        self.release()


@dataclass(frozen=True, slots=True)
class _Limits:
    max_target_calls: int | None = None
    max_target_tokens: int | None = None
    max_cost_usd: float | None = None
    max_wall_s: float | None = None


@dataclass(slots=True)
class _Counters:
    phases: dict[str, _Meter] = field(default_factory=dict)
    roles: dict[str, _Meter] = field(default_factory=dict)
    failed: int = 0
    cache_hits: int = 0
    unknown: int = 0


class Ledger:
    """Meters all calls of a run; safe to share between threads.

    Args:
        budget: the limits; None is unlimited. `max_target_calls` and `max_target_tokens` limit what is used,
            `max_cost_usd` what is paid. `max_wall_s` is only reported here: the run watches the clock.
        prices: listed prices by model name; the name of a role ("target", "judge", "proposer") stands for the
            calls of that role that name no model.
        shared: a budget that other runs spend, too; it is asked beside the run's own.

    Raises:
        ConfigError: `max_cost_usd` is set and no price is known.
    """

    def __init__(
        self,
        budget: BudgetConfig | None = None,
        *,
        prices: Mapping[str, Price] | None = None,
        shared: SharedBudget | None = None,
    ) -> None:
        limits = {entry.name: getattr(budget, entry.name, None) for entry in fields(_Limits)}
        self._limits = _Limits(**limits)
        self._prices = dict(prices or {})
        self._shared = shared
        self._granted = (0, 0, 0)
        self._limits_cost = self._limits.max_cost_usd is not None or (shared is not None and shared.limits_cost)
        if self._limits_cost and not self._prices:
            raise ConfigError(_unknown_price("the target"))
        self._lock = threading.Lock()
        self._held = _Held()
        self._counters = _Counters()
        self._reported: _Counters | None = None

    def reserve(
        self,
        calls: int,
        tokens: int | Sequence[int] = 0,
        *,
        role: str = "target",
        phase: str = "train",
        model: str | None = None,
        price: Price | None = None,
    ) -> Reservation:
        """Sets spending aside before it happens.

        Args:
            calls: number of calls, at least 0.
            tokens: upper estimate of prompt and completion tokens: of all calls together, or one per call.
            role: who is called: "target", "judge" or "proposer".
            phase: what for: "train", "dev", "calibration", "test", ...; "test" is never limited.
            model: names the price; without it the price of the role is taken.
            price: of these calls, where the caller knows it.

        Raises:
            BudgetExceededError: used, reserved and this together would overdraw; nothing was reserved.
            ConfigError: `max_cost_usd` is set and the price is unknown.
        """
        price = price if price is not None else self._price(role, model)
        reservation = Reservation(self, _estimates(calls, tokens), role=role, phase=phase, price=price)
        with self._lock:
            if phase != TEST_PHASE:
                self._secure(reservation.calls, reservation.tokens, reservation.cost_pico)
                self._held.calls += reservation.calls
                self._held.tokens += reservation.tokens
                self._held.cost_pico += reservation.cost_pico
        return reservation

    def check_price(self, price: Price | None, whose: str) -> None:
        """Raises ConfigError where `max_cost_usd` is set and this price is None."""
        if price is None and self._limits_cost:
            raise ConfigError(_unknown_price(whose))

    def charge_unknown(self, charges: Sequence[Charge]) -> None:
        """Books calls that were in flight when an earlier session was killed: paid, for all that is known; not used.

        They are asked again where their answers are needed, and count as used then. Limits do not hold them back: what
        was spent was spent.
        """
        with self._lock:
            for charge in charges:
                spent = _Meter(paid_calls=1, paid_tokens=charge.tokens)
                if charge.cost_pico is None:
                    spent.unpriced_calls = 1
                else:
                    spent.cost_pico = charge.cost_pico
                self._counters.phases.setdefault(charge.phase, _Meter()).add(spent)
                if charge.phase != TEST_PHASE:
                    self._counters.roles.setdefault(charge.role, _Meter()).add(spent)
            self._counters.unknown += len(charges)

    def remaining_calls(self) -> int | None:
        """Returns how many calls can still be reserved, or None for no limit."""
        if self._limits.max_target_calls is None:
            return None
        with self._lock:
            return max(self._limits.max_target_calls - _total(self._counters).calls - self._held.calls, 0)

    @property
    def is_shared(self) -> bool:
        """Whether other runs spend of the same budget."""
        return self._shared is not None

    def afford(self, calls: int) -> bool:
        """Returns whether so many more calls fit into what is left; of a shared budget, they are then set aside.

        Tokens and money are taken at what a call has cost so far.
        """
        with self._lock:
            used = _total(self._counters)
            spent = (used.tokens, used.cost_pico)
            tokens, cost_pico = (-(-amount * calls // used.calls) if used.calls else 0 for amount in spent)
            try:
                self._secure(calls, tokens, cost_pico)
            except BudgetExceededError:
                return False
            return True

    def give_back(self) -> None:
        """Returns what the run has not spent of its grant to the shared budget; without one it does nothing."""
        if self._shared is None:
            return
        with self._lock:
            used = _total(self._counters)
            self._shared.settle(used.calls, used.tokens, used.cost_pico)
            self._granted = (0, 0, 0)  # unknown from now on: the next reservation asks again

    def hold(self) -> None:
        """Reports, until `release`, what is booked by now; limits count all that is booked."""
        with self._lock:
            self._reported = copy.deepcopy(self._counters)

    def release(self) -> None:
        """Reports everything again."""
        with self._lock:
            self._reported = None

    def snapshot(self) -> Json:
        """Returns all sums as JSON values; everything but "test" and "by_phase" leaves the test phase out.

        `paid.cost_usd` covers the calls with a known price; `paid.unpriced_calls` counts the others. `unknown` counts
        the calls that were in flight when a session was killed; they are in `paid`.
        """
        with self._lock:
            counters = self._reported or self._counters
            total = _total(counters).report()
            return {
                "used": {"calls": total["calls"], "tokens": total["tokens"]},
                "paid": {
                    "calls": total["paid_calls"],
                    "tokens": total["paid_tokens"],
                    "cost_usd": total["cost_usd"],
                    "unpriced_calls": total["unpriced_calls"],
                },
                "test": counters.phases.get(TEST_PHASE, _Meter()).report(),
                "by_role": {name: meter.report() for name, meter in sorted(counters.roles.items())},
                "by_phase": {name: meter.report() for name, meter in sorted(counters.phases.items())},
                "failed": counters.failed,
                "cache_hits": counters.cache_hits,
                "unknown": counters.unknown,
                "limits": asdict(self._limits),
            }

    def state_dict(self) -> Json:
        """Returns all sums as JSON values; open reservations and the limits are not part of it."""
        with self._lock:
            return asdict(self._reported or self._counters)

    def load_state_dict(self, state: Json) -> None:
        """Restores what `state_dict` returned; the limits stay those of this ledger.

        Raises:
            CheckpointError: not the state of a ledger.
        """
        try:
            counters = _Counters(
                phases={str(name): _meter(values) for name, values in state["phases"].items()},
                roles={str(name): _meter(values) for name, values in state["roles"].items()},
                failed=_count(state["failed"]),
                cache_hits=_count(state["cache_hits"]),
                unknown=_count(state.get("unknown", 0)),  # not in checkpoints of earlier versions
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"the saved ledger is damaged ({error!r}); resume an older checkpoint") from error
        with self._lock:
            self._counters, self._reported = counters, None

    def _price(self, role: str, model: str | None) -> Price | None:
        price = self._prices.get(role if model is None else model)
        if price is None and self._limits_cost:
            raise ConfigError(_unknown_price(f"the {role}" if model is None else f"'{model}'"))
        return price

    def _secure(self, calls: int, tokens: int, cost_pico: int) -> None:
        """Raises BudgetExceededError where so much more does not fit; else a shared budget has granted it."""
        used, held, limits = _total(self._counters), self._held, self._limits
        cost = None if limits.max_cost_usd is None else math.floor(limits.max_cost_usd * _PICO)
        for name, limit, spent, reserved, more, unit in (
            ("max_target_calls", limits.max_target_calls, used.calls, held.calls, calls, 1),
            ("max_target_tokens", limits.max_target_tokens, used.tokens, held.tokens, tokens, 1),
            ("max_cost_usd", cost, used.cost_pico, held.cost_pico, cost_pico, _PICO),
        ):
            if limit is not None and spent + reserved + more > limit:
                amounts = [value if unit == 1 else round(value / unit, 6) for value in (more, spent, reserved, limit)]
                raise BudgetExceededError(
                    "budget.{} would be overdrawn: {} wanted, {} used and {} reserved of {}; "
                    "raise the limit and resume".format(name, *amounts)
                )
        if self._shared is None:
            return
        wanted = (
            used.calls + held.calls + calls,
            used.tokens + held.tokens + tokens,
            used.cost_pico + held.cost_pico + cost_pico,
        )
        if any(total > granted for total, granted in zip(wanted, self._granted, strict=True)):
            self._shared.grant(*wanted)
            calls, tokens, cost_pico = map(max, wanted, self._granted)
            self._granted = (calls, tokens, cost_pico)

    def _close(self, reservation: Reservation, spent: _Meter, outputs: Sequence[TargetOutput]) -> None:
        with self._lock:
            if not reservation._open:
                raise ValueError("the reservation is settled or released already")
            reservation._open = False
            if reservation.phase != TEST_PHASE:
                self._held.calls -= reservation.calls
                self._held.tokens -= reservation.tokens
                self._held.cost_pico -= reservation.cost_pico
            if not outputs:
                return
            self._counters.phases.setdefault(reservation.phase, _Meter()).add(spent)
            if reservation.phase != TEST_PHASE:
                self._counters.roles.setdefault(reservation.role, _Meter()).add(spent)
            self._counters.failed += sum(output.failure is not None for output in outputs)
            self._counters.cache_hits += sum(output.cached for output in outputs)


def _total(counters: _Counters) -> _Meter:
    total = _Meter()
    for phase, meter in counters.phases.items():
        if phase != TEST_PHASE:
            total.add(meter)
    return total


def _usage(output: TargetOutput) -> int:
    return output.prompt_tokens + output.completion_tokens


def _refused(output: TargetOutput) -> bool:
    failure = output.failure
    return failure is not None and (failure.attempts == 0 or failure.kind in _NOT_BILLED)


def _estimates(calls: int, tokens: int | Sequence[int]) -> list[int]:
    """Returns one estimate per call; a total is spread evenly, to the token."""
    if not isinstance(tokens, Sequence):
        if calls < 0 or tokens < 0:
            raise ValueError(f"calls and tokens must be 0 or more, got {calls} and {tokens}")
        if calls == 0:
            return []
        share, rest = divmod(tokens, calls)
        return [share + (index < rest) for index in range(calls)]
    if len(tokens) != calls or min(tokens, default=0) < 0:
        raise ValueError(f"{calls} calls need as many token estimates of 0 or more, got {list(tokens)}")
    return list(tokens)


def _unknown_price(whose: str) -> str:
    return (
        f"budget.max_cost_usd is set, but the price of {whose} is unknown; give target.kwargs.price "
        "(prompt_usd_per_token, completion_usd_per_token), or remove the limit"
    )


def _meter(values: Mapping[str, Any]) -> _Meter:
    return _Meter(**{entry.name: _count(values[entry.name]) for entry in fields(_Meter)})


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"not a count: {value!r}")
    return value
