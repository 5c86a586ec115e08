"""An error of ours in the compiled engine ends its connection, is reported, and does not end the process."""

from __future__ import annotations

import pytest

from proxy.http2.choice import engine_choice
from proxy.http2.engine import Stream
from proxy.http2.events import FieldLine
from tests.support.peers.engines import EventEngineFactory
from tests.support.peers.events import ConnectionFailed, Event, GoAwayReceived
from tests.support.peers.raw import REQUEST, RawPeer, line


class Wrong:
    """It is neither true nor false, and no fields have it but by a defect."""

    def __bool__(self) -> bool:
        raise ZeroDivisionError


WRONG: FieldLine = (b"x-wrong", b"1", Wrong())  # type: ignore[assignment]


def peer_of(*, engine_is_client: bool) -> RawPeer:
    pytest.importorskip("proxy.http2.nghttp2.engine")
    peer = RawPeer(EventEngineFactory("nghttp2", engine_choice("nghttp2").make), engine_is_client=engine_is_client)
    peer.engine.strict = False
    return peer


def assert_reported(errors: list[tuple[Stream | None, Exception]]) -> None:
    ((stream, exc),) = errors
    assert stream is None
    assert isinstance(exc, ZeroDivisionError)


def test_an_error_within_a_command_is_reported() -> None:
    peer = peer_of(engine_is_client=False)
    peer.send(peer.headers(1, REQUEST))
    peer.engine.handler.streams[1].send_head([line(b":status", b"200"), WRONG], True)
    assert_reported(peer.engine.handler.errors)
    assert peer.send(peer.ping()) == [ConnectionFailed(2, "internal error: ZeroDivisionError")]


def test_an_error_within_a_command_while_goaway_is_reported_ends_the_connection_alone() -> None:
    peer = peer_of(engine_is_client=True)
    peer.asked()

    def send_wrong(event: Event) -> None:
        if isinstance(event, GoAwayReceived):
            peer.engine.handler.streams[1].send_trailers([WRONG])

    peer.engine.handler.react = send_wrong
    events = peer.send(peer.go_away(1), peer.ping(), peer.headers(1, [line(b":status", b"200")]))
    assert events == [GoAwayReceived(1, 0, b""), ConnectionFailed(2, "internal error: ZeroDivisionError")]
    assert_reported(peer.engine.handler.errors)
