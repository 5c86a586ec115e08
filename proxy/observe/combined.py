"""The states of all workers as one, in the shape that metrics and status page read of a single worker.

Counters, connections, queues and what is in flight are added up. Of what has no sum, the value that tells most is
taken: the latest expiry and mint, the greatest clock difference, the newest trouble. Quantiles cannot be added: p50 is
the mean of those of the workers, weighted by requests, and p99 the greatest of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from proxy.observe.counters import Connections, RouteMetrics
from proxy.observe.health import LAST_FAILURES, Trouble
from proxy.observe.history import INTERVALS, Interval
from proxy.observe.live import Live, OriginState, TokenState
from proxy.observe.metrics import Metrics, Mints, token_identity
from proxy.observe.totals import Totals
from proxy.routes import Route

__all__ = ["Combined", "Group", "WorkerRow"]

_NO_INTERVAL: Final = Interval(0, 0, 0.0, 0.0)


class WorkerRow(NamedTuple):
    """One worker."""

    pid: int
    """Its process."""
    state: str
    """`starting`, `ready`, `draining`, or `silent`: it did not report in time, and its figures are older."""
    started_at: float
    """In seconds since the epoch."""
    connections: int
    """Connections of clients that it has."""
    in_flight: int
    """Exchanges that have not ended."""


class Group(NamedTuple):
    """The workers of a sidecar."""

    pid: int
    """The process that service managers and users know."""
    started_at: float
    """When that one started, in seconds since the epoch."""
    workers: Sequence[WorkerRow]
    """Those that live."""
    restarts: int
    """How many were replaced because they had ended."""
    log_lines_dropped: int
    """By all of them."""


class Combined:
    """What all workers have counted, and their state. Add all lines, then read."""

    def __init__(self, own: Live) -> None:
        self.metrics = Metrics()
        """What was counted, as one worker would have counted it."""
        self.process: dict[str, float] = {}
        """Metrics of the processes by name, added up."""
        self.last_failures: Sequence[Trouble] = ()
        """The newest is the last one."""
        self.draining = False
        self.queued_octets = 0
        self.queued_octets_limit = 0
        self._own = own
        self._totals = Totals()
        self._supervisor: Mapping[str, Any] = {}
        self._workers: list[Mapping[str, Any]] = []
        self._in_flight: Counter[str] = Counter()
        self._intervals: dict[str, dict[int, Interval]] = {}
        self._connections: Counter[str] = Counter()
        self._tokens: dict[str, TokenState] = {}
        self._minted_at: dict[str, float] = {}
        self._unwell: dict[str, Trouble] = {}
        self._trouble: dict[str, Trouble] = {}
        self._minting: dict[str, Trouble] = {}
        self._waiting: dict[str, OriginState] = {}
        self._told: set[str] = set()

    def add(self, states: Iterable[bytes]) -> Iterator[str]:
        """Add the states of all workers and of the supervisor; yields after each line, so that others may run."""
        for state in states:
            self._told.clear()
            for line in state.splitlines():
                self._add_line(line)
                yield ""
        yield from self._finish()

    @property
    def group(self) -> Group:
        """The workers."""
        known = self._supervisor
        in_flight = {worker["pid"]: worker["in_flight"] for worker in self._workers}
        rows = [
            WorkerRow(pid, state, started_at, connections, in_flight.get(pid, 0))
            for pid, state, started_at, connections in known.get("workers", ())
        ]
        dropped = self._totals.get("worker", "").get("log_lines_dropped", 0)
        return Group(known.get("pid", 0), known.get("started_at", 0.0), rows, known.get("restarts", 0), dropped)

    # ---- as `observe.live.Live`

    def routes(self) -> Sequence[Route]:
        """Return the routes for new requests: those of all workers are the same."""
        return self._own.routes()

    def token(self, route: Route) -> TokenState | None:
        """Return the token that expires last."""
        return self._tokens.get(route.label)

    def origin(self, route: Route) -> OriginState | None:
        """Return the sums."""
        return self._waiting.get(str(route.origin))

    # ---- as `observe.health.RouteHealth`

    def trouble(self, route: Route, *, has_token: bool = False) -> Trouble | None:
        """Return the newest trouble that a worker has with the route."""
        return (self._trouble if has_token else self._unwell).get(route.label)

    def mint_trouble(self, route: Route, *, has_token: bool = False) -> Trouble | None:
        """Return the newest failed mint of a worker that has no token for the route; `has_token` is not asked."""
        return self._minting.get(route.label)

    # ---- as `observe.history.History`

    def of(self, label: str) -> Sequence[Interval]:
        """Return the intervals of a route, the oldest first; always `INTERVALS` of them."""
        known = self._intervals.get(label, {})
        return [known.get(age, _NO_INTERVAL) for age in range(INTERVALS - 1, -1, -1)]

    # ---- inside

    def _add_line(self, line: bytes) -> None:
        kind, name, now = self._totals.add(line)
        if now is None:
            return
        if kind == "route":
            self._in_flight[name] += now["in_flight"]
            for age, values in now["history"]:
                intervals = self._intervals.setdefault(name, {})
                intervals[age] = _together(intervals.get(age, _NO_INTERVAL), Interval(*values))
        elif kind == "named":
            self._add_named(name, now)
        elif kind == "origin":
            self._connections[name] += now["connections"]
        elif kind == "worker":
            self._workers.append(now)
        elif kind == "supervisor":
            self._supervisor = now

    def _add_named(self, label: str, now: Mapping[str, Any]) -> None:
        if now["token"] is not None:
            token = TokenState(*now["token"])
            if label not in self._tokens or token.expires_at > self._tokens[label].expires_at:
                self._tokens[label] = token
        if now["minted_at"] is not None:
            self._minted_at[label] = max(self._minted_at.get(label, 0.0), now["minted_at"])
        for found, values in ((self._unwell, "unwell"), (self._trouble, "trouble"), (self._minting, "minting")):
            trouble = _trouble(now[values])
            if trouble is not None and (label not in found or trouble.at > found[label].at):
                found[label] = trouble
        if now["origin"] is not None:
            origin, waiting, opening = now["origin"]
            if origin not in self._told:  # Routes share it, and each tells of it.
                self._told.add(origin)
                before = self._waiting.get(origin, OriginState(origin, 0, 0))
                self._waiting[origin] = OriginState(origin, before.waiting + waiting, before.opening + opening)

    def _finish(self) -> Iterator[str]:
        """Make metrics of the sums."""
        metrics, totals = self.metrics, self._totals
        for label in dict.fromkeys([*self._in_flight, *totals.names("route")]):
            metrics.routes[label] = route = RouteMetrics()
            route.add(totals.get("route", label), self._in_flight[label])
            yield ""
        for route_known in self.routes():
            at = self._minted_at.get(route_known.label)
            if at is not None:
                identity = token_identity(route_known)
                metrics.minted_at[identity] = max(metrics.minted_at.get(identity, 0.0), at)
            yield ""
        for name in totals.names("mints"):
            source, _, account = name.rpartition(" ")
            counted = totals.get("mints", name)
            mints = metrics.mints[source, account] = Mints()
            mints.succeeded.add(*counted["succeeded"])
            mints.failed.add(*counted["failed"])
            mints.failures.update(counted["failures"])
        for origin in dict.fromkeys([*self._connections, *totals.names("origin")]):
            self._finish_origin(origin, totals.get("origin", origin))
            yield ""
        self._finish_workers(totals.get("worker", ""))
        self._finish_settings()

    def _finish_origin(self, origin: str, counted: Mapping[str, Any]) -> None:
        metrics = self.metrics
        if "opened" in counted or origin in self._connections:
            metrics.upstream_connections[origin].add(self._connections[origin], counted.get("opened", 0))
        for name, counter in (
            ("connect_failures", metrics.connect_failures),
            ("goaways", metrics.goaways),
            ("responses_refused", metrics.responses_refused),
        ):
            for what, count in counted.get(name, {}).items():
                counter[origin, what] = count

    def _finish_workers(self, counted: Mapping[str, Any]) -> None:
        metrics, workers = self.metrics, self._workers
        metrics.downstream_connections = Connections()
        metrics.downstream_connections.add(
            sum(worker["downstream"] for worker in workers), counted.get("downstream_opened", 0)
        )
        metrics.requests_refused.update(counted.get("requests_refused", {}))
        self.process = dict(counted.get("process", {}))
        for worker in workers:
            for name, value in worker["process"].items():
                least = name.endswith(("_start_time_seconds", "_max_fds"))
                before = self.process.get(name)
                self.process[name] = value if before is None else min(before, value) if least else before + value
        failures = [failure for worker in workers for failure in map(_trouble, worker["failures"]) if failure]
        self.last_failures = sorted(failures, key=lambda failure: failure.at)[-LAST_FAILURES:]
        if workers:
            metrics.engine = workers[0]["engine"]
            metrics.clock_ahead_seconds = max((worker["clock_ahead_seconds"] for worker in workers), key=abs)
        self.draining = bool(workers) and all(worker["draining"] for worker in workers)
        self.queued_octets = sum(worker["queued_octets"] for worker in workers)
        self.queued_octets_limit = sum(worker["queued_octets_limit"] for worker in workers)

    def _finish_settings(self) -> None:
        """Take the reloads from the supervisor, which makes them for all workers."""
        settings = self.metrics.settings
        for name, value in self._supervisor.get("settings", {}).items():
            setattr(settings, name, tuple(value) if isinstance(value, list) else value)


def _together(one: Interval, other: Interval) -> Interval:
    requests = one.requests + other.requests
    if not requests:
        return one
    p50 = (one.p50 * one.requests + other.p50 * other.requests) / requests
    return Interval(requests, one.errors + other.errors, p50, max(one.p99, other.p99))


def _trouble(fields: Mapping[str, Any] | None) -> Trouble | None:
    return Trouble(**{**fields, "commands": tuple(fields["commands"])}) if fields is not None else None
