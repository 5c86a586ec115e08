"""Two engines that are told the same and must report the same: an `Engine` like any other, to be put in one's place.

They are h2 and the compiled one; where that could not be built, h2 twice, which says nothing and breaks nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from itertools import zip_longest
from typing import TypeAlias, TypeVar

import hpack

from proxy.http2.choice import engine_choice
from proxy.http2.engine import Limits
from proxy.http2.events import ErrorCode, Fields, StreamId
from proxy.http2.policy.stream_history import AFTER_THE_END, PASSED_OVER
from tests.fuzz.traffic import CONTINUATION, DATA, END_STREAM, GOAWAY, HEADERS, RST_STREAM, WINDOW_UPDATE, frames
from tests.support.peers.engines import EventEngine
from tests.support.peers.events import ConnectionFailed, Event, HeadReceived, Sent, StreamReset
from tests.support.peers.raw import PREFACE

T = TypeVar("T")
Told: TypeAlias = tuple[object, ...]

END_HEADERS = 0x4
UNTOLD_RESETS = [ErrorCode.REFUSED_STREAM.to_bytes(4, "big")]


EARLY = (
    "a field block that cannot be decoded",
    "a field section far over",
    "request HEADERS",
    AFTER_THE_END,
    PASSED_OVER,
)


class Diverged(Exception):
    """The engines did different things where the contract lets them: what they report from now on may differ."""


class Wire:
    """Reads what one engine sends."""

    def __init__(self, *, client: bool) -> None:
        self.expects_preface = client
        self.decoder = hpack.Decoder()
        self.decoder.max_header_list_size = self.decoder.max_allowed_table_size = 1 << 24
        self.block = b""
        self.ends = False

    def read(self, data: bytes) -> dict[StreamId, list[Told]]:
        """Return what is sent on each stream: sections decoded, content in one piece.

        Left out is what an engine may do when it likes, or not at all: give credit back, refuse a stream before all of
        its head is there.
        """
        if self.expects_preface and data:
            assert data.startswith(PREFACE)
            data = data[len(PREFACE) :]
            self.expects_preface = False
        told: dict[StreamId, list[Told]] = defaultdict(list)
        for kind, flags, stream_id, payload in frames(data):
            one = self.frame(kind, flags, payload)
            if one is None:
                continue
            before = told[stream_id]
            if kind == DATA and before and before[-1][0] == DATA:
                merged = before.pop()[1]
                assert isinstance(merged, bytes)
                one = (DATA, merged + payload, one[2])
            if kind == RST_STREAM and before and before[-1] in ((DATA, b"", True), (HEADERS, True)):
                before.pop()
            before.append(one)
        return dict(told)

    def frame(self, kind: int, flags: int, payload: bytes) -> Told | None:
        if kind == WINDOW_UPDATE or (kind == RST_STREAM and payload in UNTOLD_RESETS):
            return None
        if kind == DATA:
            return DATA, payload, bool(flags & END_STREAM)
        if kind == GOAWAY:
            return GOAWAY, payload[:8]
        if kind not in (HEADERS, CONTINUATION):
            entries = sorted(payload[place : place + 6] for place in range(0, len(payload), 6))
            return kind, flags, *entries
        if kind == HEADERS:
            self.block = b""
            self.ends = bool(flags & END_STREAM)
        self.block += payload
        if not flags & END_HEADERS:
            return None
        lines = self.decoder.decode(self.block, raw=True)
        return HEADERS, self.ends, *((bytes(line[0]), bytes(line[1]), line.indexable) for line in lines)


class Twins(EventEngine):
    """The h2 engine and the compiled one, as one engine."""

    name = "both"

    def __init__(self, *, client: bool, limits: Limits) -> None:
        # When a stream counts no longer, and when a peer must know of our frame size, is not the same instant in both.
        limits = replace(limits, max_concurrent_streams=100, max_frame_octets=16_384)
        self.pair: tuple[EventEngine, EventEngine] = (
            EventEngine(engine_choice("h2").make, client=client, limits=limits),
            EventEngine(engine_choice("auto").make, client=client, limits=limits),
        )
        self.wires = (Wire(client=client), Wire(client=client))
        self.failed = False
        self.over = False
        self.sound: set[StreamId] = set()
        """Streams that were reported, or that we opened, and on which the peer has broken no rule."""
        self.taken = b""
        self.sent: dict[StreamId, int] = defaultdict(int)

    def both(self, ask: Callable[[EventEngine], T]) -> T:
        """Ask both; their answers, or what they raise, must be the same."""
        (answer, raised), (also, also_raised) = (outcome(ask, engine) for engine in self.pair)
        assert type(raised) is type(also_raised), (raised, also_raised)
        self.flush()
        if raised is not None:
            raise raised
        assert answer == also, (answer, also)
        return answer  # type: ignore[return-value]  # nothing was raised

    def same(self, ask: Callable[[EventEngine], T]) -> T:
        """Ask both a question."""
        answer, also = (ask(engine) for engine in self.pair)
        assert answer == also
        return answer

    # ---- receiving

    def receive(self, data: bytes) -> list[Event]:
        portable, compiled = (engine.receive(data) for engine in self.pair)
        compare(portable, compiled)
        for event in portable:
            if isinstance(event, HeadReceived):
                self.sound.add(event.stream_id)
            elif isinstance(event, StreamReset) and not event.by_peer:
                self.sound.discard(event.stream_id)
        self.failed = self.failed or bool(portable and isinstance(portable[-1], ConnectionFailed))
        self.flush()
        return portable

    def acknowledge(self, stream_id: StreamId, octets: int) -> None:
        self.both(lambda engine: engine.acknowledge(stream_id, octets))

    def acknowledge_connection(self, octets: int) -> None:
        self.both(lambda engine: engine.acknowledge_connection(octets))

    # ---- sending

    def send_request(self, fields: Fields, end_stream: bool) -> StreamId:
        stream_id = self.both(lambda engine: engine.send_request(fields, end_stream=end_stream))
        self.sound.add(stream_id)
        return stream_id

    def send_head(self, stream_id: StreamId, fields: Fields, end_stream: bool) -> None:
        self.both(lambda engine: engine.send_head(stream_id, fields, end_stream=end_stream))

    def send_data(self, stream_id: StreamId, data: bytes, end_stream: bool) -> None:
        self.both(lambda engine: engine.send_data(stream_id, data, end_stream=end_stream))

    def send_trailers(self, stream_id: StreamId, fields: Fields) -> None:
        self.both(lambda engine: engine.send_trailers(stream_id, fields))

    def reset(self, stream_id: StreamId, code: int, *, after_data: bool = False) -> None:
        self.both(lambda engine: engine.reset(stream_id, code, after_data=after_data))

    def ping(self, payload: bytes) -> None:
        self.both(lambda engine: engine.ping(payload))

    def offer_no_streams(self) -> None:
        self.both(lambda engine: engine.offer_no_streams())

    def announce_go_away(self) -> None:
        self.both(lambda engine: engine.announce_go_away())

    def go_away(self, code: int, debug: bytes = b"") -> None:
        self.both(lambda engine: engine.go_away(code, debug))

    def take(self) -> tuple[bytes, list[Sent]]:
        self.flush()
        data, sent = self.taken, self.sent
        self.taken, self.sent = b"", defaultdict(int)
        return data, [Sent(stream_id, octets) for stream_id, octets in sent.items()]

    def flush(self) -> None:
        """Have leave what can, after each command: an end that waits in one engine may have left in the other."""
        (portable, sent), (compiled, also_sent) = (engine.take() for engine in self.pair)
        assert sorted(sent) == sorted(also_sent)
        for stream_id, octets in sent:
            self.sent[stream_id] += octets
        self.taken += portable
        told, also_told = (
            self.but_for_faults(wire.read(data)) for wire, data in zip(self.wires, (portable, compiled), strict=True)
        )
        if not self.failed:
            assert told == also_told
        elif not self.over:
            # Answers to what came before the fault may stand in front of GOAWAY, and nothing is owed any more.
            assert all(any(one[0] == GOAWAY for one in wire.get(0, [])) for wire in (told, also_told))
            self.over = True

    def but_for_faults(self, told: dict[StreamId, list[Told]]) -> dict[StreamId, list[Told]]:
        """Leave out the resets that faults brought: where the stream is over by then, a recent library sends none."""
        return {
            stream_id: left
            for stream_id, all_told in told.items()
            if (left := [one for one in all_told if one[0] != RST_STREAM or stream_id in self.sound])
        }

    # ---- questions

    def take_refused(self) -> list[tuple[StreamId, str]]:
        portable, compiled = (engine.take_refused() for engine in self.pair)
        # Over some faults the library ends the connection instead.
        assert set(compiled) <= set(portable) or self.failed
        return portable

    @property
    def peer_max_concurrent_streams(self) -> int:
        return self.same(lambda engine: engine.peer_max_concurrent_streams)

    @property
    def open_streams(self) -> int:
        return self.same(lambda engine: engine.open_streams)

    @property
    def free_streams(self) -> int:
        return self.same(lambda engine: engine.free_streams)

    @property
    def queued_octets(self) -> int:
        return self.same(lambda engine: engine.queued_octets) + sum(self.sent.values())

    @property
    def wants_to_send(self) -> bool:
        return bool(self.taken) or any(engine.wants_to_send for engine in self.pair)


def outcome(ask: Callable[[EventEngine], T], engine: EventEngine) -> tuple[T | None, Exception | None]:
    try:
        return ask(engine), None
    except (ValueError, RuntimeError) as exc:
        return None, exc


def compare(portable: list[Event], compiled: list[Event]) -> None:
    """Fail unless both have reported the same; raise Diverged where they may differ and do."""
    for one, other in zip_longest(portable, compiled):
        if one == other:
            continue
        if isinstance(one, ConnectionFailed) and isinstance(other, ConnectionFailed):
            if one.code == other.code:
                continue  # in words of its own
            raise Diverged("a frame that breaks two rules")
        if may_part(one, other):
            raise Diverged(f"{one} {other}")
        raise AssertionError(one, other)


def may_part(portable: Event | None, compiled: Event | None) -> bool:
    """Whether this is one of the places where the contract leaves it to an engine what to do."""
    if isinstance(compiled, ConnectionFailed) and (
        # The library has a stream that it was told to reset until the end of the read; `stream_history` knows better,
        # unless ids that are passed over make it forget the stream within that read.
        (compiled.code == ErrorCode.STREAM_CLOSED and compiled.reason != AFTER_THE_END)
        or compiled.reason == "DATA: stream not opened"  # before the response head
        or compiled.reason.startswith("SETTINGS: invalid")  # of RFC 9218, which the other does not know
        or (portable is None and compiled.reason.startswith(EARLY))  # the other looks when the whole block is there
    ):
        return True
    # Reads that end within a frame count for one of them.
    if any(isinstance(one, ConnectionFailed) and one.reason.startswith("too many") for one in (portable, compiled)):
        return True
    # An engine that gives credit back later finds a peer beyond it sooner.
    if any(getattr(one, "code", None) == ErrorCode.FLOW_CONTROL_ERROR for one in (portable, compiled)):
        return True
    # On streams that are over, or that were never opened, the library looks neither at padding nor at sizes.
    return isinstance(portable, ConnectionFailed) and any(
        words in portable.reason
        for words in ("far over the limit", "padding is longer", "too short for their priority")
    )
