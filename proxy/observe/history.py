"""The last minutes of each route: requests, errors and durations in intervals of ten seconds, for small charts."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from proxy.observe.counters import Durations, RouteMetrics
from proxy.observe.metrics import Metrics
from proxy.observe.pairs import pairs

__all__ = ["INTERVALS", "INTERVAL_SECONDS", "NO_REQUESTS", "History", "Interval"]

INTERVAL_SECONDS: Final = 10.0
"""How much time one interval covers."""
INTERVALS: Final = 30
"""How many are kept: five minutes."""


class Interval(NamedTuple):
    """What ended on one route in one interval."""

    requests: int
    """Exchanges."""
    errors: int
    """Those of them with a status of 400 or more, or a reset before any."""
    p50: float
    """Median of their durations in seconds, estimated from the buckets of the histogram; 0 without requests."""
    p99: float
    """The duration that 99 % of them did not exceed, in seconds, likewise."""


NO_REQUESTS: Final = Interval(0, 0, 0.0, 0.0)
"""An interval without any."""


class _Counted(NamedTuple):
    """What had been counted at the end of an interval."""

    route: RouteMetrics
    """Of which: a route that was removed and added again counts from the beginning."""
    total: int
    errors: int
    buckets: tuple[int, ...]


class History:
    """Compares the counters of all routes every ten seconds. A route without requests takes no memory."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._number = 0
        self._counted: dict[str, _Counted] = {}
        self._intervals: dict[str, deque[tuple[int, Interval]]] = {}
        """Intervals with requests, each with its number, by the route's label."""

    def sample(self) -> Iterator[str]:
        """End an interval; to be called every `INTERVAL_SECONDS`. Yields after each route, so that others may run."""
        self._number += 1
        routes = self._metrics.routes
        for label, route in pairs(routes):
            self._sample_route(label, route)
            yield ""
        for label in [label for label in self._counted if label not in routes]:
            del self._counted[label]
            self._intervals.pop(label, None)

    def of(self, label: str) -> Sequence[Interval]:
        """Return the intervals of a route, the oldest first; always `INTERVALS` of them."""
        found = dict(self._intervals.get(label, ()))
        return [found.get(number, NO_REQUESTS) for number in range(self._number - INTERVALS + 1, self._number + 1)]

    def ages(self, label: str) -> list[tuple[int, Interval]]:
        """Return the intervals of a route in which it had requests, each with the number of later intervals."""
        return [(self._number - number, interval) for number, interval in self._intervals.get(label, ())]

    def _sample_route(self, label: str, route: RouteMetrics) -> None:
        kept = self._intervals.get(label)
        if kept is not None:
            while kept and kept[0][0] <= self._number - INTERVALS:
                kept.popleft()
            if not kept:
                del self._intervals[label]
        before = self._counted.get(label)
        if before is not None and before.route is not route:
            before = None
        if route.total == (before.total if before is not None else 0):
            return
        now = _Counted(route, route.total, route.errors, tuple(route.durations.counts))
        self._counted[label] = now
        if before is None:
            before = _Counted(route, 0, 0, (0,) * len(now.buckets))
        buckets = [count - earlier for count, earlier in zip(now.buckets, before.buckets, strict=True)]
        interval = Interval(
            now.total - before.total,
            now.errors - before.errors,
            _quantile(0.5, buckets, route.durations),
            _quantile(0.99, buckets, route.durations),
        )
        self._intervals.setdefault(label, deque()).append((self._number, interval))


def _quantile(fraction: float, buckets: list[int], durations: Durations) -> float:
    """Return a quantile as Prometheus estimates it: linear within a bucket, the greatest bound beyond it."""
    rank = fraction * sum(buckets)
    lower = 0.0
    for count, bound in zip(buckets, durations.bounds, strict=False):
        if count and rank <= count:
            return lower + (bound - lower) * rank / count
        rank -= count
        lower = bound
    return lower
