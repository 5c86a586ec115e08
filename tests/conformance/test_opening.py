"""How a connection starts (RFC 9113, 3.4 and 6.5), and the rules from its first octet on."""

from __future__ import annotations

import pytest
from hyperframe.frame import PingFrame, PushPromiseFrame, SettingsFrame

from proxy.http2.engine import UNLIMITED, Limits
from tests.support.peers.engines import EventFactory, each_engine
from tests.support.peers.events import ConnectionFailed, DataReceived, HeadReceived, PingAcknowledged, SettingsReceived
from tests.support.peers.raw import (
    PREFACE,
    REQUEST,
    RawPeer,
    assert_connection_failed,
    assert_stream_failed,
    codes,
    credit,
    of,
)

ENABLE_PUSH, MAX_STREAMS, INITIAL_WINDOW, MAX_FRAME, MAX_SECTION, ENABLE_CONNECT = 2, 3, 4, 5, 6, 8
NO_RFC7540_PRIORITIES = 9

LIMITS = Limits(
    max_concurrent_streams=321,
    stream_window_octets=123_456,
    connection_window_octets=7_654_321,
    max_field_section_octets=54_321,
    max_frame_octets=32_768,
)


@each_engine
@pytest.mark.parametrize("client", [True, False])
def test_settings_and_window_are_queued_from_the_start(make: EventFactory, client: bool) -> None:
    peer = RawPeer(make, engine_is_client=client, limits=LIMITS, greet=False)
    assert peer.engine.wants_to_send
    first, *rest = peer.take()
    assert isinstance(first.frame, SettingsFrame)
    settings = first.frame.settings
    assert settings[INITIAL_WINDOW] == 123_456
    assert settings[MAX_FRAME] == 32_768
    assert settings[MAX_SECTION] == 54_321
    assert ENABLE_CONNECT not in settings
    assert settings[NO_RFC7540_PRIORITIES] == 1, "priorities are ignored"
    assert settings.get(ENABLE_PUSH, 0) == 0
    if client:
        assert settings[ENABLE_PUSH] == 0
    else:
        assert settings[MAX_STREAMS] == 321
    assert credit(rest, 0) == 7_654_321 - 65_535
    assert not peer.engine.wants_to_send
    assert peer.engine.take() == (b"", [])


@each_engine
def test_the_client_sends_the_preface_before_all_else(make: EventFactory) -> None:
    data, _ = make(client=True, limits=Limits()).take()
    assert data.startswith(PREFACE)


@each_engine
def test_a_connection_window_of_the_default_size_is_not_updated(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=True, limits=Limits(connection_window_octets=65_535), greet=False)
    assert credit(peer.take(), 0) == 0


@each_engine
def test_an_empty_read_has_no_event(make: EventFactory) -> None:
    engine = make(client=False, limits=Limits())
    assert engine.receive(b"") == []
    assert RawPeer(make, engine_is_client=False).engine.receive(b"") == []


@each_engine
@pytest.mark.parametrize("client", [True, False])
def test_settings_are_acknowledged_and_reported(make: EventFactory, client: bool) -> None:
    peer = RawPeer(make, engine_is_client=client, greet=False)
    peer.take()
    assert peer.send(peer.settings({})) == [SettingsReceived()]
    (ack,) = of(peer.take(), "Settings")
    assert ack.flags == {"ACK"}
    assert peer.send(SettingsFrame(flags=["ACK"])) == []


