"""Connections by origin: as few as the streams need, opened on demand.

The hot path asks `ready` and gets a connection with a free stream, or None. Then, and only then, a request waits: in
line with the others of its origin, first come first served, until a stream is free or a new connection is open. Half
open connections count as the streams they will bring, so that a burst opens as many as it needs and no more.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import structlog

from proxy.errors import Failure, Internal, UpstreamConnectTimeout, UpstreamSaturated
from proxy.routing import Origin
from proxy.upstream.connection import UpstreamConnection

__all__ = ["Pool", "PoolMetrics"]

_log: Final = structlog.get_logger("upstream")

# Cloud Run's front end offers some 100 streams a connection (research: Google's front end, SETTINGS).
_EXPECTED_STREAMS: Final = 100


class PoolMetrics(Protocol):
    """What the pool counts."""

    def upstream_opened(self, origin: str) -> None:
        """A connection is usable."""

    def upstream_closed(self, origin: str) -> None:
        """It is gone."""


class Pool:
    """All upstream connections of one worker."""

    def __init__(
        self,
        connect: Callable[[Origin], Awaitable[UpstreamConnection]],
        metrics: PoolMetrics,
        *,
        max_connections: int = 64,
        wait_timeout_seconds: float = 5.0,
    ) -> None:
        self._connect = connect
        self._metrics = metrics
        self._max_connections = max_connections
        self._wait_timeout_seconds = wait_timeout_seconds
        self._lines: dict[Origin, _Line] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._open_connections: set[UpstreamConnection] = set()

    def ready(self, origin: Origin) -> UpstreamConnection | None:
        """Return a connection with a free stream, unless there is none or others wait for one. Does not block."""
        line = self._lines.get(origin)
        if line is None or line.waiters:
            return None
        return line.free()

    async def acquire(self, origin: Origin) -> UpstreamConnection:
        """Wait for a connection with a free stream; the stream must be opened before the next await.

        Raises a leaf of UpstreamFailure when none could be opened, or none became free in time.
        """
        line = self._lines.setdefault(origin, _Line(origin))
        waiter: asyncio.Future[UpstreamConnection] = asyncio.get_running_loop().create_future()
        line.waiters.append(waiter)
        line.serve()
        self._grow(line)
        try:
            async with asyncio.timeout(self._wait_timeout_seconds):
                connection = await waiter
        except TimeoutError:
            line.give_up(waiter)
            raise self._late(line) from None
        except BaseException:
            line.give_up(waiter)
            raise
        connection.reserved -= 1
        return connection

    async def close(self) -> None:
        """Close every connection and give up those being opened."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for line in self._lines.values():
            line.fail(UpstreamSaturated("the sidecar is shutting down"))
        for connection in list(self._open_connections):
            connection.retire("the sidecar is shutting down")
        self._lines.clear()

    def _late(self, line: _Line) -> Failure:
        waited = f"{self._wait_timeout_seconds:g} s"
        if line.opening and not line.connections:
            return UpstreamConnectTimeout(f"{line.origin} was not connected within {waited}")
        return UpstreamSaturated(
            f"no stream to {line.origin} became free within {waited}: {len(line.connections)} connections are in use, "
            f"{self._max_connections} are allowed (max_upstream_connections)"
        )

    def _grow(self, line: _Line) -> None:
        while (
            len(line.waiters) > line.opening * _EXPECTED_STREAMS
            and len(line.connections) + line.opening < self._max_connections
        ):
            line.opening += 1
            task = asyncio.get_running_loop().create_task(self._open(line))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _open(self, line: _Line) -> None:
        failure: Failure | None = None
        try:
            connection = await self._connect(line.origin)
        except Failure as exc:
            failure = exc
        except Exception as exc:  # noqa: BLE001 - whoever waits must be told, whatever it was
            _log.error("connecting failed unexpectedly", origin=str(line.origin), error=type(exc).__name__)
            failure = Internal(f"connecting to {line.origin} failed: {type(exc).__name__}")
        else:
            self._add(line, connection)
        finally:
            line.opening -= 1
        if failure is not None:
            _log.warning("upstream not connected", origin=str(line.origin), code=failure.code, reason=str(failure))
            if not line.connections and not line.opening:
                line.fail(failure)

    def _add(self, line: _Line, connection: UpstreamConnection) -> None:
        line.connections.append(connection)
        self._open_connections.add(connection)
        self._metrics.upstream_opened(str(line.origin))
        _log.debug("upstream connected", origin=str(line.origin), streams=connection.engine.peer_max_concurrent_streams)

        def changed(connection: UpstreamConnection) -> None:
            if connection.retiring and connection in line.connections:
                line.connections.remove(connection)
                _log.debug("upstream connection retired", origin=str(line.origin))
            if connection.closed and connection in self._open_connections:
                self._open_connections.remove(connection)
                self._metrics.upstream_closed(str(line.origin))
            if line.waiters:
                line.serve()
                self._grow(line)

        connection.on_change = changed
        changed(connection)


class _Line:
    """The connections of one origin, and who waits for a stream there."""

    __slots__ = ("connections", "opening", "origin", "waiters")

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self.connections: list[UpstreamConnection] = []
        self.opening = 0
        self.waiters: deque[asyncio.Future[UpstreamConnection]] = deque()

    def free(self) -> UpstreamConnection | None:
        """Return the first connection with a free stream: the first stay full, so that the last can fall idle."""
        for connection in self.connections:
            if connection.free_streams > 0:
                return connection
        return None

    def serve(self) -> None:
        """Give free streams to those who wait longest."""
        while self.waiters:
            if self.waiters[0].done():
                self.waiters.popleft()
                continue
            connection = self.free()
            if connection is None:
                return
            connection.reserved += 1
            self.waiters.popleft().set_result(connection)

    def fail(self, failure: Failure) -> None:
        """Tell everybody who waits that there will be no connection."""
        waiters, self.waiters = self.waiters, deque()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(failure)

    def give_up(self, waiter: asyncio.Future[UpstreamConnection]) -> None:
        """Take a waiter out of the line; a stream that it was just given goes to the next."""
        if waiter in self.waiters:
            self.waiters.remove(waiter)
        elif waiter.done() and not waiter.cancelled() and waiter.exception() is None:
            waiter.result().reserved -= 1
            self.serve()
