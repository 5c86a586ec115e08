"""Everything that is counted in this process."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Final

from proxy.observe.counters import Connections, Durations, RouteMetrics, known_code

__all__ = ["Metrics"]

_MINT_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class Metrics:
    """Counts for all routes, mints and connections. It is used from the thread of the event loop alone.

    Labels are routes and origins of the settings, statuses, and codes of failures: there are never many.
    """

    def __init__(self) -> None:
        self.routes: dict[str, RouteMetrics] = {}
        """By name; see `route`."""
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

    def route(self, name: str) -> RouteMetrics:
        """Return the counters of a route, always the same object for a name. Ask once, not for every exchange."""
        return self.routes.setdefault(name, RouteMetrics())

    def token_minted(self, seconds: float, clock_ahead_seconds: float = 0.0) -> None:
        """Count a token, and how long its minting took; note what it showed of the clock."""
        self.mints.observe(seconds)
        self.clock_ahead_seconds = clock_ahead_seconds

    def mint_failed(self, code: str) -> None:
        """Count a mint that gave no token, by the `Failure.code` of its reason."""
        self.mint_failures[known_code(code)] += 1

    def upstream_opened(self, origin: str) -> None:
        """Count a connection to `origin` in; `upstream_closed` follows exactly once."""
        self.upstream_connections[origin].opened()

    def upstream_closed(self, origin: str) -> None:
        """Count a connection to `origin` out."""
        self.upstream_connections[origin].closed()

    def downstream_opened(self) -> None:
        """Count a client's connection in; `downstream_closed` follows exactly once."""
        self.downstream_connections.opened()

    def downstream_closed(self) -> None:
        """Count a client's connection out."""
        self.downstream_connections.closed()

    def request_refused(self, reason: str) -> None:
        """Count a request that broke a rule of HTTP; there are few reasons."""
        self.requests_refused[reason] += 1

    def response_refused(self, origin: str, reason: str) -> None:
        """Count a response of this origin that broke a rule of HTTP/2; there are few reasons."""
        self.responses_refused[origin, reason] += 1

    def exposition(self) -> tuple[bytes, str]:
        """Return body and content type of what Prometheus scrapes."""
        # Not before it is asked for: prometheus_client and what comes with it are 0.8 MiB.
        from proxy.observe.exposition import Exposition

        return Exposition(self).render()
