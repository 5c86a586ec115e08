"""Properties for any octets and any script."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.http2.engine import Limits
from proxy.http2.events import ErrorCode, Fields, StreamId
from tests.support.peers.engines import ENGINES, EventFactory, each_engine
from tests.support.peers.events import (
    ConnectionFailed,
    DataReceived,
    Event,
    HeadReceived,
    InterimReceived,
    StreamReset,
    TrailersReceived,
)
from tests.support.peers.memory import EnginePeer, Joined
from tests.support.peers.raw import PREFACE, REQUEST, RESPONSE, TRAILERS, RawPeer, line

VALUE = st.binary(max_size=60).map(lambda raw: re.sub(rb"[\x00-\x08\x0a-\x1f\x7f]", b"", raw).strip(b" \t"))
EXTRA = st.lists(
    st.tuples(st.sampled_from([b"accept", b"x-a", b"x-b", b"traceparent", b"authorization"]), VALUE, st.booleans()),
    max_size=6,
)


# ---- any cut of a byte stream


def recording(*, to_client: bool) -> bytes:
    """A valid byte stream with every kind of frame."""
    peer = RawPeer(ENGINES[0], engine_is_client=to_client)
    frames = [peer.settings({4: 1_000, 3: 200})]
    for stream_id in (1, 3, 5, 7):
        head = RESPONSE if to_client else REQUEST
        if to_client:
            frames.append(peer.headers(stream_id, [line(b":status", b"103")]))
        frames += peer.split_headers(stream_id, [*head, line(b"x-n", b"%d" % stream_id)], [3, 0, 9])
        frames.append(peer.data(stream_id, b"padded", padding=20))
        frames.append(peer.data(stream_id, bytes(3_000)))
        frames += [peer.ping(), peer.ping(ack=True), peer.priority(stream_id)]
    frames.append(peer.data(1, end=True))
    frames.append(peer.headers(3, TRAILERS, end=True))
    frames.append(peer.reset(5, 8))
    frames.append(peer.go_away(7, 0, b"bye"))
    frames.append(peer.data(7, b"the end", end=True))
    preface = b"" if to_client else PREFACE
    return preface + b"".join(frame.serialize() for frame in frames)


RECORDED = {to_client: recording(to_client=to_client) for to_client in (True, False)}


def listener(make: EventFactory, *, client: bool) -> EnginePeer:
    side = EnginePeer(make(client=client, limits=Limits(stream_window_octets=70_000)))
    if client:
        for _ in range(4):
            side.engine.send_request(REQUEST, end_stream=False)
    return side


def told(events: list[Event]) -> list[Event]:
    """Join neighbouring content: frame boundaries do not matter."""
    joined: list[Event] = []
    for event in events:
        last = joined[-1] if joined else None
        if isinstance(event, DataReceived) and isinstance(last, DataReceived) and last.stream_id == event.stream_id:
            joined[-1] = DataReceived(event.stream_id, last.data + event.data, event.end_stream)
        else:
            joined.append(event)
    return joined


def split(data: bytes, places: Iterable[int]) -> list[bytes]:
    """Cut data at these places, in any order, beyond the end or repeated."""
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in pairwise(edges)]


@each_engine
@pytest.mark.parametrize("client", [True, False])
@given(places=st.lists(st.integers(0, 30_000), max_size=40))
@settings(max_examples=60)
def test_events_do_not_depend_on_how_the_octets_were_split(make: EventFactory, client: bool, places: list[int]) -> None:
    whole = listener(make, client=client).engine.receive(RECORDED[client])
    assert not isinstance(whole[-1], ConnectionFailed)
    side = listener(make, client=client)
    events = [event for piece in split(RECORDED[client], places) for event in side.engine.receive(piece)]
    assert told(events) == told(whole)


@each_engine
@pytest.mark.parametrize("client", [True, False])
def test_events_are_the_same_if_octets_arrive_one_by_one(make: EventFactory, client: bool) -> None:
    whole = listener(make, client=client).engine.receive(RECORDED[client])
    side = listener(make, client=client)
    octets = [RECORDED[client][place : place + 1] for place in range(len(RECORDED[client]))]
    assert told([event for octet in octets for event in side.engine.receive(octet)]) == told(whole)


# ---- any bytes


def exercise(side: EnginePeer, pieces: list[bytes], *, client: bool) -> None:
    """Feed bytes and answer as an owner would: nothing raises, and a failure is final and the peer's."""
    engine = side.engine
    failed = False
    for piece in pieces:
        events = engine.receive(piece)
        assert not (failed and events), "nothing is reported after ConnectionFailed"
        for event in events:
            assert not failed
            if isinstance(event, ConnectionFailed):
                failed = True
                assert event.code != ErrorCode.INTERNAL_ERROR, event.reason
            elif isinstance(event, HeadReceived):
                if not client:
                    engine.send_head(event.stream_id, RESPONSE, end_stream=False)
                if event.stream_id % 4 == 3:
                    engine.reset(event.stream_id, 8, after_data=True)
            elif isinstance(event, DataReceived):
                engine.acknowledge(event.stream_id, len(event.data))
                engine.acknowledge_connection(len(event.data))
                engine.send_data(event.stream_id, event.data, end_stream=event.end_stream)
        data, sent = engine.take()
        assert isinstance(data, bytes)
        assert all(octets > 0 for _, octets in sent)
    if failed:
        assert not engine.free_streams
        assert engine.receive(RECORDED[True]) == []


