"""Hypercorn listens; h2c connections are taken over by frames, the rest stays HTTP/1.1 through ASGI.

Hypercorn brings its configuration, sockets, workers, lifespan and task a connection. One of its names is replaced here
(and one in `workers`), and a test holds their signatures against the installed version:

* `hypercorn.asyncio.run.TCPServer`, awaited once for each accepted connection. Ours reads the first octets: the HTTP/2
  preface means that a `DownstreamConnection` takes over the transport; everything else runs on Hypercorn's own
  HTTP/1.1, with `Upgrade` left without effect.

Draining happens before Hypercorn closes anything, and leaves no connection behind: since Python 3.12.1 asyncio's
servers wait for every one of them, however long it takes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final, Protocol, cast

import h11
import hypercorn.asyncio.run
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.task_group import TaskGroup
from hypercorn.asyncio.tcp_server import MAX_RECV, TCPServer
from hypercorn.events import Closed, Event, RawData
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr

from proxy.downstream.config import ListenerConfig, ListenFailed, Sockets
from proxy.downstream.connection import DownstreamConnection, Exchanges
from proxy.downstream.http1 import Gate, Http1Exchange, Message, Receive, Send
from proxy.http2.engine import Engine
from proxy.wire import Budget

__all__ = ["Application", "ListenFailed", "Listener", "ListenerConfig", "ListenerMetrics", "Sockets", "listen"]

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # RFC 9113, 3.4
_PREFACE_SECONDS: Final = 10.0
_LISTENER: Final = "listener"
_GATE: Final = "gate"

_LAST_SECONDS: Final = 0.5
"""Of the time to drain, what is left for delivering the last frames."""


class ListenerMetrics(Protocol):
    """What the listener counts."""

    def downstream_opened(self) -> None:
        """An h2c connection was taken over."""

    def downstream_closed(self) -> None:
        """It is gone."""


class Listener:
    """All downstream connections of one worker."""

    def __init__(
        self, exchanges: Exchanges, engine: Callable[[], Engine], budget: Budget, metrics: ListenerMetrics
    ) -> None:
        self.exchanges = exchanges
        self.drained = False
        """Whether `drain` is over: connections that still come are dropped."""
        self._metrics = metrics
        self._engine = engine
        self._budget = budget
        self._connections: set[DownstreamConnection] = set()
        self._held: set[Held] = set()
        self._http1_live = 0
        self._changed = asyncio.Event()
        self._hurrying = False

    @property
    def live(self) -> int:
        """Exchanges under way, delivered responses not counted."""
        return self._http1_live + sum(connection.live_streams for connection in self._connections)

    # ---- for Hypercorn's connections

    @contextlib.contextmanager
    def holding(self, transport: asyncio.Transport) -> Iterator[Held]:
        """See to it that the transport is closed when draining is over; for as long as Hypercorn's task serves it."""
        held = Held(transport)
        self._held.add(held)
        try:
            yield held
        finally:
            self._held.discard(held)

    async def serve_h2c(self, transport: asyncio.Transport, first: bytes) -> None:
        """Take over the transport, whose first octets were `first`; returns when it is closed."""
        displaced = cast(asyncio.Protocol, transport.get_protocol())
        connection = DownstreamConnection(
            self._engine(),
            self._budget,
            asyncio.get_running_loop(),
            exchanges=self.exchanges,
            on_change=self._changed.set,
            displaced=displaced,
        )
        self._connections.add(connection)
        self._metrics.downstream_opened()
        try:
            transport.set_protocol(connection)
            connection.connection_made(transport)
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
        self._http1_live += 1
        try:
            await Http1Exchange(self.exchanges, receive, send, scope["state"][_GATE], self._budget).run(scope)
        finally:
            self._http1_live -= 1
            self._changed.set()

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


class Held:
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


