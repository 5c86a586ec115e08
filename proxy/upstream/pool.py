"""Connections by origin: as few as the streams need, opened on demand.

The hot path asks its `OriginPool` for a connection with a free stream. If there is none, the request waits with the
others of its origin until a stream is free or a new connection is open: clients in turn, and first come first served
within a client. Connections that are being opened count as the streams that they are expected to offer, so that a burst
opens as many as it needs. When all connections are full and no further one is on its way, a client with few streams
gets one of the client with most, whose newest exchange ends.

The pool reserves a stream for a request, whose task opens it one loop turn later. If the stream is not free any more by
then (GOAWAY, a lost connection, a lower limit), the request returns to its place in the queue.

An attempt to connect that fails also fails all requests that wait, unless there are connections that may get a free
stream. The next attempt is made after a pause, for which requests wait. Until one succeeds, only one attempt at a time
is made. A connection that ends before it has served a request counts as a failed attempt, from the second in a row on.

A connection that has reached its greatest age is replaced: another one is opened first, to an address that is looked up
then, and after that the old one opens no more streams. If none can be opened, or the new one offers no stream, the old
one stays, and it is tried again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection, Coroutine, Hashable
from functools import partial
from typing import Any, Final

import structlog

from proxy.errors import (
    Draining,
    Failure,
    Internal,
    UpstreamConnectionLost,
    UpstreamConnectTimeout,
    UpstreamSaturated,
)
from proxy.observe.explanation import remedy_of
from proxy.observe.observer import UpstreamObserver
from proxy.routes import Origin
from proxy.upstream.connection import UpstreamConnection
from proxy.upstream.origin_pool import EXPECTED_STREAMS, OriginPool, has_streams
from proxy.upstream.wait_queue import Waiter

__all__ = ["Pool"]

_log: Final = structlog.get_logger("upstream")

_PAUSE_SECONDS: Final = 1.0
"""Pause after a failed attempt, while other connections exist; without one, after several."""
_FIRST_PAUSE_SECONDS: Final = 0.05
"""Pause after the first failed attempt while there is no connection; doubled with each further one."""
_MOST_DOUBLED: Final = 10
_FRUITLESS_SECONDS: Final = 10.0
"""After so long, a connection that ends before it has served a request is the first such one again."""
_JITTER: Final = 0.25
"""Part of the greatest age within which connections are replaced, so that they are not all at once."""
_REPLACE_AGAIN_SECONDS: Final = 1.0
"""Until a connection is tried to be replaced again, after a failure or while another one is being opened."""


class Pool:
    """All upstream connections of one worker."""

    def __init__(
        self,
        connect: Callable[[Origin], Awaitable[UpstreamConnection]],
        observer: UpstreamObserver,
        *,
        max_connections: int = 64,
        wait_timeout_seconds: float = 5.0,
        max_age_seconds: float = 600.0,
        random_fraction: Callable[[], float] = random.random,
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
        self.max_age_seconds = max_age_seconds
        """When a connection is replaced. It may be changed, for connections that are opened afterwards."""
        self._random_fraction = random_fraction
        self._origin_pools: dict[Origin, OriginPool] = {}
        self._tasks: set[asyncio.Task[object]] = set()
        self._connections: set[UpstreamConnection] = set()
        self._closed = False

    def origin_pool(self, origin: Origin) -> OriginPool:
        """Return the pool of this origin, always the same object until `retain` drops it."""
        found = self._origin_pools.get(origin)
        if found is None:
            found = self._origin_pools[origin] = OriginPool(origin, self._observer)
            found.on_wanted = self._serve
            found.on_fruitless = self._slow_down
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
        try:
            if not waiter.done() and (not pool.opening or pool.failures):
                # No further connection is likely to bring streams soon. Those that are reserved are opened in this turn
                # of the loop, and have owners then.
                await asyncio.sleep(0)
                if not waiter.done() and pool.give_way(owner):
                    pool.queue.prefer(owner)
                    pool.serve()
            connection = await waiter
        except BaseException:
            pool.give_up(owner, waiter)
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
        if self._closed or pool.closed or (pool.pause is not None and (pool.connections or pool.outage)):
            return
        while (
            pool.waiting > pool.opening * pool.expected_streams
            and len(pool.connections) + pool.opening < self.max_connections
            and not pool.has_fruitless()
            # After a failure one attempt at a time: more would not help an upstream in trouble.
            and not (pool.failures and pool.opening)
        ):
            pool.opening += 1
            self._start(self._open(pool))

    def _start(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open(self, pool: OriginPool) -> bool:
        """Open a connection, which `pool.opening` counts already; return whether requests can use it."""
        connection: UpstreamConnection | None = None
        began = asyncio.get_running_loop().time()
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
                return False
            if not connection.retiring:
                self._add(pool, connection)
                return True
        # A peer that closes every new connection at once has failed, too: it would be dialled again and again.
        self._failed(pool, failure, began)
        return False

    def _failed(self, pool: OriginPool, failure: Failure, began: float) -> None:
        pool.failures += 1
        pool.failure = failure
        self._pause(pool, pool.failures, asyncio.get_running_loop(), began)
        if not pool.connections and (not pool.opening or pool.failures > 1):
            pool.fail(failure)
        else:
            # No request is failed yet: other connections may bring a stream.
            self._observer.upstream_not_connected(str(pool.origin), failure)

    def _pause(self, pool: OriginPool, failures: int, loop: asyncio.AbstractEventLoop, began: float) -> None:
        """Let no further connection be tried for a time, which is longer after several failures.

        Without any connection it is counted from when the attempt `began`: one that took long needs no pause.
        """
        pool.end_pause()
        pool.outage = not pool.connections
        due = loop.time() + _PAUSE_SECONDS
        if pool.outage:
            due = began + min(_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2 ** min(failures - 1, _MOST_DOUBLED))
        if due > loop.time():
            pool.pause = loop.call_at(due, self._resume, pool)
        else:
            pool.failure = None

    def _slow_down(self, pool: OriginPool, loop: asyncio.AbstractEventLoop) -> None:
        """Pause after connections that ended before they had served a request, but for the first of them."""
        now = loop.time()
        pool.fruitless = pool.fruitless + 1 if now < pool.fruitless_at + _FRUITLESS_SECONDS else 1
        pool.fruitless_at = now
        if pool.fruitless > 1 and not self._closed and not pool.closed:
            pool.failure = UpstreamConnectionLost(f"{pool.origin} ends connections before it has answered a request")
            self._pause(pool, pool.fruitless - 1, loop, now)

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
        seconds = self.max_age_seconds * (1 - _JITTER * self._random_fraction())
        timer = self._replace_later(pool, connection, seconds)
        connection.gone.add_done_callback(lambda _: timer.cancel())

    def _replace_later(self, pool: OriginPool, connection: UpstreamConnection, seconds: float) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(seconds, self._replace, pool, connection)

    def _replace(self, pool: OriginPool, connection: UpstreamConnection) -> None:
        """Open another connection in the place of an old one, unless that has no streams and others have free ones."""
        if self._closed or pool.closed or connection.retiring:
            return
        newest = pool.connections[-1]
        # There is one more than allowed after one that was opened in the place of another has offered no stream.
        excess = len(pool.connections) > self.max_connections
        is_spare = connection.engine.count_open_streams() == 0 and any(
            other is not connection and other.count_free_streams() > 0 for other in pool.connections
        )
        if is_spare or (excess and has_streams(newest)):
            connection.drain()
        elif excess or pool.opening or pool.pause is not None or (pool.has_fruitless() and newest is not connection):
            self._replace_later(pool, connection, _REPLACE_AGAIN_SECONDS)
        else:
            pool.opening += 1
            self._start(self._open_instead(pool, connection))

    async def _open_instead(self, pool: OriginPool, connection: UpstreamConnection) -> None:
        if await self._open(pool) and not (pool.has_fruitless() and has_streams(connection)):
            connection.drain()
        elif not connection.retiring:
            self._replace_later(pool, connection, _REPLACE_AGAIN_SECONDS)

    def _late(self, pool: OriginPool) -> Failure:
        waited = f"{self.wait_timeout_seconds:g} s"
        if not pool.connections and pool.pause is not None and pool.failure is not None:
            return pool.failure
        if not pool.connections:
            return UpstreamConnectTimeout(
                f"{pool.origin} was not connected within {waited}: {self._delay(pool.origin)}"
            )
        remedy = ""
        if pool.failure is not None:
            why = (
                f"all {len(pool.connections)} connections are in use, and no other could be opened: "
                f"{pool.failure.problem}"
            )
            remedy = remedy_of(pool.failure).removesuffix(".")
            remedy = remedy[:1].lower() + remedy[1:]
        elif pool.opening:
            why = f"all {len(pool.connections)} connections are in use, and another is still being opened"
        elif not has_streams(pool.connections[-1]):
            why = "it offers none on its newest connection (SETTINGS_MAX_CONCURRENT_STREAMS)"
            remedy = "check the service"
        else:
            why = (
                f"{len(pool.connections)} connections are in use, {self.max_connections} are allowed "
                "(max_upstream_connections)"
            )
        return UpstreamSaturated(f"no stream to {pool.origin} became free within {waited}: {why}", remedy=remedy)


def _closing() -> Draining:
    return Draining("the sidecar is shutting down; another one, or the next, will take the request")
