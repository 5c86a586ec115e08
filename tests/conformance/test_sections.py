"""Heads and trailers: what crosses unchanged, and what is refused (RFC 9113, 8)."""

from __future__ import annotations

import pytest

from tests.support.peers.engines import EventFactory, each_engine
from tests.support.peers.events import DataReceived, HeadReceived, InterimReceived, TrailersReceived
from tests.support.peers.memory import Joined
from tests.support.peers.raw import REQUEST, RESPONSE, TRAILERS, RawPeer, assert_stream_failed, line

METHOD, SCHEME, AUTHORITY, PATH = REQUEST[:4]


@each_engine
def test_heads_arrive_as_they_were_sent(make: EventFactory) -> None:
    joined = Joined(make)
    request = [
        *REQUEST,
        line(b"x-empty", b""),
        line(b"cookie", b"a=1"),
        line(b"x-obs", b"caf\xe9 \xff"),
        line(b"cookie", b"b=2"),
        line(b"x-restate-signature-scheme", b"v1"),
        line(b"x-inner", b"a  b\tc"),
        line(b"x-" + b"n" * 198, b"v" * 200),  # 127 and more have a length of several octets (RFC 7541, 5.1)
        line(b"te", b"trailers"),
    ]
    response = [line(b":status", b"299"), line(b"set-cookie", b"a"), line(b"set-cookie", b"b")]
    stream_id = joined.client.engine.send_request(request, end_stream=True)
    joined.run()
    assert joined.server.of(HeadReceived) == [HeadReceived(stream_id, request, True)]
    joined.server.engine.send_head(stream_id, response, end_stream=True)
    joined.run()
    assert joined.client.of(HeadReceived) == [HeadReceived(stream_id, response, True)]
    assert joined.client.engine.open_streams == joined.server.engine.open_streams == 0


@each_engine
def test_interim_heads_come_before_the_final_one(make: EventFactory) -> None:
    joined = Joined(make)
    stream_id = joined.client.engine.send_request(REQUEST, end_stream=False)
    joined.run()
    server = joined.server.engine
    early = [line(b":status", b"103"), line(b"link", b"</a>")]
    server.send_head(stream_id, [line(b":status", b"100")], end_stream=False)
    server.send_head(stream_id, early, end_stream=False)
    server.send_head(stream_id, RESPONSE, end_stream=False)
    joined.run()
    assert joined.client.events[-3:] == [
        InterimReceived(stream_id, [line(b":status", b"100")]),
        InterimReceived(stream_id, early),
        HeadReceived(stream_id, RESPONSE, False),
    ]


@each_engine
def test_trailers_cross_both_ways(make: EventFactory) -> None:
    joined = Joined(make)
    client, server = joined.client.engine, joined.server.engine
    stream_id = client.send_request(REQUEST, end_stream=False)
    client.send_data(stream_id, b"question", end_stream=False)
    client.send_trailers(stream_id, TRAILERS)
    joined.run()
    assert joined.server.events[-3:] == [
        HeadReceived(stream_id, REQUEST, False),
        DataReceived(stream_id, b"question", False),
        TrailersReceived(stream_id, TRAILERS),
    ]
    server.send_head(stream_id, RESPONSE, end_stream=False)
    server.send_trailers(stream_id, [*TRAILERS, (b"x-sum", b"1", True)])
    joined.run()
    assert joined.client.events[-2:] == [
        HeadReceived(stream_id, RESPONSE, False),
        TrailersReceived(stream_id, [*TRAILERS, (b"x-sum", b"1", True)]),
    ]
    assert client.open_streams == server.open_streams == 0


@each_engine
def test_empty_trailers_are_reported(make: EventFactory) -> None:
    server = RawPeer(make, engine_is_client=False)
    server.open()
    server.send(server.data(1, b"x"))
    assert server.send(server.headers(1, [], end=True)) == [TrailersReceived(1, [])]
    client = RawPeer(make, engine_is_client=True)
    client.asked()
    client.send(client.headers(1, RESPONSE))
    assert client.send(client.headers(1, [], end=True)) == [TrailersReceived(1, [])]


@each_engine
def test_empty_trailers_leave_as_the_end_of_data(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=True)
    peer.asked()
    peer.engine.send_data(1, b"last", end_stream=False)
    peer.engine.send_trailers(1, [])
    (only,) = peer.take()
    assert (only.kind, only.body, only.ends) == ("Data", b"last", True)
    peer.asked()
    peer.engine.send_trailers(3, [])
    (only,) = peer.take()
    assert (only.kind, only.body, only.ends) == ("Data", b"", True)


