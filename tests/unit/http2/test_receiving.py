"""What tests/conformance does not ask of every engine: where exactly the limits are, and what a defect does."""

from __future__ import annotations

import pytest

from proxy.http2 import receiving
from proxy.http2.events import ConnectionFailed, Event, HeadReceived, SettingsReceived, StreamReset
from proxy.http2.h2_engine import H2Engine
from tests.conformance.raw import REQUEST, RESPONSE, RawPeer


def server() -> RawPeer:
    return RawPeer(H2Engine, engine_is_client=False)


def test_a_defect_ends_the_connection_and_is_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def defect(_: object) -> None:
        raise ZeroDivisionError("with a secret in its text")

    peer = server()
    monkeypatch.setattr(receiving, "check_request", defect)
    events = peer.send(peer.ping(), peer.headers(1, REQUEST))
    assert events == [ConnectionFailed(2, "a defect of the engine: ZeroDivisionError")]
    seen = peer.take()
    assert [one.kind for one in seen] == ["Ping", "GoAway"]
    assert b"secret" not in seen[-1].body


def test_a_peer_may_not_make_us_apply_settings_without_end() -> None:
    peer = server()
    assert peer.send(peer.settings(dict.fromkeys(range(100, 132), 1))) == [SettingsReceived()]
    events = peer.send(peer.settings(dict.fromkeys(range(100, 133), 1)))
    assert isinstance(events[-1], ConnectionFailed)


def cancelled(peer: RawPeer, streams: range, *, answered: bool) -> list[Event]:
    for stream_id in streams:
        events = peer.open(stream_id)
        assert isinstance(events[-1], HeadReceived)
        if answered:
            peer.engine.send_head(stream_id, RESPONSE, end_stream=False)
        events = peer.send(peer.reset(stream_id, 8))
        assert events[0] == StreamReset(stream_id, 8, True)
        if len(events) > 1:
            return events
    return []


def test_streams_cancelled_after_their_answer_began_are_no_flood() -> None:
    peer = server()
    assert cancelled(peer, range(1, 1_800, 2), answered=False) == []
    assert cancelled(peer, range(1_801, 3_001, 2), answered=True) == []
    assert cancelled(peer, range(3_001, 4_201, 2), answered=False) == []
    assert cancelled(peer, range(4_201, 5_001, 2), answered=False) != []


def test_a_peer_cannot_make_us_hold_more_than_a_frame() -> None:
    peer = server()
    peer.open()
    events = peer.send(b"\xff\xff\xff\0\0\0\0\0\1" + bytes(1_000))
    assert isinstance(events[-1], ConnectionFailed)


@pytest.mark.parametrize("increment", [1, 100])
def test_an_allowance_of_window_updates_is_shared_by_all_streams(increment: int) -> None:
    peer = server()
    peer.open(1)
    peer.open(3)
    events: list[Event] = []
    for _ in range(40):
        events = peer.send(*[peer.window(stream_id, increment) for stream_id in (1, 3) for _ in range(50)])
        if events:
            break
    assert isinstance(events[-1], ConnectionFailed)