@each_engine
@pytest.mark.parametrize(
    "opening", [b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSN\r\n\r\n", b"\x16\x03\x01" + bytes(40)]
)
def test_what_does_not_start_with_the_preface_is_refused(make: EventFactory, opening: bytes) -> None:
    engine = make(client=False, limits=Limits())
    events = engine.receive(opening)
    assert [type(event) for event in events] == [ConnectionFailed]
    assert engine.receive(PREFACE) == []


@each_engine
@pytest.mark.parametrize("client", [True, False])
def test_the_first_frame_must_be_settings(make: EventFactory, client: bool) -> None:
    peer = RawPeer(make, engine_is_client=client, greet=False)
    peer.take()
    events = peer.send(PingFrame(opaque_data=b"12345678"))
    assert_connection_failed(peer, events, 1)


@each_engine
def test_the_peers_limit_of_streams_is_followed(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=True, greet=False)
    assert peer.engine.peer_max_concurrent_streams == 100
    peer.send(peer.settings({}))
    assert peer.engine.peer_max_concurrent_streams >= 1_000
    peer.send(peer.settings({MAX_STREAMS: 2}))
    assert peer.engine.peer_max_concurrent_streams == 2
    assert peer.engine.free_streams == 2
    peer.asked()
    assert peer.engine.free_streams == 1
    peer.asked()
    assert peer.engine.free_streams == 0
    assert peer.engine.open_streams == 2
    with pytest.raises(RuntimeError):
        peer.asked()
    peer.send(peer.reset(1, 8))
    assert peer.engine.free_streams == 1
    peer.send(peer.settings({MAX_STREAMS: 0}))
    assert peer.engine.free_streams == 0
    peer.send(peer.settings({MAX_STREAMS: 5}))
    assert peer.engine.free_streams == 4


@each_engine
def test_the_peers_limit_of_field_sections_is_reported(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=True, greet=False)
    assert peer.engine.engine.peer_max_section_octets == UNLIMITED
    peer.send(peer.settings({MAX_STREAMS: 2}))
    assert peer.engine.engine.peer_max_section_octets == UNLIMITED
    for octets in (16_384, 0, 1 << 31):
        peer.send(peer.settings({MAX_SECTION: octets}))
        assert peer.engine.engine.peer_max_section_octets == octets


@each_engine
def test_streams_are_numbered_from_one_in_steps_of_two(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=True)
    assert [peer.asked(), peer.asked(end=True), peer.asked()] == [1, 3, 5]


@each_engine
def test_a_server_opens_no_streams(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False)
    assert not peer.engine.free_streams
    with pytest.raises(RuntimeError):
        peer.asked()


@each_engine
def test_a_window_below_the_default_applies_only_once_acknowledged(make: EventFactory) -> None:
    limits = Limits(stream_window_octets=1_000)
    early = RawPeer(make, engine_is_client=False, limits=limits, acknowledge_settings=False)
    early.open()
    events = early.send(*[early.data(1, bytes(16_000)) for _ in range(4)])
    assert [type(event) for event in events] == [DataReceived] * 4

    late = RawPeer(make, engine_is_client=False, limits=limits)
    late.open()
    assert [type(event) for event in late.send(late.data(1, bytes(1_000)))] == [DataReceived]
    assert_stream_failed(late, late.send(late.data(1, bytes(1))), 1, 3, or_connection=True)


@each_engine
def test_a_window_that_shrank_below_the_content_in_flight_opens_again(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False, limits=Limits(stream_window_octets=1_000), acknowledge_settings=False)
    peer.open()
    peer.send(peer.data(1, bytes(10_000)))
    peer.acknowledge_settings()
    peer.engine.acknowledge(1, 10_000)
    # 1,000 offered, 10,000 used and given back: the peer counts 65,535 − 10,000 − 64,535 + credit.
    assert credit(peer.take(), 1) - 9_000 in range(500, 1_001)


@each_engine
def test_a_section_over_the_limit_is_refused_even_in_the_first_request(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False, limits=Limits(max_field_section_octets=1_000))
    request = peer.headers(
        1,
        [
            (b":method", b"GET", False),
            (b":scheme", b"http", False),
            (b":authority", b"a", False),
            (b":path", b"/", False),
            (b"x-long", bytes(b"x" * 1_000), False),
        ],
    )
    events = peer.send(request)
    assert not [event for event in events if isinstance(event, HeadReceived)]
    assert_stream_failed(peer, events, 1, 1, 2, 9, 11, reported=False)


@each_engine
def test_trailers_over_the_limit_reset_their_stream(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False, limits=Limits(max_field_section_octets=1_000))
    peer.open()
    events = peer.send(peer.headers(1, [(b"x-long", b"x" * 1_000, False)], end=True))
    assert_stream_failed(peer, events, 1, 1, 2, 9, 11)


@each_engine
def test_a_frame_over_the_limit_is_refused_as_soon_as_its_header_is_read(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False)
    peer.open()
    header = peer.data(1, bytes(16_385)).serialize()[:9]
    assert_connection_failed(peer, peer.send(header), 6)


@each_engine
def test_larger_frames_are_accepted_if_we_offered_them(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False, limits=Limits(max_frame_octets=1 << 17))
    peer.open()
    assert peer.send(peer.data(1, bytes(1 << 17))) == [DataReceived(1, bytes(1 << 17), False)]


@each_engine
@pytest.mark.parametrize(
    ("settings", "code"),
    [({ENABLE_PUSH: 2}, 1), ({INITIAL_WINDOW: 1 << 31}, 3), ({MAX_FRAME: 16_383}, 1), ({MAX_FRAME: 1 << 24}, 1)],
)
def test_settings_outside_their_range_end_the_connection(
    make: EventFactory, settings: dict[int, int], code: int
) -> None:
    peer = RawPeer(make, engine_is_client=False)
    assert_connection_failed(peer, peer.send(peer.settings(settings)), code)


@each_engine
def test_unknown_settings_are_ignored(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False)
    assert peer.send(peer.settings({0x42: 7})) == [SettingsReceived()]


@each_engine
def test_pings_are_answered_with_their_payload(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False)
    assert peer.send(peer.ping(b"abcdefgh")) == []
    (pong,) = of(peer.take(), "Ping")
    assert (pong.flags, pong.body) == (frozenset({"ACK"}), b"abcdefgh")


@each_engine
def test_answers_to_our_pings_are_reported(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=True)
    peer.engine.ping(b"01234567")
    (ping,) = of(peer.take(), "Ping")
    assert (ping.flags, ping.body) == (frozenset(), b"01234567")
    (event,) = peer.send(peer.ping(b"01234567", ack=True))
    assert event == PingAcknowledged(b"01234567")


@each_engine
def test_streams_over_the_limit_are_refused_and_do_not_break_the_compression_state(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False, limits=Limits(max_concurrent_streams=2))
    marked = [
        (b":method", b"GET", False),
        (b":scheme", b"http", False),
        (b":authority", b"example.internal", False),
        (b":path", b"/", False),
        (b"x-indexed", b"only in the refused request", False),
    ]
    peer.open(1)
    peer.open(3)
    assert peer.send(peer.headers(5, marked, end=True)) == []
    seen = of(peer.take(), "RstStream")
    assert [(one.stream_id, *codes([one], "RstStream")) for one in seen] == [(5, 7)]
    peer.send(peer.reset(1, 8))
    (event,) = peer.send(peer.headers(7, marked))
    assert event == HeadReceived(7, marked, False)


@each_engine
@pytest.mark.parametrize("client", [True, False])
def test_unexpected_settings_acknowledgements_are_ignored(make: EventFactory, client: bool) -> None:
    peer = RawPeer(make, engine_is_client=client)
    again = SettingsFrame(flags=["ACK"])
    assert peer.send(again, again, peer.settings({})) == [SettingsReceived()]


@each_engine
@pytest.mark.parametrize("acknowledged", [True, False])
def test_a_push_is_a_connection_error_even_before_our_settings_are_acknowledged(
    make: EventFactory, acknowledged: bool
) -> None:
    peer = RawPeer(make, engine_is_client=True, acknowledge_settings=acknowledged)
    peer.asked()
    push = PushPromiseFrame(1, 2, peer.block(REQUEST), flags=["END_HEADERS"])
    assert_connection_failed(peer, peer.send(push), 1)
