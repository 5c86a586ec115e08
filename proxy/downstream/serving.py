"""Hypercorn at work: h2c connections are taken over by frames, the rest stays HTTP/1.1 through ASGI.

Hypercorn brings its configuration, sockets, workers, lifespan and task a connection. One of its names is replaced here
(and one used in `workers`), and a test holds their signatures against the installed version:

* `hypercorn.asyncio.run.TCPServer`, awaited once for each accepted connection. Ours reads the first octets: the HTTP/2
  preface means that a `DownstreamConnection` takes over the transport; everything else runs on `Http1Protocol`, which
  is Hypercorn's with stricter rules.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, cast

import hypercorn.asyncio.run
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.task_group import TaskGroup
from hypercorn.asyncio.tcp_server import MAX_RECV, TCPServer
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr

from proxy.downstream.config import ListenerConfig, Sockets
from proxy.downstream.http1 import Gate
from proxy.downstream.http1_protocol import Http1Protocol
from proxy.downstream.listener import GATE, Listener

__all__ = ["Application", "listen"]

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # RFC 9113, 3.4
_PREFACE_SECONDS: Final = 10.0
_HEAD_SECONDS: Final = 30.0
"""How long the head of an HTTP/1.1 request may take once it has begun."""
_LINGER_SECONDS: Final = 1.0
"""How long what follows a refused request is read and dropped."""
_PROBE_SECONDS: Final = 1.0
"""How long a client that has closed its half waits before the first probe; each wait is twice the one before."""
_GREATEST_PROBE_SECONDS: Final = 30.0
_PROBE_ANSWER_SECONDS: Final = 0.1
_LISTENER: Final = "listener"


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

    reader: _Pushback  # type: ignore[assignment]  # all that `TCPServer` calls
    protocol: Http1Protocol  # type: ignore[assignment]  # `ProtocolWrapper` forwards the calls that `TCPServer` makes

    async def run(self) -> None:
        listener: Listener = self.state[_LISTENER]
        transport = cast(asyncio.Transport, self.writer.transport)
        self.reader = _Pushback(cast(asyncio.StreamReader, self.reader))
        with listener.track(transport) as held:
            try:
                first = await self._first_octets() if not listener.drained else None
                held.protocol_unknown = False
                if first is None or transport.is_closing():
                    transport.abort()
                elif not first.startswith(_PREFACE):
                    self.reader.give_back(first)
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
        self._over = False
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
                    ConnectionState({**self.state, GATE: gate}),
                    client,
                    server,
                    self.protocol_send,
                    allowed_hosts=listener.allowed_hosts,
                    on_refused=lambda fault: listener.refused("bad-request", protocol="HTTP/1.1", fault=fault),
                )
                self.protocol.can_read = _Turn(self._client_speaks)
                await self.protocol.initiate()
                await self.idle_task.restart(task_group, self._idle_timeout)
                await self._read_data()
                # Its timer is a task of the group, which would keep the closed connection until it is over.
                self._over = True
                await self.idle_task.stop()
        except OSError:
            pass

    async def _read_data(self) -> None:
        """Do what `TCPServer._read_data` does, as far as the gate is open, and with a deadline for heads.

        A client that closes its half of the connection gets the responses to what it had asked (RFC 9112, 9.6).
        """
        head_until: float | None = None
        data = b"-"
        while data:
            await self._gate.wait()
            try:
                async with asyncio.timeout_at(head_until):
                    data = await self.reader.read(MAX_RECV)
                await self.protocol.handle(RawData(data))
            except OSError:  # TimeoutError is one
                break
            if not self.protocol.head_incomplete:
                head_until = None
            elif head_until is None:
                head_until = self.loop.time() + _HEAD_SECONDS
        else:
            await self._client_stays(self.protocol.response_complete)
        await self.protocol.handle(Closed())

    async def _client_speaks(self, answered: asyncio.Event) -> bool:
        """Wait for the client to say more; if it has closed its half, until `answered`. False if it is gone."""
        try:
            data = await self.reader.read(MAX_RECV)
        except OSError:
            return False
        self.reader.give_back(data)
        return bool(data) or await self._client_stays(answered)

    async def _client_stays(self, answered: asyncio.Event) -> bool:
        """Wait until `answered`, or until it shows that a client that has closed its half is gone: then False.

        TCP tells both in the same way; the difference shows when something is sent. So a client that waits for long is
        sent something that it ignores. Where that cannot be done, TCP's keep-alive finds out after a minute or two.
        """
        connection = self.writer.get_extra_info("socket")
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
        """Whether both halves of the connection are closed, by whichever side."""
        if self.writer.transport.is_closing() or connection.fileno() < 0:
            return True
        poll = select.poll()
        poll.register(connection.fileno(), 0)
        return bool(poll.poll(0))  # POLLHUP or POLLERR

    async def protocol_send(self, event: Event) -> None:
        if self._over and isinstance(event, Updated):
            return
        if isinstance(event, Closed) and self.protocol.refused:
            await self.protocol.handle(event)  # what came of the request goes no further
            await self._linger()
        # Hypercorn knows resets, but not that keepalive or routing may end a connection (ETIMEDOUT, EHOSTUNREACH).
        try:
            await super().protocol_send(event)
        except OSError:
            await self.protocol.handle(Closed())

    async def _linger(self) -> None:
        """Drop for a while what a client still sends that was refused.

        To close a socket of which something is unread resets the connection, and the client may lose the answer that
        says what is wrong (RFC 9112, 9.6).
        """
        with contextlib.suppress(OSError, RuntimeError):
            self.writer.write_eof()
            async with asyncio.timeout(_LINGER_SECONDS):
                while await self.reader.read(MAX_RECV):
                    pass

    async def _close(self) -> None:
        with contextlib.suppress(OSError):
            await super()._close()


async def _is_set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


class _Turn:
    """When the next request of a connection may be read: Hypercorn waits for it once that has begun to come.

    It reads nothing meanwhile and would not notice that the client leaves. `speaks` does; then `wait` raises
    ConnectionResetError.
    """

    def __init__(self, speaks: Callable[[asyncio.Event], Coroutine[Any, Any, bool]]) -> None:
        self._come = asyncio.Event()
        self._speaks = speaks
        self._left = False

    def is_set(self) -> bool:
        return self._come.is_set()

    async def clear(self) -> None:
        self._come.clear()

    async def set(self) -> None:
        self._come.set()

    async def wait(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            looking = tasks.create_task(self._look())
            await self._come.wait()
            looking.cancel()
        if self._left:
            raise ConnectionResetError("the client has left")

    async def _look(self) -> None:
        if not await self._speaks(self._come):
            self._left = True
            self._come.set()


class _Pushback:
    """A reader that gives back what was read to look at it."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._first = b""
        self._reader = reader

    def at_eof(self) -> bool:
        return not self._first and self._reader.at_eof()

    def give_back(self, data: bytes) -> None:
        """Have this read again, before anything else."""
        self._first = data + self._first

    async def read(self, n: int) -> bytes:
        if self._first:
            data, self._first = self._first[:n], self._first[n:]
            return data
        return await self._reader.read(n)
