"""A receiver that detaches within a callback is freed right after it, and the stream continues."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator

import pytest
from hyperframe.frame import Frame

from proxy.http2.engine import Limits, Stream, StreamReceiver
from proxy.http2.events import Fields
from tests.support.peers.engines import EventFactory, each_engine
from tests.support.peers.raw import REQUEST, RESPONSE, TRAILERS, RawPeer, content, credit, line

WINDOW = 20_000
LIMITS = Limits(stream_window_octets=WINDOW, connection_window_octets=65_535)


@pytest.fixture(autouse=True)
def _no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Leaving(StreamReceiver):
    """Drops its stream in the first callback, so that no reference to the stream is left."""

    def __init__(self, stream: Stream, told: list[str]) -> None:
        self._stream = stream
        self._told = told

    def _leave(self, what: str) -> None:
        self._stream.receiver = None
        self._told.append(what)

    def on_request_data(self, data: bytes, end_stream: bool) -> None:
        self._leave("data")

    def on_request_trailers(self, fields: Fields) -> None:
        self._leave("trailers")

    def on_request_reset(self, code: int, by_peer: bool) -> None:
        self._leave("reset")

    def on_response_sent(self, octets: int) -> None:
        self._leave("sent")

    def on_interim(self, fields: Fields) -> None:
        self._leave("interim")

    def on_response_head(self, fields: Fields, end_stream: bool) -> None:
        self._leave("head")

    on_response_data = on_request_data
    on_response_trailers = on_request_trailers
    on_response_reset = on_request_reset
    on_request_sent = on_response_sent


class Silent(StreamReceiver):
    """Does not know its stream."""


def leaving(peer: RawPeer, told: list[str]) -> weakref.ref[StreamReceiver]:
    """Give stream 1 a receiver that leaves; return what tells whether it is still there."""
    stream = peer.engine.handler.streams[1]
    stream.receiver = receiver = Leaving(stream, told)
    return weakref.ref(receiver)


REQUEST_FRAMES: dict[str, Callable[[RawPeer], Frame]] = {
    "data": lambda peer: peer.data(1, b"x"),
    "trailers": lambda peer: peer.headers(1, TRAILERS, end=True),
    "reset": lambda peer: peer.reset(1, 8),
}
RESPONSE_FRAMES: dict[str, Callable[[RawPeer], Frame]] = {
    "interim": lambda peer: peer.headers(1, [line(b":status", b"103")]),
    "head": lambda peer: peer.headers(1, RESPONSE),
    "reset": lambda peer: peer.reset(1, 8),
}


@each_engine
@pytest.mark.parametrize("what", REQUEST_FRAMES)
def test_a_request_receiver_may_detach_in_any_call(make: EventFactory, what: str) -> None:
    peer = RawPeer(make, engine_is_client=False)
    peer.engine.strict = False
    peer.open(1)
    peer.open(3)
    told: list[str] = []
    receiver = leaving(peer, told)
    peer.send(REQUEST_FRAMES[what](peer))
    assert told == [what]
    assert receiver() is None
    assert len(peer.send(peer.data(3, b"fine", end=True))) == 1
    assert peer.send(peer.ping()) == []
    assert [one.kind for one in peer.take()] == ["Ping"]


@each_engine
@pytest.mark.parametrize("what", RESPONSE_FRAMES)
def test_a_response_receiver_may_detach_in_any_call(make: EventFactory, what: str) -> None:
    peer = RawPeer(make, engine_is_client=True)
    peer.asked()
    peer.asked()
    told: list[str] = []
    receiver = leaving(peer, told)
    peer.send(RESPONSE_FRAMES[what](peer))
    assert told == [what]
    assert receiver() is None
    assert len(peer.send(peer.headers(3, RESPONSE, end=True))) == 1


@each_engine
@pytest.mark.parametrize("is_client", [True, False])
def test_queued_content_is_sent_after_its_receiver_has_detached(make: EventFactory, is_client: bool) -> None:
    peer = RawPeer(make, engine_is_client=is_client)
    if is_client:
        peer.asked()
    else:
        peer.open(1)
        peer.answered()
    told: list[str] = []
    receiver = leaving(peer, told)
    peer.engine.send_data(1, bytes(100_000), end_stream=True)
    octets = len(content(peer.take(), 1))
    assert octets == 65_535
    assert told == ["sent"]
    assert receiver() is None
    peer.send(peer.window(0, 100_000), peer.window(1, 100_000))
    assert octets + len(content(peer.take(), 1)) == 100_000
    assert peer.sent == [], "nothing is reported any more"


@each_engine
@pytest.mark.parametrize("is_client", [True, False])
def test_content_after_the_receiver_has_detached_is_given_back_to_the_window(
    make: EventFactory, is_client: bool
) -> None:
    peer = RawPeer(make, engine_is_client=is_client, limits=LIMITS)
    peer.engine.strict = False
    if is_client:
        peer.asked()
        peer.send(peer.headers(1, RESPONSE))
    else:
        peer.open(1)
    told: list[str] = []
    receiver = leaving(peer, told)
    room = WINDOW
    for _ in range(10):
        assert peer.send(peer.data(1, bytes(5_000)), peer.data(1, bytes(5_000))) == []
        peer.engine.engine.acknowledge_connection()
        room += credit(peer.take(), 1) - 10_000
        assert room >= 5_000
    assert told == ["data"]
    assert receiver() is None
    assert peer.engine.handler.streams[1].owed_octets == 5_000, "what was reported is owed until it is acknowledged"


@each_engine
def test_a_receiver_is_freed_with_the_last_reference_to_its_stream(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False)
    peer.open(1, REQUEST, end=True)
    silent = Silent()
    peer.engine.handler.streams[1].receiver = silent
    receiver = weakref.ref(silent)
    del silent
    assert receiver() is not None
    peer.engine.send_head(1, RESPONSE, end_stream=True)
    peer.take()
    peer.engine.forget_finished()
    assert receiver() is None
