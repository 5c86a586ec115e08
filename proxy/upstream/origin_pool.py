"""The connections of one origin, and the requests that wait for a stream there; `pool` opens them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Final

from proxy.connection.budget import Account
from proxy.errors import Failure, Overloaded
from proxy.http2.engine import StreamReceiver
from proxy.observe.observer import UpstreamObserver
from proxy.routes import Origin
from proxy.upstream.connection import ConnectionOwner, UpstreamConnection
from proxy.upstream.wait_queue import Waiter, WaitQueue

__all__ = ["EXPECTED_STREAMS", "OriginPool", "has_streams"]

EXPECTED_STREAMS: Final = 100
"""About what Google's front end offers in its SETTINGS."""


class OriginPool(ConnectionOwner):
    """The connections of one origin, and the requests that wait for a stream there."""

    __slots__ = (
        "_barren",
        "_observer",
        "closed",
        "connections",
        "expected_streams",
        "failure",
        "failures",
        "fruitless",
        "fruitless_at",
        "on_fruitless",
        "on_wanted",
        "opening",
        "origin",
        "outage",
        "pause",
        "queue",
        "waiting",
    )

    def __init__(self, origin: Origin, observer: UpstreamObserver) -> None:
        self.origin = origin
        self._observer = observer
        self.closed = False
        """Whether nothing uses this pool any more."""
        self.connections: list[UpstreamConnection] = []
        """Connections that accept streams, in the order in which they were opened."""
        self._barren: UpstreamConnection | None = None  # the one that was opened last, if it has never offered a stream
        self.opening = 0
        """Connections being opened."""
        self.expected_streams = EXPECTED_STREAMS
        """How many streams the next connection is expected to offer: as many as the last one did."""
        self.failures = 0
        """Failed attempts to connect since the last successful one."""
        self.failure: Failure | None = None
        """The last failure, while requests may still be told of it."""
        self.fruitless = 0
        """Connections that ended before they had served a request, since one served some or time has passed."""
        self.fruitless_at = 0.0
        """When the last of them ended, as the event loop counts."""
        self.on_fruitless: Callable[[OriginPool, asyncio.AbstractEventLoop], None] | None = None
        """Called when a connection of this loop has ended before it had served a request."""
        self.outage = False
        """Whether there was no connection when the last attempt failed."""
        self.pause: asyncio.TimerHandle | None = None
        """Ends the pause in which no further connection is tried."""
        self.waiting = 0
        """Requests that wait for a stream."""
        self.on_wanted: Callable[[OriginPool], None] | None = None
        """Called when connections changed while requests wait."""
        self.queue = WaitQueue()
        """Those requests; `waiting` of them have not given up."""

    def has_fruitless(self) -> bool:
        """Return True if the newest connection has never offered a stream: another one would not offer any either.

        A server offers 0 streams for short durations only (RFC 9113, 5.1.2). One that has offered some may want no more
        of them on this connection, and says nothing of others.
        """
        return self._barren is not None

    def exceeds_share(self) -> bool:
        """Return True if memory is short, and the connections of this origin hold more than their share of it."""
        for connection in self.connections:
            return connection.budget.exceeds_share(connection.account.holder.octets)
        return False

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
        self._barren = connection
        connection.owner = self
        connection.budget.join(connection.account, self.origin)
        self.connection_changed(connection)

    def connection_changed(self, connection: UpstreamConnection) -> None:
        """Remove a connection that accepts no more streams, and serve the requests that wait."""
        fruitless = connection.fruitless or connection is self._barren
        if connection is self._barren and (connection.retiring or has_streams(connection)):
            self._barren = None
        if connection.retiring and connection in self.connections:
            self.connections.remove(connection)
            self._observer.upstream_retired(str(self.origin))
            if fruitless and self.on_fruitless is not None:
                self.on_fruitless(self, connection.loop)
        if self.waiting and self.on_wanted is not None:
            self.on_wanted(self)

    def close(self, failure: Failure) -> None:
        """Fail all requests that wait, and close the connections; live streams are lost."""
        self.closed = True
        self.fail(failure)
        for connection in list(self.connections):
            connection.retire("no route leads there any more")

    def end_pause(self) -> None:
        """End the pause after a failed attempt to connect."""
        if self.pause is not None:
            self.pause.cancel()
            self.pause = None

    def join(self, owner: Hashable, ticket: int, waiter: Waiter) -> None:
        """Wait in the place that `ticket` gives among the requests of this owner."""
        self.queue.join(owner, ticket, waiter)
        self.waiting += 1

    def serve(self) -> None:
        """Give free streams to the requests that wait, to each owner in turn."""
        while (waiter := self.queue.first()) is not None:
            connection = self.free()
            if connection is None:
                return
            connection.reserved += 1
            self.waiting -= 1
            self.queue.take_first()
            waiter.set_result(connection)

    def give_way(self, owner: Hashable) -> bool:
        """End an exchange of the client with most streams, if `owner` has less than half as many; True if one ended.

        The clients of an address have theirs together; within an address, each has its own. It is the newest of the
        connection with most. A stream of a cancelled request, which is held back, is taken before.
        """
        for connection in self.connections:
            if connection.cancels.release():
                return True
        held: dict[object, dict[object, list[StreamReceiver]]] = {}
        for connection in self.connections:
            for stream in connection.engine.live_streams():
                receiver = stream.receiver
                if receiver is not None and (other := receiver.owner()) is not None:
                    held.setdefault(_address(other), {}).setdefault(other, []).append(receiver)
        if not held:
            return False
        most = max(held.values(), key=_count)
        largest = max(most.values(), key=len)
        mine = held.get(_address(owner), {})
        if most is mine:
            if len(largest) < 2 * (len(mine.get(owner, ())) + 1):
                return False
        elif _count(most) < 2 * (_count(mine) + 1):
            return False
        largest[-1].on_evicted(Overloaded(f"all streams to {self.origin} are in use, and this client has most of them"))
        return True

    def fail(self, failure: Failure) -> None:
        """Fail every request that waits."""
        for waiter in self.queue.take_all():
            if not waiter.done():
                self.waiting -= 1
                waiter.set_exception(failure)

    def give_up(self, owner: Hashable, waiter: Waiter) -> None:
        """Remove a request of `owner` that waits no longer; a stream that was just reserved for it is free again."""
        if waiter.cancel() or waiter.cancelled():
            self.waiting -= 1
            self.queue.forget_finished(owner)
        elif waiter.exception() is None:
            waiter.result().reserved -= 1


def has_streams(connection: UpstreamConnection) -> bool:
    """Return True if a stream of this connection is free, promised or in use."""
    return connection.count_free_streams() > 0 or connection.reserved > 0 or connection.engine.count_open_streams() > 0


def _address(owner: object) -> object:
    """Return what the clients of one address have in common."""
    return owner.holder if isinstance(owner, Account) else owner


def _count(held: Mapping[object, Sequence[object]]) -> int:
    return sum(map(len, held.values()))
