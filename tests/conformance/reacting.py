"""Engines whose handler acts within a callback."""

from __future__ import annotations

from collections.abc import Callable

from proxy.http2.engine import Limits, Stream
from tests.conformance.windows import WIDE_WINDOWS
from tests.support.peers.engines import EventFactory
from tests.support.peers.events import Event
from tests.support.peers.raw import RawPeer


def server(make: EventFactory, limits: Limits | None = None) -> RawPeer:
    peer = RawPeer(make, engine_is_client=False, limits=limits, settings=WIDE_WINDOWS)
    peer.engine.strict = False
    return peer


def client(make: EventFactory, streams: int = 2) -> RawPeer:
    peer = RawPeer(make, engine_is_client=True, settings=WIDE_WINDOWS)
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
