"""When receivers and handlers are called, what they may do meanwhile, and what becomes of what they raise."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hyperframe.frame import Frame

from proxy.http2.engine import Limits, Stream
from proxy.http2.events import Fields
from tests.support.peers.engines import EventFactory, each_engine
from tests.support.peers.events import (
    ConnectionFailed,
    DataReceived,
    Event,
    GoAwayReceived,
    HeadReceived,
    InterimReceived,
    SettingsReceived,
    StreamReset,
    TrailersReceived,
)
from tests.support.peers.raw import (
    REQUEST,
    RESPONSE,
    TRAILERS,
    RawPeer,
    assert_connection_failed,
    codes,
    content,
    credit,
    line,
    of,
)

GREAT = {4: 1 << 24}


def server(make: EventFactory, limits: Limits | None = None) -> RawPeer:
    peer = RawPeer(make, engine_is_client=False, limits=limits, settings=GREAT)
    peer.engine.strict = False
    return peer


def client(make: EventFactory, streams: int = 2) -> RawPeer:
    peer = RawPeer(make, engine_is_client=True, settings=GREAT)
    peer.engine.strict = False
    for _ in range(streams):
        peer.asked()
    return peer


def stream_of(peer: RawPeer, stream_id: int = 1) -> Stream:
    return peer.engine.handler.streams[stream_id]


def reacting(peer: RawPeer, kind: type[Event], act: Callable[[Stream], None], stream_id: int = 1) -> None:
    """Have something done from within the callback for this kind of event on this stream."""

    def react(event: Event) -> None:
        if type(event) is kind and getattr(event, "stream_id", stream_id) == stream_id:
            act(stream_of(peer, stream_id))

    peer.engine.handler.react = react


def fail(_: Stream) -> None:
    raise ZeroDivisionError("a defect of the receiver")


# ---- receivers that raise


def request_then(*frames: Callable[[RawPeer], Frame]) -> Callable[[RawPeer], list[Frame]]:
    return lambda peer: [peer.headers(1, REQUEST), *(frame(peer) for frame in frames)]


REQUESTS: dict[type[Event], Callable[[RawPeer], list[Frame]]] = {
    HeadReceived: request_then(),
    DataReceived: request_then(lambda peer: peer.data(1, b"x")),
    TrailersReceived: request_then(lambda peer: peer.headers(1, TRAILERS, end=True)),
    StreamReset: request_then(lambda peer: peer.reset(1, 8)),
}
RESPONSES: dict[type[Event], Callable[[RawPeer], list[Frame]]] = {
    InterimReceived: lambda peer: [peer.headers(1, [line(b":status", b"103")])],
    HeadReceived: lambda peer: [peer.headers(1, RESPONSE)],
    DataReceived: lambda peer: [peer.headers(1, RESPONSE), peer.data(1, b"x")],
    TrailersReceived: lambda peer: [peer.headers(1, RESPONSE), peer.headers(1, TRAILERS, end=True)],
    StreamReset: lambda peer: [peer.reset(1, 8)],
}


@each_engine
@pytest.mark.parametrize("kind", REQUESTS)
def test_what_is_raised_about_a_request_ends_at_the_engine(make: EventFactory, kind: type[Event]) -> None:
    peer = server(make)
    reacting(peer, kind, fail)
    events = peer.send(*REQUESTS[kind](peer), peer.headers(3, REQUEST), peer.data(3, b"fine", end=True))
    assert events[-2:] == [HeadReceived(3, REQUEST, False), DataReceived(3, b"fine", True)]
    ((stream, exc),) = peer.engine.handler.errors
    assert stream is stream_of(peer)
    assert type(exc) is ZeroDivisionError
    assert peer.send(peer.ping()) == []
    assert [one.kind for one in peer.take()] == ["Ping"]


@each_engine
@pytest.mark.parametrize("kind", RESPONSES)
def test_what_is_raised_about_a_response_ends_at_the_engine(make: EventFactory, kind: type[Event]) -> None:
    peer = client(make)
    reacting(peer, kind, fail)
    events = peer.send(*RESPONSES[kind](peer), peer.headers(3, RESPONSE, end=True))
    assert events[-1] == HeadReceived(3, RESPONSE, True)
    ((stream, exc),) = peer.engine.handler.errors
    assert stream is stream_of(peer)
    assert type(exc) is ZeroDivisionError


@each_engine
def test_what_is_raised_about_content_that_left_ends_at_the_engine(make: EventFactory) -> None:
    peer = client(make)
    for stream_id in (1, 3):
        peer.engine.send_data(stream_id, b"content", end_stream=False)
    peer.engine.engine.take()
    peer.engine.handler.sent[1] = 0  # so that the receiver of stream 1 finds itself told twice, and raises
    peer.engine.engine.report_sent()
    ((stream, exc),) = peer.engine.handler.errors
    assert stream is stream_of(peer)
    assert type(exc) is AssertionError
    assert peer.engine.handler.sent[3] == 7


@each_engine
def test_a_stream_whose_receiver_raised_can_be_reset(make: EventFactory) -> None:
    peer = server(make)
    reacting(peer, DataReceived, fail)
    peer.open()
    peer.send(peer.data(1, b"x"))
    ((stream, _),) = peer.engine.handler.errors
    assert stream is not None
    stream.reset(2, False)
    assert codes(peer.take(), "RstStream") == [2]


# ---- commands from within callbacks


@each_engine
@pytest.mark.parametrize("end", [True, False])
def test_a_request_may_be_answered_from_within_its_callback(make: EventFactory, end: bool) -> None:
    peer = server(make)

    def reply(stream: Stream) -> None:
        stream.send_head([line(b":status", b"503")], False)
        stream.send_data(b"no route", True)
        stream.reset(0, True)

    reacting(peer, HeadReceived, reply)
    assert peer.open(end=end) == [HeadReceived(1, REQUEST, end)]
    assert peer.engine.wants_to_send, "the caller of receive asks this afterwards"
    seen = peer.take()
    assert [one.kind for one in seen] == ["Headers", "Data"] + ([] if end else ["RstStream"])
    assert content(seen, 1) == b"no route"
    assert peer.engine.open_streams == 0


@each_engine
def test_a_stream_is_over_when_a_whole_request_was_answered_from_within_its_callback(make: EventFactory) -> None:
    peer = server(make)

    def reply(stream: Stream) -> None:
        stream.send_head([line(b":status", b"204")], True)
        stream.reset(0, False)

    reacting(peer, HeadReceived, reply)
    peer.open(end=True)
    assert [one.kind for one in peer.take()] == ["Headers"]
    assert peer.engine.open_streams == 0


@each_engine
def test_a_request_may_be_answered_when_its_content_has_come(make: EventFactory) -> None:
    peer = server(make)

    def echo(stream: Stream) -> None:
        stream.acknowledge(5)
        stream.send_head(RESPONSE, False)
        stream.send_data(b"reply", True)

    reacting(peer, DataReceived, echo)
    peer.send(peer.headers(1, REQUEST), peer.data(1, b"whole", end=True), peer.headers(3, REQUEST))
    assert [one.kind for one in peer.take()] == ["Headers", "Data"]
    assert peer.engine.open_streams == 1


@each_engine
def test_a_stream_may_be_reset_while_its_content_is_reported(make: EventFactory) -> None:
    peer = server(make, Limits(connection_window_octets=65_535))
    reacting(peer, DataReceived, lambda stream: stream.reset(8, False))
    peer.open()
    more = [peer.data(1, bytes(10_000)) for _ in range(4)]
    assert peer.send(*more) == [DataReceived(1, bytes(10_000), False)]
    seen = peer.take()
    assert codes(seen, "RstStream") == [8]
    assert peer.engine.engine.owed_octets == 10_000, "what was reported is for the handler to give back"
    peer.engine.engine.acknowledge_connection()
    seen += peer.take()
    assert credit(seen, 0) == 40_000


@each_engine
def test_another_stream_may_be_reset_while_one_is_reported(make: EventFactory) -> None:
    peer = client(make)
    reacting(peer, HeadReceived, lambda _: stream_of(peer, 3).reset(8, False))
    events = peer.send(peer.headers(1, RESPONSE), peer.headers(3, RESPONSE), peer.data(1, b"x", end=True))
    assert events == [HeadReceived(1, RESPONSE, False), DataReceived(1, b"x", True)]
    assert codes(peer.take(), "RstStream") == [8]


@each_engine
def test_a_request_may_be_passed_on_to_another_engine_while_it_is_reported(make: EventFactory) -> None:
    below, above = server(make), client(make, streams=0)

    def pass_on(event: Event) -> None:
        if isinstance(event, HeadReceived):
            above.engine.send_request(event.fields, event.end_stream)
        elif isinstance(event, DataReceived):
            above.engine.send_data(event.stream_id, event.data, event.end_stream)

    def pass_back(event: Event) -> None:
        if isinstance(event, HeadReceived):
            below.engine.send_head(event.stream_id, event.fields, event.end_stream)

    below.engine.handler.react = pass_on
    above.engine.handler.react = pass_back
    below.send(below.headers(1, REQUEST), below.data(1, b"content", end=True))
    head, data = above.take()
    assert (head.fields, data.body, data.ends) == (REQUEST, b"content", True)
    above.send(above.headers(1, RESPONSE, end=True))
    (head,) = below.take()
    assert (head.fields, head.ends) == (RESPONSE, True)
    assert below.engine.open_streams == above.engine.open_streams == 0


@each_engine
def test_streams_that_were_not_processed_may_be_reset_when_goaway_comes(make: EventFactory) -> None:
    peer = client(make, streams=3)

    def react(event: Event) -> None:
        if isinstance(event, GoAwayReceived):
            for stream in peer.engine.engine.live_streams():
                if stream.id > event.last_stream_id:
                    stream.reset(8, False)

    peer.engine.handler.react = react
    peer.send(peer.go_away(1), peer.headers(3, RESPONSE), peer.headers(1, RESPONSE))
    assert [one.stream_id for one in of(peer.take(), "RstStream")] == [3, 5]
    assert peer.engine.open_streams == 1


@each_engine
def test_streams_may_be_opened_when_the_peers_settings_allow_more(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=True, settings={3: 1})
    peer.asked()
    opened: list[int] = []

    def react(event: Event) -> None:
        if isinstance(event, SettingsReceived):
            while peer.engine.free_streams:
                opened.append(peer.engine.send_request(REQUEST, end_stream=True))

    peer.engine.handler.react = react
    peer.send(peer.settings({3: 4}))
    assert opened == [3, 5, 7]
    assert [one.stream_id for one in of(peer.take(), "Headers")] == [3, 5, 7]


@each_engine
@pytest.mark.parametrize("content_octets", [0, 5])
@pytest.mark.parametrize("trailers", [None, [], TRAILERS])
def test_a_whole_request_may_be_sent_when_another_is_refused(
    make: EventFactory, content_octets: int, trailers: Fields | None
) -> None:
    peer = client(make, streams=1)

    def again(_: Stream) -> None:
        stream_id = peer.engine.send_request(REQUEST, end_stream=False)
        assert stream_id == 3
        if content_octets:
            peer.engine.send_data(3, bytes(content_octets), end_stream=False)
        if trailers is None:
            peer.engine.send_data(3, b"", end_stream=True)
        else:
            peer.engine.send_trailers(3, trailers)

    reacting(peer, StreamReset, again)
    peer.send(peer.reset(1, 7))
    assert peer.engine.wants_to_send
    seen = [one for one in peer.take() if one.kind in ("Headers", "Data")]
    assert [one.stream_id for one in seen] == [3] * len(seen)
    assert seen[0].fields == REQUEST
    assert [one.ends for one in seen] == [False] * (len(seen) - 1) + [True]
    assert content(seen, 3) == bytes(content_octets)
    if trailers:
        assert seen[-1].fields == TRAILERS
    peer.send(peer.headers(3, RESPONSE, end=True))
    assert peer.engine.open_streams == 0


@each_engine
def test_a_request_whose_end_waits_may_be_reset(make: EventFactory) -> None:
    peer = client(make, streams=1)

    def again(_: Stream) -> None:
        peer.engine.send_request(REQUEST, end_stream=False)
        peer.engine.send_trailers(3, TRAILERS)
        stream_of(peer, 3).reset(8, False)

    reacting(peer, StreamReset, again)
    peer.send(peer.reset(1, 7))
    assert [(one.kind, one.stream_id) for one in peer.take()][-1] == ("RstStream", 3)
    assert peer.engine.open_streams == 0


@each_engine
def test_a_window_that_opens_is_used_by_what_is_sent_when_content_has_left(make: EventFactory) -> None:
    peer = client(make, streams=1)
    peer.engine.send_data(1, b"first", end_stream=False)
    peer.engine.engine.take()
    stream_of(peer).send_data(b"second", True)
    peer.engine.engine.report_sent()
    assert content(peer.take(), 1) == b"second"


# ---- what is reported as sent


@each_engine
def test_nothing_is_reported_as_sent_before_it_is_asked_for(make: EventFactory) -> None:
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
def test_what_left_of_a_finished_stream_is_reported(make: EventFactory) -> None:
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
def test_what_is_owed_is_what_was_reported_and_not_acknowledged(make: EventFactory) -> None:
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
def test_a_streams_credit_gives_none_to_the_connection(make: EventFactory) -> None:
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
def test_live_streams_are_those_that_are_not_finished_by_id(make: EventFactory) -> None:
    peer = server(make)
    engine = peer.engine.engine
    for stream_id in (1, 3, 5, 7):
        peer.open(stream_id, end=stream_id == 3)
    peer.engine.send_head(3, RESPONSE, end_stream=True)
    peer.send(peer.reset(5, 8))
    assert engine.live_streams() == [stream_of(peer, 1), stream_of(peer, 7)]
    assert [stream.id for stream in engine.live_streams()] == [1, 7]


@each_engine
def test_a_failure_leaves_the_streams_that_were_not_finished(make: EventFactory) -> None:
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
def test_a_flush_is_asked_for_once(make: EventFactory) -> None:
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
def test_credit_that_is_not_sent_yet_asks_for_no_flush(make: EventFactory) -> None:
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
