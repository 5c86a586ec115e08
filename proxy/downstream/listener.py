"""All downstream connections of one worker: counted, served, drained.

Draining happens before Hypercorn closes anything, and leaves no connection behind: since Python 3.12.1 asyncio's
servers wait for every one of them, however long it takes. How connections come here is told in `serving`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Protocol, cast

import structlog

from proxy.connection.budget import Budget
from proxy.connection.protocol import Flusher, MakeEngine, RequestAcceptor
from proxy.downstream.connection import DownstreamConnection
from proxy.downstream.http1 import Gate, Http1Stream, Message, Receive, Send, refuse_pages
from proxy.http2.events import StreamId

__all__ = ["GATE", "AcceptedConnection", "Listener", "ListenerMetrics"]

_log: Final = structlog.get_logger("downstream")

GATE: Final = "gate"
"""Where the ASGI state of an HTTP/1.1 request has the `Gate` of its connection."""

_LAST_SECONDS: Final = 0.5
"""Of the time to drain, what is left for delivering the last frames."""


class ListenerMetrics(Protocol):
    """What the listener counts."""

    def downstream_opened(self) -> None:
        """An h2c connection was taken over."""

    def downstream_closed(self) -> None:
        """It is gone."""

    def request_refused(self, reason: str) -> None:
        """A client's request, or the stream that it came on, broke a rule of HTTP."""


class Listener:
    """All downstream connections of one worker."""

    def __init__(
        self,
        acceptor: RequestAcceptor,
        make_engine: MakeEngine,
        budget: Budget,
        flusher: Flusher,
        metrics: ListenerMetrics,
        *,
        allowed_hosts: Iterable[str] = (),
    ) -> None:
        self.acceptor = acceptor
        self.allowed_hosts = frozenset(allowed_hosts)
        """Names of this server beside the usual ones (see `hosts`), in lower case."""
        self.drained = False
        """Whether `drain` is over: connections that still come are dropped."""
        self.on_closed: Callable[[], None] = _nothing
        """Called when an accepted connection is gone."""
        self._metrics = metrics
        self._make_engine = make_engine
        self._budget = budget
        self._flusher = flusher
        self._connections: set[DownstreamConnection] = set()
        self._held: set[AcceptedConnection] = set()
        self._http1_live = 0
        self._changed = asyncio.Event()
        self._hurrying = False

    @property
    def live(self) -> int:
        """Exchanges under way, delivered responses not counted."""
        return self._http1_live + sum(connection.live_streams for connection in self._connections)

    # ---- for Hypercorn's connections

    @contextlib.contextmanager
    def holding(self, transport: asyncio.Transport) -> Iterator[AcceptedConnection]:
        """See to it that the transport is closed when draining is over; for as long as Hypercorn's task serves it."""
        held = AcceptedConnection(transport)
        self._held.add(held)
        try:
            yield held
        finally:
            self._held.discard(held)
            self.on_closed()

    async def serve_h2c(self, transport: asyncio.Transport, first: bytes) -> None:
        """Take over the transport, whose first octets were `first`; returns when it is closed."""
        displaced = cast(asyncio.Protocol, transport.get_protocol())
        connection = DownstreamConnection(
            self._make_engine,
            self._budget,
            self._flusher,
            acceptor=self.acceptor,
            on_change=self._changed.set,
            displaced=displaced,
        )
        connection.on_refused = self._stream_refused
        self._connections.add(connection)
        self._metrics.downstream_opened()
        try:
            transport.set_protocol(connection.as_protocol())
            connection.connection_made(transport)
            # From here on it is asked where to read to.
            transport.pause_reading()
            transport.resume_reading()
            connection.data_received(first)
            await connection.gone
        except asyncio.CancelledError:
            connection.cut("the sidecar is shutting down")
            connection.abort()
            raise
        finally:
            self._connections.discard(connection)
            self._metrics.downstream_closed()
            self._changed.set()

    async def serve_http1(self, scope: Message, receive: Receive, send: Send) -> None:
        """Carry one HTTP/1.1 exchange."""
        if await refuse_pages(scope, send, self.allowed_hosts):
            self.refused("browser", protocol="HTTP/1.1")
            return
        self._http1_live += 1
        try:
            await Http1Stream(self.acceptor, receive, send, scope["state"][GATE], self._budget).run(scope)
        finally:
            self._http1_live -= 1
            self._changed.set()

    def refused(self, reason: str, **more: object) -> None:
        """Count a request that breaks a rule, and tell of it at the level `debug`; `more` quotes nothing of it."""
        self._metrics.request_refused(reason)
        _log.debug("request refused", reason=reason, **more)

    def _stream_refused(self, stream_id: StreamId, reason: str) -> None:
        self.refused(reason, protocol="HTTP/2", stream=stream_id)

    # ---- ending

    async def drain(self, timeout_seconds: float) -> bool:
        """Wait until no exchange is live, say GOAWAY on every connection and close; False if some had to be cut.

        Takes `timeout_seconds` at most, but long enough to deliver the last frames, and ends at once on `hurry`.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_seconds
        await self._until(lambda: not self.live, deadline - _LAST_SECONDS)
        complete = not self.live
        leaving = self._dismiss()
        # What was answered may still lie in a transport's buffer, and its client may be slow.
        soon = loop.time() + _LAST_SECONDS
        await self._until(
            lambda: all(connection.gone.done() for connection in leaving),
            max(soon, deadline) if complete else soon,
            unhurried=not complete,
        )
        for connection in leaving:
            connection.abort()
        self.drained = True
        self._dismiss()  # who came meanwhile
        for held in list(self._held):
            held.drained()
        # HTTP/1.1 connections between two requests are closed by Hypercorn, in order; that takes no time.
        loop.call_later(_LAST_SECONDS if complete else 0.0, self._drop)
        return complete

    def hurry(self) -> None:
        """Have `drain` cut what is live, now."""
        self._hurrying = True
        self._changed.set()

    async def _until(self, done: Callable[[], bool], deadline: float, *, unhurried: bool = False) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                while not done() and (unhurried or not self._hurrying):
                    self._changed.clear()
                    await self._changed.wait()

    def _dismiss(self) -> list[DownstreamConnection]:
        """Say GOAWAY on every connection, cut what is live there, and close; return the connections."""
        dismissed = list(self._connections)
        for connection in dismissed:
            if connection.live_streams:
                connection.cut("the time to drain is over")
            else:
                connection.leave("the sidecar is shutting down")
        return dismissed

    def _drop(self) -> None:
        for held in list(self._held):
            held.drop()


class AcceptedConnection:
    """An accepted connection, as the one who ends it sees it."""

    __slots__ = ("gate", "transport", "undecided")

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.gate = Gate()
        """Set while an HTTP/1.1 request may be read on."""
        self.gate.set()
        self.undecided = True
        """Nobody knows yet which protocol it speaks."""

    def drained(self) -> None:
        """Nothing is worth waiting for on a connection that has said nothing."""
        if self.undecided:
            self.drop()

    def drop(self) -> None:
        """End it at once."""
        self.transport.abort()
        self.gate.set()


def _nothing() -> None:
    """Nobody wants to know."""
