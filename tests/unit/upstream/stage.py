"""An upstream in memory: a real connection and engine, and frames built and read by hand."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Final

from hyperframe.frame import Frame

from proxy.connection.budget import Budget
from proxy.connection.protocol import Flusher
from proxy.errors import Failure
from proxy.http2.choice import EngineFactory
from proxy.http2.engine import Limits, Stream, StreamReceiver
from proxy.http2.events import Fields, StreamId
from proxy.observe.warnings import Warnings
from proxy.routes import Origin
from proxy.upstream.connection import ConnectionOwner, Timing, UpstreamConnection
from tests.support.loops import loop_idle
from tests.support.peers.raw import REQUEST, Frames, Seen
from tests.support.peers.transport import MemoryTransport

ORIGIN: Final = Origin("https", "greeter.example", 443)

MAX_STREAMS: Final = 0x3
"""SETTINGS_MAX_CONCURRENT_STREAMS (RFC 9113, 6.5.2)."""


class Far(Frames):
    """The upstream's end of `connection`, in the test's hands."""

    def __init__(self, make: EngineFactory, timing: Timing, origin: Origin = ORIGIN, **given: StreamId) -> None:
        super().__init__(expects_preface=True)
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
        """The near ends of what `open` has opened."""
        self.transport = MemoryTransport(asyncio.get_running_loop(), self.connection.as_protocol(), reading=True)
        self.connection.connection_made(self.transport)

    def send(self, *frames: Frame | bytes) -> None:
        """Have the connection read these frames, and write what it has to say."""
        self.connection.data_received(
            b"".join(frame if isinstance(frame, bytes) else frame.serialize() for frame in frames)
        )
        self.connection.flush()

    def greet(self, streams: int | None = None) -> None:
        """Send SETTINGS with this limit of streams."""
        self.send(self.settings({} if streams is None else {MAX_STREAMS: streams}))

    def limit(self, streams: int) -> None:
        """Change the limit of streams."""
        self.greet(streams)

    def take(self) -> list[Seen]:
        """Return every frame that has come since the last time."""
        self.connection.flush()
        return self.read(self.transport.read())

    def open(self, receiver: StreamReceiver | None = None, *, end: bool = True) -> StreamId:
        """Open a stream on the near end."""
        stream = self.connection.open(REQUEST, end, receiver or Receiver())
        self.streams[stream.id] = stream
        return stream.id

    async def gone(self) -> bool:
        """Give the connection time to close; return whether it has."""
        await loop_idle()
        return self.connection.gone.done()


class Receiver(StreamReceiver):
    """Writes down what a stream brings, in order."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.sent_octets = 0

    @property
    def ends(self) -> int:
        """How often it was told that the stream is over, but for a regular end."""
        return sum(1 for one in self.told if one[0] in ("reset", "unprocessed", "lost", "internal error"))

    def on_interim(self, fields: Fields) -> None:
        self.told.append(("interim", fields))

    def on_response_head(self, fields: Fields, end_stream: bool) -> None:
        self.told.append(("head", fields, end_stream))

    def on_response_data(self, data: bytes, end_stream: bool) -> None:
        self.told.append(("data", data, end_stream))

    def on_response_trailers(self, fields: Fields) -> None:
        self.told.append(("trailers", fields))

    def on_response_reset(self, code: int, by_peer: bool) -> None:
        self.told.append(("reset", code, by_peer))

    def on_unprocessed(self) -> None:
        self.told.append(("unprocessed",))

    def on_connection_lost(self, failure: Failure) -> None:
        self.told.append(("lost", failure.code, str(failure)))

    def on_request_sent(self, octets: int) -> None:
        self.sent_octets += octets

    def on_internal_error(self) -> bool:
        self.told.append(("internal error",))
        return True


class Owner(ConnectionOwner):
    """Has a function called whenever a connection has changed."""

    def __init__(self, told: Callable[[UpstreamConnection], object]) -> None:
        self._told = told

    def connection_changed(self, connection: UpstreamConnection) -> None:
        self._told(connection)


class Counts(Warnings):
    """What the pool told its observer; warnings are written as ever."""

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
    """Where a pool dials; a dial hangs until the test says what becomes of it."""

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


def made(make: EngineFactory, streams: int | None = None, **given: StreamId) -> Far:
    """A settled connection, its far end in hand."""
    far = Far(make, TIMING, ORIGIN, **given)
    far.greet(streams)
    far.take()
    return far
