"""A reset that frees at once what is queued, even while nothing can be written."""

from __future__ import annotations

import pytest

from proxy.http2.engine import Limits, Stream
from tests.conformance.reacting import reacting, server
from tests.support.peers.engines import EventFactory, each_engine
from tests.support.peers.events import DataReceived
from tests.support.peers.raw import REQUEST, RESPONSE, TRAILERS, RawPeer, codes

INITIAL_WINDOW = 4
GREAT = {INITIAL_WINDOW: 1 << 24}


@each_engine
@pytest.mark.parametrize("window", [0, 10, 1 << 24])
def test_queued_content_is_dropped_before_anything_is_taken(make: EventFactory, window: int) -> None:
    peer = RawPeer(make, engine_is_client=True, settings={INITIAL_WINDOW: window})
    peer.asked()
    peer.engine.send_data(1, b"0123456789abcdef", end_stream=True)
    peer.engine.reset_now(1, 0xB)
    assert peer.engine.queued_octets == peer.engine.open_streams == 0
    (reset,) = peer.take()
    assert (reset.kind, *codes([reset], "RstStream")) == ("RstStream", 0xB)
    assert peer.sent == []


@each_engine
def test_queued_trailers_and_ends_are_dropped(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False, settings=GREAT)
    for number, trailers in enumerate((TRAILERS, None)):
        stream = 2 * number + 1
        peer.open(stream)
        peer.engine.send_head(stream, RESPONSE, end_stream=False)
        peer.take()
        peer.engine.send_data(stream, b"content", end_stream=trailers is None)
        if trailers is not None:
            peer.engine.send_trailers(stream, trailers)
        peer.engine.reset_now(stream, 8)
        assert [each.kind for each in peer.take()] == ["RstStream"]
    assert peer.engine.open_streams == 0


@each_engine
def test_an_immediate_reset_replaces_one_that_waits_for_content(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=True, settings={INITIAL_WINDOW: 4})
    peer.asked()
    peer.engine.send_data(1, b"01234567", end_stream=True)
    peer.engine.reset(1, 5, after_data=True)
    peer.take()
    peer.engine.reset_now(1, 8)
    assert codes(peer.take(), "RstStream") == [8]
    assert peer.engine.queued_octets == peer.engine.open_streams == 0


@each_engine
@pytest.mark.parametrize("end", ["open", "ended", "trailers"])
def test_what_is_queued_is_dropped_within_a_callback_too(make: EventFactory, end: str) -> None:
    peer = server(make)
    counted: list[int] = []

    def act(stream: Stream) -> None:
        stream.send_data(b"content", end == "ended")
        if end == "trailers":
            stream.send_trailers(TRAILERS)
        stream.reset_now(8)
        counted.extend((stream.count_queued_octets(), peer.engine.queued_octets))

    peer.open(1)
    peer.engine.send_head(1, RESPONSE, end_stream=False)
    peer.take()
    reacting(peer, DataReceived, act)
    peer.send(peer.data(1, b"more"))
    assert counted == [0, 0]
    assert [(each.kind, *codes([each], "RstStream")) for each in peer.take()] == [("RstStream", 8)]
    assert peer.engine.open_streams == 0


@each_engine
def test_a_queued_head_leaves_before_the_reset(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=True, settings=GREAT)
    stream = peer.engine.send_request(REQUEST, end_stream=False)
    peer.engine.reset_now(stream, 8)
    assert [each.kind for each in peer.take() if each.stream_id == stream] == ["Headers", "RstStream"]


@each_engine
def test_other_streams_continue(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=True, settings=GREAT)
    peer.asked()
    peer.asked()
    for stream in (1, 3):
        peer.engine.send_data(stream, b"content", end_stream=True)
    peer.engine.reset_now(1, 8)
    seen = peer.take()
    assert [each.body for each in seen if each.kind == "Data" and each.stream_id == 3] == [b"content"]
    assert not [each for each in seen if each.kind == "Data" and each.stream_id == 1]
    assert peer.engine.queued_octets == 0


@each_engine
def test_frames_that_still_arrive_on_the_stream_are_discarded(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False, limits=Limits())
    peer.open(1)
    peer.engine.reset_now(1, 0xB)
    peer.take()
    assert peer.send(peer.data(1, b"late")) == []
    assert peer.engine.open_streams == 0


@each_engine
def test_a_stream_that_is_over_is_not_reset(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False, settings=GREAT)
    peer.open(end=True)
    peer.engine.send_head(1, RESPONSE, end_stream=True)
    peer.take()
    peer.engine.reset_now(1, 8)
    assert peer.take() == []
