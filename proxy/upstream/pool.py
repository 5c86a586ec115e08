"""Connections by origin: as few as the streams need, opened on demand.

The hot path asks its `Line` and gets a connection with a free stream, or None. Then, and only then, a request waits: in
line with the others of its origin, first come first served, until a stream is free or a new connection is open. Half
open connections count as the streams they will bring, so that a burst opens as many as it needs and no more.

A stream is given away twice: the line reserves it for a request, whose task runs a turn of the loop later and opens it.
What happened in between (GOAWAY, a lost connection, a lower limit) puts the request back to where it stood in line.

A dial that fails is told to all who wait, unless connections are there that may bring a stream; then the next dial
comes after a pause. Until one succeeds, one at a time probes the way for all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import structlog

from proxy.errors import (
    Draining,
    Failure,
    Internal,
    UpstreamConnectionLost,
    UpstreamConnectTimeout,
    UpstreamSaturated,
)
from proxy.http2.events import StreamId
from proxy.routing import Origin
from proxy.upstream.connection import UpstreamConnection
from proxy.upstream.line import EXPECTED_STREAMS, Line

__all__ = ["Pool", "PoolMetrics"]

_log: Final = structlog.get_logger("upstream")

_PAUSE_SECONDS: Final = 1.0
"""After a connection failed, so long no other is tried beside those that there are."""


class PoolMetrics(Protocol):
    """What the pool counts."""

    def upstream_opened(self, origin: str) -> None:
        """A connection is usable."""

    def upstream_closed(self, origin: str) -> None:
        """It is gone."""

    def response_refused(self, origin: str, reason: str) -> None:
        """A response of the upstream broke a rule of HTTP/2."""


class Pool:
    """All upstream connections of one worker."""

    def __init__(
        self,
        connect: Callable[[Origin], Awaitable[UpstreamConnection]],
        metrics: PoolMetrics,
        *,
        max_connections: int = 64,
        wait_timeout_seconds: float = 5.0,
        delay: Callable[[Origin], str] = lambda _: "check the url of the route, and what lies between",
    ) -> None:
        """Open connections with `connect`; `delay` says in words what that waits for, and what to do about it."""
        self._connect = connect
        self._delay = delay
        self._metrics = metrics
        self._max_connections = max_connections
        self._wait_timeout_seconds = wait_timeout_seconds
        self._lines: dict[Origin, Line] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._connections: set[UpstreamConnection] = set()
        self._closed = False

    def line(self, origin: Origin) -> Line:
        """Return where those who want a stream to this origin are served; always the same object for an origin."""
        return self._lines.setdefault(origin, Line(origin))

    async def acquire(self, origin: Origin) -> UpstreamConnection:
        """Wait for a connection with a free stream; the stream must be opened before the next await.

        Raises a leaf of UpstreamFailure when none could be opened, or none became free in time; Draining after `close`.
        """
        line = self.line(origin)
        ticket = line.next_ticket()
        try:
            async with asyncio.timeout(self._wait_timeout_seconds):
                while True:
                    connection = await self._reserved(line, ticket)
                    if connection.free_streams > 0:
                        return connection
        except TimeoutError:
            raise self._late(line) from None

    async def close(self, *, linger_seconds: float = 0.0) -> None:
        """Say GOAWAY on every connection and close it; give up those being opened, and whoever waits.

        With `linger_seconds` it returns when all are gone, at the latest after that time.
        """
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for line in self._lines.values():
            line.end_pause()
            line.fail(_closing())
        leaving = list(self._connections)
        for connection in leaving:
            connection.retire("the sidecar is shutting down")
        if leaving and linger_seconds:
            await asyncio.wait([connection.gone for connection in leaving], timeout=linger_seconds)
            for connection in leaving:
                connection.abort()

    async def _reserved(self, line: Line, ticket: int) -> UpstreamConnection:
        """Wait in line for a stream, and return its connection; the stream is free for this turn of the loop."""
        if self._closed:
            raise _closing()
        waiter: asyncio.Future[UpstreamConnection] = asyncio.get_running_loop().create_future()
        line.join(ticket, waiter)
        self._serve(line)
        try:
            connection = await waiter
        except BaseException:
            line.give_up(waiter)
            line.serve()
            raise
        connection.reserved -= 1
        if line.waiting:
            # Should the stream not be opened after all, it is for the next.
            asyncio.get_running_loop().call_soon(line.serve)
        return connection

    def _serve(self, line: Line) -> None:
        """Give free streams to those who wait, and open connections for the rest."""
        line.serve()
        if self._closed or (line.connections and line.pause is not None):
            return
        while (
            line.waiting > line.opening * line.expected_streams
            and len(line.connections) + line.opening < self._max_connections
            and not line.has_fruitless
            # After a failure one probes the way for all: an upstream in trouble is not helped by more dials.
            and not (line.failures and line.opening)
        ):
            line.opening += 1
            task = asyncio.get_running_loop().create_task(self._open(line))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _open(self, line: Line) -> None:
        connection: UpstreamConnection | None = None
        failure: Failure = UpstreamConnectionLost(f"{line.origin} ended the connection as soon as it was open")
        try:
            connection = await self._connect(line.origin)
        except Failure as exc:
            failure = exc
        except Exception as exc:  # noqa: BLE001 - whoever waits must be told, whatever it was
            _log.error("connecting failed unexpectedly", origin=str(line.origin), error=type(exc).__name__)
            failure = Internal(f"connecting to {line.origin} failed: {type(exc).__name__}")
        finally:
            line.opening -= 1
        if connection is not None:
            self._connections.add(connection)
            connection.gone.add_done_callback(lambda _: self._connections.discard(connection))
            if not connection.retiring:
                self._add(line, connection)
                return
            # A peer that turns everybody away at once has failed, too: it would be asked again and again otherwise.
            connection.retire("turned away")
        self._failed(line, failure)

    def _failed(self, line: Line, failure: Failure) -> None:
        line.failures += 1
        line.failure = failure
        line.end_pause()
        line.pause = asyncio.get_running_loop().call_later(_PAUSE_SECONDS, self._resume, line)
        if not line.connections and (not line.opening or line.failures > 1):
            line.fail(failure)
        else:
            # Nobody is told yet: there are others that may bring a stream.
            write = _log.error if failure.severity == "error" else _log.warning
            write("upstream not connected", origin=str(line.origin), code=failure.code, reason=str(failure))

    def _resume(self, line: Line) -> None:
        line.pause = None
        if line.waiting:
            self._serve(line)
        if not line.opening:
            line.failure = None

    def _add(self, line: Line, connection: UpstreamConnection) -> None:
        line.failures = 0
        line.failure = None
        line.end_pause()
        line.connections.append(connection)
        line.expected_streams = max(1, min(EXPECTED_STREAMS, connection.engine.peer_max_concurrent_streams))
        self._metrics.upstream_opened(str(line.origin))
        connection.gone.add_done_callback(lambda _: self._metrics.upstream_closed(str(line.origin)))

        def refused(stream_id: StreamId, reason: str) -> None:
            self._metrics.response_refused(str(line.origin), reason)
            _log.debug("response refused", origin=str(line.origin), reason=reason, stream=stream_id)

        connection.on_refused = refused
        _log.debug("upstream connected", origin=str(line.origin), streams=connection.engine.peer_max_concurrent_streams)

        def changed(connection: UpstreamConnection) -> None:
            if connection.retiring and connection in line.connections:
                line.connections.remove(connection)
                _log.debug("upstream connection retired", origin=str(line.origin))
            if line.waiting:
                self._serve(line)

        connection.on_change = changed
        changed(connection)

    def _late(self, line: Line) -> Failure:
        waited = f"{self._wait_timeout_seconds:g} s"
        if not line.connections:
            return UpstreamConnectTimeout(
                f"{line.origin} was not connected within {waited}: {self._delay(line.origin)}"
            )
        if line.failure is not None:
            why = f"all {len(line.connections)} connections are in use, and no other could be opened: {line.failure}"
        elif line.opening:
            why = f"all {len(line.connections)} connections are in use, and another is still being opened"
        elif line.has_fruitless:
            why = "it offers none on its newest connection (SETTINGS_MAX_CONCURRENT_STREAMS); look after the service"
        else:
            why = (
                f"{len(line.connections)} connections are in use, {self._max_connections} are allowed "
                "(max_upstream_connections)"
            )
        return UpstreamSaturated(f"no stream to {line.origin} became free within {waited}: {why}")


def _closing() -> Draining:
    return Draining("the sidecar is shutting down; another one, or the next, will take the request")
