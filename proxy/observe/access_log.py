"""The access log: one line for each exchange, at its end."""

from __future__ import annotations

from typing import Final

import structlog

from proxy.observe.counters import bounded_code_name
from proxy.observe.exchange import ExchangeObserver, ObservedExchange
from proxy.observe.explanation import ends_exchange, remedy_of_code
from proxy.observe.observer import Observer
from proxy.observe.request_context import request_context
from proxy.routes import Route

__all__ = ["AccessLog"]

_log: Final = structlog.get_logger("access")


class AccessLog(Observer):
    """Writes the access log, of routes that are asked for while it is `on`."""

    def __init__(self, *, on: bool = True) -> None:
        self.on = on
        """Whether lines are written. It may be changed; the next snapshot of routes goes by it."""

    def route(self, route: Route | None) -> ExchangeObserver | None:
        """Return what writes the lines of one route; None if the log is off."""
        return _RouteLines(route.name if route is not None else None) if self.on else None


class _RouteLines(ExchangeObserver):
    __slots__ = ("_resets", "_route")

    def __init__(self, route: str | None) -> None:
        self._route = route
        self._resets: dict[ObservedExchange, tuple[str, int]] = {}

    def stream_reset(self, exchange: ObservedExchange, by: str, code: int) -> None:
        if ends_exchange(by, code):
            self._resets[exchange] = by, code

    def ended(self, exchange: ObservedExchange, status: int, seconds: float) -> None:
        reset = self._resets.pop(exchange, None)
        _log.info(
            "exchange",
            route=self._route,
            method=exchange.method.decode("latin-1"),
            # Without its query, in which callers may have put a secret.
            path=exchange.path.partition(b"?")[0].decode("latin-1"),
            status=status or None,
            milliseconds=round(seconds * 1000, 1),
            request_octets=exchange.request_octets,
            response_octets=exchange.response_octets,
            code=exchange.failure_code or None,
            remedy=remedy_of_code(exchange.failure_code),
            reset_by=reset[0] if reset is not None else None,
            reset_code=bounded_code_name(reset[1]) if reset is not None else None,
            **request_context(exchange),
        )
