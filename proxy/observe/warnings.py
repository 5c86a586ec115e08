"""Warnings: what went wrong with exchanges and connections, in log lines that say what mends it.

Restate shows neither fields nor body of an answer that stops an invocation, so this is where a person learns more. Of
lines that repeat, one a second of each kind is written, and the next one says how many were not: neither an outage nor
a client must fill the disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import structlog

from proxy.errors import Failure
from proxy.http2.events import Fields, error_code_name
from proxy.observe.exchange import ExchangeObserver, ObservedExchange
from proxy.observe.explanation import REFUSALS, explain_reset, explain_response, remedy_of
from proxy.observe.observer import ObservedKey, ObservedToken, Observer
from proxy.observe.request_context import request_context
from proxy.observe.throttle import Throttle
from proxy.restate import caller_token_remedy, stops_work
from proxy.routes import Route

__all__ = ["Warnings"]

_log: Final = structlog.get_logger("relay")
_tokens: Final = structlog.get_logger("tokens")
_upstream: Final = structlog.get_logger("upstream")
_downstream: Final = structlog.get_logger("downstream")

_DEBUG_OCTETS: Final = 200
"""How much of GOAWAY's debug data is logged."""


class Warnings(Observer):
    """Writes the lines.

    `clock` is wall-clock time in seconds, to be compared with a response's `date`; `monotonic` is for the throttle.
    """

    def __init__(
        self, *, clock: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._throttle = Throttle()
        # Clients choose the hosts of open routes, so there may be any number of each.
        self._mints, self._services, self._open_routes = Throttle(), Throttle(), Throttle()

    def route(self, route: Route | None) -> ExchangeObserver:
        """Return what writes the lines of one route."""
        throttle = self._open_routes if route is not None and route.is_open else Throttle()
        return _RouteWarnings(route, throttle, self._clock, self._monotonic)

    def minted(self, token: ObservedToken, seconds: float, uncached: bool) -> None:
        """Write at the level `info`."""
        added = self._mints.fields((*_identity(token.key), uncached, token.principal), self._monotonic())
        if added is not None:
            _tokens.info(
                "token minted",
                principal=token.principal,
                expires_at=datetime.fromtimestamp(token.expires_at, UTC).isoformat(timespec="seconds"),
                remaining_seconds=round(token.local_expiry - self._clock()),
                **_mint_fields(token.key, uncached),
                **added,
            )

    def mint_failed(self, key: ObservedKey, failure: Failure, seconds: float, uncached: bool) -> None:
        """Write at the level of the failure."""
        added = self._mints.fields((*_identity(key), uncached, str(failure)), self._monotonic())
        if added is not None:
            said = {"code": failure.code, "error": str(failure), "remedy": remedy_of(failure)}
            getattr(_tokens, failure.severity)("token mint failed", **said, **_mint_fields(key, uncached), **added)

    def upstream_opened(self, origin: str, max_concurrent_streams: int) -> None:
        """Write at the level `debug`."""
        _upstream.debug("upstream connected", origin=origin, streams=max_concurrent_streams)

    def upstream_retired(self, origin: str) -> None:
        """Write at the level `debug`."""
        _upstream.debug("upstream connection retired", origin=origin)

    def upstream_not_connected(self, origin: str, failure: Failure) -> None:
        """Write at the level of the failure."""
        added = self._services.fields((origin, failure.code), self._monotonic())
        if added is not None:
            said = {"code": failure.code, "reason": str(failure), "remedy": remedy_of(failure)}
            getattr(_upstream, failure.severity)("upstream not connected", origin=origin, **said, **added)

    def upstream_going_away(self, origin: str, code: int, debug: bytes) -> None:
        """Write a warning; a line at the level `debug` for NO_ERROR, with which connections usually end."""
        added = self._services.fields((origin, "GOAWAY", code), self._monotonic()) if code else {}
        if added is not None:
            write = _upstream.warning if code else _upstream.debug
            write(
                "upstream said GOAWAY",
                origin=origin,
                code=error_code_name(code),
                debug=debug[:_DEBUG_OCTETS].decode("ascii", "backslashreplace"),
                **added,
            )

    def response_refused(self, origin: str, stream_id: int, reason: str) -> None:
        """Write at the level `debug`: there is a warning about the exchange."""
        _upstream.debug("response refused", origin=origin, reason=reason, stream=stream_id)

    def downstream_cut_off(self, client: str, code: int, reason: str) -> None:
        """Write a warning, one a second for each code."""
        added = self._throttle.fields(code, self._monotonic())
        if added is not None:
            said = {"client": client, "code": error_code_name(code), "reason": reason}
            _downstream.warning("closing the connection of a client", **said, **added)

    def handshake_failed(self, client: str, reason: str) -> None:
        """Write a warning, once a second at most."""
        added = self._throttle.fields("handshake", self._monotonic())
        if added is not None:
            _downstream.warning("TLS handshake failed", client=client, reason=reason, **added)

    def request_refused(self, reason: str, details: dict[str, Any]) -> None:
        """Write at the level `debug`; a warning, one a second for each reason, where there is a remedy."""
        remedy = REFUSALS.get(reason)
        if remedy is None:
            _downstream.debug("request refused", reason=reason, **details)
        elif (added := self._throttle.fields(reason, self._monotonic())) is not None:
            _downstream.warning("request refused", reason=reason, remedy=remedy, **details, **added)


class _RouteWarnings(ExchangeObserver):
    __slots__ = ("_caller_token_told", "_clock", "_monotonic", "_name", "_route", "_throttle")

    def __init__(
        self,
        route: Route | None,
        throttle: Throttle,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._route = route
        self._name = route.name if route is not None else None
        self._clock = clock
        self._monotonic = monotonic
        self._throttle = throttle
        self._caller_token_told = False

    def caller_token_dropped(self, exchange: ObservedExchange) -> None:
        if self._route is None or self._caller_token_told:
            return
        added = self._throttle.fields((self._name, "caller-token"), self._monotonic())
        if added is not None:
            self._caller_token_told = True
            _log.warning(
                "dropping the caller's own Google token",
                route=self._name,
                remedy=caller_token_remedy(signed=self._route.signed),
                **added,
            )

    def error_response(self, exchange: ObservedExchange, fields: Fields, content: bytes) -> None:
        """Write the line for a response that stops work. Its content decides what is said, and is not repeated."""
        status = exchange.status
        if self._route is None or not stops_work(status):
            return
        added = self._throttle.fields((self._name, status), self._monotonic())
        if added is None:
            return
        challenge, found = explain_response(self._route, exchange, fields, content, self._clock())
        _log.warning(
            "upstream answered an error",
            route=self._name,
            status=status,
            www_authenticate=challenge,
            code=found.code,
            reason=found.text,
            remedy=found.remedy,
            commands=list(found.commands),
            **request_context(exchange),
            **added,
        )

    def local_reply(self, exchange: ObservedExchange, failure: Failure) -> None:
        self._write("request failed", exchange, failure)

    def aborted(self, exchange: ObservedExchange, failure: Failure) -> None:
        self._write("exchange aborted", exchange, failure)

    def stream_reset(self, exchange: ObservedExchange, by: str, code: int) -> None:
        failure = explain_reset(exchange, by, code)
        if failure is not None:
            self._write("exchange reset", exchange, failure)

    def _write(self, what: str, exchange: ObservedExchange, failure: Failure) -> None:
        added = self._throttle.fields((self._name, failure.code), self._monotonic())
        if added is not None:
            getattr(_log, failure.severity)(
                what,
                route=self._name,
                code=failure.code,
                status=exchange.status or None,
                reason=str(failure),
                remedy=remedy_of(failure),
                **request_context(exchange),
                **added,
            )


def _identity(key: ObservedKey) -> tuple[object, ...]:
    return key.audience, key.impersonate, key.delegates


def _mint_fields(key: ObservedKey, uncached: bool) -> dict[str, Any]:
    return {"audience": key.audience, "impersonate": key.impersonate, "fresh": uncached}
