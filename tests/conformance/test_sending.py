"""What leaves, when, and in which frames (RFC 9113, 5.2 and 6.9)."""

from __future__ import annotations

import pytest

from proxy.http2.engine import Limits
from proxy.http2.events import Fields
from proxy.http2.policy.fields import section_octets
from proxy.http2.policy.sending import MAX_TAKEN_OCTETS
from tests.conformance.windows import DEFAULT_WINDOW, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, WIDE_WINDOWS, client, shape
from tests.support.allocations import traced_octets
from tests.support.peers.engines import EventFactory, each_engine
from tests.support.peers.events import Sent, SettingsReceived
from tests.support.peers.memory import Joined
from tests.support.peers.raw import (
    REQUEST,
    TRAILERS,
    RawPeer,
    assert_connection_failed,
    assert_stream_failed,
    content,
    of,
)


@each_engine
def test_nothing_is_sent_before_take(make: EventFactory) -> None:
    peer = client(make)
    assert not peer.engine.wants_to_send
    peer.engine.send_data(1, b"abc", end_stream=False)
    assert peer.engine.wants_to_send
    assert peer.engine.queued_octets == 3
    data, sent = peer.engine.take()
    assert data.endswith(b"abc")
    assert sent == [Sent(1, 3)]
    assert peer.engine.queued_octets == 0
    assert not peer.engine.wants_to_send
    assert peer.engine.take() == (b"", [])


@each_engine
def test_chunks_are_merged_into_one_frame_that_carries_the_end(make: EventFactory) -> None:
    peer = client(make)
    for chunk in (b"a", b"", b"bc", b"def"):
        peer.engine.send_data(1, chunk, end_stream=False)
    peer.engine.send_data(1, b"", end_stream=True)
    (frame,) = peer.take()
    assert (frame.kind, frame.body, frame.ends) == ("Data", b"abcdef", True)
    assert peer.sent == [Sent(1, 6)]


@each_engine
def test_empty_content_that_does_not_end_the_stream_is_not_sent(make: EventFactory) -> None:
    peer = client(make)
    peer.engine.send_data(1, b"", end_stream=False)
    assert peer.take() == []


@each_engine
def test_an_end_that_is_queued_later_is_one_empty_frame(make: EventFactory) -> None:
    peer = client(make)
    peer.engine.send_data(1, b"abc", end_stream=False)
    peer.take()
    peer.engine.send_data(1, b"", end_stream=True)
    assert shape(peer.take()) == [("Data", 1, 0, True)]
    assert peer.sent == [Sent(1, 3)]


@each_engine
@pytest.mark.parametrize("max_frame", [16_384, 30_000, 1 << 20])
def test_frames_have_the_peers_maximum_size(make: EventFactory, max_frame: int) -> None:
    peer = client(make, settings={**WIDE_WINDOWS, MAX_FRAME_SIZE: max_frame})
    for _ in range(100):
        peer.engine.send_data(1, bytes(1_000), end_stream=False)
    peer.engine.send_data(1, b"", end_stream=True)
    seen = peer.take()
    full, rest = divmod(100_000, max_frame)
    assert [len(one.body) for one in seen] == [max_frame] * full + [rest]
    assert [one.ends for one in seen] == [False] * full + [True]
    assert peer.sent == [Sent(1, 100_000)]


@each_engine
@pytest.mark.parametrize("max_frame", [16_384, 100_000, (1 << 24) - 1])
def test_what_leaves_at_once_is_bounded_however_large_the_peers_frames_may_be(
    make: EventFactory, max_frame: int
) -> None:
    peer = client(make, settings={**WIDE_WINDOWS, MAX_FRAME_SIZE: max_frame})
    peer.engine.send_data(1, bytes(1 << 20), end_stream=True)
    left = 1 << 20
    while left:
        octets = len(content(peer.take(), 1))
        assert min(left, MAX_TAKEN_OCTETS) <= octets <= MAX_TAKEN_OCTETS
        left -= octets


@each_engine
def test_content_that_fills_its_last_frame_needs_no_empty_one(make: EventFactory) -> None:
    peer = client(make)
    peer.engine.send_data(1, bytes(32_768), end_stream=True)
    assert shape(peer.take()) == [("Data", 1, 16_384, False), ("Data", 1, 16_384, True)]


