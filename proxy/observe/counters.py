"""Counters of the data path.

They are plain integers rather than prometheus_client's own objects, which lock: 0.2 µs an exchange instead of 1.6
(`RouteMetrics.started` and `ended`, interpreted by CPython 3.11), where the whole exchange costs some 10.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

from proxy.errors import Failure
from proxy.observe.exchange import ExchangeObserver, ObservedExchange

__all__ = ["Connections", "Durations", "RouteMetrics"]

# From a cached answer to Cloud Run's longest request.
_REQUEST_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)


class Durations:
    """How long things took: how many seconds in all, and how often up to each of `bounds`, and longer."""

    __slots__ = ("bounds", "counts", "seconds")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """By bucket; the last one has no bound."""
        self.seconds = 0.0

    def observe(self, seconds: float) -> None:
        """Count one."""
        place = 0
        for bound in self.bounds:
            if seconds <= bound:
                break
            place += 1
        self.counts[place] += 1
        self.seconds += seconds


class Connections:
    """How many connections are open, and how many ever were."""

    __slots__ = ("ever", "now")

    def __init__(self) -> None:
        self.now = 0
        self.ever = 0

    def opened(self) -> None:
        """Count one in; `closed` follows exactly once."""
        self.now += 1
        self.ever += 1

    def closed(self) -> None:
        """Count one out."""
        self.now -= 1


class RouteMetrics(ExchangeObserver):
    """Counts the exchanges of one route. Every event is a few additions."""

    __slots__ = ("_failures", "_statuses", "caller_tokens", "durations", "in_flight")

    def __init__(self) -> None:
        self.in_flight = 0
        """Exchanges that have begun and not ended."""
        self.caller_tokens = 0
        """Requests with a Google token of the caller's own, which was dropped."""
        self._statuses: dict[int, int] = {}
        self._failures: Counter[str] = Counter()
        self.durations = Durations(_REQUEST_BUCKETS)
        """Of the exchanges that have ended."""

    def started(self, exchange: ObservedExchange) -> None:
        """Count an exchange in."""
        self.in_flight += 1

    def caller_token_dropped(self, exchange: ObservedExchange) -> None:
        """Count the token."""
        self.caller_tokens += 1

    def local_reply(self, exchange: ObservedExchange, failure: Failure) -> None:
        """Count the failure by its code."""
        self._failures[failure.code] += 1

    def aborted(self, exchange: ObservedExchange, failure: Failure) -> None:
        """Count the failure by its code."""
        self._failures[failure.code] += 1

    def ended(self, exchange: ObservedExchange, status: int, seconds: float) -> None:
        """Count an exchange out, by its status."""
        self.in_flight -= 1
        statuses = self._statuses
        statuses[status] = statuses.get(status, 0) + 1
        self.durations.observe(seconds)

    @property
    def total(self) -> int:
        """Exchanges that have ended."""
        return sum(self._statuses.values())

    @property
    def failures(self) -> int:
        """Failures of the sidecar's own making, of all codes."""
        return self._failures.total()

    def by_status(self) -> Mapping[str, int]:
        """Return exchanges by status: a three-digit number, `reset`, or `other`, so that the labels are bounded."""
        found: Counter[str] = Counter()
        for status, count in self._statuses.items():
            label = "reset" if status == 0 else str(status) if 100 <= status <= 599 else "other"
            found[label] += count
        return found

    def by_code(self) -> Mapping[str, int]:
        """Return failures by `Failure.code`; there are few codes."""
        return self._failures
