"""Runs Hypercorn: h2c connections are served by `DownstreamConnection`, all others by HTTP/1.1 through ASGI.

Hypercorn provides configuration, sockets, lifespan and a task for each connection. One of its names is replaced here; a
test compares the signatures with those of the installed version:

* `hypercorn.asyncio.run.TCPServer`, awaited once for each accepted connection. Ours reads the first octets: after the
  HTTP/2 preface, a `DownstreamConnection` takes over the transport; anything else is served by `Http1Protocol`,
  Hypercorn's protocol with stricter rules.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, TypeAlias, cast

import hypercorn.asyncio.run
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.task_group import TaskGroup
from hypercorn.asyncio.tcp_server import MAX_RECV, TCPServer
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr

from proxy.connection.reads import Slices
from proxy.downstream.admission import AcceptedConnection
from proxy.downstream.cancels import address_key
from proxy.downstream.config import ListenerConfig, Sockets
from proxy.downstream.deadlines import ContentClock
from proxy.downstream.delivery import events_of, tls_delivered
from proxy.downstream.handover import HandoverServer
from proxy.downstream.http1_protocol import Http1Protocol
from proxy.downstream.http1_reading import NextRequest, Pushback
from proxy.downstream.listener import CLIENT, GATE, Listener
from proxy.downstream.tls import Handshakes, TlsServer

__all__ = ["Application", "listen"]

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # RFC 9113, 3.4
_CLIENT_HELLO: Final = b"\x16\x03"  # RFC 8446, 5.1: a handshake, and a version
_PREFACE_SECONDS: Final = 10.0
"""Time for the first octets of a connection."""
_LINGER_SECONDS: Final = 1.0
"""How long data after a refused request is read and dropped."""
_LINGER_OCTETS: Final = 32 << 20
"""How much of it."""
_PROBE_SECONDS: Final = 1.0
"""Time until the first probe of a client that has closed its half; doubled after each probe."""
_GREATEST_PROBE_SECONDS: Final = 30.0
_PROBE_ANSWER_SECONDS: Final = 0.1
"""Time for an RST in reply to a probe."""
_CLOSED_HALF: Final = getattr(select, "POLLRDHUP", 0)  # which Linux has
_LISTENER: Final = "listener"

_AnyServer: TypeAlias = asyncio.Server | HandoverServer | TlsServer


class Application:
    """The ASGI application: its lifespan passes the listener to the connections, and it serves HTTP/1.1 requests."""

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
    listener: Listener,
    config: ListenerConfig,
    sockets: Sockets,
    shutdown: Callable[[], Awaitable[None]],
    handshakes: Handshakes | None = None,
) -> None:
    """Serve until `shutdown` returns; by then, everything must be drained. `handshakes` begins those of TLS sockets."""
    setattr(hypercorn.asyncio.run, "TCPServer", _Server)  # noqa: B010 - see the module; the name is not exported
    loop = asyncio.get_running_loop()
    create_server = loop.create_server
    servers: list[tuple[_AnyServer, socket.socket, Callable[[], asyncio.Protocol]]] = []

    async def create(
        make_protocol: Callable[[], asyncio.Protocol], *args: Any, sock: socket.socket, **more: Any
    ) -> _AnyServer:
        """Note the servers that Hypercorn makes: it gives no access to them, and closes them only at the end."""

        def make() -> asyncio.Protocol:
            listener.untracked += 1
            return make_protocol()

        server: _AnyServer
        if handshakes is not None and sock.fileno() in config.tls_descriptors:
            server = TlsServer(loop, sock, handshakes, make, listener.on_closed)
        else:
            server = await create_server(make, *args, sock=sock, **more)
        servers.append((server, sock, make))
        return server

    async def stop_accepting() -> None:
        for server, listening, make in servers:
            if isinstance(server, HandoverServer):
                await server.leave()
                continue
            if listening.fileno() < 0:  # closed by an earlier call
                continue
            if isinstance(loop, asyncio.SelectorEventLoop) and isinstance(server, asyncio.Server):
                # It makes the transport of an accepted connection in a task, which fails once the server is closed.
                loop.remove_reader(listening.fileno())
                await asyncio.sleep(0)
            # The kernel resets connections that wait in the queue of a socket that is closed, unless it is shared.
            waiting = [] if config.shared or isinstance(server, TlsServer) else _waiting(listening)
            server.close()
            for connection in waiting:
                with contextlib.suppress(OSError):
                    await loop.connect_accepted_socket(make, connection)

    listener.stop_accepting = stop_accepting
    setattr(loop, "create_server", create)  # noqa: B010 - a method of this one loop
    ending_late = loop.create_task(listener.end_late())
    try:
        await hypercorn.asyncio.run.worker_serve(
            ASGIWrapper(Application(listener)), config, sockets=sockets, shutdown_trigger=shutdown
        )
    finally:
        ending_late.cancel()
        setattr(loop, "create_server", create_server)  # noqa: B010 - as above
    _take_back_cancellation()


def _take_back_cancellation() -> None:
    """Take back the request to cancel this task that a task group leaves when it ends with an exception.

    With that, early releases of Python 3.11 (Debian 12) end each later `asyncio.timeout` with CancelledError.
    """
    task = asyncio.current_task()
    while task is not None and task.cancelling():
        task.uncancel()


def _waiting(listening: socket.socket) -> list[socket.socket]:
    """Return the connections in the queue of a listening socket, accepted."""
    waiting: list[socket.socket] = []
    with contextlib.suppress(OSError):  # BlockingIOError: there are no more
        while listening.fileno() >= 0:
            connection, _ = listening.accept()
            connection.setblocking(False)
            waiting.append(connection)
    return waiting


class _Server(TCPServer):
    """One accepted connection: finds out the protocol, and serves it."""

    reader: Pushback  # type: ignore[assignment]  # has all methods that `TCPServer` calls
    protocol: Http1Protocol  # type: ignore[assignment]  # `ProtocolWrapper` forwards the calls that `TCPServer` makes

    async def run(self) -> None:
        listener: Listener = self.state[_LISTENER]
        transport = cast(asyncio.Transport, self.writer.transport)
        self.reader = Pushback(cast(asyncio.StreamReader, self.reader))
        with listener.track(transport) as accepted:
            try:
                first = await self._first_octets() if listener.admits(accepted) else None
                accepted.protocol_unknown = False
                if first is None or transport.is_closing():
                    transport.abort()
                elif not self._is_http2(first):
                    self._refusal = "tls-not-spoken" if first.startswith(_CLIENT_HELLO) else "bad-request"
                    self.reader.give_back(first)
                    del first  # it can be large, and would be kept as long as the connection
                    abort = partial(listener.end_for_memory, accepted)
                    with self.reader.charged(listener.budget, address_key(transport), abort):
                        await self._run_http1(accepted)
                elif not self.reader.at_eof():  # HTTP/2 needs both halves
                    await listener.serve_h2c(accepted, first)
            finally:
                await self._close()

    def _is_http2(self, first: bytes) -> bool:
        """Return True if the client speaks HTTP/2: over TLS as negotiated (ALPN), else as its first octets say."""
        tls = self.writer.get_extra_info("ssl_object")
        return first.startswith(_PREFACE) if tls is None else tls.selected_alpn_protocol() == "h2"

    async def _first_octets(self) -> bytes | None:
        """Return enough octets to recognise the preface; None if the client sends none in time or is gone."""
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

    async def _run_http1(self, accepted: AcceptedConnection) -> None:
        """Replace `TCPServer.run`, with an HTTP/1.1 protocol that never switches to another one."""
        # Later, asyncio's TLS may know it no more.
        connection = self._connection = self.writer.get_extra_info("socket")
        self._accepted = accepted
        self._gate = accepted.gate
        self._finished = False
        try:
            client = parse_socket_addr(connection.family, connection.getpeername())
            server = parse_socket_addr(connection.family, connection.getsockname())
            async with TaskGroup(self.loop) as task_group:
                self._task_group = task_group
                listener: Listener = self.state[_LISTENER]
                self.protocol = Http1Protocol(
                    self.app,
                    cast(ListenerConfig, self.config),
                    self.context,
                    task_group,
                    ConnectionState({**self.state, GATE: accepted.gate, CLIENT: address_key(self.writer.transport)}),
                    client,
                    server,
                    self.protocol_send,
                    allowed_hosts=listener.allowed_hosts,
                    on_refused=lambda fault: listener.refused(self._refusal, protocol="HTTP/1.1", fault=fault),
                )
                accepted.speaks_http1(self.protocol)
                self.protocol.can_read = NextRequest(self._client_sends)
                await self.protocol.initiate()
                await self.idle_task.restart(task_group, self._idle_timeout)
                await self._read_data()
                # Its timer is a task of the group: the group would wait for it after the connection has closed.
                self._finished = True
                await self.idle_task.stop()
        except OSError:
            pass

    async def _read_data(self) -> None:
        """Replace `TCPServer._read_data`: wait for the gate before each read, and limit the time for heads and content.

        What takes long to check, such as tiny chunks, is read in small slices, and other connections have their turn.
        A client that closes its half of the connection gets the responses to its requests (RFC 9112, 9.6).
        """
        listener: Listener = self.state[_LISTENER]
        content = ContentClock(listener.deadlines)
        slices = Slices()
        until: float | None = None
        data = b"-"
        while data:
            if not self._gate.is_set() and not await self._client_stays(self._gate):
                break
            began = self.loop.time()
            if self.protocol.content_incomplete:
                left = content.seconds_left()
                until = None if left is None else began + left
            stream, reading = self.protocol.stream, asyncio.timeout_at(until)
            try:
                async with reading:
                    data = await self.reader.read(slices.octets)
                waited = self.loop.time() - began
                await self.protocol.handle(RawData(data))
                if self.protocol.stream is not stream:  # the time before a request is not its content's
                    content.restart()
                    waited = 0.0
                content.add(len(data), waited)
                if slices.adapt(len(data), self.protocol.check_seconds):
                    await asyncio.sleep(0)
            except OSError:  # TimeoutError is one
                if reading.expired():
                    listener.refused("too-slow", protocol="HTTP/1.1")
                break
            if not self.protocol.head_incomplete:
                until = None
            elif until is None:
                until = self.loop.time() + listener.deadlines.head_seconds
        else:
            await self._client_waits(self.protocol.response_complete)
        await self.protocol.handle(Closed())

    async def _client_sends(self, answered: asyncio.Event) -> bool:
        """Wait until the client sends data or, if it has closed its half, until `answered`; False if it is gone."""
        try:
            sends = await self.reader.peek(MAX_RECV)
        except OSError:
            return False
        return await (self._client_stays(answered) if sends else self._client_waits(answered))

    async def _client_stays(self, until: asyncio.Event) -> bool:
        """Wait until the event, while nothing is read; return False as soon as it turns out that the client is gone."""
        connection = self._connection
        while not await _is_set_within(until, _PROBE_SECONDS):
            if self._is_gone(connection):
                return False
            if events_of(connection, _CLOSED_HALF):
                return await self._client_waits(until)
        return True

    async def _client_waits(self, answered: asyncio.Event) -> bool:
        """Wait until `answered`; return False as soon as it turns out that a client with a closed half is gone.

        TCP signals a closed half and a closed connection alike; only sending data tells them apart. So a client that
        waits long is sent a probe that it ignores. Where no probe can be sent, TCP's keep-alive detects a lost client
        after a minute or two.
        """
        connection = self._connection
        seconds = _PROBE_SECONDS
        while not self._is_gone(connection):
            if await _is_set_within(answered, seconds):
                return True
            await self.protocol.probe()
            if await _is_set_within(answered, _PROBE_ANSWER_SECONDS):
                return True
            seconds = min(2 * seconds, _GREATEST_PROBE_SECONDS)
        return False

    def _is_gone(self, connection: socket.socket) -> bool:
        """Return True if both halves of the connection are closed, by either side."""
        closed = self.writer.transport.is_closing() or connection.fileno() < 0
        return closed or bool(events_of(connection, 0))  # POLLHUP or POLLERR

    async def protocol_send(self, event: Event) -> None:
        if self._finished and isinstance(event, Updated):
            return
        if isinstance(event, Closed) and self.protocol.refused:
            await self.protocol.handle(event)  # cancels the request
            await self._linger()
        if isinstance(event, Closed) and self.protocol.end_looks_complete:
            self._accepted.abort()
        # Hypercorn handles resets, but not errors of keep-alive and routing (ETIMEDOUT, EHOSTUNREACH).
        try:
            await super().protocol_send(event)
        except OSError:
            await self.protocol.handle(Closed())

    async def _linger(self) -> None:
        """Read and drop for a while what a client still sends after its request was refused.

        Closing a socket with unread data resets the connection, and the client may lose the answer that says what is
        wrong (RFC 9112, 9.6).
        """
        with contextlib.suppress(OSError, RuntimeError):
            if self.writer.can_write_eof():  # asyncio's TLS cannot
                self.writer.write_eof()
            left = _LINGER_OCTETS
            async with asyncio.timeout(_LINGER_SECONDS):
                while left > 0 and (dropped := await self.reader.read(MAX_RECV)):
                    left -= len(dropped)

    async def _close(self) -> None:
        with contextlib.suppress(OSError):
            await tls_delivered(self.writer.transport)
            if not self.writer.transport.is_closing():
                await super()._close()
                return
            # It is aborted, and uvloop would still send FIN before that takes effect.
            try:
                await self.writer.wait_closed()
            finally:
                await self.idle_task.stop()


async def _is_set_within(event: asyncio.Event, seconds: float) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()