@each_engine
def test_a_larger_frame_size_applies_as_soon_as_it_is_received(make: EventFactory) -> None:
    peer = client(make)
    peer.engine.send_data(1, bytes(40_000), end_stream=False)
    assert [len(one.body) for one in peer.take()] == [16_384, 16_384, 7_232]
    peer.send(peer.settings({MAX_FRAME_SIZE: 40_000}))
    peer.take()
    peer.engine.send_data(1, bytes(40_000), end_stream=False)
    assert [len(one.body) for one in peer.take()] == [40_000]


@each_engine
@pytest.mark.parametrize("end", ["sent", "reset", "reset now", "reset by the peer"])
def test_trailers_that_wait_are_counted_until_they_leave_or_are_dropped(make: EventFactory, end: str) -> None:
    peer = client(make, settings={INITIAL_WINDOW_SIZE: 0})
    stream = peer.engine.handler.streams[1]
    octets = 7 + section_octets(TRAILERS)
    peer.engine.send_data(1, b"content", end_stream=False)
    peer.engine.send_trailers(1, TRAILERS)
    assert (stream.count_queued_octets(), peer.engine.queued_octets) == (octets, octets)
    assert peer.take() == []
    peer.send(peer.window(1, 6))
    assert shape(peer.take()) == [("Data", 1, 6, False)]
    octets = 1 + section_octets(TRAILERS)
    assert (stream.count_queued_octets(), peer.engine.queued_octets) == (octets, octets)
    if end == "sent":
        peer.send(peer.window(1, 1))
    elif end == "reset":
        peer.engine.reset(1, 8)
    elif end == "reset now":
        peer.engine.reset_now(1, 8)
    else:
        peer.send(peer.reset(1, 8))
    peer.take()
    assert (stream.count_queued_octets(), peer.engine.queued_octets) == (0, 0)


@each_engine
def test_trailers_alone_leave_with_the_next_take(make: EventFactory) -> None:
    peer = client(make)
    peer.engine.send_trailers(1, TRAILERS)
    assert [each.kind for each in peer.take()] == ["Headers"]
    assert peer.engine.queued_octets == peer.engine.handler.streams[1].count_queued_octets() == 0


@each_engine
def test_content_waits_for_the_streams_window(make: EventFactory) -> None:
    peer = client(make, settings={INITIAL_WINDOW_SIZE: 10})
    peer.engine.send_data(1, b"0123456789abcdef", end_stream=True)
    assert shape(peer.take()) == [("Data", 1, 10, False)]
    assert peer.engine.queued_octets == 6
    assert peer.take() == []
    peer.send(peer.window(1, 4))
    assert shape(peer.take()) == [("Data", 1, 4, False)]
    peer.send(peer.window(1, 100))
    (last,) = peer.take()
    assert (last.body, last.ends) == (b"ef", True)
    assert peer.sent == [Sent(1, 10), Sent(1, 4), Sent(1, 2)]


@each_engine
def test_content_waits_for_the_connections_window(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=True, settings=WIDE_WINDOWS)
    peer.asked()
    peer.engine.send_data(1, bytes(70_000), end_stream=True)
    assert len(content(peer.take(), 1)) == DEFAULT_WINDOW
    assert peer.take() == []
    assert not peer.engine.wants_to_send
    peer.send(peer.window(0, 1))
    assert peer.engine.wants_to_send
    assert shape(peer.take()) == [("Data", 1, 1, False)]
    peer.send(peer.window(0, 10_000))
    assert shape(peer.take()) == [("Data", 1, 70_000 - DEFAULT_WINDOW - 1, True)]


@each_engine
def test_small_pieces_that_wait_take_little_more_memory_than_is_counted(make: EventFactory) -> None:
    pieces = [b"%04d" % number for number in range(8_000)]
    peer = client(make, settings={INITIAL_WINDOW_SIZE: 0})
    with traced_octets() as kept:
        for piece in pieces:
            peer.engine.send_data(1, piece[:], end_stream=False)
        counted = peer.engine.queued_octets
        assert kept() < 1.5 * counted + 8_192
    peer.send(peer.window(0, counted), peer.window(1, counted))
    assert content(peer.take(), 1) == b"".join(pieces)


@each_engine
def test_an_end_without_content_needs_no_window(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=True, settings={INITIAL_WINDOW_SIZE: 0})
    peer.asked()
    peer.engine.send_data(1, b"", end_stream=True)
    assert shape(peer.take()) == [("Data", 1, 0, True)]
    peer.asked()
    peer.engine.send_trailers(3, TRAILERS)
    (trailers,) = peer.take()
    assert (trailers.kind, trailers.fields, trailers.ends) == ("Headers", TRAILERS, True)


