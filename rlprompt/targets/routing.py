"""Which replica of a target answers what: texts with a common beginning go to one replica, which remembers it."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence

from rlprompt.types import Rendered, TargetRequest

LEAST, MOST = 32, 256
"""Requests in one batch of a replica: enough to fill a forward pass, few enough for others to take over the rest."""
REMEMBERED = 2**16
"""Prefixes whose replica is remembered."""


def prefix_of(rendered: Rendered) -> str:
    """Returns what a text shares with others up to `Rendered.split`; "" where it shares nothing."""
    if rendered.split <= 0:
        return ""
    if rendered.text is not None:
        return rendered.text[: rendered.split]
    return "".join(content for _, content in rendered.messages or ())[: rendered.split]


class Plan:
    """What is still to be asked in one call, in one queue a replica.

    Args:
        units: of each replica, its units of work: indexes of requests that share a prefix.
        most: requests in one batch.
    """

    def __init__(self, units: Sequence[Sequence[Sequence[int]]], most: int = MOST) -> None:
        self.most = most
        self._queues = [deque(list(unit) for unit in own) for own in units]
        self.waiting = [sum(map(len, own)) for own in units]
        """Requests in each queue."""

    def take(self, replica: int) -> list[int]:
        """Returns the next batch for a replica: half of what waits for it; empty where nothing is left for anyone.

        One with nothing left of its own takes from the end of the longest queue, so that none waits while others work.
        """
        own = self.waiting[replica] > 0
        source = replica if own else max(range(len(self.waiting)), key=self.waiting.__getitem__)
        size = min(max(-(-self.waiting[source] // 2), LEAST), self.most)
        queue, batch = self._queues[source], list[int]()
        while queue and len(batch) < size:
            unit, room = queue.popleft() if own else queue.pop(), size - len(batch)
            batch += unit[:room]
            if unit[room:]:
                (queue.appendleft if own else queue.append)(unit[room:])
        self.waiting[source] -= len(batch)
        return batch

    def give_back(self, replica: int, batch: Sequence[int]) -> None:
        """Puts a batch that was not answered back in front."""
        self._queues[replica].appendleft(list(batch))
        self.waiting[replica] += len(batch)


class Router:
    """Gives prefixes to replicas: a known one to its replica, a new one to the replica with least to do.

    Args:
        replicas: how many there are.
        remembered: prefixes whose replica is remembered, the latest ones.
    """

    def __init__(self, replicas: int, remembered: int = REMEMBERED) -> None:
        self.replicas = replicas
        self.most = MOST
        """Requests in one batch; fewer where batches took too long."""
        self._remembered = remembered
        self._home: OrderedDict[str, int] = OrderedDict()

    def halve(self, plan: Plan) -> None:
        """Makes the batches of a plan, and of those to come, half as large."""
        self.most = plan.most = max(plan.most // 2, 1)

    def plan(self, requests: Sequence[TargetRequest]) -> Plan:
        """Returns who is to answer what. Work is weighed by the characters to read, a shared prefix once."""
        groups: dict[str, list[int]] = {}
        alone: list[int] = []
        for index, request in enumerate(requests):
            prefix = prefix_of(request.rendered)
            if prefix:
                groups.setdefault(prefix, []).append(index)
            else:
                alone.append(index)
        units: list[list[list[int]]] = [[] for _ in range(self.replicas)]
        load = [0] * self.replicas
        new: list[tuple[int, str, list[int]]] = []
        for prefix, members in groups.items():
            weight = len(prefix) + sum(_length(requests[index].rendered) - len(prefix) for index in members)
            home = self._home.get(prefix)
            if home is None:
                new.append((weight, prefix, members))
            else:
                self._home.move_to_end(prefix)
                units[home].append(members)
                load[home] += weight
        for weight, prefix, members in sorted(new, key=lambda entry: -entry[0]):  # the heaviest first: even loads
            home = load.index(min(load))
            self._home[prefix] = home
            units[home].append(members)
            load[home] += weight
        for index in alone:
            replica = load.index(min(load))
            units[replica].append([index])
            load[replica] += _length(requests[index].rendered)
        while len(self._home) > self._remembered:
            self._home.popitem(last=False)
        return Plan(units, self.most)


def _length(rendered: Rendered) -> int:
    if rendered.text is not None:
        return len(rendered.text)
    return sum(len(content) for _, content in rendered.messages or ())
