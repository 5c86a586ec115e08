"""The token of each request: minted, waited for, replaced, or missing."""

from __future__ import annotations

import pytest
import structlog
from hyperframe.frame import Frame, GoAwayFrame, RstStreamFrame

from proxy.errors import ERROR_FIELD, AmbientUnsupported, Failure, ImpersonationDenied, TokenTimeout
from proxy.http2.choice import EngineFactory
from proxy.http2.events import ErrorCode
from tests.support.data_path import route
from tests.support.peers.engines import each_bare_engine
from tests.unit.relay.stage import HOUR, TOKEN_FIELD, Signed, get


@each_bare_engine
def test_one_mint_serves_all_requests_that_wait_and_all_later_ones(make: EngineFactory) -> None:
    with Signed(make) as world:
        world.may_mint.clear()
        client = world.client()
        streams = [client.request(f"/svc/{number}", end=True) for number in range(5)]
        world.settle()
        assert not world.services, "nothing leaves without a token"
        world.may_mint.set()
        world.settle()
        streams.append(get(world, client, "/svc/5"))
        for number, stream in enumerate(streams):
            assert world.tokens_of(f"/{number}") == [b"Bearer 1"]
            world.respond(f"/{number}")
            assert client.streams[stream].status == 200
        assert len(world.mints) == 1
        world.assert_at_rest()


@each_bare_engine
def test_each_discovery_gets_its_own_mint_which_is_not_cached(make: EngineFactory) -> None:
    with Signed(make) as world:
        client = world.client()
        get(world, client, "/svc/discover?first")
        get(world, client, "/svc/discover?second")
        get(world, client, "/svc/x")
        assert world.tokens_of("/discover?first") == [b"Bearer 1"]
        assert world.tokens_of("/discover?second") == [b"Bearer 2"]
        assert world.tokens_of("/x") == [b"Bearer 3"]
        assert len(world.mints) == 3


@each_bare_engine
@pytest.mark.parametrize(
    ("failure", "status", "discovery_status"),
    [
        (TokenTimeout("too slow"), 503, 503),
        (AmbientUnsupported("impersonate an account"), 503, 424),
        (ImpersonationDenied("grant the role"), 503, 424),
    ],
)
def test_without_a_token_nothing_is_sent_and_the_client_gets_a_local_reply(
    make: EngineFactory, failure: Failure, status: int, discovery_status: int
) -> None:
    with Signed(make) as world, structlog.testing.capture_logs() as log:
        world.failure = failure
        client = world.client()
        spoofed = [(TOKEN_FIELD, b"Bearer spoofed"), (b"x_serverless_authorization", b"Bearer spoofed")]
        invocation = client.request("/svc/x", fields=spoofed, end=True)
        discovery = client.request("/svc/discover", method="GET", end=True)
        world.settle()
        assert not world.services
        assert client.streams[invocation].status == status
        assert client.streams[discovery].status == discovery_status
        assert str(failure).encode() in client.streams[discovery].content
        assert client.streams[discovery].value(ERROR_FIELD) == failure.code.encode()
        assert [(line["code"], line["log_level"]) for line in log if line["event"] == "request failed"] == [
            (failure.code, "warning" if failure.transient else "error")
        ]
        world.assert_at_rest()


@each_bare_engine
def test_a_repeated_failure_is_logged_once_a_second_with_the_number_left_out(make: EngineFactory) -> None:
    with Signed(make) as world, structlog.testing.capture_logs() as log:
        world.failure = TokenTimeout("too slow")
        client = world.client()
        for _ in range(3):
            client.request("/svc/x", end=True)
        world.settle()
        world.loop.advance(1.0)
        client.request("/svc/x", end=True)
        world.settle()
        told = [line.get("repeats_dropped") for line in log if line["event"] == "request failed"]
        assert told == [None, 2]


@each_bare_engine
def test_an_unsigned_route_adds_no_token_and_forwards_none(make: EngineFactory) -> None:
    with Signed(make, route("open"), route("svc", signed=True)) as world:
        client = world.client()
        client.request(
            "/open/x", fields=[(TOKEN_FIELD, b"Bearer spoofed"), (b"authorization", b"Bearer own")], end=True
        )
        world.settle()
        service, far = world.latest("/x")
        assert world.tokens_of("/x") == []
        assert service.streams[far].value(b"authorization") == b"Bearer own"
        assert world.mints == []


