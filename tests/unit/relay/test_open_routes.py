"""Open routes on the data path: where requests go, with which token, and what never goes with them."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import pytest
import structlog

from proxy.http2.choice import EngineFactory
from proxy.relay.open_contexts import MOST_CONTEXTS, MOST_WILDCARD_LABELS
from proxy.routes import OTHER, UNMATCHED, AllowLists, RouteTable
from tests.support.data_path import World, route
from tests.support.peers.engines import each_bare_engine
from tests.support.peers.memory import Service
from tests.unit.relay.stage import Signed

PROJECT = "123456789012.europe-west1.run.app"
GREETER, BILLING = f"greeter-{PROJECT}", f"billing-{PROJECT}"
INVOKER, RELAY = "invoker@p.iam.gserviceaccount.com", "relay@p.iam.gserviceaccount.com"
LISTS = AllowLists((f"*-{PROJECT}", "orders.example.com"), (INVOKER, RELAY), ("orders.example.com=https://orders",))
INVOKE = "/invoke/Greeter/greet"

Lines = list[tuple[bytes, bytes]]


def words(**given: str) -> Lines:
    return [
        (f"x-cloudrun-sidecar-gcp-{word.replace('_', '-')}".encode(), value.encode()) for word, value in given.items()
    ]


class Answer(NamedTuple):
    """What a client was answered, and what of its request arrived at a service, which answered 200."""

    status: int
    said: bytes
    head: dict[bytes, bytes]
    service: Service | None


def ask(
    world: World,
    path: str,
    fields: Lines | None = None,
    *,
    authority: bytes = b"sidecar:9081",
    method: str = "POST",
    upstream: str = INVOKE,
) -> Answer:
    """Send a request whose path is `upstream` at the service, and have that answer if the request arrives there."""
    client = world.client()
    before = {(id(service), far) for service, far in world.arrivals(upstream)}
    stream = client.request(path, method=method, authority=authority, fields=fields or [], end=True)
    world.settle()
    head, at = {}, None
    for service, far in world.arrivals(upstream):
        if (id(service), far) not in before:
            service.respond(far, 200, end=True)
            head, at = {name: value for name, value, _ in service.streams[far].head or []}, service
    world.settle()
    return Answer(client.streams[stream].status, bytes(client.streams[stream].content), head, at)


def discover(world: World, path: str, fields: Lines | None = None, *, authority: bytes = b"sidecar:9081") -> Answer:
    return ask(world, path, fields, authority=authority, method="GET", upstream="/discover")


@each_bare_engine
def test_a_host_in_the_path_or_as_authority_reaches_the_same_service_with_the_same_token(make: EngineFactory) -> None:
    with Signed(make, allowed=LISTS) as world:
        by_path = ask(world, f"/{GREETER}{INVOKE}").head
        by_authority = ask(world, INVOKE, authority=GREETER.encode())
        assert (by_authority.status, by_authority.head) == (200, by_path)
        assert (by_path[b":scheme"], by_path[b":authority"]) == (b"https", GREETER.encode())
        assert by_path[b"x-serverless-authorization"] == b"Bearer 1"
        assert [key.audience for key in world.mints] == [f"https://{GREETER}"]
        assert len(world.services) == 1
        assert world.metrics.routes[f"https://{GREETER}"].total == 2
        world.assert_at_rest()


@each_bare_engine
def test_the_same_path_at_two_authorities_reaches_two_services(make: EngineFactory) -> None:
    with Signed(make, allowed=LISTS) as world:
        for host in (GREETER, BILLING, GREETER, BILLING):
            assert ask(world, INVOKE, authority=host.encode()).head[b":authority"] == host.encode()


@each_bare_engine
def test_headers_choose_the_token_and_are_never_sent_upstream(make: EngineFactory) -> None:
    with Signed(make, allowed=LISTS) as world:
        fields = [*words(impersonate_service_account=INVOKER, delegates=RELAY), (b"x-kept", b"1")]
        for authority, path in ((b"sidecar:9081", f"/{GREETER}"), (GREETER.encode(), "")):
            for answer in (
                discover(world, f"{path}/discover", fields, authority=authority),
                ask(world, path + INVOKE, fields, authority=authority),
            ):
                assert (answer.status, answer.head[b"x-kept"]) == (200, b"1")
                assert not [name for name in answer.head if b"cloudrun" in name]
        assert {(key.impersonate, key.delegates, key.audience) for key in world.mints} == {
            (INVOKER, (RELAY,), f"https://{GREETER}")
        }


@each_bare_engine
@pytest.mark.parametrize(
    "name", [b"x-cloudrun-sidecar-other", b"x_cloudrun_sidecar_gcp_audience", b"x-cloudrun_sidecar-gcp-id-token"]
)
def test_a_request_with_a_misspelled_header_of_the_sidecar_is_not_sent(make: EngineFactory, name: bytes) -> None:
    with Signed(make, allowed=LISTS) as world, structlog.testing.capture_logs():
        assert ask(world, f"/{GREETER}{INVOKE}").status == 200
        for authority, path in ((b"sidecar:9081", f"/{GREETER}"), (GREETER.encode(), "")):
            answer = ask(world, path + INVOKE, [(name, b"true")], authority=authority)
            assert answer.status >= 400
            assert answer.service is None


@each_bare_engine
def test_without_a_token_the_request_is_sent_as_it_is(make: EngineFactory) -> None:
    with Signed(make, allowed=LISTS) as world:
        spoofed = [*words(id_token="false"), (b"x-serverless-authorization", b"Bearer spoofed")]
        answer = ask(world, f"/{GREETER}{INVOKE}", spoofed)
        assert answer.status == 200
        assert b"x-serverless-authorization" not in answer.head
        assert world.mints == []


@each_bare_engine
def test_deployments_that_choose_differently_never_get_the_token_of_another(make: EngineFactory) -> None:
    choices: list[Lines] = [
        [],
        words(impersonate_service_account=INVOKER),
        words(impersonate_service_account=RELAY),
        words(impersonate_service_account=INVOKER, delegates=RELAY),
    ]
    with Signed(make, allowed=LISTS) as world:
        minted: dict[int, tuple[str, bytes]] = {}
        for _ in range(2):
            for number, (host, fields) in enumerate(product((GREETER, BILLING, "orders.example.com"), choices)):
                arrived = ask(world, f"/{host}{INVOKE}", fields).head
                assert arrived[b":authority"] == host.encode()
                token = arrived[b"x-serverless-authorization"]
                assert minted.setdefault(number, (host, token)) == (host, token)
        assert len({token for _, token in minted.values()}) == len(minted) == len(world.mints) == 12
        for key in world.mints:
            assert key.audience in {f"https://{host}" for host, _ in minted.values()}


@each_bare_engine
@pytest.mark.parametrize(
    ("host", "fields", "reason"),
    [
        ("evil.europe-west1.run.app", [], b"is not in the list hosts of [deployments]"),
        ("evil.example.com", [], b"is not in the list hosts of [deployments]"),
        (GREETER, words(impersonate_service_account="owner@p.iam.gserviceaccount.com"), b"is not in the list accounts"),
        (GREETER, words(audience=f"https://{BILLING}"), b"is not in the list audiences"),
        (GREETER, words(audience="https://orders"), b"is not in the list audiences"),
        (GREETER, words(wish="x"), b"is not a header of the sidecar"),
        (GREETER, words(audience=f"https://{GREETER}") * 2, b"occurs twice"),
    ],
)
def test_a_host_or_account_that_no_list_allows_is_refused_before_a_mint(
    make: EngineFactory, host: str, fields: Lines, reason: bytes
) -> None:
    with Signed(make, allowed=LISTS) as world, structlog.testing.capture_logs():
        answer = discover(world, f"/{host}/discover", fields)
        assert answer.status == 403
        assert reason in answer.said
        assert ask(world, f"/{host}{INVOKE}", fields).status == 503
        assert (world.mints, world.services) == ([], [])
        assert world.metrics.routes[UNMATCHED].by_code() == {"deployment-refused": 2}
        world.assert_at_rest()


@each_bare_engine
def test_a_discovery_reports_all_problems_of_a_deployment(make: EngineFactory) -> None:
    with Signed(make, allowed=LISTS) as world, structlog.testing.capture_logs():
        fields = words(impersonate_service_account="owner@p.example", audience="https://orders", id_tokens="no")
        said = discover(world, f"/{GREETER}/discover", fields).said
        for part in (b"owner@p.example", b"https://orders", b"gcp-id-tokens"):
            assert part in said


@each_bare_engine
@pytest.mark.parametrize("allowed", [LISTS, AllowLists()], ids=["with-open-routes", "without"])
def test_on_a_named_route_the_headers_are_refused_at_discovery_and_dropped_otherwise(
    make: EngineFactory, allowed: AllowLists
) -> None:
    with Signed(make, allowed=allowed) as world, structlog.testing.capture_logs():
        for fields in (words(id_token="false"), words(audience="x"), words(wish="x")):
            answer = discover(world, "/svc/discover", fields)
            assert answer.status == 403
            assert b"the authentication of a named route" in answer.said
        assert world.mints == []
        every = words(id_token="false", audience="x", impersonate_service_account=INVOKER, delegates=RELAY)
        arrived = ask(world, f"/svc{INVOKE}", [*every, *every, (b"x-kept", b"1")]).head
        assert not [name for name in arrived if b"cloudrun" in name]
        assert (arrived[b"x-kept"], arrived[b"x-serverless-authorization"]) == (b"1", b"Bearer 1")
        assert [key.audience for key in world.mints] == ["https://svc.example"]
        assert discover(world, "/svc/discover")[0] == 200


@each_bare_engine
def test_the_headers_are_not_forwarded_in_trailers(make: EngineFactory) -> None:
    with Signed(make, allowed=LISTS) as world:
        client = world.client()
        stream = client.request(f"/{GREETER}{INVOKE}")
        world.settle()
        trailers = [(name, value, False) for name, value in words(audience="x", id_token="false")]
        client.engine.send_trailers(stream, [*trailers, (b"x-checksum", b"1", False)])
        world.settle()
        service, far = world.latest(INVOKE)
        assert service.streams[far].trailers == [(b"x-checksum", b"1", False)]


@each_bare_engine
def test_a_caller_with_a_token_of_its_own_is_refused_at_discovery(make: EngineFactory) -> None:
    with Signed(make, allowed=LISTS) as world, structlog.testing.capture_logs():
        answer = discover(world, f"/{GREETER}/discover", [(b"x-serverless-authorization", b"Bearer x")])
        assert (answer.status, b"X-Serverless-Authorization" in answer.said) == (400, True)


@each_bare_engine
def test_named_routes_are_found_as_before_under_any_authority_that_is_no_allowed_host(make: EngineFactory) -> None:
    with World(make=make, allowed=LISTS) as world:
        for authority in (b"127.0.0.1:9081", b"sidecar", b"sidecar.restate.svc.cluster.local:9081"):
            for _ in range(2):
                assert ask(world, f"/svc{INVOKE}", authority=authority).head[b":authority"] == b"svc.example"


@each_bare_engine
def test_without_lists_a_host_has_no_meaning(make: EngineFactory) -> None:
    with World(make=make) as world, structlog.testing.capture_logs():
        assert ask(world, f"/{GREETER}{INVOKE}").status == 404
        assert ask(world, f"/svc{INVOKE}", authority=GREETER.encode()).head[b":authority"] == b"svc.example"


# ---- what is kept


@each_bare_engine
def test_the_route_of_a_repeated_short_request_is_remembered(make: EngineFactory) -> None:
    with World(make=make, allowed=LISTS) as world:
        fields = words(id_token="false")
        kept = world.dispatcher.snapshot.open_contexts
        assert kept is not None
        for _ in range(2):
            ask(world, f"/{GREETER}{INVOKE}", fields)
            assert len(kept.destinations) == len(kept.contexts) == 1
        long = "/" + "x" * 2_000
        assert ask(world, f"/{GREETER}{long}", fields, upstream=long).status == 200
        assert len(kept.destinations) == len(kept.contexts) == 1
        for number in range(1_100):
            world.dispatcher.snapshot.destination(f"/{GREETER}/{number}".encode(), [], False)
            assert not kept.is_allowed(b"%d.example.com" % number)
        assert len(kept.destinations) == 1_101 - 1_024
        assert not kept.is_allowed(b"x" * 2_000)
        assert [route.signed for route in kept.contexts] == [False, True]


@each_bare_engine
def test_contexts_labels_tokens_and_connections_are_bounded_and_those_in_use_stay(make: EngineFactory) -> None:
    with Signed(make, allowed=LISTS) as world:
        client = world.client()
        busy = client.request(f"/{GREETER}{INVOKE}")
        world.settle()
        service, far = world.latest(INVOKE)
        ask(world, "/orders.example.com/invoke/a/b", upstream="/invoke/a/b")
        kept = world.dispatcher.snapshot.open_contexts
        assert kept is not None
        for number in range(3 * MOST_CONTEXTS):
            world.dispatcher.snapshot.destination(f"/s{number}-{PROJECT}/x".encode(), [], False)
            ask_again = number % 100 == 0
            if ask_again:  # used now and then, so that it does not give way
                assert ask(world, "/orders.example.com/invoke/a/b", upstream="/invoke/a/b").status == 200
            world.settle()
        assert len(kept.contexts) <= MOST_CONTEXTS
        assert [key.audience for key in world.mints] == [f"https://{GREETER}", "https://orders.example.com"]
        assert len(world.services) == 2
        labels = set(world.metrics.routes) - {UNMATCHED, "svc"}
        assert len(labels) == MOST_WILDCARD_LABELS + 2
        assert {OTHER, "https://orders.example.com", f"https://{GREETER}"} <= labels
        world.dispatcher.swap(RouteTable(world.routes, LISTS))
        world.settle()
        world.dispatcher.snapshot.destination(f"/another-{PROJECT}/x".encode(), [], False)
        assert set(world.metrics.routes) - {UNMATCHED, "svc"} == labels
        client.engine.send_data(busy, b"", end_stream=True)
        service.respond(far, 200, end=True)
        world.settle()
        assert client.streams[busy].status == 200
        world.assert_at_rest()


@each_bare_engine
def test_an_evicted_context_is_closed(make: EngineFactory) -> None:
    with Signed(make, allowed=LISTS) as world:
        service = ask(world, f"/{GREETER}{INVOKE}").service
        assert service is not None
        for number in range(2 * MOST_CONTEXTS):
            world.dispatcher.snapshot.destination(f"/s{number}-{PROJECT}/x".encode(), [], False)
        world.settle()
        assert world.wire(service).transport.is_closing()
        assert ask(world, f"/{GREETER}{INVOKE}").status == 200
        assert len(world.mints) == 2


# ---- other lists


@each_bare_engine
def test_a_swap_keeps_token_and_connection_of_what_is_still_allowed(make: EngineFactory) -> None:
    with Signed(make, allowed=LISTS) as world:
        fields = words(impersonate_service_account=INVOKER)
        assert ask(world, f"/{GREETER}{INVOKE}", fields).status == 200
        assert ask(world, f"/{BILLING}{INVOKE}").status == 200
        world.dispatcher.swap(RouteTable(world.routes, AllowLists((GREETER,), (INVOKER,))))
        world.settle()
        assert f"https://{BILLING}" not in world.metrics.routes
        assert world.metrics.routes[f"https://{GREETER}"].total == 1
        assert ask(world, f"/{GREETER}{INVOKE}", fields).status == 200
        assert len(world.mints) == len(world.services) == 2
        with structlog.testing.capture_logs():
            assert ask(world, f"/{BILLING}{INVOKE}").status == 503


@each_bare_engine
def test_an_exchange_on_an_open_route_that_is_taken_away_ends_on_it(make: EngineFactory) -> None:
    with Signed(make, allowed=LISTS) as world:
        client = world.client()
        stream = client.request(f"/{GREETER}{INVOKE}")
        world.settle()
        service, far = world.latest(INVOKE)
        world.dispatcher.swap(RouteTable(world.routes))
        world.settle()
        assert not world.wire(service).transport.is_closing()
        assert world.metrics.routes[f"https://{GREETER}"].in_flight == 1
        client.engine.send_data(stream, b"request", end_stream=True)
        service.respond(far, 200, end=True)
        world.settle()
        assert client.streams[stream].status == 200
        assert world.wire(service).transport.is_closing()
        assert f"https://{GREETER}" not in world.metrics.routes


@each_bare_engine
def test_open_routes_may_come_with_a_swap(make: EngineFactory) -> None:
    with Signed(make) as world:
        with structlog.testing.capture_logs():
            assert ask(world, f"/{GREETER}{INVOKE}").status == 404
        world.dispatcher.swap(RouteTable(world.routes, LISTS))
        assert ask(world, f"/{GREETER}{INVOKE}").status == 200


@each_bare_engine
def test_an_open_route_that_is_first_named_in_the_turn_after_a_reload_keeps_its_token(make: EngineFactory) -> None:
    with Signed(make, allowed=LISTS) as world:
        client = world.client()
        world.settle()
        world.dispatcher.swap(RouteTable([route("svc", signed=True), route("more")], LISTS))
        client.request(f"/{GREETER}{INVOKE}", method="POST", end=True)
        world.loop.call_soon(world._move)  # It is read in the turn in which what is not used any more is dropped.
        world.settle()
        for _ in range(10):
            assert ask(world, f"/{GREETER}{INVOKE}").status == 200
        assert len(world.mints) == 1
