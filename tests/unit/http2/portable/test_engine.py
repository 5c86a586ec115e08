"""What tests/conformance does not ask of every engine."""

from __future__ import annotations

import gc
import tracemalloc

import pytest

from proxy.http2.engine import Engine, Limits
from proxy.http2.portable import engine as portable
from proxy.http2.portable.engine import LIBRARY, PortableEngine
from tests.support.peers.engines import EventEngineFactory, Handler
from tests.support.peers.events import ConnectionFailed, Event, HeadReceived, SettingsReceived, StreamReset
from tests.support.peers.raw import REQUEST, RESPONSE, RawPeer, line, of

make = EventEngineFactory("h2", PortableEngine)


def server() -> RawPeer:
    return RawPeer(make, engine_is_client=False)


def client() -> RawPeer:
    return RawPeer(make, engine_is_client=True)


def test_the_portable_engine_is_an_engine() -> None:
    engine = PortableEngine(client=True, limits=Limits(), handler=Handler())
    assert isinstance(engine, Engine)
    assert LIBRARY.startswith("h2 4.")


# ---- receiving


def test_an_internal_error_ends_the_connection_and_is_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("with a secret in its text")

    peer = server()
    peer.engine.strict = False
    monkeypatch.setattr(portable, "check_request", fail)
    events = peer.send(peer.ping(), peer.headers(1, REQUEST))
    assert events == [ConnectionFailed(2, "internal error: ZeroDivisionError")]
    ((stream, exc),) = peer.engine.handler.errors
    assert stream is None
    assert isinstance(exc, ZeroDivisionError)
    seen = peer.take()
    assert [one.kind for one in seen] == ["Ping", "GoAway"]
    assert b"secret" not in seen[-1].body


def test_the_number_of_settings_of_a_peer_is_limited() -> None:
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


def test_streams_cancelled_after_their_response_began_are_no_flood() -> None:
    peer = server()
    assert cancelled(peer, range(1, 1_800, 2), answered=False) == []
    assert cancelled(peer, range(1_801, 3_001, 2), answered=True) == []
    assert cancelled(peer, range(3_001, 4_201, 2), answered=False) == []
    assert cancelled(peer, range(4_201, 5_001, 2), answered=False) != []


def test_at_most_one_incomplete_frame_is_buffered() -> None:
    peer = server()
    peer.open()
    events = peer.send(b"\xff\xff\xff\0\0\0\0\0\1" + bytes(1_000))
    assert isinstance(events[-1], ConnectionFailed)


@pytest.mark.parametrize("increment", [1, 100])
def test_an_account_of_window_updates_is_shared_by_all_streams(increment: int) -> None:
    peer = server()
    peer.open(1)
    peer.open(3)
    events: list[Event] = []
    for _ in range(40):
        events = peer.send(*[peer.window(stream_id, increment) for stream_id in (1, 3) for _ in range(50)])
        if events:
            break
    assert isinstance(events[-1], ConnectionFailed)


def test_an_empty_continuation_is_accepted() -> None:
    peer = server()
    frames = peer.split_headers(1, REQUEST, [0] * 15)
    assert peer.send(*frames) == [HeadReceived(1, REQUEST, False)]


# ---- sending


@pytest.mark.parametrize("bad", ["text", b"a\r\nb", b"a\0b", None])
def test_a_field_that_must_not_be_sent_does_not_break_the_compression_state(bad: bytes) -> None:
    peer = client()
    with pytest.raises(ValueError, match="field"):
        peer.engine.send_request([*REQUEST, line(b"x-new", b"x"), line(b"x-bad", bad)], end_stream=True)
    assert peer.engine.open_streams == 0
    for _ in range(3):
        peer.engine.send_request([*REQUEST, line(b"x-new", b"x")], end_stream=True)
        (head,) = of(peer.take(), "Headers")
        assert head.fields == [*REQUEST, line(b"x-new", b"x")]


def test_trailers_that_must_not_be_sent_are_refused_when_they_are_queued() -> None:
    peer = client()
    peer.asked()
    with pytest.raises(ValueError, match="field"):
        peer.engine.send_trailers(1, [line(b"x", b"a\nb")])
    peer.engine.send_trailers(1, [line(b"x", b"fine")])
    assert peer.take()[0].fields == [line(b"x", b"fine")]


def test_commands_out_of_order_raise() -> None:
    peer = server()
    peer.open()
    with pytest.raises(RuntimeError, match="before its head"):
        peer.engine.send_data(1, b"x", end_stream=False)
    with pytest.raises(RuntimeError, match="before its head"):
        peer.engine.send_trailers(1, [])
    peer.engine.send_head(1, RESPONSE, end_stream=False)
    with pytest.raises(RuntimeError, match="was sent before"):
        peer.engine.send_head(1, RESPONSE, end_stream=False)
    with pytest.raises(ValueError, match="eight octets"):
        peer.engine.ping(b"short")


def test_content_behind_the_end_is_ignored() -> None:
    peer = client()
    peer.asked()
    peer.engine.send_data(1, b"all", end_stream=True)
    peer.engine.send_data(1, b" and more", end_stream=True)
    peer.engine.send_trailers(1, [line(b"x", b"y")])
    (only,) = peer.take()
    assert (only.body, only.ends) == (b"all", True)
    peer.engine.send_data(1, b"late", end_stream=True)
    assert peer.take() == []


def test_credit_of_content_seen_and_unseen_is_given_back_together() -> None:
    peer = RawPeer(make, engine_is_client=False, limits=Limits(connection_window_octets=65_535))
    peer.open(1)
    peer.open(3, [*REQUEST, line(b"content-length", b"1")])
    room = 65_535
    for _ in range(30):
        octets = min(room, 10_000)
        assert octets == 10_000, "no window is ever withheld by more than half"
        peer.send(peer.data(1, bytes(octets)))
        peer.engine.acknowledge(1, octets)
        peer.engine.acknowledge_connection(octets)
        peer.send(peer.data(3, bytes(10_000)))
        room += sum(int.from_bytes(one.body, "big") for one in of(peer.take(), "WindowUpdate", 0)) - 20_000


def test_finished_streams_cost_no_memory() -> None:
    peer = server()

    def exchanges(first: int, last: int) -> None:
        for stream_id in range(first, last, 2):
            peer.open(stream_id)
            peer.send(peer.data(stream_id, b"x" * 100, end=True))
            peer.engine.acknowledge(stream_id, 100)
            peer.engine.acknowledge_connection(100)
            peer.engine.send_head(stream_id, RESPONSE, end_stream=False)
            peer.engine.send_data(stream_id, b"y" * 100, end_stream=True)
            peer.engine.take()
            peer.send(peer.window(0, 100))
        assert peer.engine.open_streams == 0
        peer.engine.forget_finished()

    exchanges(1, 2_001)
    gc.collect()
    tracemalloc.start()
    exchanges(2_001, 3_001)
    gc.collect()
    before, _ = tracemalloc.get_traced_memory()
    exchanges(3_001, 9_001)
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 3_000 * 8
