"""Two engines joined in memory: what one takes, the other receives."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise

from proxy.http2.engine import Limits
from proxy.http2.events import StreamId
from tests.support.peers.engines import EventEngine, EventFactory
from tests.support.peers.events import ConnectionFailed, DataReceived, Event, TrailersReceived


class Side:
    """One of two joined engines, and what it has reported."""

    def __init__(self, engine: EventEngine) -> None:
        self.engine = engine
        self.events: list[Event] = []
        self.content: dict[StreamId, bytearray] = defaultdict(bytearray)
        self.ended: set[StreamId] = set()
        self.sent: dict[StreamId, int] = defaultdict(int)

    def receive(self, data: bytes, *, acknowledge: bool) -> None:
        for event in self.engine.receive(data):
            self.events.append(event)
            assert not isinstance(event, ConnectionFailed), event
            if isinstance(event, DataReceived):
                self.content[event.stream_id] += event.data
                assert event.data or event.end_stream
                if acknowledge:
                    self.engine.acknowledge(event.stream_id, len(event.data))
                    self.engine.acknowledge_connection(len(event.data))
            if isinstance(event, TrailersReceived) or getattr(event, "end_stream", False):
                self.ended.add(event.stream_id)  # type: ignore[union-attr]  # such events have a stream

    def take(self) -> bytes:
        data, sent = self.engine.take()
        for stream_id, octets in sent:
            self.sent[stream_id] += octets
        return data

    def of(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if type(event) is kind]


class Joined:
    """A client and a server engine on one connection."""

    def __init__(
        self,
        make: EventFactory,
        *,
        client_limits: Limits | None = None,
        server_limits: Limits | None = None,
        acknowledge: bool = True,
    ) -> None:
        self.client = Side(make(client=True, limits=client_limits or Limits()))
        self.server = Side(make(client=False, limits=server_limits or Limits()))
        self.acknowledge = acknowledge
        self.run()

    def step(self) -> bool:
        """Let each side send once what it has; return whether anything moved."""
        up = self.client.take()
        if up:
            self.server.receive(up, acknowledge=self.acknowledge)
        down = self.server.take()
        if down:
            self.client.receive(down, acknowledge=self.acknowledge)
        return bool(up or down)

    def run(self) -> None:
        """Exchange bytes until neither side has any."""
        while self.step():
            pass


def split(data: bytes, places: Iterable[int]) -> list[bytes]:
    """Cut data at these places, in any order, beyond the end or repeated."""
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in pairwise(edges)]
