"""The states of all workers as one, in the shape that metrics and status page read of a single worker.

Counters, connections, queues and what is in flight are added up. Of what has no sum, the most telling value is taken:
the latest expiry and mint, the greatest clock difference, the newest trouble, which counts the failures of all. A
success in one worker ends what others had trouble with before, and a mint ends failed mints: they may get no more
requests, and never see for themselves. Quantiles cannot be added: p50 is the mean of those of the workers, weighted by
requests, and p99 the greatest of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

from proxy.observe.counters import RouteMetrics
from proxy.observe.health import LAST_FAILURES, Trouble
from proxy.observe.history import INTERVALS, NO_REQUESTS, Interval
from proxy.observe.live import Live, OpenRoute, OpenUse, OriginState, Queues, TokenState
from proxy.observe.metrics import COUNTED_BY_ORIGIN, Metrics, token_identity
from proxy.routes import AllowLists, Route

__all__ = ["COUNTED_BY_REASON", "Combined", "Group", "WorkerRow"]

COUNTED_BY_REASON: Final = ("requests_refused", "callers_unverified", "connections_refused", "downstream_cut_offs")
"""The counters of `Metrics` that a worker's line has as they are: by reason or code."""


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
    queued_octets: int
    """Octets queued for readers that are slower than their senders."""


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
    """By all of them and their supervisor."""


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
        self._supervisor: Mapping[str, Any] = {}
        self._workers: list[Mapping[str, Any]] = []
        self._running: dict[str, Trouble] = {}
        """The troubles of the worker whose lines are being added, by label."""
        self._failures: list[tuple[Iterable[Mapping[str, Any]], dict[str, Trouble]]] = []
        """Of each worker, its last failures, and its troubles by label."""
        self._intervals: dict[str, dict[int, Interval]] = {}
        self._tokens: dict[str, TokenState] = {}
        self._minted_at: dict[str, float] = {}
        self._succeeded: dict[str, float] = {}
        """A time after which an exchange has succeeded, by label."""
        self._troubles: list[tuple[dict[str, Trouble], str, Trouble]] = []
        """Those of all workers, with where they belong, and label."""
        self._unwell: dict[str, Trouble] = {}
        self._trouble: dict[str, Trouble] = {}
        self._minting: dict[str, Trouble] = {}
        self._open: dict[str, dict[OpenUse, TokenState | None]] = {}
        self._open_trouble: dict[str, Trouble] = {}
        self._origins: dict[str, OriginState] = {}
        self._queues = Queues()
        self._log_lines_dropped = 0

    def add(self, states: Iterable[Iterable[bytes]]) -> Iterator[str]:
        """Add the lines of all workers and of the supervisor; yields after each, so that others may run."""
        for lines in states:
            self._running = {}
            for line in lines:
                self._add_line(line)
                yield ""
        yield from self._finish()

    def release(self) -> Iterator[str]:
        """Forget all; yields in between: to free what thousands of routes have takes milliseconds."""
        metrics, queues = self.metrics, self._queues
        tables: tuple[dict[Any, Any], ...] = (
            *(metrics.routes, metrics.upstream_connections, metrics.minted_at),
            *(self._intervals, self._tokens, self._minted_at, self._origins, self._succeeded),
            *(self._unwell, self._trouble, self._minting),
            *(queues.route_octets, queues.route_waiting),
        )
        for kept in tables:
            while kept:
                kept.popitem()
                yield ""

    @property
    def group(self) -> Group:
        """The workers."""
        known = self._supervisor
        told = {worker["pid"]: (worker["in_flight"], worker["queued_octets"]) for worker in self._workers}
        rows = [
            WorkerRow(pid, state, started_at, connections, *told.get(pid, (0, 0)))
            for pid, state, started_at, connections in known.get("workers", ())
        ]
        dropped = self._log_lines_dropped + known.get("log_lines_dropped", 0)
        return Group(known.get("pid", 0), known.get("started_at", 0.0), rows, known.get("restarts", 0), dropped)

    # ---- as `observe.live.Live`

    def routes(self) -> Sequence[Route]:
        """Return the routes for new requests: those of all workers are the same."""
        return self._own.routes()

    def allowed(self) -> AllowLists | None:
        """Return what deployments may choose: the same in all workers."""
        return self._own.allowed()

    def open_routes(self) -> Iterator[OpenRoute]:
        """Yield those of all workers; of each use, the token that expires last."""
        for label, uses in self._open.items():
            yield OpenRoute(label, tuple(use._replace(token=token) for use, token in uses.items()))

    def token(self, route: Route) -> TokenState | None:
        """Return the token that expires last."""
        return self._tokens.get(route.label)

    def origins(self) -> Iterator[OriginState | None]:
        """Yield the sums."""
        yield from self._origins.values()

    def count_queues(self, queues: Queues) -> Iterator[None]:
        """Add the sums; the largest connection is that of all workers."""
        own = self._queues
        queues.client_connections += own.client_connections
        queues.client_octets += own.client_octets
        queues.largest_client_octets = max(queues.largest_client_octets, own.largest_client_octets)
        for total, added in ((queues.route_octets, own.route_octets), (queues.route_waiting, own.route_waiting)):
            for label, count in added.items():
                total[label] += count
                yield

    # ---- as `observe.health.RouteHealth`

    def trouble(self, route: Route, *, has_token: bool = False) -> Trouble | None:
        """Return the newest trouble that a worker has with the route."""
        return (self._trouble if has_token else self._unwell).get(route.label)

    def open_trouble(self, label: str, *, has_tokens: bool) -> Trouble | None:
        """Return the newest trouble that a worker has with the open routes of this label; `has_tokens` is ignored."""
        return self._open_trouble.get(label)

    def mint_trouble(self, route: Route, *, has_token: bool = False) -> Trouble | None:
        """Return the newest failed mint of a worker that has no token for the route; `has_token` is ignored."""
        return self._minting.get(route.label)

    # ---- as `observe.history.History`

    def of(self, label: str) -> Sequence[Interval]:
        """Return the intervals of a route, the oldest first; always `INTERVALS` of them."""
        known = self._intervals.get(label, {})
        return [known.get(age, NO_REQUESTS) for age in range(INTERVALS - 1, -1, -1)]

    # ---- inside

    def _add_line(self, line: bytes) -> None:
        kind, name, counted, now = json.loads(line)
        counted = counted or {}
        if kind == "route":
            self._add_route(name, counted, now)
        elif kind == "named":
            self._add_named(name, now)
        elif kind == "open":
            self._add_open(name, now)
        elif kind == "mints":
            source, _, account = name.rpartition(" ")
            mints = self.metrics.mints[source, account]
            mints.succeeded.add(*counted["succeeded"])
            mints.failed.add(*counted["failed"])
            mints.failures.update(counted["failures"])
        elif kind == "origin":
            self._add_origin(name, counted, now)
        elif kind == "worker":
            self._add_worker(counted, now)
        elif kind == "supervisor":
            self._supervisor = now

    def _add_route(self, label: str, counted: Mapping[str, Any], now: Mapping[str, Any] | None) -> None:
        route = self.metrics.routes.get(label)
        if route is None:
            route = self.metrics.routes[label] = RouteMetrics()
        if now is None:
            route.add(counted, 0)
            return
        route.add(counted, now["in_flight"])
        self._queues.route_octets[label] += now["queued_octets"]
        self._queues.route_waiting[label] += now["waiting"]
        if now["succeeded"] is not None:
            self._succeeded[label] = max(self._succeeded.get(label, 0.0), now["succeeded"])
        for age, values in now["history"]:
            intervals = self._intervals.setdefault(label, {})
            intervals[age] = _together(intervals.get(age, NO_REQUESTS), Interval(*values))

    def _add_origin(self, origin: str, counted: Mapping[str, Any], now: Mapping[str, Any] | None) -> None:
        metrics = self.metrics
        if now is not None and now["state"] is not None:
            added, before = OriginState(origin, *now["state"]), self._origins.get(origin)
            self._origins[origin] = added if before is None else before.plus(added)
        if "opened" in counted:
            metrics.upstream_connections[origin].add(now["connections"] if now is not None else 0, counted["opened"])
        for name in COUNTED_BY_ORIGIN:
            for what, count in counted.get(name, {}).items():
                getattr(metrics, name)[origin, what] += count

    def _add_worker(self, counted: Mapping[str, Any], now: Mapping[str, Any] | None) -> None:
        metrics = self.metrics
        metrics.downstream_connections.add(now["downstream"] if now is not None else 0, counted["downstream_opened"])
        metrics.handshakes_failed += counted["handshakes_failed"]
        for counter in COUNTED_BY_REASON:
            getattr(metrics, counter).update(counted[counter])
        self._log_lines_dropped += counted["log_lines_dropped"]
        for name, value in {**counted["process"], **(now["process"] if now is not None else {})}.items():
            least = name.endswith(("_start_time_seconds", "_max_fds"))
            before = self.process.get(name)
            self.process[name] = value if before is None else min(before, value) if least else before + value
        if now is not None:
            self._workers.append(now)
            self._failures.append((now["failures"], self._running))
            queues, (connections, octets, largest) = self._queues, now["client_queues"]
            queues.client_connections += connections
            queues.client_octets += octets
            queues.largest_client_octets = max(queues.largest_client_octets, largest)

    def _add_named(self, label: str, now: Mapping[str, Any]) -> None:
        if now["token"] is not None:
            token = TokenState(*now["token"])
            if label not in self._tokens or token.expires_at > self._tokens[label].expires_at:
                self._tokens[label] = token
        if now["minted_at"] is not None:
            self._minted_at[label] = max(self._minted_at.get(label, 0.0), now["minted_at"])
        for found, values in ((self._unwell, "unwell"), (self._trouble, "trouble"), (self._minting, "minting")):
            self._add_trouble(found, label, _trouble(now[values]))
        self._set_running(label, now["trouble"])

    def _add_open(self, label: str, now: Mapping[str, Any]) -> None:
        uses = self._open.setdefault(label, {})
        for host, signed, audience, impersonate, delegates, fields in now["uses"]:
            use = OpenUse(host, signed, audience, impersonate, tuple(delegates), None)
            token, before = TokenState(*fields) if fields is not None else None, uses.get(use)
            uses[use] = before if before and (not token or before.expires_at >= token.expires_at) else token
        self._add_trouble(self._open_trouble, label, _trouble(now["trouble"]))
        self._set_running(label, now["trouble"])

    def _add_trouble(self, found: dict[str, Trouble], label: str, trouble: Trouble | None) -> None:
        if trouble is not None:
            self._troubles.append((found, label, trouble))

    def _set_running(self, label: str, fields: Mapping[str, Any] | None) -> None:
        trouble = _trouble(fields)
        if trouble is not None:
            self._running[label] = trouble

    def _finish(self) -> Iterator[str]:
        """Bring together what needs all lines."""
        metrics, workers = self.metrics, self._workers
        for route in self.routes():
            at = self._minted_at.get(route.label)
            if at is not None:
                identity = token_identity(route)
                metrics.minted_at[identity] = max(metrics.minted_at.get(identity, 0.0), at)
            yield ""
        while self._troubles:
            found, label, trouble = self._troubles.pop()
            minting = trouble.minting and found is not self._open_trouble
            ended = (self._minted_at if minting else self._succeeded).get(label, 0.0)
            if trouble.at >= ended:
                _note(found, label, trouble)
            yield ""
        self.last_failures = self._count_together()[-LAST_FAILURES:]
        if workers:
            metrics.engine = workers[0]["engine"]
            metrics.clock_ahead_seconds = max((worker["clock_ahead_seconds"] for worker in workers), key=abs)
        self.draining = bool(workers) and all(worker["draining"] for worker in workers)
        self.queued_octets = sum(worker["queued_octets"] for worker in workers)
        self.queued_octets_limit = sum(worker["queued_octets_limit"] for worker in workers)
        # The supervisor makes the reloads for all workers.
        for name, value in self._supervisor.get("settings", {}).items():
            setattr(metrics.settings, name, tuple(value) if isinstance(value, list) else value)

    def _count_together(self) -> list[Trouble]:
        """Return the failures of all workers, oldest first; those without a success since are counted together."""
        happened: list[tuple[Trouble, int, bool]] = []
        for worker, (listed, running) in enumerate(self._failures):
            # Those that are not in the list any more are in the count of their trouble.
            happened += [(trouble, worker, False) for trouble in running.values()]
            happened += [(failure, worker, True) for failure in map(_trouble, listed) if failure]
        happened.sort(key=lambda one: (one[0].at, one[2]))
        last: dict[str, dict[int, Trouble]] = {}
        found = []
        for failure, worker, is_listed in happened:
            trouble = self._failures[worker][1].get(failure.route)
            if trouble is not None and trouble.since == failure.since:
                known = last.setdefault(failure.route, {})
                known[worker] = failure
                count, since = sum(one.count for one in known.values()), min(one.since for one in known.values())
                failure = replace(failure, count=count, since=since)
            if is_listed:
                found.append(failure)
        return found


def _together(one: Interval, other: Interval) -> Interval:
    requests = one.requests + other.requests
    if not requests:
        return one
    p50 = (one.p50 * one.requests + other.p50 * other.requests) / requests
    return Interval(requests, one.errors + other.errors, p50, max(one.p99, other.p99))


def _note(found: dict[str, Trouble], label: str, trouble: Trouble) -> None:
    """Note the trouble of one more worker: the newest is told, and what the others have is counted with it."""
    known = found.get(label)
    if known is not None:
        newest = trouble if trouble.at > known.at else known
        trouble = replace(newest, count=trouble.count + known.count, since=min(trouble.since, known.since))
    found[label] = trouble


def _trouble(fields: Mapping[str, Any] | None) -> Trouble | None:
    return Trouble(**{**fields, "commands": tuple(fields["commands"])}) if fields is not None else None