MUTATION = st.tuples(
    st.sampled_from(["flip", "insert", "delete", "repeat"]), st.integers(0, 30_000), st.binary(min_size=1, max_size=12)
)


def mutated(data: bytes, mutations: list[tuple[str, int, bytes]]) -> bytes:
    for kind, place, extra in mutations:
        place %= len(data) + 1
        if kind == "flip":
            data = data[:place] + extra + data[place + len(extra) :]
        elif kind == "insert":
            data = data[:place] + extra + data[place:]
        elif kind == "delete":
            data = data[:place] + data[place + len(extra) :]
        else:
            data = data[:place] + data[max(0, place - 40 * len(extra)) :]
    return data


@each_engine
@pytest.mark.parametrize("client", [True, False])
@given(mutations=st.lists(MUTATION, min_size=1, max_size=4), places=st.lists(st.integers(0, 30_000), max_size=3))
@settings(max_examples=150)
def test_mutated_octets_raise_nothing(
    make: EventFactory, client: bool, mutations: list[tuple[str, int, bytes]], places: list[int]
) -> None:
    exercise(listener(make, client=client), split(mutated(RECORDED[client], mutations), places), client=client)


FRAME = st.tuples(
    st.integers(0, 12), st.integers(0, 255), st.sampled_from([0, 1, 2, 3, 5, 7, 9, 0x7FFF_FFFF]), st.binary(max_size=40)
)


@each_engine
@pytest.mark.parametrize("client", [True, False])
@given(frames=st.lists(FRAME, max_size=15))
@settings(max_examples=150)
def test_random_frames_raise_nothing(
    make: EventFactory, client: bool, frames: list[tuple[int, int, int, bytes]]
) -> None:
    raw = b"".join(
        len(body).to_bytes(3, "big") + bytes((kind, flags)) + stream_id.to_bytes(4, "big") + body
        for kind, flags, stream_id, body in frames
    )
    opening = (b"" if client else PREFACE) + b"\0\0\0\4\0\0\0\0\0"
    exercise(listener(make, client=client), [opening, raw], client=client)


# ---- any script between two engines


@dataclass
class Story:
    """What one side has sent on one stream, by the script's account."""

    heads: list[Fields] = field(default_factory=list)
    data: bytes = b""
    trailers: Fields | None = None
    ended: bool = False
    reset: str | None = None
    """"at once" or "after data"."""


