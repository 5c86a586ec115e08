"""The reasons of refused streams (`policy.refusals`), the same for every engine."""

from __future__ import annotations

import pytest

from proxy.http2.engine import Limits
from proxy.http2.events import Fields
from tests.support.peers.engines import EventFactory, each_engine
from tests.support.peers.events import HeadReceived, InterimReceived
from tests.support.peers.raw import REQUEST, TRAILERS, RawPeer, assert_stream_failed, line

METHOD, SCHEME, AUTHORITY, PATH = REQUEST[:4]

AUTHORITIES: dict[str, tuple[Fields, str]] = {
    "no authority at all": ([METHOD, SCHEME, PATH], "authority"),
    "empty authority": ([METHOD, SCHEME, line(b":authority", b""), PATH], "authority"),
    "blank in the authority": ([METHOD, SCHEME, line(b":authority", b"a b"), PATH], "authority"),
    "user-info": ([METHOD, SCHEME, line(b":authority", b"me@here"), PATH], "user-info"),
    "user-info in host": ([METHOD, SCHEME, PATH, line(b"host", b"me:secret@here")], "user-info"),
    "another host": ([*REQUEST[:4], line(b"host", b"elsewhere")], "host-differs"),
    "empty host": ([*REQUEST[:4], line(b"host", b"")], "host-differs"),
}
REASONS: dict[str, tuple[Fields, str]] = {
    **AUTHORITIES,
    "no method": ([SCHEME, AUTHORITY, PATH], "pseudo-field"),
    "no scheme": ([METHOD, AUTHORITY, PATH], "pseudo-field"),
    "no path": ([METHOD, SCHEME, AUTHORITY], "pseudo-field"),
    "a path that is none": ([METHOD, SCHEME, AUTHORITY, line(b":path", b"x")], "pseudo-field"),
    "connect with a path": ([line(b":method", b"CONNECT"), AUTHORITY, PATH], "pseudo-field"),
    "upper case": ([*REQUEST[:4], line(b"Accept", b"*/*")], "field"),
    "connection": ([*REQUEST[:4], line(b"connection", b"close")], "field"),
    "te": ([*REQUEST[:4], line(b"te", b"gzip")], "field"),
    "method twice": ([METHOD, *REQUEST[:4]], "field"),
    "content-length": ([*REQUEST, line(b"content-length", b"1x")], "content-length"),
    "a field and the host": ([*REQUEST[:4], line(b"host", b"elsewhere"), line(b"x", b" a")], "field"),
    "the path and user-info": ([METHOD, SCHEME, line(b":authority", b"a@b"), line(b":path", b"x")], "pseudo-field"),
    "user-info and another host": (
        [METHOD, SCHEME, line(b":authority", b"a@b"), PATH, line(b"host", b"elsewhere")],
        "user-info",
    ),
    "another host and a content-length": (
        [*REQUEST[:4], line(b"host", b"elsewhere"), line(b"content-length", b"x")],
        "host-differs",
    ),
    "too large": ([*REQUEST[:4], line(b"x", b"a" * 5_000)], "section-too-large"),
}


@each_engine
@pytest.mark.parametrize("fault", REASONS)
def test_the_reason_of_a_refused_request_is_reported_once(make: EventFactory, fault: str) -> None:
    section, reason = REASONS[fault]
    peer = RawPeer(make, engine_is_client=False, limits=Limits(max_field_section_octets=4_096))
    peer.send(peer.headers(1, section))
    assert peer.engine.take_refused() == [(1, reason)]
    assert peer.engine.take_refused() == []
    peer.send(peer.headers(3, REQUEST))
    assert peer.engine.take_refused() == []


@each_engine
def test_the_reason_of_a_stream_that_is_refused_or_reset_later_is_reported(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False, limits=Limits(max_concurrent_streams=3))
    peer.open(1, [*REQUEST, line(b"content-length", b"5")])
    peer.open(3)
    peer.open(5)
    peer.send(peer.headers(7, REQUEST))
    peer.send(peer.data(1, b"123456"))
    peer.send(peer.headers(3, TRAILERS))
    peer.send(peer.headers(5, [line(b"Upper", b"x")], end=True))
    peer.engine.go_away(0)
    peer.send(peer.headers(9, REQUEST))
    assert peer.engine.take_refused() == [
        (7, "too-many-streams"),
        (1, "content-length"),
        (3, "stream-order"),
        (5, "field"),
        (9, "going-away"),
    ]


@each_engine
@pytest.mark.parametrize(
    ("section", "end", "reason"),
    [
        ([line(b"content-type", b"a")], False, "pseudo-field"),
        ([line(b":status", b"101")], False, "pseudo-field"),
        ([line(b":status", b"200"), line(b"connection", b"close")], False, "field"),
        ([line(b":status", b"200"), line(b"content-length", b"")], False, "content-length"),
        ([line(b":status", b"200"), line(b"content-length", b"5")], True, "content-length"),
        ([line(b":status", b"100")], True, "stream-order"),
    ],
)
def test_the_reason_of_a_refused_response_is_reported(
    make: EventFactory, section: Fields, end: bool, reason: str
) -> None:
    peer = RawPeer(make, engine_is_client=True)
    peer.asked()
    peer.send(peer.headers(1, section, end=end))
    assert peer.engine.take_refused() == [(1, reason)]


@each_engine
def test_more_interim_heads_than_are_taken_reset_their_stream(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=True, limits=Limits(max_interim_heads=2))
    peer.asked()
    peer.asked()
    for stream_id in (1, 1, 3, 3):
        events = peer.send(peer.headers(stream_id, [line(b":status", b"103")]))
        assert [type(event) for event in events] == [InterimReceived]
    assert_stream_failed(peer, peer.send(peer.headers(1, [line(b":status", b"103")])), 1, 11)
    assert peer.engine.take_refused() == [(1, "too-many-interim-heads")]
    assert [type(event) for event in peer.send(peer.headers(3, [line(b":status", b"200")]))] == [HeadReceived]
