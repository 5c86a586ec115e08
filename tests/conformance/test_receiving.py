"""Content on the way in: events, credit, faults (RFC 9113, 5.1, 6.1, 6.9)."""

from __future__ import annotations

import pytest
from hyperframe.frame import ContinuationFrame, DataFrame, HeadersFrame, PushPromiseFrame

from proxy.http2.engine import Limits
from tests.support.peers.engines import EventFactory, each_engine
from tests.support.peers.events import DataReceived, HeadReceived, StreamReset
from tests.support.peers.raw import (
    REQUEST,
    RESPONSE,
    TRAILERS,
    RawPeer,
    assert_connection_failed,
    assert_stream_failed,
    credit,
    line,
    of,
)

SMALL = Limits(stream_window_octets=10_000, connection_window_octets=65_535)


@each_engine
def test_content_is_reported_frame_by_frame(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False)
    peer.open()
    events = peer.send(peer.data(1, b"one"), peer.data(1, b"two", end=True))
    assert b"".join(event.data for event in events if isinstance(event, DataReceived)) == b"onetwo"
    assert events[-1].end_stream  # type: ignore[union-attr]  # DATA comes last
    assert not any(event.end_stream for event in events[:-1])  # type: ignore[union-attr]


@each_engine
def test_an_empty_end_is_reported(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False)
    peer.open()
    assert peer.send(peer.data(1, end=True)) == [DataReceived(1, b"", True)]


@each_engine
def test_an_empty_end_is_reported_while_the_window_is_negative(make: EventFactory) -> None:
    """RFC 9113, 6.9.1."""
    peer = RawPeer(make, engine_is_client=False, limits=SMALL, acknowledge_settings=False)
    peer.open()
    peer.send(peer.data(1, bytes(16_384)))
    peer.acknowledge_settings()  # the window is −6,384 now
    assert peer.send(peer.data(1, end=True)) == [DataReceived(1, b"", True)]


@each_engine
def test_empty_content_that_ends_nothing_is_not_reported(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False)
    peer.open()
    assert peer.send(peer.data(1), peer.data(1, padding=9)) == []


@each_engine
def test_the_window_of_a_stream_opens_only_when_content_is_acknowledged(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False, limits=SMALL)
    peer.open()
    peer.send(peer.data(1, bytes(10_000)))
    assert peer.take() == []
    peer.engine.acknowledge(1, 10_000)
    seen = peer.take()
    assert credit(seen, 1) == 10_000
    assert credit(seen, 0) == 0


@each_engine
def test_the_window_of_the_connection_is_acknowledged_separately(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False, limits=Limits(connection_window_octets=65_535))
    peer.open()
    for _ in range(4):
        peer.send(peer.data(1, bytes(16_000)))
    assert peer.take() == []
    peer.engine.acknowledge_connection(64_000)
    seen = peer.take()
    assert credit(seen, 0) == 64_000
    assert credit(seen, 1) == 0


@each_engine
@pytest.mark.parametrize("window", [1, 2, 3, 10, 100, 1_023, 5_000])
def test_a_small_window_never_stalls_its_sender(make: EventFactory, window: int) -> None:
    peer = RawPeer(make, engine_is_client=False, limits=Limits(stream_window_octets=window))
    peer.open()
    room = window
    for _ in range(50):
        octets = min(room, 16_384)
        assert octets > 0, "the sender may send"
        assert peer.send(peer.data(1, bytes(octets))) == [DataReceived(1, bytes(octets), False)]
        peer.engine.acknowledge(1, octets)
        room += credit(peer.take(), 1) - octets


@each_engine
@pytest.mark.parametrize("octets", [10_001, 16_384, 32_000, 40_000, 65_535])
def test_content_given_back_before_settings_are_acknowledged_opens_the_window(make: EventFactory, octets: int) -> None:
    peer = RawPeer(make, engine_is_client=False, limits=SMALL, acknowledge_settings=False)
    peer.open()
    for at in range(0, octets, 16_384):
        part = min(16_384, octets - at)
        peer.send(peer.data(1, bytes(part)))
        peer.engine.acknowledge(1, part)
    peer.acknowledge_settings()
    assert 10_000 - octets + credit(peer.take(), 1) > 0, "the sender may send (RFC 9113, 6.9.2)"


