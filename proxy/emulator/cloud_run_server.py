"""The server of the emulated Cloud Run: Hypercorn with TLS, ALPN h2 and http/1.1.

Google routes by name: a client without the name of a service in its TLS handshake (SNI) gets a certificate for
`invalid2.invalid`, which nobody trusts.

Hypercorn's connections are used without its `serve()`, which waits for every connection when it stops (Python ≥ 3.12.1)
or for tasks that it has cancelled. The emulator has to stop in any case. Also, the process may contain a listener that
replaces names that `serve()` looks up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Final, cast

import h11
from hypercorn.asyncio.lifespan import Lifespan
from hypercorn.asyncio.task_group import TaskGroup
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import AsyncioSingleTask, WorkerContext
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.typing import ASGIFramework, ConnectionState
from hypercorn.utils import parse_socket_addr, wrap_app

from proxy.emulator.certificates import Certificates
from proxy.emulator.cloud_run import CloudRun
from proxy.emulator.front_end import Application, refusal_of
from proxy.emulator.http2 import MAX_DECODED_OCTETS, STREAM_CONTROL, GoogleHttp2, StreamControl
from proxy.emulator.limits import Limits
from proxy.emulator.services import Services
from proxy.emulator.sockets import address, bind, reset_on_close
from proxy.emulator.verdicts import Verdict

__all__ = ["CloudRunServer"]

NO_SERVICE: Final = "invalid2.invalid"
"""Name in the certificate of a client that names no service."""

GRACE_SECONDS: Final = 1.0
ABORT_SECONDS: Final = 1.0

log = logging.getLogger(__name__)


class CloudRunServer:
    """Async context manager: serves the application from entry to exit.

    `app` usually is a `CloudRun`, or `Services` for several. A `CloudRun` without a `url` gets the URL of this server;
    with one, only the hosts of its URLs and domains and `names` are accepted. Entry binds the port (0: a free one) and
    raises CannotListen. The certificate of an application that is neither is valid for `host`, `localhost` and `names`.
    `limits` are those of each HTTP/2 connection; by default they are like Google's. On exit, running requests have one
    second to finish, then their connections are aborted; exit takes at most about two seconds.
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
        limits: Limits | None = None,
    ) -> None:
        self.url = ""
        """`https://host:port`, set on entry."""
        self._app = app
        self._host = host
        self._port = port
        self.limits = limits or Limits()
        """The limits of each HTTP/2 connection."""
        self._config = _config(alpn_protocols, self.limits)
        self._certificates = certificates
        own = dict.fromkeys((*names, host, "localhost", "127.0.0.1", "::1"))
        if isinstance(app, Services) or (isinstance(app, CloudRun) and app.url is not None):
            own = dict.fromkeys((*sorted(app.names), *names))
        self._names = tuple(own)
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
                self._app.hosts = self._hosts
            if isinstance(self._app, CloudRun | Services):
                self._app.field_section_octets = self.limits.field_section_octets
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

    async def __aexit__(self, *_: object) -> None:
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
            await _Connection(self, self._wrapped, loop, self._config, self._context, self._state, reader, writer)

    def _on_connection_end(self, task: asyncio.Task[None]) -> None:
        writer = self._connections.pop(task)
        _abort(writer)
        error = None if task.cancelled() else task.exception()
        if error is not None and not self._stopping:
            log.error("A connection to the emulated Cloud Run failed", exc_info=error)

    @property
    def _hosts(self) -> frozenset[str]:
        return frozenset(name.strip("[]").lower() for name in self._names)

    def _tls(self) -> ssl.SSLContext:
        own = self._certificates.server_context(*self._names)
        strangers = self._certificates.untrusted().server_context(NO_SERVICE)
        for context in (own, strangers):
            context.set_alpn_protocols(self._config.alpn_protocols)
        hosts = self._hosts
        # A client that was given an address has no name to send.
        nameless = any(":" in host or host.replace(".", "").isdigit() for host in hosts)

        def choose(connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
            if not nameless if name is None else name.lower() not in hosts:
                connection.context = strangers

        own.sni_callback = choose
        return own

    def refused(self, method: str, path: str, verdict: Verdict) -> None:
        """Record a request that was refused before it reached the application."""
        if isinstance(self._app, CloudRun | Services):
            self._app.record(method, path, verdict)

    def now(self) -> float:
        """Return the time of the emulated Google, in seconds since the epoch."""
        return self._app.now() if isinstance(self._app, CloudRun | Services) else time.time()


def _abort(writer: asyncio.StreamWriter) -> None:
    # Up to Python 3.11.3, aborting a TLS transport that was closed twice raises AttributeError.
    with contextlib.suppress(AttributeError):
        writer.transport.abort()


class _Timer(AsyncioSingleTask):
    """A timer of a connection. It is not started on a connection that ends, where Hypercorn's would raise."""

    _over = False

    async def end(self) -> None:
        """Stop it for good: the connection has ended, and would be kept as long as the timer runs."""
        self._over = True
        await self.stop()

    async def restart(self, task_group: Any, action: Callable[[], Coroutine[Any, Any, None]]) -> None:
        await self.stop()
        if self._over:
            return
        timer = action()
        try:
            self._handle = task_group._task_group.create_task(timer)
        except RuntimeError:  # the group is shutting down
            timer.close()


class GoogleHttp1(H11Protocol):
    """HTTP/1.1 as Google's front end speaks it. `clock` returns seconds since the epoch.

    A client gets HTTP/2 by ALPN alone: an upgrade to `h2c` is not for TLS (RFC 9113, 3.1), and ignored.
    """

    def __init__(self, *given: Any, clock: Callable[[], float]) -> None:
        super().__init__(*given)
        self._clock = clock

    async def _check_protocol(self, event: h11.Request) -> None:
        """Do not look for HTTP/2."""

    async def _send_error_response(self, status_code: int) -> None:
        """Answer what is no HTTP/1.1; there is no application for it."""
        status = 431 if status_code == 431 else 400
        fields, body = refusal_of(status, (), self._clock())
        close = (b"connection", b"close")
        for event in (h11.Response(status_code=status, headers=[*fields, close]), h11.Data(data=body)):
            await self._send_h11_event(event)
        await self._send_h11_event(h11.EndOfMessage())


class _Connection(TCPServer):
    """A Hypercorn connection with Google's HTTP/2, and a `StreamControl` in the state of each request."""

    def __init__(self, owner: CloudRunServer, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._owner = owner
        self._age = _Timer()
        self.idle_task: _Timer = _Timer()
        self.state = {**self.state, STREAM_CONTROL: StreamControl(self._reset)}

    async def run(self) -> None:
        http2 = self.writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
        bound = self.writer.get_extra_info("socket")
        try:
            peer, own = (parse_socket_addr(bound.family, end) for end in (bound.getpeername(), bound.getsockname()))
            async with TaskGroup(self.loop) as tasks:
                self._task_group = tasks
                given = (
                    self.app, self.config, self.context, tasks, ConnectionState(self.state), True, peer, own,
                    self.protocol_send,
                )  # fmt: skip
                protocol = self._http2(given) if http2 else GoogleHttp1(*given, clock=self._owner.now)
                self.protocol = cast(Any, protocol)
                try:
                    await protocol.initiate()
                    if isinstance(protocol, GoogleHttp2):
                        await self._age.restart(tasks, partial(self._grow_old, protocol))
                    await self.idle_task.restart(tasks, self._idle_timeout)
                    await self._read_data()
                except BaseException:
                    # Also when a task of the group has failed. The group waits for the others, and they may wait for
                    # the peer, to which nothing would answer, not even a PING.
                    _abort(self.writer)
                    await protocol.handle(Closed())
                    raise
        except OSError:
            pass
        finally:
            await self._close()

    def _http2(self, given: tuple[Any, ...]) -> GoogleHttp2:
        owner = self._owner
        return GoogleHttp2(
            *given, limits=owner.limits, reset_connection=self._reset, on_refusal=owner.refused, clock=owner.now
        )

    async def _grow_old(self, protocol: GoogleHttp2) -> None:
        await asyncio.sleep(self._owner.limits.age_seconds)
        await protocol.go_away()

    async def _read_data(self) -> None:
        await super()._read_data()
        await self._age.end()
        await self.idle_task.end()

    async def _close(self) -> None:
        # OSError: the client was still sending, as a request whose response has ended.
        with contextlib.suppress(OSError):
            await super()._close()

    async def protocol_send(self, event: Event) -> None:
        # Python 3.11 raises AttributeError where a TLS transport that has closed is written to: when its peer has gone
        # between the two GOAWAY frames.
        if not (isinstance(event, RawData) and self.writer.is_closing()):
            await super().protocol_send(event)

    def _reset(self) -> None:
        if self.writer.is_closing():  # another request on this connection has come before
            return
        reset_on_close(self.writer.get_extra_info("socket"))
        _abort(self.writer)

    async def _idle_timeout(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.context.terminated.wait(), self.config.keep_alive_timeout)
        await asyncio.shield(self._end_idle())

    async def _end_idle(self) -> None:
        protocol: object = self.protocol
        if isinstance(protocol, GoogleHttp2):
            await protocol.send_last_go_away()
        await self._initiate_server_close()


def _config(alpn_protocols: tuple[str, ...], limits: Limits) -> Config:
    config = Config()
    config.alpn_protocols = list(alpn_protocols)
    config.keep_alive_max_requests = 2**62
    config.keep_alive_timeout = limits.idle_seconds
    config.shutdown_timeout = 2
    # A bounded queue would block the connection's reader, PING included, while one application does not read.
    config.max_app_queue_size = 0
    # The front end refuses what is larger than its limit, over HTTP/1.1 as over HTTP/2.
    config.h11_max_incomplete_size = MAX_DECODED_OCTETS
    config.include_server_header = False
    config.include_date_header = False
    config.errorlog = logging.getLogger(f"{__name__}.hypercorn")
    # It warns of every application without lifespan support, which ASGI allows.
    config.errorlog.setLevel(logging.ERROR)
    return config
