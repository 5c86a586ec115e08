"""Frames on streams that are over, and on ids that were skipped (RFC 9113, 5.1 and 5.1.1).

Both engines do the same. A frame that may have crossed our RST_STREAM is discarded; one after the peer's own
END_STREAM or RST_STREAM ends the connection, as does a new stream with a lower id than one that was opened.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hyperframe.frame import Frame

from proxy.http2.engine import Limits
from tests.support.peers.engines import EventFactory, each_engine
from tests.support.peers.events import DataReceived, HeadReceived, StreamReset
from tests.support.peers.raw import (
    REQUEST,
    RESPONSE,
    TRAILERS,
    RawPeer,
    assert_connection_failed,
    credit,
    line,
)

PROTOCOL_ERROR, STREAM_CLOSED, CANCEL, CALM = 1, 5, 8, 11

LATE: dict[str, Callable[[RawPeer, int], Frame | bytes]] = {
    "DATA": lambda peer, stream_id: peer.data(stream_id, b"late"),
    "empty DATA": lambda peer, stream_id: peer.data(stream_id, end=True),
    "padded DATA": lambda peer, stream_id: peer.data(stream_id, b"", padding=5),
    "HEADERS": lambda peer, stream_id: peer.headers(stream_id, REQUEST),
    "trailers": lambda peer, stream_id: peer.headers(stream_id, TRAILERS, end=True),
}
each_late = pytest.mark.parametrize("late", LATE.values(), ids=list(LATE))


@each_engine
@pytest.mark.parametrize("lower", [1, 3])
@pytest.mark.parametrize("end", [True, False])
def test_a_new_stream_has_a_higher_id_than_all_before(make: EventFactory, lower: int, end: bool) -> None:
    peer = RawPeer(make, engine_is_client=False)
    assert peer.open(5, end=end) == [HeadReceived(5, REQUEST, end)]
    assert_connection_failed(peer, peer.open(lower, end=end), PROTOCOL_ERROR)


@each_engine
def test_stream_ids_may_be_skipped_but_not_go_back_even_in_one_read(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False)
    events = peer.send(*(peer.headers(stream_id, REQUEST, end=True) for stream_id in (1, 7, 9, 5, 11)))
    assert [event.stream_id for event in events[:-1] if isinstance(event, HeadReceived)] == [1, 7, 9]
    assert_connection_failed(peer, events, PROTOCOL_ERROR)


@each_engine
def test_the_id_of_a_refused_or_closed_stream_cannot_be_followed_by_a_lower_one(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False, limits=Limits(max_concurrent_streams=1))
    peer.open(5)
    assert peer.open(9) == []  # REFUSED_STREAM
    peer.send(peer.reset(5, CANCEL))
    assert_connection_failed(peer, peer.open(7), PROTOCOL_ERROR)


@each_engine
@each_late
def test_a_frame_on_a_skipped_id_is_a_connection_error(
    make: EventFactory, late: Callable[[RawPeer, int], Frame | bytes]
) -> None:
    peer = RawPeer(make, engine_is_client=False)
    peer.open(5)
    assert_connection_failed(peer, peer.send(late(peer, 3)), PROTOCOL_ERROR)


def end_with_the_head(peer: RawPeer) -> None:
    peer.open(1, end=True)


def end_with_data(peer: RawPeer) -> None:
    peer.open(1)
    peer.send(peer.data(1, b"x", end=True))


def end_with_trailers(peer: RawPeer) -> None:
    peer.open(1)
    peer.send(peer.headers(1, TRAILERS, end=True))


def reset(peer: RawPeer) -> None:
    peer.open(1)
    peer.send(peer.reset(1, CANCEL))


def end_and_then_reset(peer: RawPeer) -> None:
    peer.open(1, end=True)
    peer.send(peer.reset(1, CANCEL))


def end_both_halves(peer: RawPeer) -> None:
    peer.open(1, end=True)
    peer.engine.send_head(1, RESPONSE, end_stream=True)


def end_and_be_reset_by_us(peer: RawPeer) -> None:
    peer.open(1, end=True)
    peer.engine.reset(1, CANCEL)


def end_a_refused_stream(peer: RawPeer) -> None:
    peer.open(1, [line(b"no", b"pseudo-field")], end=True)


def end_one_of_another_read(peer: RawPeer) -> None:
    peer.open(1, end=True)
    for stream_id in range(3, 1_001, 2):
        peer.open(stream_id, end=True)
        peer.engine.send_head(stream_id, RESPONSE, end_stream=True)


@each_engine
@each_late
@pytest.mark.parametrize(
    "ended",
    [
        end_with_the_head,
        end_with_data,
        end_with_trailers,
        reset,
        end_and_then_reset,
        end_both_halves,
        end_and_be_reset_by_us,
        end_a_refused_stream,
        end_one_of_another_read,
    ],
)
def test_after_the_end_of_a_request_only_window_updates_and_priorities_are_accepted(
    make: EventFactory, late: Callable[[RawPeer, int], Frame | bytes], ended: Callable[[RawPeer], None]
) -> None:
    peer = RawPeer(make, engine_is_client=False)
    ended(peer)
    peer.take()
    assert peer.send(peer.window(1, 100), peer.priority(1)) == []
    assert_connection_failed(peer, peer.send(late(peer, 1)), STREAM_CLOSED)


@each_engine
@each_late
def test_a_frame_after_the_end_is_a_connection_error_in_the_same_read_too(
    make: EventFactory, late: Callable[[RawPeer, int], Frame | bytes]
) -> None:
    peer = RawPeer(make, engine_is_client=False)
    events = peer.send(peer.headers(1, REQUEST), peer.data(1, b"x", end=True), late(peer, 1), peer.ping())
    assert events[:-1] == [HeadReceived(1, REQUEST, False), DataReceived(1, b"x", True)]
    assert_connection_failed(peer, events, STREAM_CLOSED)


@each_engine
@each_late
def test_a_frame_after_the_end_of_a_response_is_a_connection_error(
    make: EventFactory, late: Callable[[RawPeer, int], Frame | bytes]
) -> None:
    for half_open in (True, False):
        peer = RawPeer(make, engine_is_client=True)
        peer.asked(end=not half_open)
        peer.send(peer.headers(1, RESPONSE, end=True))
        peer.asked()
        assert_connection_failed(peer, peer.send(late(peer, 1)), STREAM_CLOSED)


def reset_by_us(make: EventFactory, client: bool, limits: Limits) -> RawPeer:
    """Return a peer of an engine that has reset its stream 1, of which the peer knows nothing yet."""
    peer = RawPeer(make, engine_is_client=client, limits=limits)
    if client:
        peer.asked()
        peer.send(peer.headers(1, RESPONSE))
    else:
        peer.open(1)
    peer.engine.reset(1, CANCEL)
    peer.take()
    return peer


@each_engine
@pytest.mark.parametrize("client", [True, False])
def test_frames_that_crossed_our_reset_are_discarded(make: EventFactory, client: bool) -> None:
    """The field sections still count for HPACK, and the content for the connection's window (RFC 9113, 5.1)."""
    peer = reset_by_us(make, client, Limits(connection_window_octets=65_535))
    room = 65_535
    for _ in range(20):
        assert peer.send(peer.data(1, bytes(10_000))) == []
        room += credit(peer.take(), 0) - 10_000
        assert room > 10_000
    assert peer.send(peer.headers(1, [line(b"x-new", b"in the table")], end=True)) == []
    assert peer.send(peer.reset(1, CANCEL), peer.window(1, 5)) == []
    assert not peer.take()
    if client:
        peer.asked()
        (event,) = peer.send(peer.headers(3, [*RESPONSE, line(b"x-new", b"in the table")]))
    else:
        (event,) = peer.open(3, [*REQUEST, line(b"x-new", b"in the table")])
    assert isinstance(event, HeadReceived)
    assert event.fields[-1] == (b"x-new", b"in the table", False)