@each_engine
def test_an_end_without_content_does_not_wait_for_the_connection_window(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=True, settings=WIDE_WINDOWS)
    peer.asked()
    peer.asked()
    peer.engine.send_data(1, bytes(100_000), end_stream=True)
    peer.take()
    peer.engine.send_data(3, b"", end_stream=True)
    assert peer.engine.wants_to_send
    assert shape(peer.take()) == [("Data", 3, 0, True)]


@each_engine
def test_heads_need_no_window(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=True, settings={INITIAL_WINDOW_SIZE: 0})
    assert peer.engine.send_request(REQUEST, end_stream=False) == 1
    (head,) = peer.take()
    assert head.fields == REQUEST


@each_engine
def test_nothing_is_sent_while_a_shrunken_window_is_negative(make: EventFactory) -> None:
    peer = client(make, settings={INITIAL_WINDOW_SIZE: 1_000})
    peer.engine.send_data(1, bytes(3_000), end_stream=True)
    assert len(content(peer.take(), 1)) == 1_000
    peer.send(peer.settings({INITIAL_WINDOW_SIZE: 100}))  # the window is now −900
    assert of(peer.take(), "Data") == []
    peer.send(peer.window(1, 900))
    assert peer.take() == []
    peer.send(peer.window(1, 1))
    assert shape(peer.take()) == [("Data", 1, 1, False)]
    peer.send(peer.settings({INITIAL_WINDOW_SIZE: 5_000}))
    assert shape(of(peer.take(), "Data")) == [("Data", 1, 1_999, True)]


@each_engine
def test_a_larger_initial_window_lets_waiting_streams_continue(make: EventFactory) -> None:
    peer = client(make, streams=3, settings={INITIAL_WINDOW_SIZE: 0})
    for stream_id in (1, 3, 5):
        peer.engine.send_data(stream_id, b"waiting", end_stream=True)
    assert peer.take() == []
    peer.send(peer.settings({INITIAL_WINDOW_SIZE: 7}))
    assert sorted(shape(of(peer.take(), "Data"))) == [("Data", stream_id, 7, True) for stream_id in (1, 3, 5)]


@each_engine
def test_settings_of_one_frame_apply_in_their_order(make: EventFactory) -> None:
    peer = client(make, settings={INITIAL_WINDOW_SIZE: 0})
    peer.engine.send_data(1, b"0123456789", end_stream=True)
    pair = (4).to_bytes(2, "big")
    frame = b"\0\0\x0c\x04\0\0\0\0\0" + pair + (500).to_bytes(4, "big") + pair + (4).to_bytes(4, "big")
    assert peer.send(frame) == [SettingsReceived()]
    assert shape(of(peer.take(), "Data")) == [("Data", 1, 4, False)]


@each_engine
def test_an_initial_window_is_applied_to_no_stream_if_the_same_frame_replaces_it(make: EventFactory) -> None:
    peer = client(make, settings={INITIAL_WINDOW_SIZE: 1_000})
    peer.send(peer.window(1, 0x7FFF_FFFF - 1_000))
    pair = (4).to_bytes(2, "big")
    frame = b"\0\0\xc0\x04\0\0\0\0\0" + 31 * (pair + (1_001).to_bytes(4, "big")) + pair + (1_000).to_bytes(4, "big")
    assert peer.send(frame) == [SettingsReceived()], "1,001 would have been too much"


@each_engine
@pytest.mark.parametrize("increment", [1 << 31, 0x7FFF_FFFF])
def test_a_stream_window_over_the_maximum_resets_the_stream(make: EventFactory, increment: int) -> None:
    peer = client(make, streams=2)
    assert_stream_failed(peer, peer.send(peer.window(1, increment)), 1, 1, 3)


@each_engine
def test_a_connection_window_over_the_maximum_ends_the_connection(make: EventFactory) -> None:
    peer = client(make)
    assert_connection_failed(peer, peer.send(peer.window(0, 0x7FFF_FFFF)), 3)


@each_engine
def test_settings_that_push_a_window_over_the_maximum_end_the_connection(make: EventFactory) -> None:
    peer = client(make, settings={INITIAL_WINDOW_SIZE: 1_000})
    peer.send(peer.window(1, 0x7FFF_FFFF - 1_000))
    assert_connection_failed(peer, peer.send(peer.settings({INITIAL_WINDOW_SIZE: 1_001})), 3)


