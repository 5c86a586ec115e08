"""Metrics: counters of all exchanges, mints and connections of this process."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any, Final

from proxy.errors import Failure
from proxy.observe.counters import Connections, Durations, RouteMetrics, bounded_code_name
from proxy.observe.observer import ObservedKey, ObservedToken, Observer
from proxy.observe.totals import AMBIENT
from proxy.routes import OTHER, UNMATCHED, Route

__all__ = ["COUNTED_BY_ORIGIN", "Metrics", "Mints", "SettingsMetrics", "TokenIdentity", "token_identity"]

_MINT_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)

COUNTED_BY_ORIGIN: Final = ("connect_failures", "goaways", "responses_refused")
"""The counters of `Metrics` by origin and code or reason."""

_MOST_OTHER_ORIGINS: Final = 100
"""Origins with a label of their own beside those of named routes and labelled open routes."""

TokenIdentity = tuple[str | None, tuple[str, ...], str]
"""What a token is minted for: the impersonated account, its delegates, the audience."""


class Mints:
    """The mints for one account from one kind of credentials."""

    def __init__(self) -> None:
        self.succeeded = Durations(_MINT_BUCKETS)
        """Those that brought a token."""
        self.failed = Durations(_MINT_BUCKETS)
        """The others."""
        self.failures: Counter[str] = Counter()
        """The others by `Failure.code`."""


class SettingsMetrics:
    """When the settings were read, and how it went."""

    def __init__(self, now: float) -> None:
        self.read_at = now
        """When those in force were read or confirmed, in Unix time."""
        self.reloaded = 0
        """Reloads that succeeded, those without a change among them."""
        self.refused = 0
        """Reloads that failed: the settings in force stayed."""
        self.problems: tuple[str, ...] = ()
        """What was wrong at the last reload, each with file and key; empty if it succeeded."""
        self.refused_at: float | None = None
        """When that reload failed, in Unix time; None if the last one succeeded."""
        self.need_restart: tuple[str, ...] = ()
        """Settings whose new values need a restart."""


class Metrics(Observer):
    """Counts for all routes, mints and connections. It is used from the thread of the event loop alone.

    Labels are routes, origins and accounts of the settings, kinds of credentials, statuses, and codes: there are never
    many. Of the hosts of open routes, those without a label of their own share `OTHER`. `credentials_kind` returns the
    kind of the credentials in use, `clock` wall-clock time in seconds.
    """

    def __init__(
        self,
        engine: str = "",
        *,
        credentials_kind: Callable[[], str] = lambda: "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.engine = engine
        """Name and version of what speaks HTTP/2."""
        self._credentials_kind = credentials_kind
        self._clock = clock
        self.settings = SettingsMetrics(clock())
        """The reloads."""
        self._known: dict[str, Route] = {}
        self._users: Counter[tuple[str, object]] = Counter()
        """How many known routes have an origin, an account or a token identity."""
        self.routes: dict[str, RouteMetrics] = {}
        """By the route's label; `UNMATCHED` are exchanges without a route."""
        self.mints: defaultdict[tuple[str, str], Mints] = defaultdict(Mints)
        """By the kind of the credentials and the impersonated account or `AMBIENT`."""
        self.minted_at: dict[TokenIdentity, float] = {}
        """When the last token was received, in seconds since the epoch."""
        self.clock_ahead_seconds = 0.0
        """By how much this machine's clock was ahead of Google's at the last mint; 0 if right or unknown."""
        self.upstream_connections: defaultdict[str, Connections] = defaultdict(Connections)
        """By origin, or `OTHER`."""
        self._open_origins: set[str] = set()
        """Those of open routes with a label of their own."""
        self._connected: dict[str, tuple[str, int]] = {}
        """Label and number of the open connections to each origin."""
        self.connect_failures: Counter[tuple[str, str]] = Counter()
        """Attempts to connect that failed beside other connections, by origin and `Failure.code`."""
        self.goaways: Counter[tuple[str, str]] = Counter()
        """GOAWAY frames received, by origin and error code."""
        self.downstream_connections = Connections()
        self.connections_refused: Counter[str] = Counter()
        """Connections of clients that were closed because there were too many, by reason."""
        self.downstream_cut_offs: Counter[str] = Counter()
        """Connections of clients that were ended because of what the client did, by error code."""
        self.handshakes_failed = 0
        """TLS handshakes of clients that failed."""
        self.requests_refused: Counter[str] = Counter()
        """Requests that broke a rule of HTTP, by reason; they have no route."""
        self.callers_unverified: Counter[str] = Counter()
        """Requests that no known Restate has signed, by reason."""
        self.responses_refused: Counter[tuple[str, str]] = Counter()
        """Responses that broke one, by origin and reason."""

    def route(self, route: Route | None) -> RouteMetrics:
        """Return the counters of a route, always the same object for a name."""
        label = UNMATCHED if route is None else route.label
        before = self._known.get(label)
        if route is not None and route.is_open:
            # Deployments choose its account and audience, so there are many open routes with one label.
            if label != OTHER:
                self._open_origins.add(str(route.origin))
        elif route is not None and route != before:
            self._known[label] = route
            self._users.update(_used_by(route))
            self._forget_unused(before)
        return self.routes.setdefault(label, RouteMetrics())

    def route_removed(self, route: Route) -> None:
        """Forget the counters of the route, so that changing routes do not add up."""
        self.routes.pop(route.label, None)
        self._open_origins.discard(str(route.origin))
        self._forget_unused(self._known.pop(route.label, None))

    def minted(self, token: ObservedToken, seconds: float, uncached: bool) -> None:
        """Count a token."""
        key = token.key
        self.mints[self._credentials_kind(), key.impersonate or AMBIENT].succeeded.observe(seconds)
        identity = token_identity(key)
        if not self.routes or ("token", identity) in self._users:
            self.minted_at[identity] = self._clock()
        self.clock_ahead_seconds = token.clock_ahead_seconds

    def mint_failed(self, key: ObservedKey, failure: Failure, seconds: float, uncached: bool) -> None:
        """Count a mint without a token."""
        mints = self.mints[self._credentials_kind(), key.impersonate or AMBIENT]
        mints.failed.observe(seconds)
        mints.failures[failure.code] += 1

    def upstream_opened(self, origin: str, max_concurrent_streams: int) -> None:
        """Count a connection in."""
        label, count = self._connected.get(origin) or (self._origin_label(origin), 0)
        self._connected[origin] = label, count + 1
        self.upstream_connections[label].opened()

    def upstream_closed(self, origin: str) -> None:
        """Count a connection out."""
        label, count = self._connected.pop(origin)
        if count > 1:
            self._connected[origin] = label, count - 1
        connections = self.upstream_connections[label]
        connections.closed()
        if connections.now == 0 and self._known and label != OTHER and not self._has_label(origin):
            del self.upstream_connections[label]

    def upstream_not_connected(self, origin: str, failure: Failure) -> None:
        """Count by origin and code."""
        self.connect_failures[self._kept_label(origin), failure.code] += 1

    def upstream_going_away(self, origin: str, code: int, debug: bytes) -> None:
        """Count by origin and error code."""
        self.goaways[self._kept_label(origin), bounded_code_name(code)] += 1

    def downstream_opened(self) -> None:
        """Count a connection in."""
        self.downstream_connections.opened()

    def downstream_closed(self) -> None:
        """Count a connection out."""
        self.downstream_connections.closed()

    def connection_refused(self, reason: str) -> None:
        """Count by reason."""
        self.connections_refused[reason] += 1

    def downstream_cut_off(self, client: str, code: int, reason: str) -> None:
        """Count by code."""
        self.downstream_cut_offs[bounded_code_name(code)] += 1

    def handshake_failed(self, client: str, reason: str) -> None:
        """Count it."""
        self.handshakes_failed += 1

    def request_refused(self, reason: str, details: dict[str, Any]) -> None:
        """Count by reason."""
        self.requests_refused[reason] += 1

    def caller_unverified(self, reason: str) -> None:
        """Count by reason."""
        self.callers_unverified[reason] += 1

    def settings_reloaded(self, need_restart: tuple[str, ...]) -> None:
        """Count and date it."""
        settings = self.settings
        settings.read_at, settings.refused_at = self._clock(), None
        settings.reloaded += 1
        settings.problems, settings.need_restart = (), need_restart

    def settings_refused(self, problems: tuple[str, ...]) -> None:
        """Count and date it, and keep the problems."""
        self.settings.refused_at = self._clock()
        self.settings.refused += 1
        self.settings.problems = problems

    def response_refused(self, origin: str, stream_id: int, reason: str) -> None:
        """Count by origin and reason."""
        self.responses_refused[self._kept_label(origin), reason] += 1

    def origin_label(self, origin: str) -> str:
        """Return the label under which connections to this origin are counted, or would be if none is open."""
        if origin in self._connected:
            return self._connected[origin][0]
        return self._kept_label(origin)

    def _has_label(self, origin: str) -> bool:
        return ("origin", origin) in self._users or origin in self._open_origins

    def _kept_label(self, origin: str) -> str:
        """Return the origin for what is counted until a route is removed, or `OTHER` if none with a label has it."""
        return origin if self._has_label(origin) else OTHER

    def _origin_label(self, origin: str) -> str:
        """Return the origin, or `OTHER` if no labelled route has it and there are too many such."""
        if self._has_label(origin) or origin in self.upstream_connections:
            return origin
        others = sum(not self._has_label(known) for known in self.upstream_connections)
        return origin if others < _MOST_OTHER_ORIGINS else OTHER

    def _forget_unused(self, route: Route | None) -> None:
        """Forget what was counted for the origin, the account and the tokens of a route, unless others have them."""
        if route is None:
            return
        self._users.subtract(_used_by(route))
        gone = [use for use in _used_by(route) if self._users[use] <= 0]
        for use in gone:
            del self._users[use]
            kind, value = use
            if kind == "token":
                self.minted_at.pop(token_identity(route), None)
            elif kind == "account":
                for source in [source for source, account in self.mints if account == value]:
                    del self.mints[source, route.impersonate or AMBIENT]
            else:
                self._forget_origin(str(value))

    def _forget_origin(self, origin: str) -> None:
        if origin in self.upstream_connections and self.upstream_connections[origin].now == 0:
            del self.upstream_connections[origin]
        for counter in (getattr(self, name) for name in COUNTED_BY_ORIGIN):
            for labels in [labels for labels in counter if labels[0] == origin]:
                del counter[labels]


def token_identity(key: ObservedKey | Route) -> TokenIdentity:
    """Return what a token, or the tokens of a route, are minted for."""
    return key.impersonate, key.delegates, key.audience


def _used_by(route: Route) -> tuple[tuple[str, object], ...]:
    return (
        ("origin", str(route.origin)),
        ("account", route.impersonate or AMBIENT),
        ("token", token_identity(route)),
    )