@each_bare_engine
def test_many_401s_drop_the_token_once(make: EngineFactory) -> None:
    with Signed(make) as world, structlog.testing.capture_logs() as log:
        client = world.client()
        streams = [get(world, client, f"/svc/{number}") for number in range(3)]
        world.respond("/0", 401, challenge=b'Bearer error="invalid_token"')
        get(world, client, "/svc/after")
        world.respond("/1", 401)
        world.respond("/2", 401)
        get(world, client, "/svc/later")
        assert [client.streams[stream].status for stream in streams] == [401] * 3
        assert client.streams[streams[0]].value(b"www-authenticate") == b'Bearer error="invalid_token"'
        assert world.tokens_of("/after") == world.tokens_of("/later") == [b"Bearer 2"]
        assert len(world.mints) == 2
        told = [line for line in log if line["event"] == "upstream answered an error"]
        assert [line["www_authenticate"] for line in told] == ['Bearer error="invalid_token"'], "once a second"


@each_bare_engine
def test_a_request_is_not_sent_again_with_a_token_that_was_refused_meanwhile(make: EngineFactory) -> None:
    with Signed(make) as world, structlog.testing.capture_logs():
        client = world.client()
        get(world, client, "/svc/x")
        get(world, client, "/svc/y")
        world.respond("/y", 401)
        service, far = world.latest("/x")
        service.engine.reset(far, ErrorCode.REFUSED_STREAM)
        world.settle()
        assert world.tokens_of("/x") == [b"Bearer 1", b"Bearer 2"]


@each_bare_engine
@pytest.mark.parametrize("frame", [RstStreamFrame(1, ErrorCode.REFUSED_STREAM), GoAwayFrame(0, last_stream_id=0)])
def test_a_discovery_that_was_not_processed_is_sent_again_with_its_own_token(make: EngineFactory, frame: Frame) -> None:
    with Signed(make) as world:
        client = world.client()
        stream = get(world, client, "/svc/discover")
        world.latest("/discover")[0].raw(frame)
        world.settle()
        assert world.tokens_of("/discover") == [b"Bearer 1"] * 2
        assert len(world.mints) == 1
        service, far = world.latest("/discover")
        world.wall += HOUR
        service.engine.reset(far, ErrorCode.REFUSED_STREAM)
        world.settle()
        assert world.tokens_of("/discover") == [b"Bearer 1", b"Bearer 1", b"Bearer 2"]
        world.respond("/discover")
        assert client.streams[stream].status == 200


# ---- the caller's own token


SPELLINGS = [b"x-serverless-authorization", b"x_serverless_authorization", b"x-serverless_authorization"]


@each_bare_engine
@pytest.mark.parametrize("name", SPELLINGS)
def test_a_discovery_with_a_token_is_refused_for_good_with_the_remedy(make: EngineFactory, name: bytes) -> None:
    with Signed(make) as world, structlog.testing.capture_logs():
        client = world.client()
        stream = client.request("/svc/discover", method="GET", fields=[(name, b"Bearer restates-own")], end=True)
        world.settle()
        told = client.streams[stream]
        assert told.status == 400
        assert told.value(ERROR_FIELD) == b"token-from-caller"
        assert told.value(b"retry-after") is None
        assert told.content.count(b"\n") == 1
        assert b"without Restate's --gcp-id-token" in told.content
        assert b"restates-own" not in told.content
        assert not world.mints
        assert not world.services
        world.assert_at_rest()


@each_bare_engine
@pytest.mark.parametrize("name", SPELLINGS)
def test_a_client_token_on_an_invocation_is_replaced_counted_and_warned_of_once(
    make: EngineFactory, name: bytes
) -> None:
    with Signed(make, route("svc", signed=True), route("open")) as world, structlog.testing.capture_logs() as log:
        client = world.client()
        for number in range(3):
            client.request(f"/svc/{number}", fields=[(name, b"Bearer restates-own")], end=True)
            world.settle()
            world.loop.advance(60.0)
            assert world.tokens_of(f"/{number}") == [b"Bearer 1"]
        client.request("/open/x", fields=[(name, b"Bearer restates-own")], end=True)
        get(world, client, "/svc/plain")
        world.settle()
        assert world.tokens_of("/x") == []
        counted = {known: world.metrics.routes[known].caller_tokens for known in ("svc", "open")}
        assert counted == {"svc": 3, "open": 1}
        told = [line for line in log if line["event"] == "dropping the caller's own Google token"]
        assert [line["route"] for line in told] == ["svc", "open"]
        assert "the sidecar adds its own" in told[0]["remedy"]
        assert "gcp_id_token = false" in told[1]["remedy"]
        assert "restates-own" not in str(log)


@each_bare_engine
def test_a_client_token_on_a_resent_invocation_is_counted_once(make: EngineFactory) -> None:
    with Signed(make) as world, structlog.testing.capture_logs():
        client = world.client()
        client.request("/svc/x", fields=[(TOKEN_FIELD, b"Bearer restates-own")], end=True)
        world.settle()
        service, far = world.latest("/x")
        service.engine.reset(far, ErrorCode.REFUSED_STREAM)
        world.settle()
        assert world.tokens_of("/x") == [b"Bearer 1"] * 2
        assert world.metrics.routes["svc"].caller_tokens == 1
