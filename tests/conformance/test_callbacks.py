"""When receivers and handlers are called, and what is reported, owed and live then."""

from __future__ import annotations

from proxy.http2.engine import Limits
from tests.conformance.reacting import client, server, stream_of
from tests.support.peers.engines import EventFactory, each_engine
from tests.support.peers.events import ConnectionFailed, Event
from tests.support.peers.raw import RESPONSE, TRAILERS, assert_connection_failed, credit, line

# ---- what is reported as sent


@each_engine
def test_octets_are_reported_as_sent_only_by_report_sent(make: EventFactory) -> None:
    peer = client(make)
    engine, sent = peer.engine.engine, peer.engine.handler.sent
    peer.engine.send_data(1, b"0123", end_stream=False)
    engine.take()
    peer.engine.send_data(1, b"456", end_stream=True)
    peer.engine.send_data(3, b"other", end_stream=False)
    engine.take()
    assert sent == {}
    engine.report_sent()
    assert sent == {1: 7, 3: 5}
    sent.clear()
    engine.report_sent()
    assert sent == {}


@each_engine
def test_sent_content_of_a_finished_stream_is_reported(make: EventFactory) -> None:
    peer = server(make)
    peer.open(end=True)
    peer.engine.send_head(1, RESPONSE, end_stream=False)
    peer.engine.send_data(1, b"all", end_stream=True)
    peer.take()
    assert peer.sent == [(1, 3)]
    assert peer.engine.open_streams == 0


@each_engine
def test_nothing_is_reported_as_sent_after_a_failure(make: EventFactory) -> None:
    peer = client(make)
    peer.engine.send_data(1, b"0123", end_stream=False)
    peer.engine.engine.take()
    peer.send(peer.window(0, 0))
    peer.engine.engine.report_sent()
    assert peer.engine.handler.sent == {}


# ---- streams without a receiver


@each_engine
def test_content_of_a_stream_without_a_receiver_is_given_back_to_its_window(make: EventFactory) -> None:
    peer = server(make, Limits(stream_window_octets=10_000, connection_window_octets=65_535))
    peer.open()
    stream = stream_of(peer)
    stream.receiver = None
    room = 10_000
    for _ in range(6):
        assert peer.send(peer.data(1, bytes(9_990), padding=9)) == []
        seen = peer.take()
        assert credit(seen, 0) == 0
        room += credit(seen, 1) - 10_000
        assert room >= 10_000
    assert stream.owed_octets == 0
    assert peer.engine.engine.owed_octets == 6 * 9_990
    peer.engine.engine.acknowledge_connection()
    assert credit(peer.take(), 0) == 60_000
    assert peer.engine.engine.owed_octets == 0


@each_engine
def test_nothing_is_reported_of_a_stream_without_a_receiver(make: EventFactory) -> None:
    peer = client(make, streams=3)
    for stream_id in (1, 3, 5):
        stream_of(peer, stream_id).receiver = None
    peer.engine.send_data(1, b"question", end_stream=True)
    interim = peer.headers(1, [line(b":status", b"103")])
    assert peer.send(interim, peer.headers(1, RESPONSE), peer.data(1, b"x"), peer.headers(1, TRAILERS, end=True)) == []
    assert peer.send(peer.reset(3, 8), peer.headers(5, [line(b"no", b"status")])) == []
    peer.take()
    assert peer.sent == []
    assert peer.engine.handler.errors == []
    assert peer.engine.open_streams == 0


# ---- what is owed


@each_engine
def test_owed_octets_are_those_reported_and_not_acknowledged(make: EventFactory) -> None:
    peer = server(make)
    peer.open(1)
    peer.open(3)
    peer.send(peer.data(1, bytes(1_000), padding=99), peer.data(3, bytes(500), end=True))
    one, other = stream_of(peer, 1), stream_of(peer, 3)
    assert (one.owed_octets, other.owed_octets, peer.engine.engine.owed_octets) == (1_000, 500, 1_500)
    one.acknowledge(300)
    other.acknowledge(500)
    peer.engine.engine.acknowledge_connection()
    assert (one.owed_octets, other.owed_octets, peer.engine.engine.owed_octets) == (700, 0, 0)
    peer.send(peer.reset(1, 8))
    one.acknowledge(700)
    assert one.owed_octets == 0


