"""Observers of exchanges. The relay tells them; none of them changes what happens to an exchange.

An observer overrides the events that it wants, and only those are called: an event without an observer costs nothing.
This is compiled with the data path; observers may be plain Python classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Protocol

import structlog

from proxy.errors import Failure
from proxy.http2.events import FieldLine, Fields

__all__ = ["ExchangeObserver", "ObservedExchange", "RouteObservers"]

_log: Final = structlog.get_logger("observe")


class ObservedExchange(Protocol):
    """What observers may read of an exchange."""

    @property
    def method(self) -> bytes:
        """The request's method."""

    @property
    def path(self) -> bytes:
        """The path that the client asked for, with its query."""

    @property
    def upstream_path(self) -> FieldLine | None:
        """The `:path` line sent upstream; None before a route is found."""

    @property
    def fields(self) -> Fields:
        """The request's regular fields as they are sent upstream, without the token."""

    @property
    def status(self) -> int:
        """Status of the response that was sent downstream; 0 before its head, and for an exchange that was reset."""

    @property
    def response_done(self) -> bool:
        """True while the response has ended and the request has not."""

    @property
    def request_octets(self) -> int:
        """Octets of content that came from the client so far."""

    @property
    def response_octets(self) -> int:
        """Octets of content that came from upstream so far, or are in the local reply."""

    @property
    def attempts(self) -> int:
        """How often the request was sent upstream."""

    @property
    def failure_code(self) -> str:
        """`Failure.code` of the local reply or the reset; empty for an exchange that did not fail."""

    @property
    def principal(self) -> str | None:
        """Account of the token that the request was sent with; None if it had none."""


class ExchangeObserver:
    """Observes the exchanges of one route. An event that is not overridden is not told.

    `started` and `ended` are told exactly once of each exchange. An observer that keeps something of an exchange keeps
    it under the exchange itself, and drops it in `ended`.
    """

    __slots__ = ()

    def started(self, exchange: ObservedExchange) -> None:
        """The route of the exchange was found, or it was found that there is none."""

    def caller_token_dropped(self, exchange: ObservedExchange) -> None:
        """The request carried a Google token of its own, which was removed."""

    def token_awaited(self, exchange: ObservedExchange, seconds: float, failure: Failure | None) -> None:
        """The request waited this long for its token, because none was cached. `failure`: it did not get one."""

    def connection_awaited(self, exchange: ObservedExchange, seconds: float, failure: Failure | None) -> None:
        """The request waited this long for a stream to its upstream, because no connection had a free one.

        `failure`: it did not get one.
        """

    def dispatched(self, exchange: ObservedExchange) -> None:
        """The request was sent upstream; told again when it is sent again."""

    def response_head(self, exchange: ObservedExchange, fields: Fields) -> None:
        """The final head came from upstream."""

    def error_response(self, exchange: ObservedExchange, fields: Fields, content: bytes) -> None:
        """A final head with a status of 300 or more came from upstream.

        `content` is the beginning of its content where the status is 500 or more, else empty.
        """

    def local_reply(self, exchange: ObservedExchange, failure: Failure) -> None:
        """A failure was answered by the sidecar itself; `exchange.status` is that of the answer."""

    def aborted(self, exchange: ObservedExchange, failure: Failure) -> None:
        """A failure came after the head of the response: the downstream stream was reset."""

    def stream_reset(self, exchange: ObservedExchange, by: str, code: int) -> None:
        """A stream was reset with this error code (RFC 9113, 7).

        `by` is `downstream` for the client, `upstream`, or `sidecar` where the client broke a rule of HTTP/2, or the
        time to drain was over. NO_ERROR of the upstream after its response is not told (RFC 9113, 8.1).
        """

    def measured(
        self, exchange: ObservedExchange, request_octets: int, response_octets: int, head_seconds: float
    ) -> None:
        """Told just before `ended` of an exchange that has a route: the octets of content that came from either side.

        `head_seconds` is the time from the head of the request to the final head from upstream; -1 if none came.
        """

    def ended(self, exchange: ObservedExchange, status: int, seconds: float) -> None:
        """The exchange is over, after so many seconds; `status` is 0 where it was reset before a head was sent."""


