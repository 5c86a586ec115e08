"""The two ends of the sidecar's connections, each an engine in a test's hands."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from hyperframe.frame import Frame

from proxy.http2.choice import EngineFactory
from proxy.http2.engine import Limits
from proxy.http2.events import Fields, StreamId
from tests.support.peers.engines import EventEngine
from tests.support.peers.events import (
    ConnectionFailed,
    DataReceived,
    Event,
    HeadReceived,
    InterimReceived,
    StreamReset,
    TrailersReceived,
)

__all__ = ["Client", "End", "Message", "Service"]


@dataclass
class Message:
    """What came of one half of a stream at one end."""

    head: Fields | None = None
    interim: list[Fields] = field(default_factory=list)
    content: bytearray = field(default_factory=bytearray)
    trailers: Fields | None = None
    ended: bool = False
    reset: int | None = None

    @property
    def status(self) -> int:
        assert self.head is not None
        return int(self.head[0][1])

    def value(self, name: bytes) -> bytes | None:
        """Return the value of a field of the head, None without."""
        return next((value for key, value, _ in self.head or [] if key == name), None)


class End:
    """One end that a test holds: an engine, and what it has reported."""

    def __init__(self, make: EngineFactory, *, client: bool, limits: Limits) -> None:
        self.engine = EventEngine(make, client=client, limits=limits)
        self.streams: dict[StreamId, Message] = defaultdict(Message)
        self.sent: dict[StreamId, int] = defaultdict(int)
        """Content that has left, by stream."""
        self.acknowledging = True
        self.unacknowledged: dict[StreamId, int] = defaultdict(int)
        self.heads: list[StreamId] = []
        self.frames: list[DataReceived] = []
        self.others: list[Event] = []
        """What concerns no stream."""
        self.failed: ConnectionFailed | None = None
        self._raw = b""

    def raw(self, frame: Frame) -> None:
        """Send a frame that the engine would not, behind what it has queued."""
        self._raw += frame.serialize()

    def receive(self, data: bytes) -> None:
        for event in self.engine.receive(data):
            self._take(event)

    def _take(self, event: Event) -> None:
        match event:
            case HeadReceived(stream_id, fields, end_stream):
                self.streams[stream_id].head = fields
                self.streams[stream_id].ended = end_stream
                self.heads.append(stream_id)
            case InterimReceived(stream_id, fields):
                self.streams[stream_id].interim.append(fields)
            case DataReceived(stream_id, data, end_stream):
                self.frames.append(event)
                self.streams[stream_id].content += data
                self.streams[stream_id].ended |= end_stream
                if data:
                    self.engine.acknowledge_connection(len(data))
                    self.unacknowledged[stream_id] += len(data)
                    if self.acknowledging:
                        self.acknowledge(stream_id)
            case TrailersReceived(stream_id, fields):
                self.streams[stream_id].trailers = fields
                self.streams[stream_id].ended = True
            case StreamReset(stream_id, code, _):
                self.streams[stream_id].reset = code
            case ConnectionFailed():
                self.failed = event
            case _:
                self.others.append(event)

    def take(self) -> bytes:
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
        """Give all windows back, from now on at once."""
        self.acknowledging = True
        for stream_id in list(self.unacknowledged):
            self.acknowledge(stream_id)


class Client(End):
    """Restate's end."""

    def __init__(self, make: EngineFactory, limits: Limits) -> None:
        super().__init__(make, client=True, limits=limits)

    def request(
        self, path: str, *, method: str = "POST", fields: Iterable[tuple[bytes, bytes]] = (), end: bool = False
    ) -> StreamId:
        """Send a request head."""
        head: Fields = [
            (b":method", method.encode(), False),
            (b":scheme", b"http", False),
            (b":authority", b"sidecar:9081", False),
            (b":path", path.encode(), False),
            *((name, value, False) for name, value in fields),
        ]
        return self.engine.send_request(head, end_stream=end)


class Service(End):
    """Cloud Run's end."""

    def __init__(self, make: EngineFactory, limits: Limits) -> None:
        super().__init__(make, client=False, limits=limits)

    def respond(
        self, stream_id: StreamId, status: int = 200, *, fields: Iterable[tuple[bytes, bytes]] = (), end: bool = False
    ) -> None:
        """Send a response head; with a status below 200 an interim one."""
        head: Fields = [(b":status", b"%d" % status, False), *((name, value, False) for name, value in fields)]
        self.engine.send_head(stream_id, head, end_stream=end)

    def path(self, stream_id: StreamId) -> bytes | None:
        """The `:path` of a request."""
        return self.streams[stream_id].value(b":path")
