"""Who may ask the admin port, how much, and for how long: names of hosts, limits, and deadlines for slow clients."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, cast

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from proxy.downstream.hosts import HostRules, parse_authority

__all__ = ["ANSWER_SECONDS", "FIRST_REQUEST_SECONDS", "IDLE_SECONDS", "Connections", "Deadlines", "host_check"]

FIRST_REQUEST_SECONDS: Final = 10.0
"""How long a client may take to send the head of its first request."""
IDLE_SECONDS: Final = 75.0
"""How long a connection is kept between two requests, also while the second one is incomplete. Prometheus asks at least
once a minute."""
ANSWER_SECONDS: Final = 60.0
"""How long a client may take to read an answer."""
_MOST_CONNECTIONS: Final = 128
"""More than probes, scrapers and people need. Above it, the one without a request for longest is ended."""
_MOST_UNANSWERED_OCTETS: Final = 32 << 10
"""How much a client may send beyond the requests that were taken: twice the greatest head."""


def host_check(allowed: Callable[[], frozenset[str]]) -> Middleware:
    """Return a middleware that refuses requests of web pages that reach a loopback address by DNS rebinding.

    The rules are those of the listener for HTTP/1.1 (`proxy.downstream.hosts`). `allowed` returns more names.
    """

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        server = request.transport.get_extra_info("sockname") if request.transport is not None else None
        host = request.headers.get("Host")
        if host is not None and isinstance(server, tuple):
            try:
                name, _ = parse_authority(host.encode("latin-1", "replace"))
            except ValueError as exc:
                return web.Response(status=400, text=f"the field host {exc}\n")
            if not HostRules((server[0], server[1]), allowed()).allows(name):
                return web.Response(
                    status=403,
                    text="this name may belong to a web page; call 127.0.0.1 or localhost, or list the name in "
                    "allowed_hosts (--allowed-hosts) if it is yours\n",
                )
        return await handler(request)

    return check


class Deadlines:
    """Ends connections whose clients are slow. `middleware` is told of requests; `run` is the task that ends them."""

    def __init__(
        self,
        *,
        first_request_seconds: float = FIRST_REQUEST_SECONDS,
        idle_seconds: float = IDLE_SECONDS,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        self._first_request_seconds = first_request_seconds
        self._idle_seconds = idle_seconds
        self._answer_seconds = answer_seconds
        self._until: dict[object, float] = {}
        """By connection."""

    @property
    def middleware(self) -> Middleware:
        """Gives the connection of a request the time for its answer, and then that until the next request."""

        @web.middleware
        async def extend(request: web.Request, handler: Handler) -> web.StreamResponse:
            now = asyncio.get_running_loop().time
            self._until[request.protocol] = now() + self._answer_seconds
            try:
                return await handler(request)
            finally:
                self._until[request.protocol] = now() + self._idle_seconds

        return extend

    async def run(self, server: web.Server) -> None:
        """Abort connections that are late, until cancelled; each within a quarter of the first deadline."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._first_request_seconds / 4)
            now = loop.time()
            connections = server.connections
            first = now + self._first_request_seconds
            self._until = {connection: self._until.get(connection, first) for connection in connections}
            for connection in connections:
                until = self._until[connection]
                # Not closed but aborted: closing waits for the client to read. uvloop's is no asyncio.Transport.
                if now >= until and connection.transport is not None:
                    connection.transport.abort()


class Connections:
    """The open connections, and the limits on them. `middleware` is told of requests; `factory` makes protocols."""

    def __init__(self) -> None:
        self._by_handler: dict[object, _Connection] = {}
        """By aiohttp's protocol; the one that has been without a request for longest is the first."""

    @property
    def middleware(self) -> Middleware:
        """Notes that a request of a connection was taken."""

        @web.middleware
        async def note(request: web.Request, handler: Handler) -> web.StreamResponse:
            connection = self._by_handler.pop(request.protocol, None)
            if connection is None:
                return await handler(request)
            connection.unanswered_octets = 0
            self._by_handler[request.protocol] = connection
            connection.answering = True
            try:
                return await handler(request)
            finally:
                connection.answering = False

        return note

    def factory(self, server: web.Server) -> Callable[[], asyncio.Protocol]:
        """Return what makes the protocol of each new connection to this server."""
        return lambda: _Connection(self, server())

    def opened(self, connection: _Connection) -> None:
        """Note a new connection, and end another one if there are too many."""
        self._by_handler[connection.handler] = connection
        if len(self._by_handler) > _MOST_CONNECTIONS:
            self._by_handler.pop(next(iter(self._by_handler))).abort()

    def closed(self, connection: _Connection) -> None:
        """Forget a connection."""
        self._by_handler.pop(connection.handler, None)


class _Connection(asyncio.Protocol):
    """Passes what one client sends on to aiohttp, unless it is too much."""

    def __init__(self, connections: Connections, handler: web.RequestHandler) -> None:
        self.handler = handler
        self.unanswered_octets = 0
        self.answering = False
        self._connections = connections
        self._transport: asyncio.Transport | None = None

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.handler.connection_made(transport)
        self._connections.opened(self)

    def data_received(self, data: bytes) -> None:
        self.unanswered_octets += len(data)
        if self.unanswered_octets > _MOST_UNANSWERED_OCTETS:
            self.abort()
        else:
            self.handler.data_received(data)

    def eof_received(self) -> bool:
        """Return True if the client, which has closed its half, gets an answer before the connection is closed."""
        self.handler.eof_received()
        if not (self.answering or self.unanswered_octets):
            return False
        self.handler.close()  # after the answer; `Deadlines` ends it if the head is incomplete
        return True

    def pause_writing(self) -> None:
        self.handler.pause_writing()

    def resume_writing(self) -> None:
        self.handler.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.closed(self)
        self.handler.connection_lost(exc)
