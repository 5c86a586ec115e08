"""What engines must agree on: tables of test vectors, run on the policy and on every engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Protocol, TypeVar

import pytest

from proxy.http2.events import FieldLine, Fields
from proxy.http2.policy.compression import MOST_TABLE_OCTETS, SentLines
from proxy.http2.policy.fields import Malformed, check_request, check_response, check_trailers
from tests.conformance.vectors import compression, fields, flood, sending
from tests.support.peers.engines import EventFactory, each_engine
from tests.support.peers.events import ConnectionFailed, HeadReceived, StreamReset
from tests.support.peers.raw import REQUEST, RESPONSE, RawPeer, Seen, line, of


class Named(Protocol):
    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=Named)


def each(vectors: Sequence[T]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return pytest.mark.parametrize("vector", vectors, ids=[vector.name for vector in vectors])


# ---- field sections


def refused(check: Callable[[], object]) -> str | None:
    try:
        check()
    except Malformed as exc:
        return exc.reason
    return None


@each(fields.REQUESTS)
def test_the_policy_judges_each_request_as_its_vector_says(vector: fields.Vector) -> None:
    assert refused(lambda: check_request(vector.fields, ends=vector.end)) == vector.reason


@each(fields.RESPONSES)
def test_the_policy_judges_each_response_as_its_vector_says(vector: fields.Vector) -> None:
    assert refused(lambda: check_response(vector.fields, to_head=False, ends=vector.end)) == vector.reason


@each(fields.TRAILERS)
def test_the_policy_judges_each_trailer_section_as_its_vector_says(vector: fields.Vector) -> None:
    assert refused(lambda: check_trailers(vector.fields, ends=vector.end)) == vector.reason


@each_engine
@each(fields.REQUESTS)
def test_each_engine_judges_requests_as_the_vectors_say(make: EventFactory, vector: fields.Vector) -> None:
    peer = RawPeer(make, engine_is_client=False)
    events = peer.send(peer.headers(1, vector.fields, end=vector.end))
    refusals = [one.frame.error_code for one in of(peer.take(), "RstStream", 1)]  # type: ignore[attr-defined]
    if vector.reason is None:
        assert events == [HeadReceived(1, vector.fields, vector.end)]
        assert refusals == peer.engine.take_refused() == []
    else:
        assert events == []
        assert refusals == [1]
        assert peer.engine.take_refused() == [(1, vector.reason)]


@each_engine
@each(fields.RESPONSES)
def test_each_engine_judges_responses_as_the_vectors_say(make: EventFactory, vector: fields.Vector) -> None:
    peer = RawPeer(make, engine_is_client=True)
    peer.asked()
    (event,) = peer.send(peer.headers(1, vector.fields, end=vector.end))
    assert (event == StreamReset(1, 1, False)) == (vector.reason is not None)
    assert peer.engine.take_refused() == ([(1, vector.reason)] if vector.reason is not None else [])


@each_engine
@each(fields.TRAILERS)
@pytest.mark.parametrize("client", [True, False])
def test_each_engine_judges_trailers_as_the_vectors_say(
    make: EventFactory, vector: fields.Vector, client: bool
) -> None:
    peer = RawPeer(make, engine_is_client=client)
    if client:
        peer.asked()
        peer.send(peer.headers(1, RESPONSE))
    else:
        peer.open()
    (event,) = peer.send(peer.headers(1, vector.fields, end=vector.end))
    assert (event == StreamReset(1, 1, False)) == (vector.reason is not None)
    assert peer.engine.take_refused() == ([(1, vector.reason)] if vector.reason is not None else [])


@each_engine
def test_a_request_over_the_limit_is_refused_as_too_large(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False)
    peer.send(*peer.split_headers(1, [*REQUEST, line(b"x", b"y" * 66_000)], [16_384] * 4))
    assert peer.engine.take_refused() == [(1, "section-too-large")]


# ---- floods

FRAMES: dict[str, Callable[[RawPeer], bytes]] = {
    "PING": lambda peer: peer.ping().serialize(),
    "WINDOW_UPDATE": lambda peer: peer.window(1, 1),
    "PRIORITY": lambda peer: peer.priority(1).serialize(),
    "UNKNOWN": lambda peer: b"\0\0\0\xfe\0\0\0\0\1",
    "EMPTY_DATA": lambda peer: peer.data(1).serialize(),
    "SETTINGS": lambda peer: peer.settings({}).serialize(),
    "CONTENT": lambda peer: peer.data(1, b"x").serialize(),
}
FOR_EVER = 2_500
"""Reads after which an account that is overdrawn by one a read would be empty."""


@each_engine
@each(flood.FLOODS)
def test_each_engine_ends_a_flood_where_its_vector_says(make: EventFactory, vector: flood.Flood) -> None:
    peer = RawPeer(make, engine_is_client=False)
    peer.open()
    peer.answered()
    peer.engine.strict = False
    peer.engine.handler.streams[1].receiver = None
    read = b"".join(FRAMES[name](peer) for name in vector.repeated)
    for count in range(FOR_EVER if vector.passes is None else vector.passes + 1):
        events = peer.engine.receive(read)
        peer.engine.take()
        peer.engine.acknowledge_connection(1)
        if events and isinstance(events[-1], ConnectionFailed):
            assert events[-1].code == 11
            assert count == vector.passes
            return
    assert vector.passes is None


# ---- compression


def kind_of(head: Seen, table_entries: int, peer: RawPeer) -> compression.Line:
    """Tell from the octets how the last line of a section was sent."""
    entered = len(peer.decoder.header_table.dynamic_entries) > table_entries
    if entered:
        return compression.TABLE
    if head.fields[-1][2]:
        return compression.NEVER
    # What precedes the last line is sent alike each time: the length tells an index from a literal.
    return compression.INDEXED if head.body[-1] & 0x80 else compression.PLAIN


@each_engine
@each(compression.SEQUENCES)
def test_each_engine_indexes_the_lines_that_the_vectors_name(make: EventFactory, vector: compression.Sequence) -> None:
    peer = RawPeer(make, engine_is_client=True, settings={1: vector.table_octets, 3: 1_000})
    peer.decoder.max_allowed_table_size = max(vector.table_octets, MOST_TABLE_OCTETS)
    told: list[compression.Line] = []
    for sent, _ in vector.lines:
        before = len(peer.decoder.header_table.dynamic_entries)
        peer.engine.send_request([*STATIC_REQUEST, sent], end_stream=True)
        (head,) = of(peer.take(), "Headers")
        assert head.fields == [*STATIC_REQUEST, sent]
        told.append(kind_of(head, before, peer))
    assert told == [expected for _, expected in vector.lines]


@each_engine
def test_lines_sent_together_again_and_again_all_enter_the_table(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=True, settings={3: 4_000})
    for number in range(200):
        lines: Fields = [(b"x-%d-%d" % (number, place), b"value", False) for place in range(4)]
        for _ in range(2):
            peer.engine.send_request([*STATIC_REQUEST, *lines], end_stream=True)
        peer.take()
        peer.engine.send_request([*STATIC_REQUEST, *lines], end_stream=True)
        (head,) = of(peer.take(), "Headers")
        assert len(head.body) == len(STATIC_REQUEST) + len(lines), f"{number}: a line is still a literal"


STATIC_REQUEST: Fields = [(b":method", b"GET", False), (b":scheme", b"http", False), (b":path", b"/", False)]
"""Lines of the static table, so that nothing but the line in question can enter the other."""


@each(compression.SEQUENCES)
def test_the_policy_indexes_the_lines_that_the_vectors_name(vector: compression.Sequence) -> None:
    lines, table = SentLines(), set[FieldLine]()
    octets = min(vector.table_octets, MOST_TABLE_OCTETS)
    for sent, expected in vector.lines:
        if expected in (compression.PLAIN, compression.TABLE):
            assert lines.is_repeated(sent[0], sent[1], octets) == (expected == compression.TABLE)
            table.add(sent)


# ---- order of sending


@each_engine
@each(sending.TAKES)
def test_each_engine_sends_the_frames_that_the_vectors_name(make: EventFactory, vector: sending.Take) -> None:
    peer = RawPeer(make, engine_is_client=True, settings={4: 0, 3: 1_000})
    if vector.connection_window > 65_535:
        peer.send(peer.window(0, vector.connection_window - 65_535))
    streams = [peer.asked() for _ in vector.streams]
    for stream_id, queued in zip(streams, vector.streams, strict=True):
        if queued.window:
            peer.send(peer.window(stream_id, queued.window))
        if queued.octets:
            peer.engine.send_data(stream_id, bytes(queued.octets), end_stream=queued.end == "data")
        elif queued.end == "data":
            peer.engine.send_data(stream_id, b"", end_stream=True)
        if queued.end == "trailers":
            peer.engine.send_trailers(stream_id, [line(b"x", b"y")])
        if queued.reset:
            peer.engine.reset(stream_id, 8, after_data=queued.reset == "after data")
    seen = peer.take()
    assert by_content(shape(seen)) == by_content(vector.frames)
    assert peer.sent == sent_of(vector.frames)


def shape(seen: list[Seen]) -> list[tuple[int, str, int]]:
    return [
        (one.stream_id, one.kind + ("." if one.ends else ""), 0 if one.kind == "Headers" else len(one.body))
        for one in seen
    ]


def by_content(frames: list[tuple[int, str, int]]) -> tuple[list[tuple[int, str, int]], dict[int, list[str]]]:
    """The order that is agreed on: that of content among all streams, and that of all frames of each stream."""
    kinds = {
        stream_id: [kind for _, kind, _ in group]
        for stream_id, group in groupby(sorted(frames, key=itemgetter(0)), key=itemgetter(0))
    }
    return [frame for frame in frames if frame[2] and frame[1].startswith("Data")], kinds


def sent_of(frames: list[tuple[int, str, int]]) -> list[tuple[int, int]]:
    sent: dict[int, int] = {}
    for stream_id, kind, octets in frames:
        if kind.startswith("Data") and octets:
            sent[stream_id] = sent.get(stream_id, 0) + octets
    return list(sent.items())