@each_engine
def test_small_acknowledgements_add_up_to_a_window_update(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False, limits=SMALL)
    peer.open()
    peer.send(peer.data(1, bytes(10_000)))
    for _ in range(1_000):
        peer.engine.acknowledge(1, 10)
    returned = credit(peer.take(), 1)
    assert returned > 5_000
    assert peer.send(peer.data(1, bytes(returned)))


@each_engine
def test_padding_is_given_back_by_the_engine(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False, limits=SMALL)
    peer.open()
    returned_stream = returned_connection = 0
    for _ in range(400):
        assert peer.send(peer.data(1, b"x", padding=255)) == [DataReceived(1, b"x", False)]
        peer.engine.acknowledge(1, 1)
        peer.engine.acknowledge_connection(1)
        seen = peer.take()
        returned_stream += credit(seen, 1)
        returned_connection += credit(seen, 0)
    # 102,800 octets through a window of 10,000 and one of 65,535
    assert returned_stream > 400 * 257 - 10_000
    assert returned_connection > 400 * 257 - 65_535


@each_engine
def test_a_frame_may_consist_of_padding_alone(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False)
    peer.open()
    assert peer.send(peer.data(1, padding=0), peer.data(1, end=True, padding=100)) == [DataReceived(1, b"", True)]


@each_engine
def test_content_over_the_streams_window_resets_the_stream(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False, limits=SMALL)
    peer.open()
    peer.send(peer.data(1, bytes(9_999)))
    assert_stream_failed(peer, peer.send(peer.data(1, bytes(2))), 1, 3, or_connection=True)


@each_engine
def test_content_over_the_connections_window_ends_the_connection(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False, limits=Limits(connection_window_octets=65_535))
    peer.open(1)
    peer.open(3)
    for _ in range(2):
        peer.send(peer.data(1, bytes(16_000)), peer.data(3, bytes(16_000)))
    assert_connection_failed(peer, peer.send(peer.data(1, bytes(1_536))), 3)


@each_engine
@pytest.mark.parametrize("how", ["reset by us", "never reported"])
def test_content_for_closed_streams_is_given_back_to_the_connection_window(make: EventFactory, how: str) -> None:
    peer = RawPeer(make, engine_is_client=False, limits=Limits(connection_window_octets=65_535))
    if how == "never reported":
        peer.send(peer.headers(1, REQUEST[:2]))
    else:
        peer.open()
    if how == "reset by us":
        peer.engine.reset(1, 8)
    peer.take()
    room = 65_535
    for _ in range(20):
        assert peer.send(peer.data(1, bytes(10_000), padding=3)) == []
        room += credit(peer.take(), 0) - 10_004
        assert room > 10_004
    assert peer.open(3)


@each_engine
def test_a_stream_that_we_reset_reports_nothing_more(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=True, limits=Limits(connection_window_octets=65_535), settings={4: 1})
    peer.asked()
    peer.engine.send_data(1, b"0123", end_stream=False)
    peer.engine.reset(1, 8, after_data=True)
    peer.take()
    assert peer.send(peer.headers(1, RESPONSE)) == []
    room = 65_535
    for _ in range(10):
        assert peer.send(peer.data(1, bytes(10_000))) == []
        room += credit(peer.take(), 0) - 10_000
        assert room > 10_000
    assert peer.send(peer.headers(1, TRAILERS, end=True)) == []
    assert peer.engine.open_streams == 1
    peer.send(peer.window(1, 3))
    peer.take()
    assert peer.engine.open_streams == 0


@each_engine
def test_a_reset_of_the_peer_is_reported_while_ours_is_queued(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=True, settings={4: 0})
    peer.asked()
    peer.engine.send_data(1, b"0123", end_stream=False)
    peer.engine.reset(1, 8, after_data=True)
    peer.take()
    assert peer.send(peer.reset(1, 2)) == [StreamReset(1, 2, True)]
    assert peer.take() == []


@each_engine
def test_a_stream_error_is_not_reported_while_our_reset_is_queued(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=True, settings={4: 0})
    peer.asked()
    peer.engine.send_data(1, b"0123", end_stream=False)
    peer.engine.reset(1, 8, after_data=True)
    peer.take()
    assert_stream_failed(peer, peer.send(peer.headers(1, [line(b"no", b"status")])), 1, 1, reported=False)