@each_engine
@pytest.mark.parametrize("client", [False, True])
def test_content_without_end_on_a_stream_that_we_reset_is_limited(make: EventFactory, client: bool) -> None:
    peer = reset_by_us(make, client, Limits())
    for _ in range(32):
        assert peer.send(*[peer.data(1, bytes(16_384))] * 64) == []
        peer.take()
    assert_connection_failed(peer, peer.send(*[peer.data(1, bytes(16_384))] * 65), CALM)


@each_engine
def test_a_window_of_content_that_crosses_each_reset_is_no_flood(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False)
    for stream_id in range(1, 401, 2):
        peer.open(stream_id)
        peer.engine.reset(stream_id, CANCEL)
        peer.take()
        assert peer.send(*[peer.data(stream_id, bytes(16_384))] * 64) == []
        peer.take()
    assert peer.open(401)


@each_engine
def test_a_frame_after_an_end_that_crossed_our_reset_is_a_connection_error(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False)
    peer.open(1)
    peer.engine.reset(1, CANCEL)
    peer.take()
    assert peer.send(peer.data(1, b"x", end=True)) == []
    assert_connection_failed(peer, peer.send(peer.data(1, b"x")), STREAM_CLOSED)


@each_engine
def test_late_frames_are_discarded_after_all_streams_were_reset_at_once(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False)
    streams = range(1, 2 * Limits().max_concurrent_streams, 2)
    for stream_id in streams:
        peer.open(stream_id)
    for stream_id in streams:
        peer.engine.reset(stream_id, CANCEL)
    peer.take()
    for stream_id in streams:
        assert peer.send(peer.data(stream_id, b"x"), peer.headers(stream_id, TRAILERS, end=True)) == []
    assert peer.take() == []
    assert peer.open(streams[-1] + 2)


@each_engine
def test_late_frames_on_streams_that_closed_long_ago_are_discarded(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False)
    for stream_id in (*range(3, 6_001, 2), 20_001):
        peer.open(stream_id, end=True)
        peer.engine.send_head(stream_id, RESPONSE, end_stream=True)
    peer.take()
    for stream_id in (1, 3):
        assert peer.send(peer.data(stream_id, b"late"), peer.headers(stream_id, TRAILERS, end=True)) == []
    assert peer.take() == []
    assert_connection_failed(peer, peer.send(peer.data(20_001, b"late")), STREAM_CLOSED)


@each_engine
def test_a_reset_after_the_end_of_the_response_is_reported(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=True)
    peer.asked()
    assert peer.send(peer.headers(1, RESPONSE, end=True), peer.reset(1, 0)) == [
        HeadReceived(1, RESPONSE, True),
        StreamReset(1, 0, True),
    ]
    assert peer.send(peer.reset(1, 0), peer.window(1, 1)) == []
