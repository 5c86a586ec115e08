"""Engines as peers in memory: they take and give octets, and write down what they are told.

`Client` and `Service` are the two ends around `tests.support.data_path`; `Joined` puts one engine against another.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from hyperframe.frame import Frame

from proxy.http2.choice import EngineFactory
from proxy.http2.engine import Limits
from proxy.http2.events import Fields, StreamId
from tests.support.peers.engines import EventEngine, EventFactory
from tests.support.peers.events import (
    ConnectionFailed,
    DataReceived,
    Event,
    HeadReceived,
    InterimReceived,
    StreamReset,
    TrailersReceived,
)

__all__ = ["Client", "EnginePeer", "Joined", "Message", "Service"]


@dataclass
class Message:
    """What has arrived of one half of a stream."""

    head: Fields | None = None
    interim: list[Fields] = field(default_factory=list)
    content: bytearray = field(default_factory=bytearray)
    trailers: Fields | None = None
    ended: bool = False
    reset: int | None = None

    @property
    def status(self) -> int:
        """The status of a response."""
        assert self.head is not None
        return int(self.head[0][1])

    def value(self, name: bytes) -> bytes | None:
        """Return the value of a field of the head, None without."""
        return next((value for key, value, _ in self.head or [] if key == name), None)

    def take_content(self) -> bytes:
        """Return the content that has arrived, and forget it."""
        content = bytes(self.content)
        self.content.clear()
        return content


class EnginePeer:
    """An engine and what it has reported. Windows are given back as content is received, unless told otherwise."""

    def __init__(self, engine: EventEngine) -> None:
        self.engine = engine
        self.events: list[Event] = []
        self.streams: dict[StreamId, Message] = defaultdict(Message)
        self.sent: dict[StreamId, int] = defaultdict(int)
        """Content that has left, by stream."""
        self.acknowledging = True
        """Whether the windows of streams are given back."""
        self.acknowledging_connection = True
        """Whether the window of the connection is given back."""
        self.unacknowledged: dict[StreamId, int] = defaultdict(int)
        self.failed: ConnectionFailed | None = None
        self._raw = b""

    def raw(self, frame: Frame) -> None:
        """Send a frame that the engine would not, behind what it has queued."""
        self._raw += frame.serialize()

    def receive(self, data: bytes) -> None:
        """Have the engine receive octets."""
        for event in self.engine.receive(data):
            self.events.append(event)
            self._note(event)

    def _note(self, event: Event) -> None:
        match event:
            case HeadReceived(stream_id, fields, end_stream):
                self.streams[stream_id].head = fields
                self.streams[stream_id].ended = end_stream
            case InterimReceived(stream_id, fields):
                self.streams[stream_id].interim.append(fields)
            case DataReceived(stream_id, data, end_stream):
                assert data or end_stream, "no empty DATA within a stream"
                self.streams[stream_id].content += data
                self.streams[stream_id].ended |= end_stream
                self.unacknowledged[stream_id] += len(data)
                if self.acknowledging:
                    self.acknowledge(stream_id)
                if self.acknowledging_connection:
                    self.engine.acknowledge_connection(len(data))
            case TrailersReceived(stream_id, fields):
                self.streams[stream_id].trailers = fields
                self.streams[stream_id].ended = True
            case StreamReset(stream_id, code, _):
                self.streams[stream_id].reset = code
            case ConnectionFailed():
                self.failed = event

    def take(self) -> bytes:
        """Return the octets that are to be sent now."""
        data, sent = self.engine.take()
        for stream_id, octets in sent:
            self.sent[stream_id] += octets
        raw, self._raw = self._raw, b""
        return data + raw

    def acknowledge(self, stream_id: StreamId) -> None:
        """Give a stream's window back."""
        octets = self.unacknowledged.pop(stream_id, 0)
        if octets:
            self.engine.acknowledge(stream_id, octets)

    def acknowledge_all(self) -> None:
        """Give the windows of all streams back, from now on at once."""
        self.acknowledging = True
        for stream_id in list(self.unacknowledged):
            self.acknowledge(stream_id)

    def of(self, kind: type[Event]) -> list[Event]:
        """Return the events of a kind."""
        return [event for event in self.events if type(event) is kind]

    def forget(self) -> None:
        """Forget what has been received and sent so far."""
        self.events.clear()
        self.streams.clear()
        self.sent.clear()


class Client(EnginePeer):
    """Restate's end of a connection."""

    def __init__(self, make: EngineFactory, limits: Limits) -> None:
        super().__init__(EventEngine(make, client=True, limits=limits))

    def request(
        self,
        path: str,
        *,
        method: str = "POST",
        authority: bytes = b"sidecar:9081",
        fields: Iterable[tuple[bytes, bytes]] = (),
        end: bool = False,
    ) -> StreamId:
        """Send a request head."""
        head: Fields = [
            (b":method", method.encode(), False),
            (b":scheme", b"http", False),
            (b":authority", authority, False),
            (b":path", path.encode(), False),
            *((name, value, False) for name, value in fields),
        ]
        return self.engine.send_request(head, end_stream=end)


class Service(EnginePeer):
    """Cloud Run's end of a connection."""

    def __init__(self, make: EngineFactory, limits: Limits) -> None:
        super().__init__(EventEngine(make, client=False, limits=limits))

    @property
    def requests(self) -> list[StreamId]:
        """The streams on which requests have arrived, in their order."""
        return [event.stream_id for event in self.events if isinstance(event, HeadReceived)]

    def respond(
        self, stream_id: StreamId, status: int = 200, *, fields: Iterable[tuple[bytes, bytes]] = (), end: bool = False
    ) -> None:
        """Send a response head; with a status below 200 an interim one."""
        head: Fields = [(b":status", b"%d" % status, False), *((name, value, False) for name, value in fields)]
        self.engine.send_head(stream_id, head, end_stream=end)

    def path(self, stream_id: StreamId) -> bytes | None:
        """The `:path` of a request."""
        return self.streams[stream_id].value(b":path")


class Joined:
    """A client's and a server's engine on one connection: what one takes, the other receives."""

    def __init__(
        self,
        make: EventFactory,
        *,
        client_limits: Limits | None = None,
        server_limits: Limits | None = None,
        acknowledge: bool = True,
    ) -> None:
        self.client = EnginePeer(make(client=True, limits=client_limits or Limits()))
        self.server = EnginePeer(make(client=False, limits=server_limits or Limits()))
        for peer in (self.client, self.server):
            peer.acknowledging = peer.acknowledging_connection = acknowledge
        self.run()

    def step(self) -> bool:
        """Let each peer send once what it has; return whether anything moved."""
        return self._move(self.client, self.server) | self._move(self.server, self.client)

    def run(self) -> None:
        """Exchange octets until neither peer has any."""
        while self.step():
            pass

    def _move(self, sender: EnginePeer, receiver: EnginePeer) -> bool:
        data = sender.take()
        if data:
            receiver.receive(data)
            assert receiver.failed is None, receiver.failed
        return bool(data)
