"""Requests that are not forwarded, fields that are not, draining, and the access log."""

from __future__ import annotations

import pytest
import structlog

from proxy.errors import ERROR_FIELD, UpstreamConnectFailed
from proxy.http2.choice import EngineFactory
from proxy.http2.events import ErrorCode, Fields
from proxy.routes import UNMATCHED
from tests.support.data_path import World
from tests.support.peers.engines import each_bare_engine
from tests.unit.relay.stage import Signed, get, get_by

# ---- requests that are not forwarded


@each_bare_engine
@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("POST", "/nowhere", 404, b"route-not-found"),
        ("POST", "/svc/%2e%2e/x", 400, b"path-refused"),
        ("GET", "/discover", 404, b"route-not-found"),
    ],
)
def test_a_request_without_a_route_is_answered_at_once(
    make: EngineFactory, method: str, path: str, status: int, code: bytes
) -> None:
    with Signed(make) as world, structlog.testing.capture_logs():
        client = world.client()
        stream = client.request(path, method=method, end=True)
        world.settle()
        assert client.streams[stream].status == status
        assert client.streams[stream].value(ERROR_FIELD) == code
        assert world.metrics.routes[UNMATCHED].total == 1
        assert not world.mints
        world.assert_at_rest()


@each_bare_engine
@pytest.mark.parametrize("method", ["TRACE", "trace", "Trace"])
def test_trace_is_refused(make: EngineFactory, method: str) -> None:
    with Signed(make) as world, structlog.testing.capture_logs():
        client = world.client()
        stream = get_by(world, client, method)
        assert client.streams[stream].status == 501
        assert client.streams[stream].value(ERROR_FIELD) == b"method-refused"
        assert not world.mints
        world.assert_at_rest()


@each_bare_engine
def test_connect_is_refused(make: EngineFactory) -> None:
    with Signed(make) as world, structlog.testing.capture_logs():
        client = world.client()
        head: Fields = [(b":method", b"CONNECT", False), (b":authority", b"svc.example:443", False)]
        stream = client.engine.send_request(head, end_stream=False)
        world.settle()
        assert client.streams[stream].status == 501
        assert client.streams[stream].value(ERROR_FIELD) == b"method-refused"
        client.engine.send_data(stream, b"", end_stream=True)
        world.settle()
        world.assert_at_rest()


@each_bare_engine
def test_a_request_without_a_connection_gets_503(make: EngineFactory) -> None:
    with Signed(make) as world, structlog.testing.capture_logs():
        world.refusals.append(UpstreamConnectFailed("nobody listens there"))
        client = world.client()
        stream = get(world, client, "/svc/x")
        assert client.streams[stream].status == 503
        assert client.streams[stream].value(ERROR_FIELD) == b"upstream-connect-failed"
        assert client.streams[stream].value(b"retry-after") is not None
        world.assert_at_rest()


@each_bare_engine
def test_the_response_to_an_internal_error_of_a_mint_does_not_quote_it(make: EngineFactory) -> None:
    with Signed(make) as world, structlog.testing.capture_logs() as log:
        world.failure = RuntimeError("Bearer secret")
        client = world.client()
        stream = get(world, client, "/svc/x")
        assert client.streams[stream].status == 503
        assert not world.services
        assert b"secret" not in client.streams[stream].content
        assert "secret" not in str(log)
        world.assert_at_rest()


# ---- draining, and the access log


@each_bare_engine
def test_draining_refuses_new_requests_and_continues_waiting_ones(make: EngineFactory) -> None:
    with Signed(make) as world, structlog.testing.capture_logs():
        world.may_mint.clear()
        client = world.client()
        old = get(world, client, "/svc/old")
        world.dispatcher.draining = True
        new = get(world, client, "/svc/new")
        assert client.streams[new].status == 503
        assert client.streams[new].value(ERROR_FIELD) == b"draining"
        world.may_mint.set()
        world.settle()
        service, far = world.latest("/old")
        service.engine.reset(far, ErrorCode.REFUSED_STREAM)
        world.settle()
        world.respond("/old")
        assert client.streams[old].status == 200
        world.assert_at_rest()


