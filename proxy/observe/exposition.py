"""What is counted, in the text format of Prometheus.

It is rendered piece by piece, a few lines at a time, so that its sender can let the event loop go on in between:
with thousands of routes there are megabytes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from typing import Final, TypeVar

from proxy import __version__
from proxy.observe.background import dropped_lines
from proxy.observe.counters import Durations, RouteMetrics
from proxy.observe.families import FAMILIES, PREFIX, PROCESS_FAMILIES, Family
from proxy.observe.live import OriginState, Queues
from proxy.observe.metrics import token_identity
from proxy.observe.pairs import pairs
from proxy.observe.view import View

__all__ = ["CONTENT_TYPE", "Exposition"]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""Of the text format."""

_ESCAPED: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})

_Values = TypeVar("_Values", bound=tuple[str, ...])


class Exposition:
    """The metrics of one worker, or of several together."""

    def __init__(self, view: View) -> None:
        self._metrics = view.metrics
        self._health = view.health
        self._live = view.live
        self._queues = Queues()
        group = view.group
        if group is None:
            self._workers, self._restarts, self._dropped = 1, 0, dropped_lines()
            self._largest_queued_octets = view.live.queued_octets
        else:
            self._workers, self._restarts, self._dropped = len(group.workers), group.restarts, group.log_lines_dropped
            self._largest_queued_octets = max((worker.queued_octets for worker in group.workers), default=0)

    def _samples(self) -> dict[str, Callable[[str], Iterator[str]]]:
        """Return what renders the samples of each family. Not kept, so that this object is not part of a cycle."""
        metrics, live = self._metrics, self._live
        return {
            "build_info": self._build_info,
            "draining": lambda name: _one(name, int(live.draining)),
            "requests_in_flight": lambda name: self._by_route(name, lambda route: route.in_flight),
            "requests_total": self._requests,
            "request_duration_seconds": lambda name: self._durations(name, lambda route: route.durations),
            "time_to_first_octet_seconds": lambda name: self._durations(name, lambda route: route.first_octets),
            "request_bytes_total": lambda name: self._by_route(name, lambda route: route.request_octets),
            "response_bytes_total": lambda name: self._by_route(name, lambda route: route.response_octets),
            "request_failures_total": self._failures,
            "stream_resets_total": self._resets,
            "caller_tokens_dropped_total": lambda name: self._by_route(name, lambda route: route.caller_tokens),
            "requests_refused_total": lambda name: _counted_by(name, "reason", metrics.requests_refused),
            "callers_unverified_total": lambda name: _counted_by(name, "reason", metrics.callers_unverified),
            "route_well": self._well,
            "token_expiry_timestamp_seconds": self._expiry,
            "token_last_mint_timestamp_seconds": self._last_mint,
            "token_mint_duration_seconds": self._mints,
            "token_mint_failures_total": self._mint_failures,
            "clock_ahead_seconds": lambda name: _one(name, metrics.clock_ahead_seconds),
            "upstream_connections": lambda name: self._connections(name, ever=False),
            "upstream_connections_opened_total": lambda name: self._connections(name, ever=True),
            "upstream_connections_opening": lambda name: self._origins(name, lambda origin: origin.opening),
            "upstream_requests_waiting": lambda name: self._origins(name, lambda origin: origin.waiting),
            "upstream_clients_waiting": lambda name: self._origins(name, lambda origin: origin.waiting_clients),
            "upstream_cancels_held_back": lambda name: self._origins(name, lambda origin: origin.cancels_held_back),
            "upstream_connect_failures_total": lambda name: _counted(
                name, ("origin", "code"), metrics.connect_failures
            ),
            "upstream_goaways_total": lambda name: _counted(name, ("origin", "code"), metrics.goaways),
            "upstream_responses_refused_total": lambda name: _counted(
                name, ("origin", "reason"), metrics.responses_refused
            ),
            "workers": lambda name: _one(name, self._workers),
            "worker_restarts_total": lambda name: _one(name, self._restarts),
            "log_lines_dropped_total": lambda name: _one(name, self._dropped),
            **self._downstream_samples(),
            **self._queue_samples(),
            **self._settings_samples(),
        }

    def _downstream_samples(self) -> dict[str, Callable[[str], Iterator[str]]]:
        metrics = self._metrics
        return {
            "downstream_connections": lambda name: _one(name, metrics.downstream_connections.now),
            "downstream_connections_opened_total": lambda name: _one(name, metrics.downstream_connections.ever),
            "downstream_connections_refused_total": lambda name: _counted_by(
                name, "reason", metrics.connections_refused
            ),
            "downstream_connections_cut_off_total": lambda name: _counted_by(name, "code", metrics.downstream_cut_offs),
            "downstream_tls_failures_total": lambda name: _one(name, metrics.handshakes_failed),
        }

    def _queue_samples(self) -> dict[str, Callable[[str], Iterator[str]]]:
        live, queues = self._live, self._queues
        return {
            "requests_waiting": lambda name: self._by_label(name, queues.route_waiting),
            "queued_bytes": lambda name: _one(name, live.queued_octets),
            "queued_bytes_limit": lambda name: _one(name, live.queued_octets_limit),
            "worker_queued_bytes_largest": lambda name: _one(name, self._largest_queued_octets),
            "route_queued_bytes": lambda name: self._by_label(name, queues.route_octets),
            "upstream_queued_bytes": lambda name: self._origins(name, lambda origin: origin.queued_octets),
            "downstream_queued_bytes": lambda name: _one(name, queues.client_octets),
            "downstream_queued_bytes_largest": lambda name: _one(name, queues.largest_client_octets),
            "downstream_connections_queued": lambda name: _one(name, queues.client_connections),
        }

    def _settings_samples(self) -> dict[str, Callable[[str], Iterator[str]]]:
        settings = self._metrics.settings
        return {
            "settings_last_reload_successful": lambda name: _one(name, int(settings.refused_at is None)),
            "settings_last_read_timestamp_seconds": lambda name: _one(name, settings.read_at),
            "settings_reloads_total": lambda name: _counted_by(
                name, "result", {"reloaded": settings.reloaded, "refused": settings.refused}
            ),
            "settings_need_restart": lambda name: _one(name, len(settings.need_restart)),
        }

    def pieces(self, process: Mapping[str, float]) -> Iterator[str]:
        """Yield all metrics; what belongs to one route and one metric is one piece. `process` are those of the process.

        A piece may be empty, so that a loop over routes without samples can be left, too.
        """
        for _ in self._live.count_queues(self._queues):
            yield ""
        samples = self._samples()
        for family in FAMILIES:
            yield _head(PREFIX, family)
            yield from samples[family.name](PREFIX + family.name)
        for family in PROCESS_FAMILIES:
            if family.name in process:
                yield f"{_head('', family)}{family.name} {process[family.name]}\n"

    # ---- the samples of one metric, each called with its full name

    def _build_info(self, name: str) -> Iterator[str]:
        yield f"{name}{_labels(('version', 'engine'), (__version__, self._metrics.engine))} 1\n"

    def _by_route(self, name: str, value: Callable[[RouteMetrics], int]) -> Iterator[str]:
        for label, route in pairs(self._metrics.routes):
            yield f'{name}{{route="{label}"}} {value(route)}\n'

    def _by_label(self, name: str, values: Mapping[str, int]) -> Iterator[str]:
        for label, _ in pairs(self._metrics.routes):
            yield f'{name}{{route="{label}"}} {values.get(label, 0)}\n'

    def _requests(self, name: str) -> Iterator[str]:
        for label, route in pairs(self._metrics.routes):
            yield "".join(
                f'{name}{{route="{label}",status="{status}"}} {count}\n' for status, count in route.by_status().items()
            )

    def _failures(self, name: str) -> Iterator[str]:
        for label, route in pairs(self._metrics.routes):
            yield "".join(
                f'{name}{{route="{label}",code="{code}"}} {count}\n' for code, count in route.by_code().items()
            )

    def _resets(self, name: str) -> Iterator[str]:
        for label, route in pairs(self._metrics.routes):
            yield "".join(
                f'{name}{{route="{label}",by="{by}",code="{code}"}} {count}\n'
                for (by, code), count in route.resets().items()
            )

    def _durations(self, name: str, durations: Callable[[RouteMetrics], Durations]) -> Iterator[str]:
        for label, route in pairs(self._metrics.routes):
            yield _histogram(name, f'route="{label}"', durations(route))

    def _well(self, name: str) -> Iterator[str]:
        for route in self._live.routes():
            yield f'{name}{{route="{route.label}"}} {int(self._health.trouble(route) is None)}\n'
        for one in self._live.open_routes():
            trouble = self._health.open_trouble(one.label, has_tokens=one.has_tokens)
            yield f'{name}{{route="{one.label}"}} {int(trouble is None)}\n'

    def _expiry(self, name: str) -> Iterator[str]:
        for route in self._live.routes():
            token = self._live.token(route)
            yield f'{name}{{route="{route.label}"}} {token.expires_at}\n' if token is not None else ""

    def _last_mint(self, name: str) -> Iterator[str]:
        for route in self._live.routes():
            at = self._metrics.minted_at.get(token_identity(route)) if route.signed else None
            yield f'{name}{{route="{route.label}"}} {at}\n' if at is not None else ""

    def _mints(self, name: str) -> Iterator[str]:
        for (source, account), mints in pairs(self._metrics.mints):
            for result, durations in (("success", mints.succeeded), ("failure", mints.failed)):
                labels = _labels(("source", "account", "result"), (source, account, result))
                yield _histogram(name, labels[1:-1], durations)

    def _mint_failures(self, name: str) -> Iterator[str]:
        for (source, account), mints in pairs(self._metrics.mints):
            by_labels = {(source, account, code): count for code, count in mints.failures.items()}
            yield from _counted(name, ("source", "account", "code"), by_labels)

    def _connections(self, name: str, *, ever: bool) -> Iterator[str]:
        for origin, connections in pairs(self._metrics.upstream_connections):
            yield f"{name}{_labels(('origin',), (origin,))} {connections.ever if ever else connections.now}\n"

    def _origins(self, name: str, value: Callable[[OriginState], int]) -> Iterator[str]:
        # Asked again for each family: thousands of states are not kept.
        for state in self._live.origins():
            yield f"{name}{_labels(('origin',), (state.origin,))} {value(state)}\n" if state is not None else ""


