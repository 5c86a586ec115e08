"""Hypercorn listens; h2c connections are taken over by frames, the rest stays HTTP/1.1 through ASGI.

Hypercorn brings its configuration, sockets, workers, lifespan and task a connection. Two of its names are replaced, and
a test holds their signatures against the installed version:

* `hypercorn.asyncio.run.TCPServer`, awaited once for each accepted connection. Ours reads the first octets: the HTTP/2
  preface means that a `DownstreamConnection` takes over the transport; everything else runs on Hypercorn's own
  HTTP/1.1, with `Upgrade` left without effect.
* `hypercorn.asyncio.run.asyncio_worker`, the entry point of a worker process, so that a worker builds its own sidecar
  and drains it before Hypercorn closes anything.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol, cast

import h11
import hypercorn.asyncio.run
import hypercorn.run
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.task_group import TaskGroup
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.config import Config, Sockets
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr

from proxy.downstream.connection import DownstreamConnection, Exchanges
from proxy.downstream.http1 import Http1Exchange, Message, Receive, Send
from proxy.http2.engine import Engine
from proxy.wire import Budget

__all__ = [
    "Application",
    "ListenFailed",
    "Listener",
    "ListenerConfig",
    "ListenerMetrics",
    "Sockets",
    "listen",
    "run_workers",
]

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # RFC 9113, 3.4
_PREFACE_SECONDS: Final = 10.0
_STATE: Final = "listener"

# Restate may be silent for 60 s + 600 s on a stream, and pools connections for five minutes.
_KEEP_ALIVE_SECONDS: Final = 720

_LAST_SECONDS: Final = 0.5
"""Of the time to drain, what is left for delivering the last frames."""


class ListenFailed(Exception):
    """An address cannot be listened on; the text names it and says why."""


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
        self._metrics = metrics
        self._engine = engine
        self._budget = budget
        self._connections: set[DownstreamConnection] = set()
        self._http1_transports: set[asyncio.Transport] = set()
        self._http1_live = 0
        self._changed = asyncio.Event()

    @property
    def live(self) -> int:
        """Exchanges under way, delivered responses not counted."""
        return self._http1_live + sum(connection.live_streams for connection in self._connections)

    # ---- for Hypercorn's connections

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
            await Http1Exchange(self.exchanges, receive, send).run(scope)
        finally:
            self._http1_live -= 1
            self._changed.set()

    def note_http1(self, transport: asyncio.Transport) -> Callable[[], None]:
        """Have the transport aborted at the end of draining, unless the returned function was called before."""
        self._http1_transports.add(transport)
        return lambda: self._http1_transports.discard(transport)

    # ---- ending

    async def drain(self, timeout_seconds: float, hurry: asyncio.Event) -> bool:
        """Wait until no exchange is live, say GOAWAY on every connection and close; False if some had to be cut.

        Takes `timeout_seconds` at most, and ends at once when `hurry` is set.
        """
        complete = True
        try:
            async with asyncio.timeout(max(0.0, timeout_seconds - _LAST_SECONDS)):
                while self.live and not hurry.is_set():
                    self._changed.clear()
                    await self._any(self._changed, hurry)
        except TimeoutError:
            pass
        for connection in list(self._connections):
            if connection.live_streams:
                complete = False
                connection.cut("the time to drain is over")
            else:
                connection.leave("the sidecar is shutting down")
        complete = complete and not self._http1_live
        try:
            async with asyncio.timeout(_LAST_SECONDS):
                await asyncio.gather(*(connection.gone for connection in self._connections))
        except TimeoutError:
            pass
        for connection in list(self._connections):
            connection.abort()
        if self._http1_live:
            for transport in list(self._http1_transports):
                transport.abort()
        return complete

    @staticmethod
    async def _any(*events: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(event.wait()) for event in events]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()


class Application:
    """What Hypercorn calls: lifespan hands the listener to the connections, HTTP/1.1 requests are carried."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            scope["state"][_STATE] = self._listener
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
        elif scope["type"] == "http":
            await self._listener.serve_http1(scope, receive, send)


class ListenerConfig(Config):
    """Hypercorn's configuration, with its defaults that hurt here replaced. It is pickled for worker processes."""

    def __init__(self, addresses: tuple[str, ...], workers: int, payload: str = "") -> None:
        self.bind = list(addresses)
        self.workers = workers
        self.payload = payload
        """What a worker process builds its sidecar from."""
        self.backlog = 1_024
        self.errorlog = logging.getLogger("hypercorn")
        self.include_date_header = False
        self.include_server_header = False
        self.keep_alive_timeout = _KEEP_ALIVE_SECONDS
        self.keep_alive_max_requests = 1 << 62
        self.h11_max_incomplete_size = 64 << 10
        # The sidecar has drained before Hypercorn closes; this is what stuck HTTP/1.1 connections get.
        self.graceful_timeout = 1.0

    def create_sockets(self) -> Sockets:
        """Bind every address and listen. Raises ListenFailed that names the one that cannot be bound."""
        bound: list[socket.socket] = []
        addresses = self.bind
        for address in addresses:
            try:
                bound += self._create_sockets([address])
                # From here on clients are queued, not refused: whoever reads that we listen may connect.
                bound[-1].listen(self.backlog)
            except OSError as exc:
                for other in bound:
                    other.close()
                raise ListenFailed(f"cannot listen on {address}: {exc.strerror or exc}") from exc
        return Sockets([], bound, [])


async def listen(
    listener: Listener, config: ListenerConfig, sockets: Sockets, shutdown: Callable[[], Awaitable[None]]
) -> None:
    """Serve until `shutdown` returns, which it does when everything is drained."""
    setattr(hypercorn.asyncio.run, "TCPServer", _Server)  # noqa: B010 - the seam (see the module), and no export
    await hypercorn.asyncio.run.worker_serve(
        ASGIWrapper(Application(listener)), config, sockets=sockets, shutdown_trigger=shutdown
    )


def run_workers(config: ListenerConfig, worker: Callable[..., None]) -> int:
    """Run `config.workers` processes of `worker(config, sockets, shutdown_event)`; returns the exit code.

    `worker` is pickled by its name. Raises ListenFailed.
    """
    hypercorn.asyncio.run.asyncio_worker = worker
    config.worker_class = "asyncio"
    return hypercorn.run.run(config)


class _Server(TCPServer):
    """One accepted connection: which protocol is it, and who serves it?"""

    async def run(self) -> None:
        listener: Listener = self.state[_STATE]
        first = await self._first_octets()
        if first is None:
            await self._close()
        elif first.startswith(_PREFACE) and not self.reader.at_eof():
            try:
                await listener.serve_h2c(cast(asyncio.Transport, self.writer.transport), first)
            finally:
                await self._close()
        else:
            self.reader = _Pushback(first, self.reader)  # type: ignore[assignment]  # all that TCPServer calls
            forget = listener.note_http1(cast(asyncio.Transport, self.writer.transport))
            try:
                await self._run_http1()
            finally:
                forget()

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
        except (TimeoutError, OSError):
            return None
        return first or None

    async def _run_http1(self) -> None:
        """Do what `TCPServer.run` does, with an HTTP/1.1 protocol that cannot become another one."""
        connection = self.writer.get_extra_info("socket")
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
                    ConnectionState(self.state.copy()),
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
        finally:
            await self._close()


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
