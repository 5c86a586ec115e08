"""Route, token, connection: what every request is given before it leaves, and what happens where one is missing."""

from __future__ import annotations

import asyncio
from itertools import count

import pytest
import structlog

from proxy.errors import (
    ERROR_FIELD,
    AmbientUnsupported,
    Failure,
    ImpersonationDenied,
    TokenTimeout,
    UpstreamConnectFailed,
)
from proxy.http2.choice import EngineFactory
from proxy.http2.events import ErrorCode, Fields
from proxy.request_identity import Verifier
from proxy.routes import UNMATCHED, AllowLists, Origin, Route
from proxy.tokens.model import Token, TokenKey
from proxy.tokens.source import TokenSource
from tests.support.data_path import NAME, World, route
from tests.support.peers.engines import each_bare_engine
from tests.support.peers.memory import Client

TOKEN_FIELD = b"x-serverless-authorization"
HOUR = 3_600.0


class Signed(World):
    """A world with one signed route, whose mint the test controls."""

    def __init__(
        self,
        make: EngineFactory,
        *routes: Route,
        access_log: bool = False,
        allowed: AllowLists | None = None,
        verifier: Verifier | None = None,
    ) -> None:
        self.mints: list[TokenKey] = []
        self.failure: Exception | None = None
        self.principal: str | None = None
        self.may_mint = asyncio.Event()
        self.may_mint.set()
        self._numbers = count(1)
        super().__init__(
            *(routes or (route("svc", signed=True),)),
            make=make,
            tokens=lambda clock: TokenSource(self._mint, clock=clock, random_fraction=lambda: 0.0),
            access_log=access_log,
            allowed=allowed,
            verifier=verifier,
        )

    async def _mint(self, key: TokenKey) -> Token:
        self.mints.append(key)
        number = next(self._numbers)
        await self.may_mint.wait()
        if self.failure is not None:
            raise self.failure
        return Token(
            key=key, authorization=b"Bearer %d" % number, expires_at=self.wall + HOUR, principal=self.principal
        )

    def tokens_of(self, path: str) -> list[bytes]:
        """Return every token field with which a request has arrived, attempt by attempt."""
        return [
            value
            for service, stream_id in self.arrivals(path)
            for name, value, _ in service.streams[stream_id].head or []
            if b"serverless" in name
        ]

    def respond(self, path: str, status: int = 200, *, challenge: bytes = b"") -> None:
        """Answer the latest request with this path, and settle."""
        service, far = self.latest(path)
        service.respond(far, status, fields=[(b"www-authenticate", challenge)] if challenge else [], end=True)
        self.settle()


def get(world: World, client: Client, path: str) -> int:
    """Send a request and return its stream, all of it settled."""
    stream = client.request(path, method="GET", end=True)
    world.settle()
    return stream


def get_by(world: World, client: Client, method: str) -> int:
    """Send a request with this method and return its stream, all of it settled."""
    stream = client.request("/svc/x", method=method, end=True)
    world.settle()
    return stream


# ---- tokens


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
def test_a_failure_that_repeats_is_logged_once_a_second_with_the_number_left_out(make: EngineFactory) -> None:
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
def test_an_unsigned_route_gets_no_token_and_passes_none_on(make: EngineFactory) -> None:
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
def test_a_401_drops_the_token_once_however_many_get_it(make: EngineFactory) -> None:
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
def test_a_discovery_that_was_not_processed_is_sent_again_with_its_own_token(make: EngineFactory) -> None:
    with Signed(make) as world:
        client = world.client()
        stream = get(world, client, "/svc/discover")
        service, far = world.latest("/discover")
        service.engine.reset(far, ErrorCode.REFUSED_STREAM)
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


# ---- ways


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
def test_no_connection_is_answered_with_503(make: EngineFactory) -> None:
    with Signed(make) as world, structlog.testing.capture_logs():
        world.refusals.append(UpstreamConnectFailed("nobody listens there"))
        client = world.client()
        stream = get(world, client, "/svc/x")
        assert client.streams[stream].status == 503
        assert client.streams[stream].value(ERROR_FIELD) == b"upstream-connect-failed"
        assert client.streams[stream].value(b"retry-after") is not None
        world.assert_at_rest()


@each_bare_engine
def test_a_mint_that_breaks_is_answered_without_the_text_of_what_broke_it(make: EngineFactory) -> None:
    with Signed(make) as world, structlog.testing.capture_logs() as log:
        world.failure = RuntimeError("Bearer secret")
        client = world.client()
        stream = get(world, client, "/svc/x")
        assert client.streams[stream].status == 503
        assert not world.services
        assert b"secret" not in client.streams[stream].content
        assert "secret" not in str(log)
        world.assert_at_rest()


# ---- the end of the day


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


# ---- retry-after


