"""Connections by origin: as few as the streams need, opened on demand.

The hot path asks its `OriginPool` for a connection with a free stream. If there is none, the request waits with the
others of its origin until a stream is free or a new connection is open: clients in turn, and first come first served
within a client. Connections that are being opened count as the streams that they are expected to offer, so that a burst
opens as many as it needs. When all permitted connections are full, a client with few streams gets one of the client
with most, whose newest exchange ends.

The pool reserves a stream for a request, whose task opens it one loop turn later. If the stream is not free any more by
then (GOAWAY, a lost connection, a lower limit), the request returns to its place in the queue.

An attempt to connect that fails also fails all requests that wait, unless there are connections that may get a free
stream; then the next attempt is made after a pause. Until one succeeds, only one attempt at a time is made. After some
that failed, requests wait for a short pause before each: an upstream that refuses at once is not dialled for each
request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Hashable
from functools import partial
from typing import Final

import structlog

from proxy.errors import (
    Draining,
    Failure,
    Internal,
    UpstreamConnectionLost,
    UpstreamConnectTimeout,
    UpstreamSaturated,
)
from proxy.observe.observer import UpstreamObserver
from proxy.routes import Origin
from proxy.upstream.connection import UpstreamConnection
from proxy.upstream.origin_pool import EXPECTED_STREAMS, OriginPool
from proxy.upstream.wait_queue import Waiter

__all__ = ["Pool"]

_log: Final = structlog.get_logger("upstream")

_PAUSE_SECONDS: Final = 1.0
"""Pause after a failed attempt, while other connections exist."""
_SHORT_PAUSE_SECONDS: Final = 0.1
"""Pause after several failed attempts, while none exists."""
_FAILURES_WITHOUT_PAUSE: Final = 5
"""So many attempts in a row may fail before there is a pause where no connection exists."""


class Pool:
    """All upstream connections of one worker."""

    def __init__(
        self,
        connect: Callable[[Origin], Awaitable[UpstreamConnection]],
        observer: UpstreamObserver,
        *,
        max_connections: int = 64,
        wait_timeout_seconds: float = 5.0,
        delay: Callable[[Origin], str] = lambda _: "check the url of the route, and the network in between",
    ) -> None:
        """Open connections with `connect`; `delay` says what an attempt waits for, and what to do about it."""
        self._connect = connect
        self._delay = delay
        self._observer = observer
        self.max_connections = max_connections
        """Connections to one origin. It may be changed; those that there are stay."""
        self.wait_timeout_seconds = wait_timeout_seconds
        """How long a request may wait for a stream. It may be changed."""
        self._origin_pools: dict[Origin, OriginPool] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._connections: set[UpstreamConnection] = set()
        self._closed = False

    def origin_pool(self, origin: Origin) -> OriginPool:
        """Return the pool of this origin, always the same object until `retain` drops it."""
        found = self._origin_pools.get(origin)
        if found is None:
            found = self._origin_pools[origin] = OriginPool(origin, self._observer)
            found.on_wanted = self._serve
        return found

    @property
    def origin_pools(self) -> list[OriginPool]:
        """The pools of all origins."""
        return list(self._origin_pools.values())

    @property
    def connections(self) -> list[UpstreamConnection]:
        """All connections that are open, those that take no more streams among them."""
        return list(self._connections)

    def retain(self, origins: Collection[Origin]) -> None:
        """Close the pools of all other origins. No exchange may use one of them any more."""
        for origin in [known for known in self._origin_pools if known not in origins]:
            self._origin_pools.pop(origin).close(UpstreamConnectionLost(f"no route leads to {origin} any more"))

    async def acquire(self, origin: Origin, owner: Hashable = None) -> UpstreamConnection:
        """Wait for a connection with a free stream; the stream must be opened before the next await.

        Owners, of whom `owner` is one, have their turns; one with few streams gets one of that with most.
        Raises a leaf of UpstreamFailure when none could be opened, or none became free in time; Draining after `close`.
        """
        pool = self.origin_pool(origin)
        ticket = pool.queue.next_ticket()
        try:
            async with asyncio.timeout(self.wait_timeout_seconds):
                while True:
                    connection = await self._reserved(pool, owner, ticket)
                    if connection.count_free_streams() > 0:
                        return connection
        except TimeoutError:
            raise self._late(pool) from None

    async def close(self, *, linger_seconds: float = 0.0) -> None:
        """Send GOAWAY on every connection and close it; cancel attempts to connect, and fail requests that wait.

        With `linger_seconds` it waits until all are closed, at most that long.
        """
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for pool in self._origin_pools.values():
            pool.end_pause()
            pool.fail(_closing())
        leaving = list(self._connections)
        for connection in leaving:
            connection.retire("the sidecar is shutting down")
        if leaving and linger_seconds:
            await asyncio.wait([connection.gone for connection in leaving], timeout=linger_seconds)
            for connection in leaving:
                connection.abort()

    async def _reserved(self, pool: OriginPool, owner: Hashable, ticket: int) -> UpstreamConnection:
        """Wait in the queue for a stream, and return its connection; the stream is free for this turn of the loop."""
        if self._closed:
            raise _closing()
        waiter: Waiter = asyncio.get_running_loop().create_future()
        pool.join(owner, ticket, waiter)
        self._serve(pool)
        if not waiter.done() and self._is_exhausted(pool) and pool.give_way(owner):
            pool.queue.prefer(owner)
            pool.serve()
        try:
            connection = await waiter
        except BaseException:
            pool.give_up(waiter)
            pool.serve()
            raise
        connection.reserved -= 1
        if pool.waiting:
            # If this request does not open the stream, the next one gets it.
            asyncio.get_running_loop().call_soon(pool.serve)
        return connection

    def _serve(self, pool: OriginPool) -> None:
        """Give free streams to the requests that wait, and open connections for the rest."""
        pool.serve()
        paused = pool.pause is not None and (pool.connections or pool.failures > _FAILURES_WITHOUT_PAUSE)
        if self._closed or pool.closed or paused:
            return
        while (
            pool.waiting > pool.opening * pool.expected_streams
            and len(pool.connections) + pool.opening < self.max_connections
            and not pool.has_fruitless()
            # After a failure one attempt at a time: more would not help an upstream in trouble.
            and not (pool.failures and pool.opening)
        ):
            pool.opening += 1
            task = asyncio.get_running_loop().create_task(self._open(pool))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _is_exhausted(self, pool: OriginPool) -> bool:
        """Return True if there are as many connections as there may be."""
        return len(pool.connections) >= self.max_connections and not pool.opening

    async def _open(self, pool: OriginPool) -> None:
        connection: UpstreamConnection | None = None
        failure: Failure = UpstreamConnectionLost(f"{pool.origin} ended the connection as soon as it was open")
        try:
            connection = await self._connect(pool.origin)
        except Failure as exc:
            failure = exc
        except Exception as exc:  # noqa: BLE001 - the requests that wait must be told
            _log.error("connecting failed unexpectedly", origin=str(pool.origin), error=type(exc).__name__)
            failure = Internal(f"connecting to {pool.origin} failed: {type(exc).__name__}")
        finally:
            pool.opening -= 1
        if connection is not None:
            self._connections.add(connection)
            connection.gone.add_done_callback(lambda _: self._connections.discard(connection))
            if pool.closed:
                connection.retire("no route leads there any more")
                return
            if not connection.retiring:
                self._add(pool, connection)
                return
            # A peer that closes every new connection at once has failed, too: it would be dialled again and again.
            connection.retire("closed by the peer as soon as it was open")
        self._failed(pool, failure)

    def _failed(self, pool: OriginPool, failure: Failure) -> None:
        pool.failures += 1
        pool.failure = failure
        pool.end_pause()
        seconds = _PAUSE_SECONDS if pool.connections else _SHORT_PAUSE_SECONDS
        pool.pause = asyncio.get_running_loop().call_later(seconds, self._resume, pool)
        if not pool.connections and (not pool.opening or pool.failures > 1):
            pool.fail(failure)
        else:
            # No request is failed yet: other connections may bring a stream.
            self._observer.upstream_not_connected(str(pool.origin), failure)

    def _resume(self, pool: OriginPool) -> None:
        pool.pause = None
        if pool.waiting:
            self._serve(pool)
        if not pool.opening:
            pool.failure = None

    def _add(self, pool: OriginPool, connection: UpstreamConnection) -> None:
        pool.failures = 0
        pool.failure = None
        pool.end_pause()
        pool.expected_streams = max(1, min(EXPECTED_STREAMS, connection.engine.peer_max_concurrent_streams))
        origin = str(pool.origin)
        self._observer.upstream_opened(origin, connection.engine.peer_max_concurrent_streams)
        connection.gone.add_done_callback(lambda _: self._observer.upstream_closed(origin))
        connection.on_refused = partial(self._observer.response_refused, origin)
        pool.add(connection)

    def _late(self, pool: OriginPool) -> Failure:
        waited = f"{self.wait_timeout_seconds:g} s"
        if not pool.connections:
            return UpstreamConnectTimeout(
                f"{pool.origin} was not connected within {waited}: {self._delay(pool.origin)}"
            )
        if pool.failure is not None:
            why = f"all {len(pool.connections)} connections are in use, and no other could be opened: {pool.failure}"
        elif pool.opening:
            why = f"all {len(pool.connections)} connections are in use, and another is still being opened"
        elif pool.has_fruitless():
            why = "it offers none on its newest connection (SETTINGS_MAX_CONCURRENT_STREAMS); check the service"
        else:
            why = (
                f"{len(pool.connections)} connections are in use, {self.max_connections} are allowed "
                "(max_upstream_connections)"
            )
        return UpstreamSaturated(f"no stream to {pool.origin} became free within {waited}: {why}")


def _closing() -> Draining:
    return Draining("the sidecar is shutting down; another one, or the next, will take the request")