class RouteObservers:
    """Tells the observers of one route. A defect in an observer is logged, and changes nothing else."""

    __slots__ = (
        "_aborted",
        "_caller_token_dropped",
        "_connection_awaited",
        "_dispatched",
        "_ended",
        "_error_response",
        "_local_reply",
        "_measured",
        "_response_head",
        "_started",
        "_stream_reset",
        "_token_awaited",
    )

    def __init__(self, observers: Iterable[ExchangeObserver]) -> None:
        every = tuple(observers)
        self._started = _overriding(every, "started")
        self._caller_token_dropped = _overriding(every, "caller_token_dropped")
        self._token_awaited = _overriding(every, "token_awaited")
        self._connection_awaited = _overriding(every, "connection_awaited")
        self._dispatched = _overriding(every, "dispatched")
        self._response_head = _overriding(every, "response_head")
        self._error_response = _overriding(every, "error_response")
        self._local_reply = _overriding(every, "local_reply")
        self._aborted = _overriding(every, "aborted")
        self._stream_reset = _overriding(every, "stream_reset")
        self._measured = _overriding(every, "measured")
        self._ended = _overriding(every, "ended")

    def started(self, exchange: ObservedExchange) -> None:
        """Tell `ExchangeObserver.started`."""
        for observer in self._started:
            try:
                observer.started(exchange)
            except Exception as exc:  # noqa: BLE001 - observing must not harm what is observed
                _report(observer, exc)

    def caller_token_dropped(self, exchange: ObservedExchange) -> None:
        """Tell `ExchangeObserver.caller_token_dropped`."""
        for observer in self._caller_token_dropped:
            try:
                observer.caller_token_dropped(exchange)
            except Exception as exc:  # noqa: BLE001
                _report(observer, exc)

    def token_awaited(self, exchange: ObservedExchange, seconds: float, failure: Failure | None) -> None:
        """Tell `ExchangeObserver.token_awaited`."""
        for observer in self._token_awaited:
            try:
                observer.token_awaited(exchange, seconds, failure)
            except Exception as exc:  # noqa: BLE001
                _report(observer, exc)

    def connection_awaited(self, exchange: ObservedExchange, seconds: float, failure: Failure | None) -> None:
        """Tell `ExchangeObserver.connection_awaited`."""
        for observer in self._connection_awaited:
            try:
                observer.connection_awaited(exchange, seconds, failure)
            except Exception as exc:  # noqa: BLE001
                _report(observer, exc)

    def dispatched(self, exchange: ObservedExchange) -> None:
        """Tell `ExchangeObserver.dispatched`."""
        for observer in self._dispatched:
            try:
                observer.dispatched(exchange)
            except Exception as exc:  # noqa: BLE001
                _report(observer, exc)

    def response_head(self, exchange: ObservedExchange, fields: Fields) -> None:
        """Tell `ExchangeObserver.response_head`."""
        for observer in self._response_head:
            try:
                observer.response_head(exchange, fields)
            except Exception as exc:  # noqa: BLE001
                _report(observer, exc)

    def error_response(self, exchange: ObservedExchange, fields: Fields, content: bytes) -> None:
        """Tell `ExchangeObserver.error_response`."""
        for observer in self._error_response:
            try:
                observer.error_response(exchange, fields, content)
            except Exception as exc:  # noqa: BLE001
                _report(observer, exc)

    def local_reply(self, exchange: ObservedExchange, failure: Failure) -> None:
        """Tell `ExchangeObserver.local_reply`."""
        for observer in self._local_reply:
            try:
                observer.local_reply(exchange, failure)
            except Exception as exc:  # noqa: BLE001
                _report(observer, exc)

    def aborted(self, exchange: ObservedExchange, failure: Failure) -> None:
        """Tell `ExchangeObserver.aborted`."""
        for observer in self._aborted:
            try:
                observer.aborted(exchange, failure)
            except Exception as exc:  # noqa: BLE001
                _report(observer, exc)

    def stream_reset(self, exchange: ObservedExchange, by: str, code: int) -> None:
        """Tell `ExchangeObserver.stream_reset`."""
        for observer in self._stream_reset:
            try:
                observer.stream_reset(exchange, by, code)
            except Exception as exc:  # noqa: BLE001
                _report(observer, exc)

    def measured(
        self, exchange: ObservedExchange, request_octets: int, response_octets: int, head_seconds: float
    ) -> None:
        """Tell `ExchangeObserver.measured`."""
        for observer in self._measured:
            try:
                observer.measured(exchange, request_octets, response_octets, head_seconds)
            except Exception as exc:  # noqa: BLE001
                _report(observer, exc)

    def ended(self, exchange: ObservedExchange, status: int, seconds: float) -> None:
        """Tell `ExchangeObserver.ended`."""
        for observer in self._ended:
            try:
                observer.ended(exchange, status, seconds)
            except Exception as exc:  # noqa: BLE001
                _report(observer, exc)


def _overriding(observers: tuple[ExchangeObserver, ...], event: str) -> tuple[ExchangeObserver, ...]:
    """Return those that override the event."""
    ignored = getattr(ExchangeObserver, event)
    return tuple(observer for observer in observers if getattr(type(observer), event) is not ignored)


def _report(observer: ExchangeObserver, exc: Exception) -> None:
    _log.error("internal error in an observer", observer=type(observer).__name__, exc_info=exc)
