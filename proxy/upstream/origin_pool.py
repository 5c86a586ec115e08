"""The connections of one origin, and who waits for a stream there; `pool` says how they are opened."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from typing import Final

from proxy.errors import Failure
from proxy.observe.observer import UpstreamObserver
from proxy.routes import Origin
from proxy.upstream.connection import ConnectionOwner, UpstreamConnection

__all__ = ["EXPECTED_STREAMS", "OriginPool"]

EXPECTED_STREAMS: Final = 100
"""What Google's front end offers in its SETTINGS, more or less."""


class OriginPool(ConnectionOwner):
    """The connections of one origin, and who waits for a stream there."""

    __slots__ = (
        "_heap",
        "_observer",
        "_tickets",
        "closed",
        "connections",
        "expected_streams",
        "failure",
        "failures",
        "on_wanted",
        "opening",
        "origin",
        "pause",
        "waiting",
    )

    def __init__(self, origin: Origin, observer: UpstreamObserver) -> None:
        self.origin = origin
        self._observer = observer
        self.closed = False
        """Whether nothing uses this pool any more."""
        self.connections: list[UpstreamConnection] = []
        """Those that may be given streams, in the order in which they were opened."""
        self.opening = 0
        """Connections being opened."""
        self.expected_streams = EXPECTED_STREAMS
        """How many streams the next connection will bring: as many as the last one."""
        self.failures = 0
        """Attempts to connect that failed since the last one that did not."""
        self.failure: Failure | None = None
        """The last of them, while it matters to those who wait."""
        self.pause: asyncio.TimerHandle | None = None
        """Ends the time in which no other connection is tried beside those that there are."""
        self.waiting = 0
        """Requests that wait for a stream."""
        self.on_wanted: Callable[[OriginPool], None] | None = None
        """Called when connections have changed while requests wait."""
        self._heap: list[tuple[int, asyncio.Future[UpstreamConnection]]] = []
        self._tickets = 0

    def has_fruitless(self) -> bool:
        """Return whether the newest connection offers no stream although none is in use: another one would not either.

        A server offers 0 streams for short durations only (RFC 9113, 5.1.2).
        """
        if not self.connections:
            return False
        newest = self.connections[-1]
        return newest.engine.count_open_streams() == 0 and newest.reserved == 0 and newest.count_free_streams() <= 0

    def ready(self) -> UpstreamConnection | None:
        """Return a connection with a free stream, unless there is none or others wait for one."""
        return None if self.waiting else self.free()

    def free(self) -> UpstreamConnection | None:
        """Return the first connection with a free stream: the first stay full, so that the last can fall idle."""
        for connection in self.connections:
            if connection.count_free_streams() > 0:
                return connection
        return None

    def add(self, connection: UpstreamConnection) -> None:
        """Take streams of this connection, too, as long as it offers any."""
        self.connections.append(connection)
        connection.owner = self
        self.connection_changed(connection)

    def connection_changed(self, connection: UpstreamConnection) -> None:
        """Drop a connection that takes no more streams, and serve those who wait."""
        if connection.retiring and connection in self.connections:
            self.connections.remove(connection)
            self._observer.upstream_retired(str(self.origin))
        if self.waiting and self.on_wanted is not None:
            self.on_wanted(self)

    def close(self, failure: Failure) -> None:
        """Fail all requests that wait, and close the connections; live streams are lost."""
        self.closed = True
        self.end_pause()
        self.fail(failure)
        for connection in list(self.connections):
            connection.retire("no route leads there any more")

    def end_pause(self) -> None:
        """Forget that connecting failed a moment ago."""
        if self.pause is not None:
            self.pause.cancel()
            self.pause = None

    def next_ticket(self) -> int:
        """Return a place in the queue, behind all others."""
        self._tickets += 1
        return self._tickets

    def join(self, ticket: int, waiter: asyncio.Future[UpstreamConnection]) -> None:
        """Wait in the place that `ticket` gives."""
        heapq.heappush(self._heap, (ticket, waiter))
        self.waiting += 1

    def serve(self) -> None:
        """Give free streams to those who wait longest."""
        heap = self._heap
        while heap:
            if heap[0][1].done():
                heapq.heappop(heap)  # given up, and counted out then
                continue
            connection = self.free()
            if connection is None:
                return
            connection.reserved += 1
            self.waiting -= 1
            heapq.heappop(heap)[1].set_result(connection)

    def fail(self, failure: Failure) -> None:
        """Tell everybody who waits that there will be no connection."""
        heap, self._heap = self._heap, []
        for _, waiter in heap:
            if not waiter.done():
                self.waiting -= 1
                waiter.set_exception(failure)

    def give_up(self, waiter: asyncio.Future[UpstreamConnection]) -> None:
        """Count a waiter out that does not wait any more; a stream that it was just given is free again."""
        if waiter.cancel() or waiter.cancelled():
            self.waiting -= 1
        elif waiter.exception() is None:
            waiter.result().reserved -= 1