class Application:
    """What Hypercorn calls: lifespan hands the listener to the connections, HTTP/1.1 requests are carried."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            scope["state"][_LISTENER] = self._listener
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
        elif scope["type"] == "http":
            await self._listener.serve_http1(scope, receive, send)


async def listen(
    listener: Listener, config: ListenerConfig, sockets: Sockets, shutdown: Callable[[], Awaitable[None]]
) -> None:
    """Serve until `shutdown` returns, which it does when everything is drained."""
    setattr(hypercorn.asyncio.run, "TCPServer", _Server)  # noqa: B010 - the seam (see the module), and no export
    await hypercorn.asyncio.run.worker_serve(
        ASGIWrapper(Application(listener)), config, sockets=sockets, shutdown_trigger=shutdown
    )


class _Server(TCPServer):
    """One accepted connection: which protocol is it, and who serves it?"""

    async def run(self) -> None:
        listener: Listener = self.state[_LISTENER]
        transport = cast(asyncio.Transport, self.writer.transport)
        with listener.holding(transport) as held:
            try:
                first = await self._first_octets() if not listener.drained else None
                held.undecided = False
                if first is None or transport.is_closing():
                    transport.abort()
                elif not first.startswith(_PREFACE):
                    self.reader = _Pushback(first, self.reader)  # type: ignore[assignment]  # all that TCPServer calls
                    await self._run_http1(held.gate)
                elif not self.reader.at_eof():  # a half-closed connection carries no HTTP/2
                    await listener.serve_h2c(transport, first)
            finally:
                await self._close()

    async def _first_octets(self) -> bytes | None:
        """Return enough octets to tell the preface from anything else; None if the client is gone or silent."""
        first = b""
        try:
            async with asyncio.timeout(_PREFACE_SECONDS):
                while len(first) < len(_PREFACE) and _PREFACE.startswith(first):
                    data = await self.reader.read(1 << 20)
                    if not data:
                        break
                    first += data
        except OSError:
            return None
        return first or None

    async def _run_http1(self, gate: Gate) -> None:
        """Do what `TCPServer.run` does, with an HTTP/1.1 protocol that cannot become another one."""
        connection = self.writer.get_extra_info("socket")
        self._gate = gate
        try:
            client = parse_socket_addr(connection.family, connection.getpeername())
            server = parse_socket_addr(connection.family, connection.getsockname())
            async with TaskGroup(self.loop) as task_group:
                self._task_group = task_group
                self.protocol = _PlainHttp1(  # type: ignore[assignment]  # `ProtocolWrapper` forwards these two calls
                    self.app,
                    self.config,
                    self.context,
                    task_group,
                    ConnectionState({**self.state, _GATE: gate}),
                    False,
                    client,
                    server,
                    self.protocol_send,
                )
                await self.protocol.initiate()
                await self.idle_task.restart(task_group, self._idle_timeout)
                await self._read_data()
        except OSError:
            pass

    async def _read_data(self) -> None:
        """Do what `TCPServer._read_data` does, as far as the gate is open."""
        while not self.reader.at_eof():
            await self._gate.wait()
            try:
                data = await self.reader.read(MAX_RECV)
            except OSError:
                break
            await self.protocol.handle(RawData(data))
        await self.protocol.handle(Closed())

    async def protocol_send(self, event: Event) -> None:
        # Hypercorn knows resets, but not that keepalive or routing may end a connection (ETIMEDOUT, EHOSTUNREACH).
        try:
            await super().protocol_send(event)
        except OSError:
            await self.protocol.handle(Closed())

    async def _close(self) -> None:
        with contextlib.suppress(OSError):
            await super()._close()


class _PlainHttp1(H11Protocol):
    """HTTP/1.1 without `Upgrade`: neither h2c (RFC 9113, 3.1 has withdrawn it) nor WebSocket."""

    async def _check_protocol(self, event: h11.Request) -> None:
        return

    async def _create_stream(self, request: h11.Request) -> None:
        if any(name == b"upgrade" for name, _ in request.headers):
            request = h11.Request(
                method=request.method,
                target=request.target,
                headers=[line for line in request.headers.raw_items() if line[0].lower() != b"upgrade"],
                http_version=request.http_version,
            )
        await super()._create_stream(request)


class _Pushback:
    """A reader that gives back what was read to look at it."""

    def __init__(self, first: bytes, reader: asyncio.StreamReader) -> None:
        self._first = first
        self._reader = reader

    def at_eof(self) -> bool:
        return not self._first and self._reader.at_eof()

    async def read(self, n: int) -> bytes:
        if self._first:
            data, self._first = self._first[:n], self._first[n:]
            return data
        return await self._reader.read(n)
