"""The connections of one origin, and the requests that wait for a stream there; `pool` opens them."""

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
"""About what Google's front end offers in its SETTINGS."""


class OriginPool(ConnectionOwner):
    """The connections of one origin, and the requests that wait for a stream there."""

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
        """Connections that accept streams, in the order in which they were opened."""
        self.opening = 0
        """Connections being opened."""
        self.expected_streams = EXPECTED_STREAMS
        """How many streams the next connection is expected to offer: as many as the last one did."""
        self.failures = 0
        """Failed attempts to connect since the last successful one."""
        self.failure: Failure | None = None
        """The last failure, while requests may still be told of it."""
        self.pause: asyncio.TimerHandle | None = None
        """Ends the pause in which no further connection is tried."""
        self.waiting = 0
        """Requests that wait for a stream."""
        self.on_wanted: Callable[[OriginPool], None] | None = None
        """Called when connections changed while requests wait."""
        self._heap: list[tuple[int, asyncio.Future[UpstreamConnection]]] = []
        self._tickets = 0

    def has_fruitless(self) -> bool:
        """Return True if the newest connection offers no stream although none is in use.

        Another connection would not offer any either.

        A server offers 0 streams for short durations only (RFC 9113, 5.1.2).
        """
        if not self.connections:
            return False
        newest = self.connections[-1]
        return newest.engine.count_open_streams() == 0 and newest.reserved == 0 and newest.count_free_streams() <= 0

    def exceeds_share(self) -> bool:
        """Return True if memory is short, and the connections of this origin hold more than their share of it."""
        connections = self.connections
        if not connections or not connections[0].budget.is_crowded():
            return False
        octets = 0
        for connection in connections:
            octets += connection.account.octets
        return connections[0].budget.exceeds_share(octets)

    def ready(self) -> UpstreamConnection | None:
        """Return a connection with a free stream; None if there is none, or if other requests wait for one."""
        return None if self.waiting else self.free()

    def free(self) -> UpstreamConnection | None:
        """Return the first connection with a free stream: the first stay full, so that the last can become idle."""
        for connection in self.connections:
            if connection.count_free_streams() > 0:
                return connection
        return None

    def add(self, connection: UpstreamConnection) -> None:
        """Use the streams of this connection, too."""
        self.connections.append(connection)
        connection.owner = self
        self.connection_changed(connection)

    def connection_changed(self, connection: UpstreamConnection) -> None:
        """Remove a connection that accepts no more streams, and serve the requests that wait."""
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
        """End the pause after a failed attempt to connect."""
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
        """Give free streams to the requests that have waited longest."""
        heap = self._heap
        while heap:
            if heap[0][1].done():
                heapq.heappop(heap)  # given up: `give_up` has counted it
                continue
            connection = self.free()
            if connection is None:
                return
            connection.reserved += 1
            self.waiting -= 1
            heapq.heappop(heap)[1].set_result(connection)

    def fail(self, failure: Failure) -> None:
        """Fail every request that waits."""
        heap, self._heap = self._heap, []
        for _, waiter in heap:
            if not waiter.done():
                self.waiting -= 1
                waiter.set_exception(failure)

    def give_up(self, waiter: asyncio.Future[UpstreamConnection]) -> None:
        """Remove a request that waits no longer; a stream that was just reserved for it is free again."""
        if waiter.cancel() or waiter.cancelled():
            self.waiting -= 1
        elif waiter.exception() is None:
            waiter.result().reserved -= 1
