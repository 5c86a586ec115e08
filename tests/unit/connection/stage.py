"""The stage of the tests of this room: a server connection on a transport in memory, and the client's end of it."""

from __future__ import annotations

from proxy.connection.budget import Budget
from proxy.connection.flusher import Flusher
from proxy.connection.protocol import Http2Protocol
from proxy.http2.choice import EngineFactory
from proxy.http2.engine import Limits, Stream, StreamReceiver
from proxy.http2.events import Fields, StreamId
from tests.support.loops import ManualLoop
from tests.support.peers.events import Event, HeadReceived
from tests.support.peers.memory import Client
from tests.support.peers.receivers import EventReceiver
from tests.support.peers.transport import MemoryTransport

__all__ = ["Defect", "Pair", "Receiver", "Server"]

RESPONSE: Fields = [(b":status", b"200", False)]


class Defect(Exception):
    """An internal error that a test causes."""


class Receiver(EventReceiver):
    """Passes on to its server what it is told about one stream, and raises where the server is told to."""

    def __init__(self, server: Server, stream_id: StreamId) -> None:
        super().__init__(stream_id)
        self.was_over = False
        """What it says of itself after an internal error."""
        self.raised_again: Exception | None = None
        """Raised when it is told of an internal error."""
        self.internal_errors = 0
        self._server = server

    def note(self, event: Event) -> None:
        self._server.note(event)
        self._server.fail(self.stream_id)

    def note_sent(self, octets: int) -> None:
        self._server.sent.append((self.stream_id, octets))
        self._server.fail(self.stream_id)

    def on_internal_error(self) -> bool:
        self.internal_errors += 1
        if self.raised_again is not None:
            raise self.raised_again
        return not self.was_over


class Server(Http2Protocol):
    """A connection that keeps what it is told, and raises `Defect` for the streams in `failing`."""

    def __init__(self, make: EngineFactory, limits: Limits, budget: Budget, flusher: Flusher) -> None:
        self.events: list[Event] = []
        self.sent: list[tuple[StreamId, int]] = []
        self.lost: list[str] = []
        self.streams_lost: list[tuple[StreamId, str]] = []
        self.flushes = 0
        self.turns = 0
        self.failing: set[StreamId] = set()
        self.streams: dict[StreamId, Stream] = {}
        self.receivers: dict[StreamId, Receiver] = {}
        super().__init__(lambda handler: make(client=False, limits=limits, handler=handler), budget, flusher)

    def note(self, event: Event) -> None:
        self.events.append(event)

    def fail(self, stream_id: StreamId) -> None:
        if stream_id in self.failing:
            raise Defect

    def on_request(self, stream: Stream, fields: Fields, end_stream: bool) -> None:
        self.streams[stream.id] = stream
        self.note(HeadReceived(stream.id, fields, end_stream))
        self.fail(stream.id)
        stream.receiver = self.receivers[stream.id] = Receiver(self, stream.id)

    def on_go_away(self, last_stream_id: StreamId, code: int, debug: bytes) -> None:
        raise Defect

    def on_stream_lost(self, receiver: StreamReceiver, reason: str) -> None:
        assert isinstance(receiver, Receiver)
        assert not self.lost, "the connection's end comes last"
        self.streams_lost.append((receiver.stream_id, reason))
        self.fail(receiver.stream_id)

    def on_lost(self, reason: str) -> None:
        self.lost.append(reason)

    def flush(self) -> None:
        self.flushes += 1
        super().flush()

    def after_turn(self) -> None:
        self.turns += 1


class Pair:
    """Both ends of a connection; octets move when it is told to move them."""

    def __init__(
        self,
        make: EngineFactory,
        limits: Limits | None = None,
        *,
        queued_octets: int = 1 << 20,
        client_limits: Limits | None = None,
        flusher: Flusher | None = None,
    ) -> None:
        self.budget = Budget(queued_octets)
        self.flusher = flusher or Flusher(ManualLoop())
        assert isinstance(self.flusher.loop, ManualLoop)
        self.loop = self.flusher.loop
        self.server = Server(make, limits or Limits(), self.budget, self.flusher)
        self.transport = MemoryTransport(self.loop, self.server.as_protocol())
        small = Limits(stream_window_octets=65_535, connection_window_octets=65_535)
        self.client = Client(make, client_limits or small)
        self.client.acknowledging = False
        self.server.connection_made(self.transport)
        self.settle()

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self.loop.close()

    def end(self) -> None:
        """Abort the transport."""
        self.transport.abort()
        self.loop.turn()

    def up(self) -> bool:
        """Give the server what the client has to send; return whether there was any."""
        data = self.client.take()
        if data:
            self.server.data_received(data)
        return bool(data)

    def down(self) -> bool:
        """Let the server flush, and give the client what it wrote; return whether there was any."""
        self.loop.run_ready()
        data = self.transport.read()
        self.client.receive(data)
        return bool(data)

    def settle(self) -> None:
        """Move octets until none are on their way, and nothing is ready to run."""
        while self.up() | self.down():
            pass

    def answered(self, content: bytes, *, end: bool = False) -> StreamId:
        """Open a stream and queue a response on it."""
        stream_id = self.client.request("/x", end=True)
        self.up()
        stream = self.server.streams[stream_id]
        stream.send_head(RESPONSE, False)
        stream.send_data(content, end)
        return stream_id

    def errors(self) -> list[type[BaseException]]:
        """Return the kinds of the internal errors that were reported, and forget them."""
        found = [type(context["exception"]) for context in self.loop.uncaught]
        self.loop.uncaught.clear()
        return found

    def reset_codes(self, *stream_ids: StreamId) -> list[int | None]:
        """Return how the client has seen these streams reset."""
        return [self.client.streams[stream_id].reset for stream_id in stream_ids]
