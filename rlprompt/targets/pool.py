"""A frozen target in several processes, on this machine or on a Ray cluster."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError, RayTaskError

from rlprompt import restarts
from rlprompt.errors import ConfigError, RLPromptError, RunError
from rlprompt.ray_session import in_one_line
from rlprompt.targets import target_from_config, target_prices
from rlprompt.targets.ledger import Price
from rlprompt.targets.routing import Router
from rlprompt.targets.streaming import OnAnswer, OnCall
from rlprompt.types import Json, TargetOutput, TargetRequest

if TYPE_CHECKING:
    from rlprompt.cluster import RayConfig
    from rlprompt.config import TargetConfig

logger = logging.getLogger(__name__)

POLL_S = 0.5


class Replica:
    """A process that holds the frozen model; a Ray actor. Errors of ours are returned: raised ones would be wrapped.

    Args:
        config: the section `target` as JSON values, without its cache.
        threads: that it computes with.
    """

    def __init__(self, config: Json, threads: int) -> None:
        self._config = config
        self._threads = threads
        self._target: Any = None

    def load(self) -> Json | RLPromptError:
        """Loads the model; returns its identity and price."""
        from rlprompt.config import TargetConfig

        try:
            self._target = target_from_config(TargetConfig.model_validate(self._config))
        except RLPromptError as error:
            return error
        if "torch" in sys.modules:  # OMP_NUM_THREADS of the node would otherwise go before ours
            sys.modules["torch"].set_num_threads(self._threads)
        return {"identity": self._target.identity, "price": getattr(self._target, "price", None)}

    def work(self, method: str, requests: Sequence[TargetRequest]) -> list[Any] | RLPromptError:
        """Calls `run` or `count_tokens`."""
        try:
            found: list[Any] = getattr(self._target, method)(requests)
        except RLPromptError as error:
            return error
        return found

    def pid(self) -> int:
        """The number of this process."""
        return os.getpid()

    def stats(self) -> Json:
        """What the target has computed; empty where it does not say."""
        return self._target.stats() if hasattr(self._target, "stats") else {}


@dataclass(eq=False)
class _Slot:
    """The place of one replica: who is there now and what it works on."""

    actor: Any = None
    ref: Any = None
    """Of what it does: loading, or a batch; None where it is idle or not there."""
    batch: list[int] | None = None
    """None while it loads."""
    since: float = 0.0
    losses: int = 0
    """In a row, without an answer in between."""
    back_at: float = 0.0
    was_slow: bool = False
    """Whether it was lost because a batch took too long."""
    about: Json = field(default_factory=dict)

    @property
    def is_there(self) -> bool:
        """Whether it has loaded the model."""
        return self.actor is not None and (self.ref is None or self.batch is not None)

    @property
    def is_idle(self) -> bool:
        return self.actor is not None and self.ref is None


class TargetPool:
    """A target that is computed in several processes. Their answers are those of one process, bit for bit.

    Every replica loads the model once. Texts that share a prefix go to the replica that has read it before
    (`rlprompt.targets.routing`), and one with nothing left to do takes over from others. A replica that dies, or does
    not answer in time, is started again; others answer for it meanwhile.

    Args:
        config: the section `target`.
        settings: the section `ray`; Ray has to be there.

    Raises:
        ConfigError: the target cannot be loaded, may be paid for (calls of a lost replica would be paid twice), or
            replicas differ (kind of device, number type).
        RunError: a replica did not come up in ten minutes, or they were lost too often.
    """

    def __init__(self, config: TargetConfig, settings: RayConfig) -> None:
        # Ray hides no GPU from a process that has reserved none.
        hidden = config.device == "auto" and not settings.num_gpus_per_target_replica
        own = {"cache": "off", **({"device": "cpu"} if hidden else {})}
        self._config = config.model_copy(update=own).model_dump(mode="json")
        self._settings = settings
        self._router = Router(settings.num_target_replicas)
        self._slots = [_Slot() for _ in range(settings.num_target_replicas)]
        self.restarts = 0
        """Replicas that were lost and started again."""
        try:
            self._open()
            self._identity: Json = self._slots[0].about["identity"]
            self.price = self._slots[0].about["price"]
            self._check_price(config.name)
        except BaseException:
            self.close()  # the exception may keep this object, and that would keep its processes
            raise

    @property
    def identity(self) -> Json:
        """That of the target in each replica."""
        return dict(self._identity)

    def run(self, requests: Sequence[TargetRequest]) -> list[TargetOutput]:
        """Answers all requests, each replica a part of them, in order; raises what the target raises."""
        return self.run_streaming(requests, None)

    def run_streaming(
        self, requests: Sequence[TargetRequest], on_answer: OnAnswer | None, on_call: OnCall | None = None
    ) -> list[TargetOutput]:
        """Answers as `run` does and tells of answers batch by batch; of calls nothing, because nobody is paid."""
        return self._spread("run", requests, on_answer)

    def count_tokens(self, requests: Sequence[TargetRequest]) -> list[int]:
        """Returns the estimates of the target."""
        return self._spread("count_tokens", requests, None)

    def stats(self) -> Json:
        """Returns the sums over the replicas that are there; what lost ones had computed is not in them."""
        total: Json = {}
        for slot in self._slots:
            if slot.is_idle:
                for name, value in ray.get(slot.actor.stats.remote()).items():
                    total[name] = total.get(name, 0) + value
        return total

    def close(self) -> None:
        """Ends the replicas."""
        for slot in self._slots:
            if slot.actor is not None:
                ray.kill(slot.actor)
                slot.actor = slot.ref = None

    def _check_price(self, name: str) -> None:
        if target_prices(self).get("target") != Price():
            raise ConfigError(
                f"ray.num_target_replicas is {len(self._slots)}, but calls of '{name}' may be paid for, and those of a "
                "lost replica would be paid twice; set it to 0"
            )

    def _open(self) -> None:
        """Starts the replicas, all at once, and waits for them."""
        for slot in self._slots:
            self._start(slot)
        while any(not slot.about for slot in self._slots):
            self._revive()
            for _ in self._finished():
                pass

    def _spread(
        self, method: str, requests: Sequence[TargetRequest], on_part: Callable[[int, Any], None] | None
    ) -> list[Any]:
        """Has every request handled by some replica; returns what came of each, in order."""
        plan, found, missing = self._router.plan(requests), [None] * len(requests), len(requests)
        self._drain()
        while missing:
            self._revive()
            for index, slot in enumerate(self._slots):
                batch = plan.take(index) if slot.is_idle else []
                if batch:
                    self._send(slot, slot.actor.work.remote(method, [requests[place] for place in batch]), batch)
            for slot, batch, values in self._finished():
                if values is None:
                    plan.give_back(self._slots.index(slot), batch)
                    if slot.was_slow:
                        self._router.halve(plan)
                    continue
                missing -= len(batch)
                for place, value in zip(batch, values, strict=True):
                    found[place] = value
                    if on_part is not None:
                        on_part(place, value)
        return found

    def _send(self, slot: _Slot, ref: Any, batch: list[int] | None) -> None:
        slot.ref, slot.batch, slot.since = ref, batch, time.monotonic()

    def _drain(self) -> None:
        """Waits for what an interrupted call has left behind."""
        while any(slot.ref is not None and slot.batch is not None for slot in self._slots):
            with suppress(ConfigError):  # of that call
                for _ in self._finished():
                    pass

    def _start(self, slot: _Slot) -> None:
        settings = self._settings
        slot.actor = (
            ray.remote(Replica)
            .options(
                num_cpus=settings.num_cpus_per_target_replica,
                num_gpus=settings.num_gpus_per_target_replica,
            )
            .remote(self._config, max(int(settings.num_cpus_per_target_replica), 1))
        )
        self._send(slot, slot.actor.load.remote(), None)

    def _revive(self) -> None:
        """Starts lost replicas again, after a pause that grows with every loss."""
        for slot in self._slots:
            if slot.actor is None and time.monotonic() >= slot.back_at:
                self._start(slot)

    def _finished(self) -> Iterator[tuple[_Slot, list[int], list[Any] | None]]:
        """Waits a moment; yields (slot, batch, values) of batches that came back, with None for a lost replica's."""
        working = {slot.ref: slot for slot in self._slots if slot.ref is not None}
        ready = ray.wait(list(working), timeout=POLL_S)[0] if working else []
        if not working:
            time.sleep(POLL_S)
        for ref in ready:
            slot = working[ref]
            batch, slot.ref, slot.batch = slot.batch, None, None
            try:
                value = ray.get(ref)
            except RayTaskError:
                raise  # a mistake in the program
            except RayError as error:  # died, killed for memory, its node or what it was sent is gone
                self._lost(slot, f"{error}")
                value = None
            if isinstance(value, RLPromptError):
                raise value
            if batch is not None:
                slot.losses = slot.losses if value is None else 0
                yield slot, batch, value
            elif value is not None:
                self._arrived(slot, value)
        yield from self._too_slow()

    def _arrived(self, slot: _Slot, about: Json) -> None:
        slot.about = about
        known = next(other.about for other in self._slots if other.about)
        if about != known:
            raise ConfigError(
                f"replicas of the target differ: {about['identity']} and {known['identity']}; set target.device and "
                "target.dtype, and install the same model on every node"
            )

    def _too_slow(self) -> Iterator[tuple[_Slot, list[int], None]]:
        """Ends replicas that do not answer, or do not come up; yields their batches."""
        now, limit = time.monotonic(), self._settings.target_replica_timeout_s
        for slot in self._slots:
            allowed = restarts.COMES_UP_S if slot.batch is None else limit
            if slot.ref is None or now - slot.since <= allowed:
                continue
            if slot.batch is None and (not slot.about or not any(other.is_there for other in self._slots)):
                raise RunError(
                    f"a replica of the target is not there after {restarts.COMES_UP_S:.0f} s; see whether single "
                    "nodes of the cluster have the CPUs and GPUs that it needs (ray.num_cpus_per_target_replica), "
                    "then resume"
                )
            ray.kill(slot.actor)
            batch, slot.ref, slot.batch = slot.batch, None, None
            self._lost(slot, f"no answer in {allowed:g} s", slow=batch is not None)
            if batch is not None:
                yield slot, batch, None

    def _lost(self, slot: _Slot, why: str, *, slow: bool = False) -> None:
        self.restarts += 1
        slot.was_slow = slow
        slot.actor, slot.losses = None, slot.losses + 1
        slot.back_at = time.monotonic() + restarts.pause_before(slot.losses)
        if slot.losses >= restarts.MOST_IN_A_ROW:
            advice = "see whether its node has the memory that the model needs"
            if slow:
                advice = "raise ray.target_replica_timeout_s or ray.num_cpus_per_target_replica"
            raise RunError(
                f"a replica of the target was lost {slot.losses} times in a row without an answer "
                f"({in_one_line(why)}); {advice}, then resume"
            )
        most = self._settings.max_num_target_replica_restarts
        if self.restarts > most:
            raise RunError(
                f"replicas of the target were lost {self.restarts} times (ray.max_num_target_replica_restarts is "
                f"{most}); look for the cause in Ray's logs, then resume"
            )
        logger.warning("a replica of the target was lost and is started again: %s", in_one_line(why))
