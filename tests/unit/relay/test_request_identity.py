"""Requests that Restate must have signed: what a caller gets otherwise, and that nothing is done for it."""

from __future__ import annotations

import pytest
import structlog

from proxy.errors import ERROR_FIELD
from proxy.http2.choice import EngineFactory
from proxy.request_identity import Verifier
from proxy.routes import UNMATCHED, AllowLists
from tests.support.data_path import route
from tests.support.peers.engines import each_bare_engine
from tests.support.signing_restate import SigningKey
from tests.unit.relay.stage import Signed

KEY = SigningKey(b"one")
OTHER = SigningKey(b"other")
HOST = "greeter-123456789012.europe-west1.run.app"
INVOKE = "/invoke/Greeter/greet"
LISTS = AllowLists((HOST,), (), ())

Lines = list[tuple[bytes, bytes]]


def signed(world: Signed, path: str, key: SigningKey = KEY) -> Lines:
    return [(name.encode(), value.encode()) for name, value in key.fields(path, at=world.wall).items()]


def world_for(make: EngineFactory, *keys: SigningKey) -> Signed:
    return Signed(make, route("svc", signed=True), allowed=LISTS, verifier=Verifier([key.public for key in keys]))


@each_bare_engine
@pytest.mark.parametrize(
    ("path", "authority"),
    [(f"/svc{INVOKE}", b"sidecar"), (f"/{HOST}{INVOKE}", b"sidecar"), (INVOKE, HOST.encode())],
    ids=["named-route", "open-route-by-path", "open-route-by-authority"],
)
def test_a_signed_request_is_sent_on_with_its_signature(make: EngineFactory, path: str, authority: bytes) -> None:
    with world_for(make, OTHER, KEY) as world:
        client = world.client()
        fields = signed(world, INVOKE)
        stream = client.request(path, authority=authority, fields=fields, end=True)
        world.settle()
        service, far = world.latest(INVOKE)
        assert [service.streams[far].value(name) for name, _ in fields] == [value for _, value in fields]
        world.respond(INVOKE)
        assert client.streams[stream].status == 200
        assert len(world.mints) == 1
        world.assert_at_rest()


@each_bare_engine
@pytest.mark.parametrize("method", ["POST", "GET", "HEAD", "OPTIONS", "TRACE"])
@pytest.mark.parametrize(
    ("path", "authority"),
    [
        (f"/svc{INVOKE}", b"sidecar"),
        ("/svc/discover", b"sidecar"),
        ("/nothing/here", b"sidecar"),
        ("/svc/../secret", b"sidecar"),
        (f"/{HOST}{INVOKE}", b"sidecar"),
        (INVOKE, HOST.encode()),
    ],
)
def test_a_request_without_a_known_signature_gets_401_before_anything_else(
    make: EngineFactory, method: str, path: str, authority: bytes
) -> None:
    with world_for(make, KEY) as world, structlog.testing.capture_logs() as log:
        client = world.client()
        by_other = signed(world, INVOKE, OTHER)
        unsigned = [(b"x-restate-signature-scheme", b"unsigned")]
        streams = [
            client.request(path, method=method, authority=authority, fields=fields, end=True)
            for fields in ([], unsigned, by_other)
        ]
        world.settle()
        for stream in streams:
            response = client.streams[stream]
            assert response.status == 401
            assert response.value(ERROR_FIELD) == b"caller-unverified"
            assert response.value(b"www-authenticate") == b"Restate-Request-Identity"
            assert b"svc" not in response.content
        assert OTHER.public.encode() in bytes(client.streams[streams[2]].content) or method == "HEAD"
        assert not world.services
        assert world.mints == []
        assert world.metrics.callers_unverified == {"missing": 1, "unsigned": 1, "unknown-key": 1}
        assert world.metrics.routes[UNMATCHED].by_status() == {"401": 3}
        (line,) = [line for line in log if line["event"] == "request failed"]
        assert (line["code"], line["log_level"], line["status"]) == ("caller-unverified", "warning", 401)
        assert "list the public key" in line["remedy"]
        assert [value for _, value in by_other if value.decode() in repr(log)] == []
        world.assert_at_rest()


@each_bare_engine
def test_a_path_seen_before_does_not_replace_a_signature(make: EngineFactory) -> None:
    with world_for(make, KEY) as world:
        client = world.client()
        client.request(f"/svc{INVOKE}", fields=signed(world, INVOKE), end=True)
        world.settle()
        world.respond(INVOKE)
        again = client.request(f"/svc{INVOKE}", end=True)
        for_another = client.request(f"/svc{INVOKE}", fields=signed(world, "/discover"), end=True)
        world.settle()
        assert [client.streams[stream].status for stream in (again, for_another)] == [401, 401]
        assert len(world.arrivals(INVOKE)) == 1


@each_bare_engine
def test_an_unverified_caller_is_not_told_that_the_sidecar_drains(make: EngineFactory) -> None:
    with world_for(make, KEY) as world:
        world.dispatcher.draining = True
        client = world.client()
        stranger = client.request(f"/svc{INVOKE}", end=True)
        restate = client.request(f"/svc{INVOKE}", fields=signed(world, INVOKE), end=True)
        world.settle()
        assert [client.streams[stream].status for stream in (stranger, restate)] == [401, 503]


@each_bare_engine
def test_a_verified_signature_still_expires(make: EngineFactory) -> None:
    with world_for(make, KEY) as world:
        client = world.client()
        fields = signed(world, INVOKE)
        client.request(f"/svc{INVOKE}", fields=fields, end=True)
        world.settle()
        world.wall += 61
        late = client.request(f"/svc{INVOKE}", fields=fields, end=True)
        world.settle()
        assert client.streams[late].status == 401
        assert world.metrics.callers_unverified == {"expired": 1}


@each_bare_engine
def test_a_request_that_waits_for_a_token_is_not_refused_meanwhile(make: EngineFactory) -> None:
    with world_for(make, KEY) as world:
        world.may_mint.clear()
        client = world.client()
        stream = client.request(f"/svc{INVOKE}", fields=signed(world, INVOKE), end=True)
        world.settle()
        world.wall += 61
        world.dispatcher.verifier = Verifier([OTHER.public])
        world.may_mint.set()
        world.settle()
        world.respond(INVOKE)
        assert client.streams[stream].status == 200


@each_bare_engine
def test_keys_may_be_exchanged_between_requests(make: EngineFactory) -> None:
    with world_for(make, KEY) as world:
        client = world.client()

        def ask(key: SigningKey) -> int:
            stream = client.request(f"/svc{INVOKE}", fields=signed(world, INVOKE, key), end=True)
            world.settle()
            if client.streams[stream].head is None:
                world.respond(INVOKE)
            return client.streams[stream].status

        assert (ask(KEY), ask(OTHER)) == (200, 401)
        world.dispatcher.verifier = Verifier([KEY.public, OTHER.public])
        assert (ask(KEY), ask(OTHER)) == (200, 200)
        world.dispatcher.verifier = Verifier([OTHER.public])
        assert (ask(KEY), ask(OTHER)) == (401, 200)
        world.dispatcher.verifier = None
        assert ask(KEY) == 200