@each_engine
def test_content_that_breaks_a_rule_is_given_back_to_the_connection_window(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False, limits=Limits(connection_window_octets=65_535))
    room = 65_535
    for stream_id in range(1, 41, 2):
        peer.open(stream_id, [*REQUEST, line(b"content-length", b"1")])
        assert peer.send(peer.data(stream_id, bytes(10_000))) == [StreamReset(stream_id, 1, False)]
        room += credit(peer.take(), 0) - 10_000
        assert room > 10_000


@each_engine
def test_an_ended_stream_gets_no_window_updates(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False, limits=SMALL)
    peer.open()
    peer.send(peer.data(1, bytes(10_000), end=True))
    peer.engine.acknowledge(1, 10_000)
    assert peer.take() == []


@each_engine
def test_window_updates_and_resets_after_the_end_are_ignored(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False)
    peer.open(end=True)
    peer.engine.send_head(1, RESPONSE, end_stream=True)
    peer.take()
    assert peer.send(peer.window(1, 100), peer.reset(1, 8), peer.priority(1)) == []
    assert peer.take() == []


@each_engine
def test_a_reset_of_a_finished_request_is_reported(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False)
    peer.open(end=True)
    assert peer.send(peer.reset(1, 8)) == [StreamReset(1, 8, True)]


@each_engine
def test_a_reset_without_error_after_a_whole_response_is_reported(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=True)
    peer.asked()
    events = peer.send(peer.headers(1, RESPONSE), peer.data(1, b"x", end=True), peer.reset(1, 0))
    assert events == [HeadReceived(1, RESPONSE, False), DataReceived(1, b"x", True), StreamReset(1, 0, True)]


FRAME_FAULTS: dict[str, tuple[bytes, tuple[int, ...]]] = {
    "DATA on stream 0": (b"\0\0\1\0\0\0\0\0\0x", (1,)),
    "DATA on an idle stream": (DataFrame(99, b"x").serialize(), (1, 5)),
    "HEADERS on stream 0": (b"\0\0\1\1\4\0\0\0\0\x82", (1,)),
    "HEADERS on an even stream": (HeadersFrame(2, b"\x82", flags=["END_HEADERS"]).serialize(), (1,)),
    "RST_STREAM on stream 0": (b"\0\0\4\3\0\0\0\0\0\0\0\0\1", (1,)),
    "RST_STREAM on an idle stream": (b"\0\0\4\3\0\0\0\0\x63\0\0\0\1", (1,)),
    "RST_STREAM of three octets": (b"\0\0\3\3\0\0\0\0\1\0\0\1", (6,)),
    "WINDOW_UPDATE on an idle stream": (b"\0\0\4\x08\0\0\0\0\x63\0\0\0\1", (1,)),
    "WINDOW_UPDATE of three octets": (b"\0\0\3\x08\0\0\0\0\0\0\0\1", (6,)),
    "SETTINGS on a stream": (b"\0\0\0\4\0\0\0\0\1", (1,)),
    "SETTINGS of five octets": (b"\0\0\5\4\0\0\0\0\0\0\1\0\0\0", (6,)),
    "SETTINGS acknowledged with a payload": (b"\0\0\6\4\1\0\0\0\0\0\1\0\0\0\0", (6,)),
    "PING on a stream": (b"\0\0\x08\6\0\0\0\0\x01" + bytes(8), (1,)),
    "PING of seven octets": (b"\0\0\7\6\0\0\0\0\0" + bytes(7), (6,)),
    "GOAWAY on a stream": (b"\0\0\x08\7\0\0\0\0\1" + bytes(8), (1,)),
    "GOAWAY of seven octets": (b"\0\0\7\7\0\0\0\0\0" + bytes(7), (6,)),
    "PRIORITY on stream 0": (b"\0\0\5\2\0\0\0\0\0" + bytes(5), (1,)),
    "CONTINUATION without HEADERS": (ContinuationFrame(1, b"\x82").serialize(), (1,)),
    "PUSH_PROMISE": (PushPromiseFrame(1, 2, b"\x82", flags=["END_HEADERS"]).serialize(), (1,)),
    "DATA with more padding than frame": (b"\0\0\2\0\x08\0\0\0\1\2x", (1,)),
    "DATA padded without a length": (b"\0\0\0\0\x08\0\0\0\1", (1, 6)),
    "HEADERS with more padding than frame": (b"\0\0\2\1\x0c\0\0\0\3\2\x82", (1,)),
    "HEADERS too short for priority": (b"\0\0\3\1\x24\0\0\0\3\0\0\0", (1, 6)),
}


