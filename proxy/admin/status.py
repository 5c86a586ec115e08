"""What the admin port tells in JSON, piece by piece; `openapi.json` describes it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any, Final

from proxy import __version__
from proxy.observe.background import dropped_lines
from proxy.observe.combined import Group, WorkerRow
from proxy.observe.counters import RouteMetrics
from proxy.observe.health import Trouble
from proxy.observe.history import INTERVAL_SECONDS
from proxy.observe.live import Live, OpenRoute, OpenUse, Queues
from proxy.observe.metrics import SettingsMetrics, token_identity
from proxy.observe.pairs import pairs
from proxy.observe.view import View
from proxy.routes import AllowLists, Route

__all__ = ["JSON", "Status", "json_list", "open_route_settings", "route_settings"]

JSON: Final = "application/json; charset=utf-8"
"""The content type."""

_NOTHING_COUNTED: Final = RouteMetrics()


class Status:
    """The state of one worker, or of several together. `clock` is wall-clock time in seconds."""

    def __init__(self, view: View, *, clock: Callable[[], float] = time.time) -> None:
        self._view = view
        self._metrics = view.metrics
        self._health = view.health
        self._history = view.history
        self._live = view.live
        self._clock = clock

    def pieces(self, state: str, reason: str) -> Iterator[str]:
        """Yield the text of a JSON object, one route a piece. `state` and `reason` are those of `/readyz`."""
        metrics, live = self._metrics, self._live
        queues = Queues()
        for _ in live.count_queues(queues):
            yield ""
        in_flight = 0
        for _, counted in pairs(metrics.routes):
            in_flight += counted.in_flight
            yield ""
        group = self._view.group or self._alone(state, in_flight)
        head = {
            "version": __version__,
            "engine": metrics.engine,
            "pid": group.pid,
            "workers": len(group.workers),
            "worker_restarts": group.restarts,
            "processes": [row._asdict() for row in group.workers],
            "started_at": group.started_at,
            "now": self._clock(),
            "state": state,
            "reason": reason,
            "settings": _settings(metrics.settings),
            "downstream_connections": metrics.downstream_connections.now,
            "queued_octets": live.queued_octets,
            "queued_octets_limit": live.queued_octets_limit,
            "client_queues": {
                "connections": queues.client_connections,
                "octets": queues.client_octets,
                "largest_octets": queues.largest_client_octets,
            },
            "clock_ahead_seconds": metrics.clock_ahead_seconds,
            "log_lines_dropped": group.log_lines_dropped,
            "interval_seconds": INTERVAL_SECONDS,
            "deployments": _lists(live.allowed()),
            "failures": [_trouble(failure) for failure in reversed(self._health.last_failures)],
        }
        yield f"{json.dumps(head, ensure_ascii=False)[:-1]},\n"
        yield '"origins": '
        yield from json_list(self._origins())
        yield ',\n"routes": '
        yield from json_list(self._route(route, queues) for route in live.routes())
        yield ',\n"open_routes": '
        yield from json_list(self._open_route(one, queues) for one in live.open_routes())
        yield "}\n"

    def cannot_mint(self) -> Iterator[str]:
        """Yield a line for each route that has no token and whose last mint failed; empty text for the others."""
        for route in self._live.routes():
            found = self._health.mint_trouble(route, has_token=self._live.token(route) is not None)
            yield f"{route.label}: {found.code}: {found.reason}\n" if found is not None else ""

    def _alone(self, state: str, in_flight: int) -> Group:
        connections, queued = self._metrics.downstream_connections.now, self._live.queued_octets
        started_at = self._view.started_at
        row = WorkerRow(os.getpid(), state, started_at, connections, in_flight, queued)
        return Group(os.getpid(), started_at, [row], 0, dropped_lines())

    def _origins(self) -> Iterator[dict[str, Any] | None]:
        goaways: dict[str, dict[str, int]] = {}
        for (origin, code), count in self._metrics.goaways.items():
            goaways.setdefault(origin, {})[code] = count
        for state in self._live.origins():
            if state is None:
                yield None
                continue
            connections = self._metrics.upstream_connections.get(state.origin)
            yield {
                "origin": state.origin,
                "connections": connections.now if connections is not None else 0,
                "opened": connections.ever if connections is not None else 0,
                "opening": state.opening,
                "waiting": state.waiting,
                "waiting_clients": state.waiting_clients,
                "queued_octets": state.queued_octets,
                "goaways": goaways.get(state.origin, {}),
            }

    def _open_route(self, one: OpenRoute, queues: Queues) -> dict[str, Any]:
        trouble = self._health.open_trouble(one.label, has_tokens=one.has_tokens)
        return {
            "name": one.label,
            "uses": [_use(use) for use in one.uses],
            "well": trouble is None,
            "trouble": _trouble(trouble) if trouble is not None else None,
            **self._counted(one.label, queues),
        }

    def _route(self, route: Route, queues: Queues) -> dict[str, Any]:
        token = self._live.token(route)
        trouble = self._health.trouble(route, has_token=token is not None)
        return {
            **route_settings(route),
            "well": trouble is None,
            "trouble": _trouble(trouble) if trouble is not None else None,
            "token": token._asdict() if token is not None else None,
            "minted_at": self._metrics.minted_at.get(token_identity(route)) if route.signed else None,
            **self._counted(route.label, queues),
        }

    def _counted(self, label: str, queues: Queues) -> dict[str, Any]:
        counted = self._metrics.routes.get(label, _NOTHING_COUNTED)
        intervals = self._history.of(label)
        return {
            "in_flight": counted.in_flight,
            "waiting": queues.route_waiting[label],
            "queued_octets": queues.route_octets[label],
            "ended": counted.total,
            "errors": counted.errors,
            "failures": counted.failures,
            "history": {
                "requests": [interval.requests for interval in intervals],
                "errors": [interval.errors for interval in intervals],
                "p50": [round(interval.p50, 4) for interval in intervals],
                "p99": [round(interval.p99, 4) for interval in intervals],
            },
        }


def json_list(items: Iterable[Mapping[str, Any] | None]) -> Iterator[str]:
    """Yield a JSON array of objects, one object a piece; of None, a piece without text."""
    separator = "["
    for item in items:
        if item is None:
            yield ""
            continue
        yield f"{separator}\n{json.dumps(item, ensure_ascii=False)}"
        separator = ","
    yield "[]\n" if separator == "[" else "\n]\n"


def route_settings(route: Route) -> dict[str, Any]:
    """Return the settings of a route, under the names that they have in the settings file."""
    return {
        "name": route.name,
        "url": f"{route.origin}{route.base_path}",
        **_authentication(route),
    }


def open_route_settings(live: Live) -> Iterator[dict[str, Any]]:
    """Yield what deployments have chosen, under the names that routes have in the settings file."""
    for one in live.open_routes():
        for use in one.uses:
            url = f"https://{use.host}"
            yield {"name": url, "url": url, **_authentication(use), "open": True}


def _authentication(of: Route | OpenUse) -> dict[str, Any]:
    return {
        "gcp_id_token": of.signed,
        "gcp_audience": of.audience if of.signed else None,
        "gcp_impersonate_service_account": of.impersonate,
        "gcp_delegates": list(of.delegates),
    }


def _use(use: OpenUse) -> dict[str, Any]:
    token = use.token._asdict() if use.token is not None else None
    return {"url": f"https://{use.host}", **_authentication(use), "token": token}


def _settings(settings: SettingsMetrics) -> dict[str, Any]:
    return {
        "read_at": settings.read_at,
        "reloaded": settings.reloaded,
        "refused": settings.refused,
        "refused_at": settings.refused_at,
        "problems": list(settings.problems),
        "need_restart": list(settings.need_restart),
    }


def _lists(allowed: AllowLists | None) -> dict[str, Any] | None:
    return {name: list(values) for name, values in asdict(allowed).items()} if allowed is not None else None


def _trouble(trouble: Trouble) -> dict[str, Any]:
    return {**asdict(trouble), "commands": list(trouble.commands)}
