"""Hypercorn's HTTP/1.1 with a stricter parser in front of it, and without upgrades.

Differences from Hypercorn and h11:

* h11 is lenient about where a request ends. Here `RequestSyntax` checks all octets first; a request that it refuses is
  answered with a sentence, and the connection is closed.
* `Upgrade` has no effect: neither h2c, which RFC 9113, 3.1 has withdrawn, nor WebSocket.
* Methods keep their case (RFC 9110, 9.1); Hypercorn converts them to upper case.
* Status lines have a reason phrase, because some clients, such as h2load, reject status lines without one.
* What follows the last request of a connection is ignored (RFC 9112, 9.6); to h11 it is an error.
* An event tells when a response is complete, so that a client that has closed its half gets the whole response.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from time import perf_counter
from typing import Any, Final

import h11
from hypercorn.events import Event
from hypercorn.protocol.events import Request
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.typing import AppWrapper, ConnectionState, H11SendableEvent, TaskGroup, WorkerContext

from proxy.downstream.config import ListenerConfig
from proxy.downstream.hosts import HostRules
from proxy.downstream.http1_syntax import RequestSyntax
from proxy.errors import BadRequest
from proxy.restate import RequestKind, local_reply

__all__ = ["Http1Protocol"]

_REASONS: Final = {status.value: status.phrase.encode("ascii") for status in HTTPStatus}
_UNKNOWN_REASON: Final = b"Unknown"


class Http1Protocol(H11Protocol):
    """Serves the requests of one connection, one after the other."""

    def __init__(
        self,
        app: AppWrapper,
        config: ListenerConfig,
        context: WorkerContext,
        task_group: TaskGroup,
        connection_state: ConnectionState,
        client: tuple[str, int] | None,
        server: tuple[str, int] | None,
        send: Callable[[Event], Coroutine[Any, Any, None]],
        *,
        allowed_hosts: frozenset[str],
        on_refused: Callable[[str], None],
    ) -> None:
        super().__init__(app, config, context, task_group, connection_state, False, client, server, send)
        self.connection: _StrictConnection = _StrictConnection(
            RequestSyntax(HostRules(server, allowed_hosts), config.h11_max_incomplete_size),
            max_incomplete_event_size=config.h11_max_incomplete_size,
        )
        self.response_complete = asyncio.Event()
        """Set while no request waits for the end of its response."""
        self.response_complete.set()
        self.idle_since = math.inf
        """When the last response was complete, as the event loop counts; infinite before, and while one is due."""
        self._is_head_request = False
        self._on_refused = on_refused

    @property
    def head_incomplete(self) -> bool:
        """True if a part of a request's head was received, but not all of it."""
        return self.stream is None and self.connection.syntax.head_incomplete

    @property
    def content_incomplete(self) -> bool:
        """True if the head of a request was received, but not all of its content."""
        return self.connection.their_state is h11.SEND_BODY

    @property
    def check_seconds(self) -> float:
        """How long the syntax of the octets that were received last took to check."""
        return self.connection.check_seconds

    @property
    def refused(self) -> bool:
        """True if a request was refused as malformed."""
        return self.connection.their_state is h11.ERROR

    @property
    def end_looks_complete(self) -> bool:
        """True if an incomplete response would end with the connection, as over HTTP/1.0 (RFC 9112, 6.3)."""
        return self.connection.our_state is h11.SEND_BODY and self.connection.their_http_version == b"1.0"

    def close_after_response(self) -> None:
        """Close the connection with the next response, which says so; at once would lose a request that is coming."""
        self.keep_alive_requests = self.config.keep_alive_max_requests

    async def probe(self) -> None:
        """Send 100 (Continue): a client that still reads ignores it; if it is gone, its system replies with RST.

        Every HTTP/1.1 client must accept it before a response, expected or not (RFC 9110, 15.2). Does nothing once a
        response has begun, and for HTTP/1.0, which has no interim responses.
        """
        if self.connection.our_state is h11.SEND_RESPONSE and self.connection.their_http_version == b"1.1":
            await self._send_h11_event(h11.InformationalResponse(status_code=100, headers=[]))

    # ---- called by Hypercorn

    async def _check_protocol(self, event: h11.Request) -> None:
        return

    async def _create_stream(self, request: h11.Request) -> None:
        self.response_complete.clear()
        self.idle_since = math.inf
        self._is_head_request = request.method == b"HEAD"
        self.stream = HTTPStream(
            self.app,
            self.config,
            self.context,
            self.task_group,
            self.ssl,
            self.client,
            self.server,
            self.stream_send,
            STREAM_ID,
        )
        await self.stream.handle(
            Request(
                stream_id=STREAM_ID,
                headers=list(request.headers),
                http_version=request.http_version.decode(),
                method=request.method.decode("ascii"),
                raw_path=request.target,
                state=self.connection_state,
            )
        )
        self.keep_alive_requests += 1
        await self.context.mark_request()

    async def _close_stream(self) -> None:
        await super()._close_stream()
        self._is_head_request = False
        self.response_complete.set()
        self.idle_since = asyncio.get_running_loop().time()

    async def _send_h11_event(self, event: H11SendableEvent) -> None:
        if isinstance(event, h11.Response | h11.InformationalResponse) and not event.reason:
            event = type(event)(
                status_code=event.status_code,
                headers=event.headers.raw_items(),
                reason=_REASONS.get(event.status_code, _UNKNOWN_REASON),
            )
        await super()._send_h11_event(event)

    async def _send_error_response(self, status_code: int) -> None:
        fault = self.connection.syntax.fault
        text = fault.text if fault is not None else "the connection was closed before the request was complete"
        self._on_refused(text)
        reply = local_reply(BadRequest(text), RequestKind.OTHER, random_fraction=0.0)
        lines = [*reply.fields, (b"connection", b"close")]
        await self._send_h11_event(h11.Response(status_code=status_code, headers=lines))
        if not self._is_head_request:
            await self._send_h11_event(h11.Data(data=reply.body))
        await self._send_h11_event(h11.EndOfMessage())


class _StrictConnection(h11.Connection):
    """h11 behind `RequestSyntax`: parses what that returns, and reports its fault after the requests before it."""

    def __init__(self, syntax: RequestSyntax, *, max_incomplete_event_size: int) -> None:
        super().__init__(h11.SERVER, max_incomplete_event_size)
        self.syntax = syntax
        self.check_seconds = 0.0

    def receive_data(self, data: bytes) -> None:
        if self.their_state is h11.MUST_CLOSE:
            return  # it would never be read
        if not data:
            self.syntax.feed_eof()
            super().receive_data(b"")
            return
        began = perf_counter()
        passed = self.syntax.feed(data)
        self.check_seconds = perf_counter() - began
        if passed:
            super().receive_data(passed)

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        if self.their_state is h11.MUST_CLOSE:
            return h11.NEED_DATA  # what follows the last request is ignored, and it is answered (RFC 9112, 9.6)
        fault = self.syntax.fault
        if fault is None or self.their_state is h11.ERROR:
            return super().next_event()
        all_read = not self.trailing_data[0]
        if all_read and self.their_state is h11.DONE:
            return h11.PAUSED  # the request before the faulty one is answered first
        # In IDLE, h11 would treat the end of the data as an orderly close of the connection.
        if not (all_read and self.their_state is h11.IDLE) and (event := super().next_event()) is not h11.NEED_DATA:
            return event
        self._process_error(self.their_role)
        raise h11.RemoteProtocolError(fault.text, error_status_hint=fault.status)