@each_engine
@pytest.mark.parametrize("fault", FRAME_FAULTS)
def test_frames_that_break_a_rule_end_the_connection(make: EventFactory, fault: str) -> None:
    peer = RawPeer(make, engine_is_client=False)
    frame, allowed = FRAME_FAULTS[fault]
    peer.open(1)
    events = peer.send(peer.data(1, b"before"), frame, peer.data(1, b"behind"))
    assert events[0] == DataReceived(1, b"before", False), "events before the fault are kept"
    assert_connection_failed(peer, events, *allowed)


@each_engine
@pytest.mark.parametrize("octets", [4, 6])
def test_priority_of_a_wrong_length_ends_the_connection(make: EventFactory, octets: int) -> None:
    peer = RawPeer(make, engine_is_client=False)
    peer.open(1)
    events = peer.send(bytes((0, 0, octets)) + b"\2\0\0\0\0\1" + bytes(octets))
    assert_connection_failed(peer, events, 6)


@each_engine
@pytest.mark.parametrize("stream_id", [2, 3])
def test_a_stream_opened_by_a_server_ends_the_connection(make: EventFactory, stream_id: int) -> None:
    peer = RawPeer(make, engine_is_client=True)
    peer.asked()
    assert_connection_failed(peer, peer.send(peer.headers(stream_id, RESPONSE)), 1)


@each_engine
def test_a_frame_within_a_field_block_ends_the_connection(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False)
    first, *_ = peer.split_headers(1, REQUEST, [5])
    assert_connection_failed(peer, peer.send(first, peer.ping()), 1)
    other = RawPeer(make, engine_is_client=False)
    first, *_ = other.split_headers(1, REQUEST, [5])
    assert_connection_failed(other, other.send(first, ContinuationFrame(3, b"")), 1)


@each_engine
def test_frames_of_unknown_types_are_ignored(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False)
    peer.open()
    assert peer.send(b"\0\0\3\xfe\xff\0\0\0\1abc", b"\0\0\3\xfe\xff\0\0\0\0abc", peer.data(1, b"x")) == [
        DataReceived(1, b"x", False)
    ]
    assert peer.take() == []


@each_engine
def test_the_reserved_bit_and_flags_that_a_frame_does_not_have_are_ignored(make: EventFactory) -> None:
    """RFC 9113, 4.1."""

    def marked(frame: bytes) -> bytes:
        """Set the reserved bit before the stream's id, and every flag but those that frames have."""
        return frame[:4] + bytes((frame[4] | 0xD2, frame[5] | 0x80)) + frame[6:]

    peer = RawPeer(make, engine_is_client=False)
    frames = (peer.headers(1, REQUEST), peer.window(1, 1), peer.data(1, b"x"), peer.ping(), peer.data(1, end=True))
    events = peer.send(*(marked(frame if isinstance(frame, bytes) else frame.serialize()) for frame in frames))
    assert events == [HeadReceived(1, REQUEST, False), DataReceived(1, b"x", False), DataReceived(1, b"", True)]
    assert [one.kind for one in peer.take()] == ["Ping"]
    assert_connection_failed(peer, peer.send(marked(peer.data(1, b"late").serialize())), 5)


@each_engine
def test_finished_streams_leave_nothing_behind(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False)
    for stream_id in range(1, 4_001, 2):
        peer.open(stream_id, end=True)
        peer.engine.send_head(stream_id, RESPONSE, end_stream=True)
        assert peer.engine.open_streams == 0
        (head,) = of(peer.take(), "Headers")
        assert head.fields == RESPONSE


@each_engine
def test_a_stream_error_does_not_affect_other_streams(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False)
    peer.open(1, [*REQUEST, line(b"content-length", b"1")])
    peer.open(3)
    events = peer.send(peer.data(1, b"too long"), peer.data(3, b"fine", end=True))
    assert events == [StreamReset(1, 1, False), DataReceived(3, b"fine", True)]
    peer.engine.send_head(3, RESPONSE, end_stream=True)
    assert [one.stream_id for one in of(peer.take(), "Headers")] == [3]
