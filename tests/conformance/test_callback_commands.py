"""Commands that receivers and handlers may give within a callback."""

from __future__ import annotations

import pytest

from proxy.http2.engine import Limits, Stream
from proxy.http2.events import Fields
from tests.conformance.reacting import client, reacting, server, stream_of
from tests.support.peers.engines import EventFactory, each_engine
from tests.support.peers.events import DataReceived, Event, GoAwayReceived, HeadReceived, SettingsReceived, StreamReset
from tests.support.peers.raw import REQUEST, RESPONSE, TRAILERS, RawPeer, codes, content, credit, line, of


@each_engine
@pytest.mark.parametrize("end", [True, False])
def test_a_request_may_be_answered_within_its_callback(make: EventFactory, end: bool) -> None:
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
def test_a_stream_is_over_after_its_whole_request_was_answered_within_the_callback(make: EventFactory) -> None:
    peer = server(make)

    def reply(stream: Stream) -> None:
        stream.send_head([line(b":status", b"204")], True)
        stream.reset(0, False)

    reacting(peer, HeadReceived, reply)
    peer.open(end=True)
    assert [one.kind for one in peer.take()] == ["Headers"]
    assert peer.engine.open_streams == 0


@each_engine
def test_a_request_may_be_answered_within_the_callback_of_its_content(make: EventFactory) -> None:
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
def test_a_stream_may_be_reset_within_the_callback_of_its_content(make: EventFactory) -> None:
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
def test_another_stream_may_be_reset_within_a_callback(make: EventFactory) -> None:
    peer = client(make)
    reacting(peer, HeadReceived, lambda _: stream_of(peer, 3).reset(8, False))
    events = peer.send(peer.headers(1, RESPONSE), peer.headers(3, RESPONSE), peer.data(1, b"x", end=True))
    assert events == [HeadReceived(1, RESPONSE, False), DataReceived(1, b"x", True)]
    assert codes(peer.take(), "RstStream") == [8]


@each_engine
def test_a_request_may_be_passed_on_to_another_engine_within_its_callback(make: EventFactory) -> None:
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
def test_unprocessed_streams_may_be_reset_within_the_goaway_callback(make: EventFactory) -> None:
    peer = client(make, streams=3)

    def react(event: Event) -> None:
        if isinstance(event, GoAwayReceived):
            for stream in peer.engine.engine.live_streams():
                if stream.id > event.last_stream_id:
                    stream.reset(8, False)

    peer.engine.handler.react = react
    peer.send(peer.go_away(1), peer.headers(3, RESPONSE), peer.headers(1, RESPONSE))
    assert of(peer.take(), "RstStream") == []
    assert peer.engine.open_streams == 1


@each_engine
def test_streams_may_be_opened_within_the_settings_callback(make: EventFactory) -> None:
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
def test_a_whole_request_may_be_sent_within_the_callback_of_a_reset(
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
def test_a_request_with_queued_trailers_may_be_reset_within_a_callback(make: EventFactory) -> None:
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
def test_content_queued_before_sent_octets_are_reported_leaves_with_the_next_take(make: EventFactory) -> None:
    peer = client(make, streams=1)
    peer.engine.send_data(1, b"first", end_stream=False)
    peer.engine.engine.take()
    stream_of(peer).send_data(b"second", True)
    peer.engine.engine.report_sent()
    assert content(peer.take(), 1) == b"second"