@each_bare_engine
@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(("random_fraction", "seconds"), [(0.0, b"1"), (0.5, b"3"), (0.999, b"5")])
def test_a_429_or_503_without_retry_after_gets_one_that_is_spread(
    make: EngineFactory, status: int, random_fraction: float, seconds: bytes
) -> None:
    with World(make=make, random_fraction=lambda: random_fraction) as world, structlog.testing.capture_logs():
        client = world.client()
        stream = get(world, client, "/svc/x")
        service, far = world.latest("/x")
        service.respond(far, status, fields=[(b"content-type", b"text/plain")])
        service.engine.send_data(far, b"no instance", end_stream=True)
        world.settle()
        assert client.streams[stream].head == [
            (b":status", b"%d" % status, False),
            (b"content-type", b"text/plain", False),
            (b"retry-after", seconds, False),
        ]
        assert client.streams[stream].content == b"no instance"
        world.assert_at_rest()


@each_bare_engine
@pytest.mark.parametrize("value", [b"0", b"120", b"Fri, 31 Dec 1999 23:59:59 GMT", b"soon"])
def test_a_retry_after_of_the_service_itself_is_left_alone(make: EngineFactory, value: bytes) -> None:
    with World(make=make) as world, structlog.testing.capture_logs():
        client = world.client()
        stream = get(world, client, "/svc/x")
        service, far = world.latest("/x")
        service.respond(far, 503, fields=[(b"retry-after", value)], end=True)
        world.settle()
        assert client.streams[stream].head == [(b":status", b"503", False), (b"retry-after", value, False)]


@each_bare_engine
@pytest.mark.parametrize("status", [200, 301, 401, 403, 404, 413, 500, 502, 504])
def test_no_other_status_gets_a_retry_after(make: EngineFactory, status: int) -> None:
    with World(make=make) as world, structlog.testing.capture_logs():
        client = world.client()
        stream = get(world, client, "/svc/x")
        service, far = world.latest("/x")
        service.respond(far, status, end=True)
        world.settle()
        assert client.streams[stream].head == [(b":status", b"%d" % status, False)]


@each_bare_engine
def test_no_retry_after_is_added_where_the_settings_say_so(make: EngineFactory) -> None:
    with World(make=make, add_retry_after=False) as world, structlog.testing.capture_logs():
        client = world.client()
        stream = get(world, client, "/svc/x")
        service, far = world.latest("/x")
        service.respond(far, 503, end=True)
        world.settle()
        assert client.streams[stream].head == [(b":status", b"503", False)]


# ---- the caller's own token


SPELLINGS = [b"x-serverless-authorization", b"x_serverless_authorization", b"x-serverless_authorization"]


@each_bare_engine
@pytest.mark.parametrize("name", SPELLINGS)
def test_a_discovery_with_a_token_is_refused_for_good_and_told_how_to_register(
    make: EngineFactory, name: bytes
) -> None:
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


# ---- loops


def via_of(world: World, path: str) -> list[bytes]:
    """Return the `via` values with which the latest request for a path has arrived."""
    service, far = world.latest(path)
    return [value for name, value, _ in service.streams[far].head or [] if name == b"via"]


@each_bare_engine
def test_the_via_field_of_this_sidecar_is_added_after_the_existing_ones(make: EngineFactory) -> None:
    with World(make=make) as world:
        client = world.client()
        get(world, client, "/svc/x")
        assert via_of(world, "/x") == [b"2.0 " + NAME]
        client.request("/svc/y", fields=[(b"via", b"1.0 fred, 1.1 google"), (b"via", b"1.1 p (a proxy)")], end=True)
        world.settle()
        assert via_of(world, "/y") == [b"1.0 fred, 1.1 google", b"1.1 p (a proxy)", b"2.0 " + NAME]


@each_bare_engine
@pytest.mark.parametrize(
    "via",
    [
        [b"2.0 " + NAME],
        [b"1.1 " + NAME],
        [b"2.0 " + NAME + b", 1.1 google"],
        [b"1.1 fred", b"HTTP/2.0 " + NAME + b" (a comment)"],
        [b"2.0 " + NAME, b"2.0 cloudrun-sidecar-fedcba9876543210"],
    ],
)
@pytest.mark.parametrize(("method", "path"), [("GET", "/svc/discover"), ("POST", "/svc/invoke/Greeter/greet")])
def test_a_request_that_returns_to_its_sidecar_is_answered_508_and_not_forwarded(
    make: EngineFactory, via: list[bytes], method: str, path: str
) -> None:
    with Signed(make) as world, structlog.testing.capture_logs() as log:
        client = world.client()
        stream = client.request(path, method=method, fields=[(b"via", value) for value in via], end=True)
        world.settle()
        assert client.streams[stream].status == 508
        assert client.streams[stream].value(ERROR_FIELD) == b"loop-detected"
        assert b"leads back to the sidecar itself" in client.streams[stream].content
        assert [line["code"] for line in log if line["event"] == "request failed"] == ["loop-detected"]
        assert not world.mints
        assert not world.services
        assert world.metrics.routes["svc"].by_status() == {"508": 1}
        world.assert_at_rest()