SIZES = st.sampled_from([0, 1, 9, 100, 1_000, 16_384, 16_385, 40_000])
DATA = st.tuples(
    st.just("data"), st.integers(0, 9), st.tuples(st.booleans(), SIZES, st.integers(0, 9).map(lambda n: n > 7))
)
OPERATION = st.one_of(
    st.tuples(st.just("open"), EXTRA, st.integers(0, 9).map(lambda n: n > 7)),
    st.tuples(st.just("interim"), st.integers(0, 9), st.none()),
    st.tuples(st.just("answer"), st.integers(0, 9), EXTRA),
    DATA,
    DATA,
    DATA,
    st.tuples(st.just("trailers"), st.integers(0, 9), st.tuples(st.booleans(), EXTRA)),
    st.tuples(st.just("reset"), st.integers(0, 9), st.tuples(st.booleans(), st.booleans(), st.integers(0, 2**32 - 1))),
    st.tuples(st.just("acknowledge"), st.integers(0, 1), st.booleans()),
    st.tuples(st.just("step"), st.just(0), st.none()),
)


class Script:
    """Carries out operations on two joined engines and keeps its own account of them."""

    def __init__(self, make: EventFactory, windows: tuple[int, int]) -> None:
        self.joined = Joined(
            make,
            client_limits=Limits(stream_window_octets=windows[0], connection_window_octets=65_535),
            server_limits=Limits(stream_window_octets=windows[1], connection_window_octets=65_535),
            acknowledge=False,
        )
        self.streams: list[StreamId] = []
        self.told = {True: defaultdict[StreamId, Story](Story), False: defaultdict[StreamId, Story](Story)}
        self.owed = {True: defaultdict[StreamId, int](int), False: defaultdict[StreamId, int](int)}
        self.seen = {True: 0, False: 0}

    def side(self, client: bool) -> EnginePeer:
        return self.joined.client if client else self.joined.server

    def account(self) -> None:
        """Note the content that has arrived and is to be acknowledged."""
        for client in (True, False):
            events = self.side(client).events
            for event in events[self.seen[client] :]:
                if isinstance(event, DataReceived):
                    self.owed[client][event.stream_id] += len(event.data)
            self.seen[client] = len(events)

    def acknowledge(self, client: bool) -> bool:
        self.account()
        owed, self.owed[client] = self.owed[client], defaultdict(int)
        for stream_id, octets in owed.items():
            self.side(client).engine.acknowledge(stream_id, octets)
            self.side(client).engine.acknowledge_connection(octets)
        return bool(owed)

    def arrived(self, stream_id: StreamId) -> bool:
        return any(
            isinstance(event, HeadReceived) and event.stream_id == stream_id for event in self.joined.server.events
        )

    def live(self, number: int, client: bool) -> tuple[StreamId, Story] | None:
        """A stream on which this side may send, if there is one."""
        if not self.streams:
            return None
        stream_id = self.streams[number % len(self.streams)]
        story = self.told[client][stream_id]
        gone = any(
            isinstance(event, StreamReset) and event.stream_id == stream_id for event in self.side(client).events
        )
        if gone or story.reset or story.ended or not (client or self.arrived(stream_id)):
            return None
        return stream_id, story

    def play(self, operation: tuple[str, object, object]) -> None:
        name, first, second = operation
        getattr(self, f"do_{name}")(first, second)

    def do_step(self, _: int, __: None) -> None:
        self.joined.step()

    def do_acknowledge(self, client: int, _: bool) -> None:
        self.acknowledge(bool(client))

    def do_open(self, extra: Fields, end: bool) -> None:
        if self.joined.client.engine.free_streams:
            stream_id = self.joined.client.engine.send_request([*REQUEST, *extra], end_stream=end)
            self.streams.append(stream_id)
            self.told[True][stream_id] = Story([[*REQUEST, *extra]], ended=end)

    def do_interim(self, number: int, _: None) -> None:
        live = self.live(number, client=False)
        if live is not None and not any(head[0][1] == b"200" for head in live[1].heads):
            self.joined.server.engine.send_head(live[0], [line(b":status", b"103")], end_stream=False)
            live[1].heads.append([line(b":status", b"103")])

    def do_answer(self, number: int, extra: Fields) -> None:
        live = self.live(number, client=False)
        if live is not None and not any(head[0][1] == b"200" for head in live[1].heads):
            self.joined.server.engine.send_head(live[0], [*RESPONSE, *extra], end_stream=False)
            live[1].heads.append([*RESPONSE, *extra])

    def speaking(self, number: int, client: bool) -> tuple[StreamId, Story] | None:
        """A stream on which this side has sent its head."""
        live = self.live(number, client)
        if live is None or not live[1].heads or live[1].heads[-1][0][1] == b"103":
            return None
        return live

    def do_data(self, number: int, details: tuple[bool, int, bool]) -> None:
        client, octets, end = details
        live = self.speaking(number, client)
        if live is not None:
            stream_id, story = live
            data = bytes((len(story.data) + place) & 0xFF for place in range(octets))
            self.side(client).engine.send_data(stream_id, data, end_stream=end)
            story.data += data
            story.ended = end

    def do_trailers(self, number: int, details: tuple[bool, Fields]) -> None:
        client, fields = details
        live = self.speaking(number, client)
        if live is not None:
            self.side(client).engine.send_trailers(live[0], fields)
            live[1].trailers = fields
            live[1].ended = True

    def do_reset(self, number: int, details: tuple[bool, bool, int]) -> None:
        client, after_data, code = details
        live = self.speaking(number, client)
        if live is not None:
            # A side whose reset waits gives no window back: two that wait for each other's would never end.
            after_data &= self.told[not client][live[0]].reset != "after data"
            self.side(client).engine.reset(live[0], code, after_data=after_data)
            live[1].reset = "after data" if after_data else "at once"

    def finish(self) -> None:
        """Let everything arrive that can."""
        moving = True
        while moving:
            moving = self.joined.step()
            for client in (True, False):
                moving = self.acknowledge(client) or moving

    def check(self) -> None:
        for sender in (True, False):
            receiver = self.side(not sender)
            for stream_id in self.streams:
                self.check_stream(self.told[sender][stream_id], self.told[not sender][stream_id], receiver, stream_id)
        for client in (True, False):
            assert self.side(client).engine.queued_octets == 0
            assert not self.side(client).engine.wants_to_send

    def check_stream(self, story: Story, answer: Story, receiver: EnginePeer, stream_id: StreamId) -> None:
        mine = [event for event in receiver.events if getattr(event, "stream_id", 0) == stream_id]
        heads = [event.fields for event in mine if isinstance(event, HeadReceived | InterimReceived)]
        trailers = [event.fields for event in mine if isinstance(event, TrailersReceived)]
        resets = [event for event in mine if isinstance(event, StreamReset)]
        assert heads == story.heads[: len(heads)]
        assert story.data.startswith(receiver.streams[stream_id].content)
        assert all(event.by_peer for event in resets)
        assert len(resets) <= 1
        assert not resets or mine[-1] is resets[0]
        if answer.reset or story.reset == "at once":
            return
        assert heads == story.heads
        assert receiver.streams[stream_id].content == story.data
        assert receiver.streams[stream_id].ended == story.ended
        assert trailers == ([story.trailers] if story.trailers else [])
        if story.reset and not (story.ended and answer.ended):
            assert resets or story.ended


@each_engine
@given(
    operations=st.lists(OPERATION, min_size=30, max_size=80),
    windows=st.tuples(st.sampled_from([1_000, 20_000, 1 << 20]), st.sampled_from([1_000, 20_000, 1 << 20])),
)
@settings(max_examples=100)
def test_content_arrives_as_it_was_sent(
    make: EventFactory, operations: list[tuple[str, object, object]], windows: tuple[int, int]
) -> None:
    script = Script(make, windows)
    for _ in range(3):
        script.play(("open", [], False))
    script.play(("step", 0, None))
    for operation in operations:
        script.play(operation)
    script.finish()
    script.check()
