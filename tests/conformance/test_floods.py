"""Connections of peers that cause work without use are ended, those of busy, long-lived or clumsy peers are not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hyperframe.frame import ContinuationFrame, Frame, HeadersFrame, SettingsFrame

from proxy.http2.engine import Limits
from tests.support.peers.engines import EventFactory, each_engine
from tests.support.peers.events import ConnectionFailed, DataReceived, Event, HeadReceived, StreamReset
from tests.support.peers.raw import REQUEST, RESPONSE, RawPeer, assert_connection_failed, codes, content, line, of

CALM, PROTOCOL_ERROR, INTERNAL_ERROR = 11, 1, 2

ENOUGH = 200_000
"""Frames of any flood after which a connection that is still there has no limit."""


def flood(peer: RawPeer, frame: Callable[[int], bytes], *, a_read: int = 4_000) -> list[Event]:
    """Send frames, many a read, until the connection fails; return the last events."""
    for start in range(0, ENOUGH, a_read):
        events = peer.send(b"".join(frame(number) for number in range(start, start + a_read)))
        if events and isinstance(events[-1], ConnectionFailed):
            return events
        peer.engine.take()
    return []


FLOODS: dict[str, Callable[[RawPeer], Callable[[int], bytes]]] = {
    "PING": lambda peer: lambda _: peer.ping().serialize(),
    "SETTINGS": lambda peer: lambda _: peer.settings({}).serialize(),
    "SETTINGS with a window": lambda peer: lambda number: peer.settings({4: number}).serialize(),
    "empty DATA": lambda peer: lambda _: peer.data(1).serialize(),
    "WINDOW_UPDATE": lambda peer: lambda _: peer.window(1, 1),
    "PRIORITY": lambda peer: lambda number: peer.priority(2 * number + 1).serialize(),
    "unknown frames": lambda peer: lambda _: b"\0\0\0\xfe\0\0\0\0\1",
    "acknowledgements of no SETTINGS": lambda peer: lambda _: SettingsFrame(flags=["ACK"]).serialize(),
    "answers to no PING": lambda peer: lambda _: peer.ping(ack=True).serialize(),
    "padding": lambda peer: lambda _: peer.data(1, padding=0).serialize(),
}


@each_engine
@pytest.mark.parametrize("kind", FLOODS)
def test_frames_without_effect_are_limited(make: EventFactory, kind: str) -> None:
    peer = RawPeer(make, engine_is_client=False)
    peer.open()
    peer.answered()
    events = flood(peer, FLOODS[kind](peer))
    assert_sent_away(peer, events)


def assert_sent_away(peer: RawPeer, events: list[Event]) -> None:
    assert_connection_failed(peer, events, CALM, PROTOCOL_ERROR, INTERNAL_ERROR)


@each_engine
def test_streams_opened_and_cancelled_at_once_are_limited(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False)
    opened = 0
    for stream_id in range(1, 100_000, 2):
        events = peer.send(peer.headers(stream_id, REQUEST), peer.reset(stream_id, 8))
        opened += sum(isinstance(event, HeadReceived) for event in events)
        if isinstance(events[-1], ConnectionFailed):
            assert_sent_away(peer, events)
            break
    assert 100 <= opened <= 2_000


@each_engine
def test_streams_that_force_us_to_reset_them_are_limited(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False)
    opened = 0
    for stream_id in range(1, 100_000, 2):
        events = peer.send(peer.headers(stream_id, REQUEST), peer.window(stream_id, 0x7FFF_FFFF))
        opened += 1
        if isinstance(events[-1], ConnectionFailed):
            assert_sent_away(peer, events)
            break
        assert codes(peer.take(), "RstStream") == [3]
    assert opened <= 2_000


@each_engine
@pytest.mark.parametrize("fragment", [b"", b"\x82"])
def test_a_field_block_without_end_is_limited(make: EventFactory, fragment: bytes) -> None:
    peer = RawPeer(make, engine_is_client=False)
    events = peer.send(HeadersFrame(1, b"", flags=[]))
    for _ in range(1_000):
        events = peer.send(ContinuationFrame(1, fragment))
        if events:
            break
    assert_sent_away(peer, events)


@each_engine
def test_a_field_block_of_great_length_is_limited(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False, limits=Limits(max_field_section_octets=20_000))
    frames: list[Frame] = [HeadersFrame(1, b"", flags=[])]
    frames += [ContinuationFrame(1, bytes(16_384)) for _ in range(8)]
    events = peer.send(*frames)
    assert isinstance(events[-1], ConnectionFailed)


@each_engine
def test_a_decompression_bomb_is_refused(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False)
    peer.open(1, [*REQUEST, line(b"x-bomb", b"x" * 3_900)])
    bomb = HeadersFrame(3, b"\xbe" * 16_000, flags=["END_HEADERS"])
    events = peer.send(bomb)
    assert not [event for event in events if isinstance(event, HeadReceived)]
    seen = peer.take()
    assert codes(seen, "RstStream") or codes(seen, "GoAway")


# ---- traffic that is allowed


@each_engine
def test_single_pings_are_answered_without_a_limit(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False)
    peer.open()
    for _ in range(20_000):
        assert peer.send(peer.ping()) == []
        assert peer.engine.take()[0]


@each_engine
def test_cancelling_one_request_in_ten_is_no_flood(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False)
    peer.open(1, end=True)
    block = peer.block(REQUEST)  # all indexed now
    for stream_id in range(3, 30_000, 2):
        (event,) = peer.send(HeadersFrame(stream_id, block, flags=["END_HEADERS", "END_STREAM"]))
        assert isinstance(event, HeadReceived)
        if stream_id % 10 == 1:
            peer.send(peer.reset(stream_id, 8))
        else:
            peer.engine.send_head(stream_id, RESPONSE, end_stream=True)
        peer.engine.take()
    assert peer.engine.open_streams == 1


@each_engine
def test_cancelling_all_streams_of_a_connection_at_once_is_no_flood(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False)
    for first in range(1, 2_560, 256):
        streams = range(first, first + 256, 2)
        for stream_id in streams:
            peer.open(stream_id)
            peer.engine.send_head(stream_id, RESPONSE, end_stream=False)
        peer.take()
        events = peer.send(*[peer.reset(stream_id, 8) for stream_id in streams])
        assert len(events) == 128


@each_engine
def test_a_server_that_resets_every_stream_that_we_open_is_no_flood(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=True)
    for _ in range(3_000):
        stream_id = peer.asked()
        (event,) = peer.send(peer.reset(stream_id, 7))
        assert event == StreamReset(stream_id, 7, True)


@each_engine
def test_window_updates_every_3_000_octets_are_no_flood(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False)
    peer.open()
    peer.answered()
    for _ in range(1_000):
        peer.engine.send_data(1, bytes(60_000), end_stream=False)
        seen = of(peer.take(), "Data")
        assert len(content(seen, 1)) == 60_000
        updates = [peer.window(0, 3_000) + peer.window(1, 3_000) for _ in range(20)]
        assert peer.send(b"".join(updates)) == []


@each_engine
def test_a_ping_after_each_data_frame_is_no_flood(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=True)
    peer.asked()
    peer.send(peer.headers(1, RESPONSE))
    for _ in range(5_000):
        (event,) = peer.send(peer.data(1, bytes(1_000)), peer.ping())
        assert isinstance(event, DataReceived)
        peer.engine.acknowledge(1, 1_000)
        peer.engine.acknowledge_connection(1_000)
        peer.engine.take()


@each_engine
def test_an_empty_frame_in_every_request_is_no_flood(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False)
    for stream_id in range(1, 4_000, 2):
        events = peer.send(peer.headers(stream_id, REQUEST), peer.data(stream_id), peer.data(stream_id, b"x", end=True))
        assert len(events) == 2
        peer.engine.send_head(stream_id, RESPONSE, end_stream=True)
        peer.engine.take()


@each_engine
def test_settings_that_change_with_each_response_are_no_flood(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=True)
    for number in range(200):
        stream_id = peer.asked(end=True)
        events = peer.send(SettingsFrame(settings={3: 100 + number % 2}), peer.headers(stream_id, RESPONSE, end=True))
        assert len(events) == 2
        peer.take()
