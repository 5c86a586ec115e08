"""Metrics: counters of all exchanges, mints and connections of this process."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any, Final

from proxy.errors import Failure
from proxy.observe.counters import Connections, Durations, RouteMetrics
from proxy.observe.observer import ObservedKey, ObservedToken, Observer
from proxy.routes import UNMATCHED, Route

__all__ = ["Metrics"]

_MINT_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class Metrics(Observer):
    """Counts for all routes, mints and connections. It is used from the thread of the event loop alone.

    Labels are routes and origins of the settings, statuses, and codes of failures: there are never many.
    """

    def __init__(self) -> None:
        self.routes: dict[str, RouteMetrics] = {}
        """By the route's label; `UNMATCHED` are exchanges without a route."""
        self.mints = Durations(_MINT_BUCKETS)
        """Of the tokens received."""
        self.clock_ahead_seconds = 0.0
        """By how much this machine's clock was ahead of Google's at the last mint; 0 if right or unknown."""
        self.mint_failures: Counter[str] = Counter()
        """Mints without a token, by `Failure.code`."""
        self.upstream_connections: defaultdict[str, Connections] = defaultdict(Connections)
        """By origin."""
        self.downstream_connections = Connections()
        self.requests_refused: Counter[str] = Counter()
        """Requests that broke a rule of HTTP, by reason; they have no route."""
        self.responses_refused: Counter[tuple[str, str]] = Counter()
        """Responses that broke one, by origin and reason."""

    def route(self, route: Route | None) -> RouteMetrics:
        """Return the counters of a route, always the same object for a name."""
        return self.routes.setdefault(UNMATCHED if route is None else route.label, RouteMetrics())

    def route_removed(self, route: Route) -> None:
        """Forget the counters of the route, so that changing routes do not add up."""
        self.routes.pop(route.label, None)

    def minted(self, token: ObservedToken, seconds: float, uncached: bool) -> None:
        """Count a token."""
        self.mints.observe(seconds)
        self.clock_ahead_seconds = token.clock_ahead_seconds

    def mint_failed(self, key: ObservedKey, failure: Failure, seconds: float, uncached: bool) -> None:
        """Count a mint without a token."""
        self.mint_failures[failure.code] += 1

    def upstream_opened(self, origin: str, max_concurrent_streams: int) -> None:
        """Count a connection in."""
        self.upstream_connections[origin].opened()

    def upstream_closed(self, origin: str) -> None:
        """Count a connection out."""
        self.upstream_connections[origin].closed()

    def downstream_opened(self) -> None:
        """Count a connection in."""
        self.downstream_connections.opened()

    def downstream_closed(self) -> None:
        """Count a connection out."""
        self.downstream_connections.closed()

    def request_refused(self, reason: str, details: dict[str, Any]) -> None:
        """Count by reason."""
        self.requests_refused[reason] += 1

    def response_refused(self, origin: str, stream_id: int, reason: str) -> None:
        """Count by origin and reason."""
        self.responses_refused[origin, reason] += 1