def _head(prefix: str, family: Family) -> str:
    return f"# HELP {prefix}{family.name} {family.meaning}\n# TYPE {prefix}{family.name} {family.kind}\n"


def _one(name: str, value: float) -> Iterator[str]:
    yield f"{name} {value}\n"


def _counted(name: str, labels: tuple[str, ...], counted: Mapping[_Values, int]) -> Iterator[str]:
    for values, count in pairs(counted):
        yield f"{name}{_labels(labels, values)} {count}\n"


def _counted_by(name: str, label: str, counted: Mapping[str, int]) -> Iterator[str]:
    return _counted(name, (label,), {(value,): count for value, count in counted.items()})


def _histogram(name: str, labels: str, durations: Durations) -> str:
    """Return all lines of one histogram."""
    totals = list(accumulate(durations.counts))
    bounds = [*map(str, map(float, durations.bounds)), "+Inf"]
    lines = [f'{name}_bucket{{{labels},le="{bound}"}} {total}\n' for bound, total in zip(bounds, totals, strict=True)]
    lines.append(f"{name}_sum{{{labels}}} {durations.seconds}\n{name}_count{{{labels}}} {totals[-1]}\n")
    return "".join(lines)


def _labels(names: tuple[str, ...], values: tuple[str, ...]) -> str:
    pairs = (f'{name}="{value.translate(_ESCAPED)}"' for name, value in zip(names, values, strict=True))
    return f"{{{','.join(pairs)}}}"
