"""The stage of the tests of upstream connections and their pool: what runs is real, the upstream is a raw peer."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from typing import Final

from proxy.connection.budget import Budget
from proxy.connection.flusher import Flusher
from proxy.http2.choice import EngineFactory
from proxy.http2.engine import Limits, Stream
from proxy.http2.events import StreamId
from proxy.observe.warnings import Warnings
from proxy.routes import Origin
from proxy.upstream.connection import ConnectionOwner, Timing, UpstreamConnection
from tests.support.loops import loop_idle
from tests.support.peers.raw import REQUEST, RawConnectionPeer
from tests.support.peers.receivers import RecordingReceiver

ORIGIN: Final = Origin("https", "greeter.example", 443)

MAX_STREAMS: Final = 0x3
"""SETTINGS_MAX_CONCURRENT_STREAMS (RFC 9113, 6.5.2)."""


class Far(RawConnectionPeer):
    """The upstream's end of `connection`."""

    def __init__(self, make: EngineFactory, timing: Timing, origin: Origin = ORIGIN, **given: StreamId) -> None:
        self.budget = Budget(1 << 20)
        self.connection = UpstreamConnection(
            lambda handler: make(client=True, limits=Limits(), handler=handler),
            self.budget,
            Flusher(asyncio.get_running_loop()),
            origin=origin,
            timing=timing,
            observer=Warnings(),
            **given,
        )
        self.streams: dict[StreamId, Stream] = {}
        """The connection's ends of the streams that `open` has opened."""
        super().__init__(self.connection, expects_preface=True)

    def greet(self, streams: int | None = None) -> None:
        """Send SETTINGS with this limit of streams."""
        self.send(self.settings({} if streams is None else {MAX_STREAMS: streams}))

    def limit(self, streams: int) -> None:
        """Change the limit of streams."""
        self.greet(streams)

    def open(self, receiver: RecordingReceiver | None = None, *, end: bool = True) -> StreamId:
        """Let the connection open a stream."""
        receiver = receiver or RecordingReceiver()
        stream = self.connection.open(REQUEST, end, receiver)
        receiver.stream_id = stream.id
        self.streams[stream.id] = stream
        return stream.id

    async def gone(self) -> bool:
        """Let the loop run until it is idle; return whether the connection has closed."""
        await loop_idle()
        return self.connection.gone.done()


class Owner(ConnectionOwner):
    """Calls a function whenever a connection has changed."""

    def __init__(self, on_change: Callable[[UpstreamConnection], object]) -> None:
        self._on_change = on_change

    def connection_changed(self, connection: UpstreamConnection) -> None:
        self._on_change(connection)


class Counts(Warnings):
    """Counts what the pool reports; warnings are logged."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: Counter[str] = Counter()
        self.closed: Counter[str] = Counter()
        self.refused: list[tuple[str, str]] = []

    def upstream_opened(self, origin: str, max_concurrent_streams: int) -> None:
        super().upstream_opened(origin, max_concurrent_streams)
        self.opened[origin] += 1

    def upstream_closed(self, origin: str) -> None:
        super().upstream_closed(origin)
        self.closed[origin] += 1

    def response_refused(self, origin: str, stream_id: int, reason: str) -> None:
        super().response_refused(origin, stream_id, reason)
        self.refused.append((origin, reason))


class Service:
    """Connects for a pool: each attempt waits until the test accepts or refuses it."""

    def __init__(self, make: EngineFactory, timing: Timing | None = None) -> None:
        self.dials = 0
        self.fars: list[Far] = []
        self.dialling: deque[tuple[Origin, asyncio.Future[UpstreamConnection]]] = deque()
        self._make = make
        self._timing = timing or Timing()

    async def connect(self, origin: Origin) -> UpstreamConnection:
        """The pool's `connect`."""
        self.dials += 1
        answer: asyncio.Future[UpstreamConnection] = asyncio.get_running_loop().create_future()
        self.dialling.append((origin, answer))
        try:
            return await answer
        finally:
            self.dialling = deque(one for one in self.dialling if one[1] is not answer)

    async def accept(self, streams: int | None = None) -> Far:
        """Let the oldest dial succeed."""
        origin, answer = self.dialling.popleft()
        far = Far(self._make, self._timing, origin)
        far.greet(streams)
        self.fars.append(far)
        answer.set_result(far.connection)
        await loop_idle()
        return far

    async def refuse(self, failure: BaseException) -> None:
        """Let the oldest dial fail."""
        self.dialling.popleft()[1].set_exception(failure)
        await loop_idle()


TIMING = Timing(ping_interval_seconds=30.0, ping_timeout_seconds=15.0, idle_timeout_seconds=180.0)


def settled(make: EngineFactory, streams: int | None = None, **given: StreamId) -> Far:
    """Return the far end of a connection whose SETTINGS were exchanged."""
    far = Far(make, TIMING, ORIGIN, **given)
    far.greet(streams)
    far.take()
    return far