@each_bare_engine
def test_closing_cancels_waiting_requests(make: EngineFactory) -> None:
    with Signed(make) as world:
        world.may_mint.clear()
        client = world.client()
        get(world, client, "/svc/x")
        world.run(world.dispatcher.waiting.close())
        world.may_mint.set()
        world.settle()
        assert not world.arrivals("/x")
        world.wire(client).lose()
        world.settle()
        world.assert_at_rest()


@each_bare_engine
def test_the_access_log_has_a_line_for_each_exchange_and_no_query(make: EngineFactory) -> None:
    with Signed(make, access_log=True) as world, structlog.testing.capture_logs() as log:
        client = world.client()
        get(world, client, "/svc/x?token=secret")
        world.loop.advance(0.25)
        world.respond("/x?token=secret", 201)
        get(world, client, "/nowhere")
        lines = [line for line in log if line["event"] == "exchange"]
        assert [(line["route"], line["path"], line["status"], line["code"]) for line in lines] == [
            ("svc", "/svc/x", 201, None),
            (None, "/nowhere", 404, "route-not-found"),
        ]
        assert lines[0]["milliseconds"] == 250.0
        assert "secret" not in str(log)


@each_bare_engine
@pytest.mark.parametrize("status", [302, 403, 404, 415, 429, 502, 503, 504, 508])
def test_an_error_of_the_front_end_is_forwarded_and_logged(make: EngineFactory, status: int) -> None:
    with Signed(make) as world, structlog.testing.capture_logs() as log:
        client = world.client()
        stream = get(world, client, "/svc/x")
        world.respond("/x", status)
        get(world, client, "/svc/y")
        assert client.streams[stream].status == status
        assert world.tokens_of("/y") == [b"Bearer 1"]
        assert [line["status"] for line in log if line["event"] == "upstream answered an error"] == [status]


# ---- between a client and its proxy


@each_bare_engine
def test_proxy_credentials_are_not_forwarded_either_way(make: EngineFactory) -> None:
    with World(make=make) as world:
        client = world.client()
        stream = client.request("/svc/x", fields=[(b"proxy-authorization", b"Basic c2VjcmV0")])
        client.engine.send_trailers(stream, [(b"proxy-authorization", b"Basic c2VjcmV0", False)])
        world.settle()
        service, far = world.latest("/x")
        assert service.streams[far].value(b"proxy-authorization") is None
        assert service.streams[far].trailers is None
        assert service.streams[far].ended
        service.respond(far, 407, fields=[(b"proxy-authenticate", b"Basic"), (b"www-authenticate", b"Basic")])
        service.engine.send_trailers(far, [(b"proxy-authenticate", b"Basic", False)])
        world.settle()
        assert client.streams[stream].head == [(b":status", b"407", False), (b"www-authenticate", b"Basic", False)]
        assert client.streams[stream].trailers is None
        assert client.streams[stream].ended


@each_bare_engine
def test_trailers_that_belong_in_a_head_are_not_forwarded_either_way(make: EngineFactory) -> None:
    mixed: Fields = [
        (b"host", b"elsewhere", False),
        (b"x-checksum", b"1", False),
        (b"authorization", b"Bearer late", False),
        (b"grpc-status", b"0", False),
    ]
    crossing = [mixed[1], mixed[3]]
    with World(make=make) as world:
        client = world.client()
        stream = client.request("/svc/x")
        client.engine.send_trailers(stream, mixed)
        world.settle()
        service, far = world.latest("/x")
        assert service.streams[far].trailers == crossing
        service.respond(far)
        service.engine.send_trailers(far, mixed)
        world.settle()
        assert client.streams[stream].trailers == crossing
        world.assert_at_rest()


# ---- paths


@each_bare_engine
def test_short_paths_are_remembered_up_to_a_bound(make: EngineFactory) -> None:
    with World(make=make) as world:
        client = world.client()
        for path in ("/svc/x", "/svc/" + "x" * 300):
            client.request(path, end=True)
        world.settle()
        kept = world.dispatcher.snapshot.destinations
        assert set(kept) == {b"/svc/x"}
        first = kept[b"/svc/x"]
        client.request("/svc/x", end=True)
        world.settle()
        assert kept[b"/svc/x"] is first
        for number in range(1_100):
            world.dispatcher.snapshot.destination(b"/svc/%d" % number, [], True)
        assert 0 < len(kept) <= 1_024
