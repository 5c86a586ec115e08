"""The state of one worker as text, for the one that shows the state of all of them (`combined`)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from proxy.observe.background import dropped_lines
from proxy.observe.combined import COUNTED_BY_REASON
from proxy.observe.health import RouteHealth, Trouble
from proxy.observe.history import History
from proxy.observe.live import Live, Queues
from proxy.observe.metrics import COUNTED_BY_ORIGIN, Metrics, token_identity
from proxy.observe.pairs import pairs
from proxy.observe.totals import state_line
from proxy.routes import Route

__all__ = ["WorkerState"]


class WorkerState:
    """Renders the state; see `totals` for its lines. `clock` is wall-clock time in seconds."""

    def __init__(
        self,
        metrics: Metrics,
        health: RouteHealth,
        live: Live,
        history: History,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._metrics = metrics
        self._health = health
        self._live = live
        self._history = history
        self._clock = clock
        self._started_at = clock()
        self._seen: dict[str, tuple[int, float]] = {}
        """How many exchanges of each route had succeeded when it was last looked at, and when that was."""
        self._succeeded: dict[str, float] = {}
        """A time, by route, after which one has succeeded."""
        self.process: dict[str, float] = {}
        """Metrics of the process by name. Reading them takes long, so they may be some time old."""

    def lines(self) -> Iterator[str]:
        """Yield the state, a line at a time; others may run in between."""
        metrics, live = self._metrics, self._live
        queues = Queues()
        for _ in live.count_queues(queues):
            yield ""
        in_flight = 0
        for label, route in pairs(metrics.routes):
            in_flight += route.in_flight
            now = {
                "in_flight": route.in_flight,
                "queued_octets": queues.route_octets[label],
                "waiting": queues.route_waiting[label],
                "history": self._history.ages(label),
                "succeeded": self._last_success(label, route.successes),
            }
            yield state_line("route", label, route.counted(), now)
        for label in [label for label in self._seen if label not in metrics.routes]:
            del self._seen[label]
            self._succeeded.pop(label, None)
        for named in live.routes():
            yield state_line("named", named.label, None, self._named(named))
        for one in live.open_routes():
            trouble = _fields(self._health.open_trouble(one.label, has_tokens=one.has_tokens))
            yield state_line("open", one.label, None, {"trouble": trouble, "uses": one.uses})
        for (source, account), mints in pairs(metrics.mints):
            counted = {
                "succeeded": [mints.succeeded.counts, mints.succeeded.seconds],
                "failed": [mints.failed.counts, mints.failed.seconds],
                "failures": mints.failures,
            }
            yield state_line("mints", f"{source} {account}", counted, None)
        yield from self._origins()
        yield self._worker(in_flight, queues)

    def _last_success(self, label: str, successes: int) -> float | None:
        """Return the latest time that is known to be before the last success, in seconds since the epoch."""
        before, at = self._seen.get(label, (successes, 0.0))
        if successes > before:
            self._succeeded[label] = at
        self._seen[label] = successes, self._clock()
        return self._succeeded.get(label)

    def _named(self, route: Route) -> dict[str, Any]:
        token = self._live.token(route)
        minting = self._health.mint_trouble(route, has_token=token is not None)
        return {
            "token": token,
            "minted_at": self._metrics.minted_at.get(token_identity(route)) if route.signed else None,
            "unwell": _fields(self._health.trouble(route)),
            "trouble": _fields(self._health.trouble(route, has_token=token is not None)),
            "minting": _fields(minting),
        }

    def _origins(self) -> Iterator[str]:
        metrics = self._metrics
        by_origin: dict[str, dict[str, Any]] = {}
        for name in COUNTED_BY_ORIGIN:
            for (origin, what), count in getattr(metrics, name).items():
                by_origin.setdefault(origin, {}).setdefault(name, {})[what] = count
        live = set()
        for state in self._live.origins():
            if state is not None:
                live.add(state.origin)
                yield self._origin(state.origin, by_origin, state[1:])
            else:
                yield ""
        for origin in [*by_origin, *metrics.upstream_connections]:
            if origin not in live:
                live.add(origin)
                yield self._origin(origin, by_origin, None)

    def _origin(self, origin: str, by_origin: dict[str, dict[str, Any]], state: tuple[object, ...] | None) -> str:
        counted, now = by_origin.get(origin, {}), 0
        known = self._metrics.upstream_connections.get(origin)
        if known is not None:
            counted, now = {**counted, "opened": known.ever}, known.now
        return state_line("origin", origin, counted, {"connections": now, "state": state})

    def _worker(self, in_flight: int, queues: Queues) -> str:
        metrics, live = self._metrics, self._live
        counted = {
            "downstream_opened": metrics.downstream_connections.ever,
            "handshakes_failed": metrics.handshakes_failed,
            **{counter: getattr(metrics, counter) for counter in COUNTED_BY_REASON},
            "log_lines_dropped": dropped_lines(),
            "process": {name: value for name, value in self.process.items() if name.endswith("_total")},
        }
        now = {
            "pid": os.getpid(),
            "started_at": self._started_at,
            "engine": metrics.engine,
            "draining": live.draining,
            "in_flight": in_flight,
            "downstream": metrics.downstream_connections.now,
            "client_queues": [queues.client_connections, queues.client_octets, queues.largest_client_octets],
            "queued_octets": live.queued_octets,
            "queued_octets_limit": live.queued_octets_limit,
            "clock_ahead_seconds": metrics.clock_ahead_seconds,
            "failures": [asdict(failure) for failure in self._health.last_failures],
            "process": {name: value for name, value in self.process.items() if not name.endswith("_total")},
        }
        return state_line("worker", "", counted, now)


def _fields(trouble: Trouble | None) -> dict[str, Any] | None:
    return asdict(trouble) if trouble is not None else None