@each_engine
def test_credit_for_a_stream_is_not_credit_for_the_connection(make: EventFactory) -> None:
    peer = server(make, Limits(stream_window_octets=1 << 20, connection_window_octets=65_535))
    peer.open()
    peer.send(*[peer.data(1, bytes(15_000)) for _ in range(4)])
    stream_of(peer).acknowledge(60_000)
    assert credit(peer.take(), 0) == 0
    peer.engine.engine.acknowledge_connection()
    assert credit(peer.take(), 0) == 60_000


# ---- streams that are over, and connections


@each_engine
def test_commands_on_a_stream_that_is_over_do_nothing(make: EventFactory) -> None:
    peer = server(make)
    peer.open()
    stream = stream_of(peer)
    peer.send(peer.reset(1, 8))
    stream.send_head(RESPONSE, False)
    stream.send_data(b"late", True)
    stream.send_trailers(TRAILERS)
    stream.reset(8, False)
    stream.reset(8, True)
    stream.acknowledge(0)
    assert peer.take() == []
    assert not peer.engine.engine.live_streams()


@each_engine
def test_live_streams_are_the_unfinished_ones_in_the_order_of_their_ids(make: EventFactory) -> None:
    peer = server(make)
    engine = peer.engine.engine
    for stream_id in (1, 3, 5, 7):
        peer.open(stream_id, end=stream_id == 3)
    peer.engine.send_head(3, RESPONSE, end_stream=True)
    peer.send(peer.reset(5, 8))
    assert engine.live_streams() == [stream_of(peer, 1), stream_of(peer, 7)]
    assert [stream.id for stream in engine.live_streams()] == [1, 7]


@each_engine
def test_unfinished_streams_are_still_listed_after_the_connection_has_failed(make: EventFactory) -> None:
    peer = client(make, streams=3)
    engine = peer.engine.engine
    peer.engine.send_data(3, bytes(100), end_stream=False)
    peer.send(peer.reset(1, 8))
    seen_when_told: list[list[int]] = []

    def react(event: Event) -> None:
        if isinstance(event, ConnectionFailed):
            seen_when_told.append([stream.id for stream in engine.live_streams()])
            for stream in engine.live_streams():
                stream.send_data(b"late", True)
                stream.reset(8, False)

    peer.engine.handler.react = react
    events = peer.send(peer.window(0, 0))
    assert seen_when_told == [[3, 5]]
    assert_connection_failed(peer, events, 1)
    assert [stream.id for stream in engine.live_streams()] == [3, 5]
    assert engine.count_open_streams() == engine.count_queued_octets() == engine.count_free_streams() == 0
    engine.acknowledge_connection()
    engine.ping(b"01234567")
    engine.go_away(0, b"")
    assert peer.take() == []
    assert not engine.wants_to_send()


@each_engine
def test_a_flush_is_requested_once_before_a_take(make: EventFactory) -> None:
    peer = client(make)
    handler = peer.engine.handler
    handler.flush_scheduled, handler.flushes = False, 0
    for _ in range(3):
        peer.engine.send_data(1, b"x", end_stream=False)
        peer.engine.ping(b"01234567")
        peer.engine.reset(3, 8)
    assert handler.flushes == 1
    peer.take()
    peer.engine.go_away(0)
    assert handler.flushes == 2


@each_engine
def test_credit_that_is_too_small_to_be_sent_requests_no_flush(make: EventFactory) -> None:
    peer = server(make)
    peer.open()
    peer.send(peer.data(1, bytes(10)))
    peer.take()
    handler = peer.engine.handler
    handler.flush_scheduled, handler.flushes = False, 0
    stream_of(peer).acknowledge(10)
    peer.engine.engine.acknowledge_connection()
    assert handler.flushes == 0
    assert peer.take() == []