@each_engine
@pytest.mark.parametrize("stream_id", [0, 1])
def test_a_window_update_of_zero_is_an_error(make: EventFactory, stream_id: int) -> None:
    peer = client(make)
    events = peer.send(peer.window(stream_id, 0))
    if stream_id:
        assert_stream_failed(peer, events, 1, 1)
    else:
        assert_connection_failed(peer, events, 1)


@each_engine
def test_streams_share_a_narrow_connection_window_evenly(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=True, settings={**WIDE_WINDOWS, 3: 1_000})
    streams = [peer.asked() for _ in range(50)]
    for stream_id in streams:
        peer.engine.send_data(stream_id, bytes(100_000), end_stream=True)
    peer.take()
    for _ in range(25):
        peer.send(peer.window(0, 4 * 16_384))
        peer.take()
    sent = dict.fromkeys(streams, 0)
    for stream_id, octets in peer.sent:
        sent[stream_id] += octets
    assert sum(sent.values()) == DEFAULT_WINDOW + 25 * 4 * 16_384
    assert max(sent.values()) - min(sent.values()) <= 2 * 16_384


@each_engine
def test_a_stream_with_a_closed_window_does_not_block_the_others(make: EventFactory) -> None:
    peer = client(make, streams=2, settings={INITIAL_WINDOW_SIZE: 10})
    peer.engine.send_data(1, bytes(100), end_stream=True)
    peer.take()
    peer.engine.send_data(3, bytes(10), end_stream=True)
    assert shape(peer.take()) == [("Data", 3, 10, True)]


@each_engine
def test_trailers_wait_for_the_content_before_them(make: EventFactory) -> None:
    peer = client(make, settings={INITIAL_WINDOW_SIZE: 4})
    peer.engine.send_data(1, b"01234567", end_stream=False)
    peer.engine.send_trailers(1, TRAILERS)
    assert shape(peer.take()) == [("Data", 1, 4, False)]
    peer.send(peer.window(1, 4))
    data, trailers = peer.take()
    assert (data.body, data.ends) == (b"4567", False)
    assert (trailers.kind, trailers.fields, trailers.ends) == ("Headers", TRAILERS, True)


@each_engine
def test_trailers_that_waited_are_compressed_in_the_order_in_which_they_leave(make: EventFactory) -> None:
    peer = client(make, streams=2, settings={INITIAL_WINDOW_SIZE: 4})
    again: Fields = [*REQUEST, (b"x-sum", b"again and again", False)]
    peer.engine.send_data(1, b"01234567", end_stream=False)
    peer.engine.send_trailers(1, again[-1:])
    for _ in range(3):
        peer.engine.send_request(again, end_stream=True)
        (head,) = of(peer.take(), "Headers")
        assert head.fields == again
    peer.send(peer.window(1, 4))
    (trailers,) = of(peer.take(), "Headers")
    assert trailers.fields == again[-1:]


@each_engine
@pytest.mark.parametrize("trailers", [[], TRAILERS], ids=["on DATA", "in trailers"])
def test_an_end_is_sent_even_if_the_window_is_negative(make: EventFactory, trailers: Fields) -> None:
    peer = client(make, settings={INITIAL_WINDOW_SIZE: 1_000})
    peer.engine.send_data(1, bytes(1_000), end_stream=False)
    peer.take()
    peer.send(peer.settings({INITIAL_WINDOW_SIZE: 100}))  # the window is now −900
    peer.take()
    peer.engine.send_trailers(1, trailers)
    (end,) = peer.take()
    assert (end.kind, end.ends) == ("Headers" if trailers else "Data", True)


@each_engine
def test_the_octets_reported_as_sent_are_those_that_arrive(make: EventFactory) -> None:
    joined = Joined(make, server_limits=Limits(stream_window_octets=2_000, connection_window_octets=65_535))
    streams = [joined.client.engine.send_request(REQUEST, end_stream=False) for _ in range(20)]
    for stream_id in streams:
        for length in range(100):
            joined.client.engine.send_data(stream_id, bytes(length * stream_id % 501), end_stream=length == 99)
    joined.run()
    for stream_id in streams:
        expected = sum(length * stream_id % 501 for length in range(100))
        assert len(joined.server.streams[stream_id].content) == joined.client.sent[stream_id] == expected
        assert joined.server.streams[stream_id].ended
    assert joined.client.engine.queued_octets == 0
