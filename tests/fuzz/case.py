"""One connection to a random peer, and what must hold all along, whatever the peer sends and whatever is asked for.

A case is a number: the same number is the same case, with every engine, on every machine.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from random import Random

from proxy.http2.engine import Limits
from proxy.http2.events import ErrorCode, Fields, StreamId
from tests.fuzz.traffic import (
    CONTINUATION,
    DATA,
    END_STREAM,
    GOAWAY,
    HEADERS,
    NUMBERS,
    PING,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Peer,
    frames,
)
from tests.support.peers.engines import EventFactory
from tests.support.peers.events import (
    ConnectionFailed,
    DataReceived,
    Event,
    HeadReceived,
    InterimReceived,
    StreamReset,
    TrailersReceived,
)
from tests.support.peers.raw import PREFACE, REQUEST, RESPONSE, TRAILERS


class Case:
    """One connection from its start to its end, and what must hold all along."""

    def __init__(self, make: EventFactory, number: int) -> None:
        self.rng = rng = Random(number)
        self.client = rng.random() < 0.5
        limits = Limits(
            max_concurrent_streams=rng.choice((2, 100)),
            stream_window_octets=rng.choice((1_000, 65_535, 1 << 20)),
            connection_window_octets=rng.choice((65_535, 1 << 24)),
            max_field_section_octets=rng.choice((700, 64 << 10)),
            max_frame_octets=rng.choice((16_384, 20_000)),
        )
        self.limits = limits
        self.engine = make(client=self.client, limits=limits)
        self.seen: set[StreamId] = set()
        self.over: set[StreamId] = set()
        self.ended: set[StreamId] = set()
        self.failed = False
        self.queued: dict[StreamId, int] = defaultdict(int)
        self.opening = self.client

    def run(self) -> None:
        rng = self.rng
        for _ in range(rng.randrange(1, 9) if self.client else 0):
            self.command_request()
        peer = Peer(rng, self.limits, sorted(self.seen))
        data = peer.mutated(peer.traffic())
        while data:
            length = len(data) if rng.random() < 0.3 else rng.choice((1, 9, 100, 3_000, 20_000))
            self.events(self.engine.receive(data[:length]))
            data = data[length:]
            for _ in range(rng.randrange(4)):
                rng.choice(self.COMMANDS)(self)
            if rng.random() < 0.7:
                self.take()
        self.take()
        self.take()

    def events(self, events: list[Event]) -> None:
        for event in events:
            assert not self.failed, "nothing is reported after ConnectionFailed"
            if isinstance(event, ConnectionFailed):
                self.failed = True
                assert event.code != ErrorCode.INTERNAL_ERROR, event
                assert event.reason
                continue
            stream_id = getattr(event, "stream_id", None)
            if stream_id is None:
                continue
            if isinstance(event, HeadReceived) and not self.client:
                assert stream_id not in self.seen, "a request is reported once"
                self.seen.add(stream_id)
            assert stream_id in self.seen, "no event for a stream that was never opened"
            assert stream_id not in self.over, "a reset is the last event of its stream"
            if isinstance(event, StreamReset):
                self.over.add(stream_id)
                continue
            assert stream_id not in self.ended, "nothing but a reset comes after the end"
            if isinstance(event, DataReceived):
                assert event.data or event.end_stream
                if self.rng.random() < 0.8:
                    self.engine.acknowledge(stream_id, len(event.data))
                    self.engine.acknowledge_connection(len(event.data))
            elif not isinstance(event, TrailersReceived):
                assert isinstance(event, HeadReceived | InterimReceived)
                assert all(name and name == name.lower() for name, _, _ in event.fields)
            if isinstance(event, TrailersReceived) or getattr(event, "end_stream", False):
                self.ended.add(stream_id)

    def take(self) -> None:
        engine = self.engine
        queued, wanted = engine.queued_octets, engine.wants_to_send
        data, sent = engine.take()
        assert wanted or not data
        if self.opening and data:
            assert data.startswith(PREFACE)
            data = data[len(PREFACE) :]
            self.opening = False
        content: dict[StreamId, int] = defaultdict(int)
        for kind, flags, stream_id, payload in frames(data):
            assert kind in (DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION)
            if kind == DATA:
                assert payload or flags & END_STREAM, "no empty frame but the last"
                content[stream_id] += len(payload)
        assert dict(sent) == {stream_id: octets for stream_id, octets in content.items() if octets}
        assert engine.queued_octets <= queued - sum(content.values())
        assert engine.queued_octets >= 0
        assert engine.open_streams >= 0
        if self.failed:
            assert engine.open_streams == engine.queued_octets == 0
            assert not engine.free_streams

    # ---- commands

    def some_stream(self) -> StreamId:
        return self.rng.choice(sorted(self.seen)) if self.seen and self.rng.random() < 0.9 else 1

    def command_request(self) -> None:
        if self.engine.free_streams:
            self.seen.add(self.engine.send_request(REQUEST, end_stream=self.rng.random() < 0.2))

    def command_head(self) -> None:
        head = RESPONSE if self.rng.random() < 0.8 else [(b":status", b"103", False)]
        end = head is RESPONSE and self.rng.random() < 0.2
        self.tolerantly(lambda: self.engine.send_head(self.some_stream(), head, end_stream=end))

    def command_data(self) -> None:
        data = bytes(self.rng.choice((0, 1, 500, 40_000)))
        end = self.rng.random() < 0.3
        self.tolerantly(lambda: self.engine.send_data(self.some_stream(), data, end_stream=end))

    def command_trailers(self) -> None:
        fields = TRAILERS if self.rng.random() < 0.7 else []
        self.tolerantly(lambda: self.engine.send_trailers(self.some_stream(), fields))

    def command_bad_fields(self) -> None:
        bad: Fields = [(b":status", b"200", False), (b"Upper", b"a\r\nb", False)]
        self.tolerantly(lambda: self.engine.send_head(self.some_stream(), bad, end_stream=False))

    def command_reset(self) -> None:
        after = self.rng.random() < 0.5
        self.engine.reset(self.some_stream(), self.rng.choice(NUMBERS), after_data=after)

    def command_other(self) -> None:
        kind = self.rng.randrange(6)
        if kind == 0:
            self.engine.ping(b"01234567")
        elif kind == 1 and self.rng.random() < 0.3:
            self.engine.go_away(self.rng.choice(NUMBERS), b"so long")
        else:
            self.engine.acknowledge(self.some_stream(), self.rng.choice((0, 1, 1_000)))

    def tolerantly(self, command: Callable[[], None]) -> None:
        """Give a command that may be out of place: then it says so, and does nothing."""
        with suppress(RuntimeError, ValueError):
            command()

    COMMANDS = (
        command_request,
        command_head,
        command_head,
        command_data,
        command_data,
        command_trailers,
        command_bad_fields,
        command_reset,
        command_other,
    )