@each_bare_engine
@pytest.mark.parametrize(("others", "status"), [(4, 200), (5, 508), (500, 508)])
def test_a_request_passes_through_a_few_other_sidecars_and_not_through_more(
    make: EngineFactory, others: int, status: int
) -> None:
    with World(make=make) as world, structlog.testing.capture_logs():
        client = world.client()
        passed = b", ".join(b"2.0 cloudrun-sidecar-%016x" % number for number in range(others))
        stream = client.request("/svc/x", fields=[(b"via", passed)], end=True)
        world.settle()
        if status == 200:
            service, far = world.latest("/x")
            service.respond(far, end=True)
            world.settle()
        assert client.streams[stream].status == status
        world.assert_at_rest()


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
def test_trailers_that_belong_into_a_head_are_not_forwarded_either_way(make: EngineFactory) -> None:
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


# ---- what the upstream answers, and what mends it


PROTOCOL_ERROR = b"upstream connect error or disconnect/reset before headers. reset reason: protocol error"


@each_bare_engine
@pytest.mark.parametrize(
    ("status", "fields", "content", "code", "words"),
    [
        (401, [(b"www-authenticate", b'Bearer error="invalid_token"')], b"", "audience-refused", "gcp_audience"),
        (401, [], b"", "identity-required", "request identity"),
        (403, [(b"content-type", b"text/html")], b"<h1>Forbidden", "invoker-missing", "roles/run.invoker"),
        (404, [], b"", "not-found", "Check the url of the route"),
        (404, [(b"x-restate-server", b"sdk/1")], b"", "not-found", "register the deployment again"),
        (429, [], b"Rate exceeded.", "no-instance", "--max-instances"),
        (502, [(b"content-type", b"text/plain")], PROTOCOL_ERROR, "http2-not-end-to-end", "--use-http2"),
        (503, [(b"content-type", b"text/plain")], PROTOCOL_ERROR, "http2-not-end-to-end", "--use-http2"),
        (502, [], b"", "service-failed", "logs"),
        (503, [], b"no instance", "no-instance", "--max-instances"),
        (504, [], b"", "timed-out", "timeout"),
        (508, [(ERROR_FIELD, b"loop-detected")], b"", "sidecar-answered", "not to a sidecar"),
        (302, [(b"location", b"https://accounts.google.com/o?x=y")], b"", "iap", "IAP"),
        (
            307,
            [(b"location", b"https://elsewhere.example/?x=y")],
            b"",
            "redirected",
            "Restate does not follow redirects",
        ),
    ],
)
def test_an_error_that_stops_an_invocation_is_logged_with_its_remedy(
    make: EngineFactory, status: int, fields: list[tuple[bytes, bytes]], content: bytes, code: str, words: str
) -> None:
    with Signed(make) as world, structlog.testing.capture_logs() as log:
        client = world.client()
        stream = get(world, client, "/svc/invoke/Greeter/greet?key=secret")
        service, far = world.latest("/invoke/Greeter/greet?key=secret")
        service.respond(far, status, fields=fields, end=not content)
        if content:
            service.engine.send_data(far, content, end_stream=True)
        world.settle()
        assert client.streams[stream].content == content
        (line,) = [line for line in log if line["event"] == "upstream answered an error"]
        assert (line["log_level"], line["route"], line["status"], line["code"]) == ("warning", "svc", status, code)
        assert line["reason"]
        assert words in line["remedy"]
        assert "secret" not in str(line)
        world.assert_at_rest()


@each_bare_engine
def test_an_error_without_content_is_logged_when_its_exchange_ends(make: EngineFactory) -> None:
    with World(make=make) as world, structlog.testing.capture_logs() as log:
        client = world.client()
        get(world, client, "/svc/x")
        service, far = world.latest("/x")
        service.respond(far, 502)
        world.settle()
        service.engine.reset(far, ErrorCode.INTERNAL_ERROR)
        world.settle()
        told = [line for line in log if line["event"] == "upstream answered an error"]
        assert [line["code"] for line in told] == ["service-failed"]
        world.assert_at_rest()


@each_bare_engine
def test_the_log_of_a_403_names_the_account_and_the_command(make: EngineFactory) -> None:
    host = "greeter-123456789012.europe-west1.run.app"
    greeter = Route(name="svc", origin=Origin("https", host, 443))
    with Signed(make, greeter) as world, structlog.testing.capture_logs() as log:
        world.principal = "me@project.iam.gserviceaccount.com"
        client = world.client()
        get(world, client, "/svc/x")
        world.respond("/x", 403)
        (line,) = [line for line in log if line["event"] == "upstream answered an error"]
        assert line["reason"] == "me@project.iam.gserviceaccount.com may not call the service (403)"
        assert line["commands"] == [
            "gcloud run services add-iam-policy-binding greeter --region=europe-west1 --project=123456789012 "
            "--member=serviceAccount:me@project.iam.gserviceaccount.com --role=roles/run.invoker"
        ]


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
