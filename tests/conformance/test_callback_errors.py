"""Exceptions of receivers: the engine catches them, and reports them to its handler."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hyperframe.frame import Frame

from tests.conformance.reacting import client, fail, reacting, server, stream_of
from tests.support.peers.engines import EventFactory, each_engine
from tests.support.peers.events import DataReceived, Event, HeadReceived, InterimReceived, StreamReset, TrailersReceived
from tests.support.peers.raw import REQUEST, RESPONSE, TRAILERS, RawPeer, codes, line


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
def test_an_exception_of_a_request_receiver_is_caught_by_the_engine(make: EventFactory, kind: type[Event]) -> None:
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
def test_an_exception_of_a_response_receiver_is_caught_by_the_engine(make: EventFactory, kind: type[Event]) -> None:
    peer = client(make)
    reacting(peer, kind, fail)
    events = peer.send(*RESPONSES[kind](peer), peer.headers(3, RESPONSE, end=True))
    assert events[-1] == HeadReceived(3, RESPONSE, True)
    ((stream, exc),) = peer.engine.handler.errors
    assert stream is stream_of(peer)
    assert type(exc) is ZeroDivisionError


@each_engine
def test_an_exception_about_sent_content_is_caught_by_the_engine(make: EventFactory) -> None:
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
