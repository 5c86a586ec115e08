"""The server of the emulated Cloud Run: Hypercorn with TLS, ALPN h2 and http/1.1, and generous limits.

Hypercorn's connections are used without its `serve()`, which waits for every connection when it stops (Python ≥ 3.12.1)
or for tasks that it has cancelled. The emulator has to stop in any case. Also, the process may contain a listener that
replaces names that `serve()` looks up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Final, cast

from hypercorn.asyncio.lifespan import Lifespan
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.typing import ASGIFramework
from hypercorn.utils import wrap_app

from proxy.emulator.certificates import Certificates
from proxy.emulator.cloud_run import FIELD_SECTION_OCTETS, Application, CloudRun
from proxy.emulator.sockets import address, bind

__all__ = ["CloudRunServer"]

STREAMS_PER_CONNECTION: Final = 100
"""About the limit that the real front end advertises."""

GRACE_SECONDS: Final = 1.0
ABORT_SECONDS: Final = 1.0

log = logging.getLogger(__name__)


class CloudRunServer:
    """Async context manager: serves the application from entry to exit.

    `app` usually is a `CloudRun`. One without a `url` gets the URL of this server. It accepts only the hosts of the
    certificate and of its URL. Entry binds the port (0: a free one) and raises CannotListen. The certificate is valid
    for `host`, `localhost` and `names`. On exit, running requests have one second to finish, then their connections are
    aborted; exit takes at most about two seconds.
    """

    def __init__(
        self,
        app: Application,
        certificates: Certificates,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        names: tuple[str, ...] = (),
        alpn_protocols: tuple[str, ...] = ("h2", "http/1.1"),
        streams_per_connection: int = STREAMS_PER_CONNECTION,
    ) -> None:
        self.url = ""
        """`https://host:port`, set on entry."""
        self._app = app
        self._host = host
        self._port = port
        octets = app.field_section_octets if isinstance(app, CloudRun) else FIELD_SECTION_OCTETS
        self._config = _config(alpn_protocols, streams_per_connection, octets)
        self._names = dict.fromkeys((host, "localhost", "127.0.0.1", "::1", *names))
        self._files = certificates.server_files(*self._names)
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._stopping = False
        self._stack = AsyncExitStack()
        self._context = WorkerContext(None)
        self._state: dict[str, Any] = {}
        self._wrapped = wrap_app(cast(ASGIFramework, app), self._config.wsgi_max_body_size, "asgi")

    async def __aenter__(self) -> CloudRunServer:
        loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            bound = stack.enter_context(bind(self._host, self._port))
            self.url = f"https://{address(bound)}"
            if isinstance(self._app, CloudRun):
                self._app.url = self._app.url or self.url
                self._app.hosts = frozenset(name.strip("[]").lower() for name in self._names)
            self._lifespan = Lifespan(self._wrapped, self._config, loop, self._state)
            self._lifespan_task = loop.create_task(self._lifespan.handle_lifespan())
            stack.push_async_callback(self._end_lifespan)
            await self._lifespan.wait_for_startup()
            if self._lifespan_task.done():
                self._lifespan_task.result()
            server = await asyncio.start_server(self._on_connection, sock=bound, ssl=self._tls())
            stack.push_async_callback(self._end_connections)
            stack.callback(server.close)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def _end_lifespan(self) -> None:
        try:
            if not self._lifespan_task.done():
                await self._lifespan.wait_for_shutdown()
        finally:
            self._lifespan_task.cancel()
            await asyncio.wait([self._lifespan_task], timeout=ABORT_SECONDS)

    async def _end_connections(self) -> None:
        """Let requests finish, then abort connections, then cancel tasks; each step has a deadline."""
        self._stopping = True
        await self._context.terminated.set()
        await self._wait(GRACE_SECONDS)
        for writer in self._connections.values():
            _abort(writer)
        # Connections first: after a cancelled request, Hypercorn waits for a window unless it knows that the connection
        # is closed.
        await self._wait(ABORT_SECONDS / 2)
        for task in self._connections:
            task.cancel()
        await self._wait(ABORT_SECONDS / 2)
        for task in self._connections:
            log.warning("A request to the emulated Cloud Run could not be cancelled: %s", task.get_name())

    async def _wait(self, seconds: float) -> None:
        if self._connections:
            await asyncio.wait(tuple(self._connections), timeout=seconds)

    def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._serve(reader, writer))
        self._connections[task] = writer
        task.add_done_callback(self._on_connection_end)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        # OSError: the client closed the connection during the TLS handshake.
        with contextlib.suppress(OSError):
            await _Connection(self._wrapped, loop, self._config, self._context, self._state, reader, writer)

    def _on_connection_end(self, task: asyncio.Task[None]) -> None:
        writer = self._connections.pop(task)
        _abort(writer)
        error = None if task.cancelled() else task.exception()
        if error is not None and not self._stopping:
            log.error("A connection to the emulated Cloud Run failed", exc_info=error)

    def _tls(self) -> ssl.SSLContext:
        chain, key = self._files
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(chain, key)
        context.set_alpn_protocols(self._config.alpn_protocols)
        return context


def _abort(writer: asyncio.StreamWriter) -> None:
    # Up to Python 3.11.3, aborting a TLS transport that was closed twice raises AttributeError.
    with contextlib.suppress(AttributeError):
        writer.transport.abort()


class _Connection(TCPServer):
    """A Hypercorn connection that survives request content after the end of the response."""

    async def _read_data(self) -> None:
        if isinstance(self.protocol.protocol, H2Protocol):
            self.protocol.protocol.streams = _Streams()
        await super()._read_data()


class _Streams(dict[int, Any]):
    """The streams of a connection; events of a stream that has ended are dropped.

    Hypercorn 0.18 removes a stream when its response ends. The next DATA of the request then raises KeyError, which
    closes the connection. A refusal (401, 403) usually ends before its request.
    """

    def __missing__(self, stream_id: int) -> _EndedStream:
        return _EndedStream()


class _EndedStream:
    async def handle(self, event: object) -> None:
        """Drop the event; Hypercorn restores the window by itself."""


def _config(alpn_protocols: tuple[str, ...], streams_per_connection: int, field_section_octets: int) -> Config:
    config = Config()
    # This is only advertised. h2 accepts more, so that too many fields get a response and do not close the connection.
    config.h2_max_header_list_size = field_section_octets
    config.alpn_protocols = list(alpn_protocols)
    config.h2_max_concurrent_streams = streams_per_connection
    config.keep_alive_max_requests = 2**62
    config.keep_alive_timeout = 3600
    config.shutdown_timeout = 2
    # A bounded queue would block the connection's reader, PING included, while one application does not read.
    config.max_app_queue_size = 0
    config.include_server_header = False
    config.include_date_header = False
    config.errorlog = logging.getLogger(f"{__name__}.hypercorn")
    # It warns of every application without lifespan support, which ASGI allows.
    config.errorlog.setLevel(logging.ERROR)
    return config
