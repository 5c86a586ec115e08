"""Resets that an engine sends: when they leave, and what becomes of queued content (RFC 9113, 5.4.2 and 6.4)."""

from __future__ import annotations

import pytest

from tests.conformance.windows import INITIAL_WINDOW_SIZE, WIDE_WINDOWS, client, shape
from tests.support.peers.engines import EventFactory, each_engine
from tests.support.peers.events import Sent, StreamReset
from tests.support.peers.raw import RESPONSE, TRAILERS, RawPeer, codes, content


@each_engine
@pytest.mark.parametrize("code", [0, 8, 0xB, 0xDEAD_BEEF, 0xFFFF_FFFF])
def test_resets_carry_their_code(make: EventFactory, code: int) -> None:
    peer = client(make)
    peer.engine.reset(1, code)
    assert codes(peer.take(), "RstStream") == [code]
    assert peer.engine.open_streams == 0
    peer.asked()
    assert peer.send(peer.reset(3, code)) == [StreamReset(3, code, True)]
    assert peer.engine.open_streams == 0


@each_engine
def test_a_reset_follows_the_content_that_fits_the_windows_and_drops_the_rest(make: EventFactory) -> None:
    peer = client(make, settings={INITIAL_WINDOW_SIZE: 10})
    peer.engine.send_data(1, b"0123456789abcdef", end_stream=True)
    peer.engine.reset(1, 2)
    data, reset = peer.take()
    assert (data.kind, data.body, data.ends) == ("Data", b"0123456789", False)
    assert (reset.kind, *codes([reset], "RstStream")) == ("RstStream", 2)
    assert peer.engine.queued_octets == peer.engine.open_streams == 0
    assert peer.sent == [Sent(1, 10)]


@each_engine
def test_a_reset_with_no_window_open_leaves_at_once(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=True, settings={INITIAL_WINDOW_SIZE: 0})
    peer.asked()
    peer.engine.send_data(1, b"never", end_stream=True)
    assert peer.take() == []
    peer.engine.reset(1, 8)
    assert peer.engine.wants_to_send
    assert [one.kind for one in peer.take()] == ["RstStream"]
    assert peer.engine.queued_octets == 0


@each_engine
def test_a_reset_after_data_waits_until_all_content_has_left(make: EventFactory) -> None:
    peer = client(make, settings={INITIAL_WINDOW_SIZE: 4})
    peer.engine.send_data(1, b"01234567", end_stream=False)
    peer.engine.reset(1, 5, after_data=True)
    assert shape(peer.take()) == [("Data", 1, 4, False)]
    assert peer.take() == []
    assert peer.engine.open_streams == 1
    peer.send(peer.window(1, 100))
    data, reset = peer.take()
    assert data.body == b"4567"
    assert (reset.kind, *codes([reset], "RstStream")) == ("RstStream", 5)
    assert peer.engine.open_streams == 0


@each_engine
def test_a_reset_after_data_with_nothing_queued_leaves_at_once(make: EventFactory) -> None:
    peer = client(make)
    peer.engine.reset(1, 0, after_data=True)
    assert codes(peer.take(), "RstStream") == [0]


@each_engine
def test_a_reset_after_data_leaves_behind_the_end_of_the_stream(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False, settings=WIDE_WINDOWS)
    peer.open()
    peer.engine.send_head(1, RESPONSE, end_stream=False)
    peer.engine.send_data(1, b"done", end_stream=False)
    peer.engine.send_trailers(1, TRAILERS)
    peer.engine.reset(1, 0, after_data=True)
    assert [(one.kind, one.ends) for one in peer.take()] == [
        ("Headers", False),
        ("Data", False),
        ("Headers", True),
        ("RstStream", False),
    ]


@each_engine
def test_a_stream_that_is_over_is_not_reset(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False, settings=WIDE_WINDOWS)
    peer.open(end=True)
    peer.engine.send_head(1, RESPONSE, end_stream=False)
    peer.engine.send_data(1, b"done", end_stream=True)
    peer.engine.reset(1, 0, after_data=True)
    assert [one.kind for one in peer.take()] == ["Headers", "Data"]
    assert peer.engine.open_streams == 0
    peer.engine.reset(1, 8)
    assert peer.take() == []


@each_engine
def test_a_plain_reset_replaces_one_that_waits_for_content(make: EventFactory) -> None:
    peer = client(make, settings={INITIAL_WINDOW_SIZE: 4})
    peer.engine.send_data(1, b"01234567", end_stream=True)
    peer.engine.reset(1, 5, after_data=True)
    peer.take()
    peer.engine.reset(1, 8)
    assert codes(peer.take(), "RstStream") == [8]
    assert peer.engine.open_streams == 0


@each_engine
def test_a_reset_after_data_does_not_replace_a_plain_one(make: EventFactory) -> None:
    peer = client(make, settings={INITIAL_WINDOW_SIZE: 4})
    peer.engine.send_data(1, b"01234567", end_stream=True)
    peer.engine.reset(1, 8)
    peer.engine.reset(1, 5, after_data=True)
    assert codes(peer.take(), "RstStream") == [8]


@each_engine
def test_a_queued_end_leaves_before_the_reset(make: EventFactory) -> None:
    peer = client(make)
    peer.engine.send_data(1, b"", end_stream=True)
    peer.engine.reset(1, 5, after_data=True)
    assert [(one.kind, one.ends) for one in peer.take()] == [("Data", True), ("RstStream", False)]


@each_engine
def test_a_reset_by_the_peer_drops_the_queued_content(make: EventFactory) -> None:
    peer = client(make, settings={INITIAL_WINDOW_SIZE: 4})
    peer.engine.send_data(1, b"01234567", end_stream=True)
    peer.engine.reset(1, 5, after_data=True)
    peer.take()
    assert peer.send(peer.reset(1, 7)) == [StreamReset(1, 7, True)]
    assert peer.engine.queued_octets == peer.engine.open_streams == 0
    assert peer.take() == []


@each_engine
def test_commands_for_closed_streams_are_ignored(make: EventFactory) -> None:
    peer = client(make)
    server = RawPeer(make, engine_is_client=False)
    server.open()
    for one in (peer, server):
        one.send(one.reset(1, 8))
        for stream_id in (1, 99):
            one.engine.send_data(stream_id, b"late", end_stream=True)
            one.engine.send_trailers(stream_id, TRAILERS)
            one.engine.reset(stream_id, 8)
            one.engine.reset(stream_id, 8, after_data=True)
            one.engine.acknowledge(stream_id, 1_000_000)
        assert one.take() == []
        assert one.engine.queued_octets == 0
    server.engine.send_head(1, RESPONSE, end_stream=True)
    assert server.take() == []


@each_engine
def test_a_stream_with_a_queued_reset_accepts_no_more_content(make: EventFactory) -> None:
    peer = client(make, settings={INITIAL_WINDOW_SIZE: 4})
    peer.engine.send_data(1, b"01234567", end_stream=False)
    peer.engine.reset(1, 5, after_data=True)
    peer.engine.send_data(1, b"89", end_stream=True)
    peer.send(peer.window(1, 100))
    assert content(peer.take(), 1) == b"01234567"


@each_engine
def test_a_reset_does_not_overtake_the_head(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False)
    peer.open()
    peer.engine.send_head(1, RESPONSE, end_stream=False)
    peer.engine.send_data(1, b"half", end_stream=False)
    peer.engine.reset(1, 2)
    assert [one.kind for one in peer.take()] == ["Headers", "Data", "RstStream"]