@each_engine
def test_a_response_may_end_before_its_request(make: EventFactory) -> None:
    joined = Joined(make)
    client, server = joined.client.engine, joined.server.engine
    stream_id = client.send_request(REQUEST, end_stream=False)
    joined.run()
    server.send_head(stream_id, RESPONSE, end_stream=False)
    server.send_data(stream_id, b"early", end_stream=True)
    joined.run()
    assert joined.client.streams[stream_id].ended
    assert client.open_streams == server.open_streams == 1
    client.send_data(stream_id, b"late", end_stream=False)
    client.send_data(stream_id, b"r", end_stream=True)
    joined.run()
    assert joined.server.streams[stream_id].content == b"later"
    assert client.open_streams == server.open_streams == 0


@each_engine
def test_a_connect_request_is_reported(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False)
    head = [line(b":method", b"CONNECT"), line(b":authority", b"a.internal:443")]
    assert peer.open(1, head) == [HeadReceived(1, head, False)]


@each_engine
def test_a_request_with_host_needs_no_authority(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False)
    head = [METHOD, SCHEME, PATH, line(b"host", b"a.internal")]
    assert peer.open(1, head) == [HeadReceived(1, head, False)]


@each_engine
def test_a_malformed_request_does_not_affect_the_others(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False)
    peer.open(1)
    events = peer.send(peer.headers(3, [METHOD, SCHEME, AUTHORITY]), peer.headers(5, REQUEST))
    assert events == [HeadReceived(5, REQUEST, False)]
    assert_stream_failed(peer, [], 3, 1, reported=False)
    assert peer.engine.open_streams == 2


@each_engine
def test_a_malformed_response_resets_its_stream(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=True)
    peer.asked()
    assert_stream_failed(peer, peer.send(peer.headers(1, [line(b"no", b"status")])), 1, 1)
    assert peer.engine.open_streams == 0
    assert peer.engine.free_streams


@each_engine
def test_an_interim_response_does_not_end_a_stream(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=True)
    peer.asked()
    assert_stream_failed(peer, peer.send(peer.headers(1, [line(b":status", b"100")], end=True)), 1, 1)


@each_engine
@pytest.mark.parametrize("pieces", [[b"12345", b"6"], [b"1234", b""], [b"", b""]])
def test_content_must_have_the_length_that_content_length_announces(make: EventFactory, pieces: list[bytes]) -> None:
    peer = RawPeer(make, engine_is_client=False)
    peer.open(1, [*REQUEST, line(b"content-length", b"5")])
    first, last = pieces
    events = peer.send(*([peer.data(1, first)] if first else []), peer.data(1, last, end=True))
    assert_stream_failed(peer, events, 1, 1)


@each_engine
def test_a_head_that_ends_its_stream_announces_no_content(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False)
    events = peer.open(1, [*REQUEST, line(b"content-length", b"5")], end=True)
    assert not [event for event in events if isinstance(event, HeadReceived)]
    assert_stream_failed(peer, events, 1, 1, reported=False)
    assert peer.open(3, [*REQUEST, line(b"content-length", b"0")], end=True)


@each_engine
def test_a_response_that_ends_with_its_head_announces_no_content(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=True)
    peer.asked()
    head = [*RESPONSE, line(b"content-length", b"5")]
    assert_stream_failed(peer, peer.send(peer.headers(1, head, end=True)), 1, 1)


@each_engine
def test_trailers_do_not_replace_missing_content(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=False)
    peer.open(1, [*REQUEST, line(b"content-length", b"5")])
    peer.send(peer.data(1, b"1234"))
    assert_stream_failed(peer, peer.send(peer.headers(1, TRAILERS, end=True)), 1, 1)


@each_engine
@pytest.mark.parametrize(("method", "status"), [(b"HEAD", b"200"), (b"GET", b"304")])
def test_a_response_without_content_may_have_a_content_length(make: EventFactory, method: bytes, status: bytes) -> None:
    peer = RawPeer(make, engine_is_client=True)
    peer.asked([line(b":method", method), *REQUEST[1:]], end=True)
    head = [line(b":status", status), line(b"content-length", b"1234")]
    assert peer.send(peer.headers(1, head, end=True)) == [HeadReceived(1, head, True)]
    assert peer.engine.open_streams == 0


@each_engine
def test_content_before_the_response_head_resets_the_stream(make: EventFactory) -> None:
    peer = RawPeer(make, engine_is_client=True)
    peer.asked()
    assert_stream_failed(peer, peer.send(peer.data(1, b"x")), 1, 1, or_connection=True)
