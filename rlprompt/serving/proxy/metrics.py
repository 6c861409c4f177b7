"""What Prometheus reads, and the report made of it."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from rlprompt.serving.proxy.rewriting import Outcome
from rlprompt.types import Json

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
PREFIX = "rlprompt_"


class Metrics:
    """The numbers of one server; texts are in none of them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.began = time.time()

        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(PREFIX + name, about, labels, registry=self.registry)

        self.requests = counter("requests", "Requests that were answered.", "endpoint", "status")
        self.outcomes = counter("outcomes", "Texts by what became of them.", "arm", "rewritten")
        self.reasons = counter("unchanged", "Texts that were sent as they came.", "rewritten", "reason")
        self.cached = counter("cached", "Texts whose rewrite was remembered.")
        self.added = counter("added_characters", "Characters that rewrites have more than their texts.", "arm")
        self.refused = counter("refused", "Requests that were refused by the server itself.", "status")
        self.rewrite_seconds = Histogram(
            PREFIX + "rewrite_seconds", "Time for a rewrite.", ["arm"], buckets=SECONDS, registry=self.registry
        )
        self.upstream_seconds = Histogram(
            PREFIX + "upstream_seconds",
            "Time until the upstream's answer was handed on whole.",
            ["arm"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.active = Gauge(PREFIX + "active_requests", "Requests that are worked on.", registry=self.registry)

    def watch(self, name: str, about: str, read: Callable[[], float]) -> None:
        """Adds a number that is read when it is asked for."""
        Gauge(PREFIX + name, about, registry=self.registry).set_function(read)

    def note(self, outcome: Outcome, text: str) -> None:
        """Counts what became of a text."""
        self.outcomes.labels(outcome.arm, outcome.header).inc()
        if outcome.header != "1":
            self.reasons.labels(outcome.header, outcome.kind).inc()
        else:
            self.added.labels(outcome.arm).inc(max(len(outcome.text) - len(text), 0))
        if outcome.cached:
            self.cached.inc()
        elif outcome.seconds:
            self.rewrite_seconds.labels(outcome.arm).observe(outcome.seconds)

    def text(self) -> bytes:
        """Returns all numbers in Prometheus' format."""
        found: bytes = generate_latest(self.registry)
        return found

    def report(self) -> Json:
        """Returns shares and means since the server began, by arm."""
        values = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in self.registry.collect()
            for sample in family.samples
        }

        def total(name: str, **labels: str) -> float:
            return sum(
                value
                for (found, given), value in values.items()
                if found == PREFIX + name and labels.items() <= dict(given).items()
            )

        arms = sorted({dict(given)["arm"] for (name, given) in values if name == PREFIX + "outcomes_total"})
        reasons = {
            f"{dict(given)['rewritten']}: {dict(given)['reason']}": int(value)
            for (name, given), value in sorted(values.items())
            if name == PREFIX + "unchanged_total"
        }
        return {
            "seconds": round(time.time() - self.began, 1),
            "reasons": reasons,
            "arms": {
                arm: {
                    "texts": int(total("outcomes_total", arm=arm)),
                    "rewritten": _share(
                        total("outcomes_total", arm=arm, rewritten="1"), total("outcomes_total", arm=arm)
                    ),
                    "fallback": _share(
                        total("outcomes_total", arm=arm, rewritten="fallback"), total("outcomes_total", arm=arm)
                    ),
                    "mean_rewrite_s": _share(
                        total("rewrite_seconds_sum", arm=arm), total("rewrite_seconds_count", arm=arm)
                    ),
                    "mean_upstream_s": _share(
                        total("upstream_seconds_sum", arm=arm), total("upstream_seconds_count", arm=arm)
                    ),
                    "mean_added_characters": _share(
                        total("added_characters_total", arm=arm), total("outcomes_total", arm=arm, rewritten="1")
                    ),
                }
                for arm in arms
            },
        }


def _share(part: float, whole: float) -> float | None:
    return round(part / whole, 6) if whole else None
