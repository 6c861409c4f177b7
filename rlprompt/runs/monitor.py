"""Watches a run for reward hacking: proxy and gold reward of each iteration, and a warning when they part."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rlprompt.algorithms.divergence import divergence
from rlprompt.config import MonitorConfig
from rlprompt.errors import ConfigError, did_you_mean
from rlprompt.runs.records import PromptRecord
from rlprompt.types import Json

if TYPE_CHECKING:
    from rlprompt.rewards import RewardSet

logger = logging.getLogger(__name__)

_SUM, _ACCURACY = "reward", "accuracy"


def check_monitor(config: MonitorConfig | None, rewards: RewardSet) -> None:
    """Refuses a monitor that names a component which the run does not record.

    Raises:
        ConfigError: so it is; or proxy and gold are the same.
    """
    if config is None:
        return
    known = (*rewards.recorded, _SUM, _ACCURACY)
    for key in ("proxy", "gold"):
        name = getattr(config, key)
        if name not in known:
            raise ConfigError(f"monitor.{key}: no reward records '{name}'{did_you_mean(name, known)}")
    if config.proxy == config.gold:
        raise ConfigError(f"monitor.proxy and monitor.gold are both '{config.gold}'; name two rewards")


class Monitor:
    """Follows the two rewards; what it knows comes from the run's records alone, so a resumed run knows the same.

    Args:
        config: None watches nothing.
    """

    def __init__(self, config: MonitorConfig | None) -> None:
        self._config = config
        self._points: list[tuple[int, float, float]] = []
        self._diverged = False

    def take_in(self, records: Sequence[PromptRecord]) -> None:
        """Learns of all earlier iterations from the records of a run that is resumed."""
        by_iteration: dict[int, list[PromptRecord]] = {}
        for record in records:
            by_iteration.setdefault(record.iteration, []).append(record)
        for iteration in sorted(by_iteration):
            self.look(iteration, by_iteration[iteration])

    def look(self, iteration: int, records: Sequence[PromptRecord]) -> tuple[dict[str, float], Json | None]:
        """Takes in an iteration; returns its metrics, and the event where the two have begun to part with it.

        Means are over the train prompts of the iteration that have a value. An iteration without both is left out.
        """
        if self._config is None:
            return {}, None
        trained = [record for record in records if record.phase == "train"]
        proxy, gold = _mean(trained, self._config.proxy), _mean(trained, self._config.gold)
        if math.isnan(proxy) or math.isnan(gold):
            return {}, None
        self._points.append((iteration, proxy, gold))
        metrics = {"monitor/proxy": proxy, "monitor/gold": gold, "monitor/gap": proxy - gold}
        window = self._points[-self._config.window :]
        if len(window) < self._config.window:
            return metrics, None
        found = divergence(
            [point[1] for point in window],
            [point[2] for point in window],
            threshold=self._config.threshold,
            min_fall=self._config.min_fall,
        )
        metrics |= {
            "monitor/proxy_trend": found.proxy_trend,
            "monitor/gold_trend": found.gold_trend,
            "monitor/diverged": float(found.diverged),
        }
        begun = found.diverged and not self._diverged
        self._diverged = found.diverged
        return metrics, self._event(window, metrics) if begun else None

    def _event(self, window: Sequence[tuple[int, float, float]], metrics: dict[str, float]) -> Json:
        (first, proxy_before, gold_before), (last, proxy, gold) = window[0], window[-1]
        return {
            "iteration": last,
            "since": first,
            "proxy": self._config.proxy if self._config else "",
            "gold": self._config.gold if self._config else "",
            "proxy_values": [proxy_before, proxy],
            "gold_values": [gold_before, gold],
            "proxy_trend": metrics["monitor/proxy_trend"],
            "gold_trend": metrics["monitor/gold_trend"],
        }


def warn(event: Json) -> None:
    """Says on the console what an event of the monitor says."""
    logger.warning(
        "iteration %d: '%s' rises (%.4g to %.4g since iteration %d) while '%s' falls (%.4g to %.4g): the policy may be "
        "gaming the reward; look at its prompts, or put a verifier first (docs/judges.md)",
        event["iteration"],
        event["proxy"],
        *event["proxy_values"],
        event["since"],
        event["gold"],
        *event["gold_values"],
    )


def _mean(records: Sequence[PromptRecord], name: str) -> float:
    values = [_value(record, name) for record in records]
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan


def _value(record: PromptRecord, name: str) -> float:
    if name in record.components:
        return record.components[name]
    if name == _SUM:
        return record.raw_reward
    return record.accuracy if name == _ACCURACY else math.nan
