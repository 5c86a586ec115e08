"""What metrics and the status page read of a dispatcher."""

from __future__ import annotations

import pytest
import structlog

from proxy.errors import UpstreamConnectFailed
from proxy.http2.choice import EngineFactory
from proxy.http2.engine import Limits
from proxy.http2.events import ErrorCode
from proxy.observe.live import OriginState, Queues, TokenState
from proxy.relay.live import DispatcherState
from proxy.relay.open_contexts import MOST_WILDCARD_LABELS
from proxy.routes import OTHER, AllowLists, RouteTable
from proxy.routes.open_routes import ID_TOKEN_FIELD, IMPERSONATE_FIELD
from proxy.tokens.model import Token, TokenKey
from proxy.tokens.source import TokenSource
from tests.support.data_path import World, route
from tests.support.peers.engines import each_bare_engine
from tests.unit.relay.stage import SMALL, WINDOW, Signed


def state_of(world: World) -> DispatcherState:
    return DispatcherState(
        world.dispatcher, world.budget, world.pool, world.clients, origin_label=world.metrics.origin_label
    )


def queues_of(world: World) -> Queues:
    queues = Queues()
    assert set(state_of(world).count_queues(queues)) <= {None}
    return queues


def origins_of(world: World) -> dict[str, OriginState]:
    return {state.origin: state for state in state_of(world).origins() if state is not None}


async def mint(key: TokenKey) -> Token:
    return Token(key=key, authorization=b"Bearer minted", expires_at=1_800_003_600.0, principal="i@p.com")


@each_bare_engine
def test_the_live_state_is_that_of_the_dispatcher_its_slots_and_pools(make: EngineFactory) -> None:
    signed, unsigned = route("svc", signed=True), route("open")
    with World(signed, unsigned, make=make, tokens=lambda clock: TokenSource(mint, clock=clock)) as world:
        now = [1_800_000_000.0]
        state = DispatcherState(world.dispatcher, world.budget, world.pool, world.clients, clock=lambda: now[0])
        assert list(state.routes()) == [signed, unsigned]
        assert state.token(signed) is None
        assert OriginState("https://svc.example") in state.origins()
        world.client().request("/svc/x", end=True)
        world.settle()
        assert state.token(signed) == TokenState("i@p.com", None, 1_800_003_600.0)
        assert state.token(unsigned) is None
        now[0] = 1_800_003_600.0
        assert state.token(signed) is None
        gone = route("gone")
        assert state.token(gone) is None
        assert (state.draining, state.queued_octets_limit) == (False, 16 << 20)
        assert state.queued_octets == world.budget.queued_octets > 0, "the request's head is held"
        world.dispatcher.draining = True
        assert state.draining


@each_bare_engine
def test_queued_octets_are_told_by_client_connection_by_origin_and_by_route(make: EngineFactory) -> None:
    with World(
        route("svc"),
        route("other"),
        route("idle"),
        make=make,
        limits=SMALL,
        client_limits=SMALL,
        service_limits=SMALL,
    ) as world:
        slow, uploading, quiet = world.client(), world.client(), world.client()
        slow.acknowledging = False
        slow.request("/svc/large", end=True)
        world.settle()
        service, stream = world.latest("/large")
        service.respond(stream)
        service.engine.send_data(stream, bytes(4 * WINDOW), end_stream=False)
        upload = uploading.request("/other/upload")
        world.settle()
        service, stream = world.latest("/upload")
        service.acknowledging = False
        uploading.engine.send_data(upload, bytes(4 * WINDOW), end_stream=False)
        world.settle()
        queues, origins = queues_of(world), origins_of(world)
        accounts = {account.octets for account, _ in world.clients()}
        # A window has left on either way; as much again waits for the next one.
        assert WINDOW <= queues.route_octets["svc"] <= max(accounts)
        assert WINDOW <= origins["https://other.example"].queued_octets <= queues.route_octets["other"]
        assert origins["https://svc.example"].queued_octets == 0
        assert queues.route_octets.keys() == {"svc", "other"}
        assert (queues.client_connections, queues.largest_client_octets) == (2, max(accounts))
        assert queues.client_octets == sum(accounts)
        to_services = sum(origin.queued_octets for origin in origins.values())
        assert queues.client_octets + to_services == world.budget.queued_octets
        assert not queues.route_waiting
        assert quiet.failed is None
        slow.acknowledge_all()
        service.acknowledge_all()
        world.settle()
        assert queues_of(world).route_octets["svc"] < WINDOW
        assert origins_of(world)["https://other.example"].queued_octets == 0


@each_bare_engine
def test_requests_that_wait_are_told_by_route_and_by_origin_with_the_clients_they_came_from(
    make: EngineFactory,
) -> None:
    two = Limits(max_concurrent_streams=2)
    with World(route("svc"), make=make, max_connections=1, service_limits=two) as world:
        greedy, neighbour = world.client(), world.client()
        for number in range(4):
            greedy.request(f"/svc/{number}", end=True)
        world.settle()
        neighbour.request("/svc/one", end=True)
        neighbour.request("/svc/two", end=True)
        neighbour.request("/svc/three", end=True)
        world.settle()
        waiting = queues_of(world).route_waiting["svc"]
        origin = origins_of(world)["https://svc.example"]
        assert waiting == origin.waiting == world.dispatcher.waiting.count >= 3
        assert origin.waiting_clients == 2


@each_bare_engine
def test_cancelled_requests_whose_reset_is_held_back_are_told_by_origin(make: EngineFactory) -> None:
    with World(make=make, max_connections=1) as world:
        client = world.client()
        streams = [client.request(f"/svc/{number}", end=True) for number in range(303)]
        world.settle()
        for stream in streams:
            client.engine.reset(stream, ErrorCode.CANCEL)
        world.settle()
        assert origins_of(world)["https://svc.example"].cancels_held_back == 3


@each_bare_engine
def test_others_may_run_while_many_streams_and_origins_are_counted(make: EngineFactory) -> None:
    routes = [route(f"svc{number}") for number in range(200)]
    with World(*routes, make=make) as world:
        clients = [world.client() for _ in range(3)]
        for client in clients:
            for number in range(150):
                client.request(f"/svc0/{number}", end=True)
        world.settle()
        queues = Queues()
        turns = 0
        for _ in state_of(world).count_queues(queues):
            turns += 1
            if turns == 2:
                world.wire(clients[1]).lose()
                world.settle()
        assert turns >= 300 // 64
        assert queues.client_connections == 2
        states = list(state_of(world).origins())
        assert len(states) >= 200 + len(world.pool.connections) // 64


@pytest.mark.parametrize("opened", [False, True], ids=["never connected", "connected"])
@each_bare_engine
def test_origins_without_a_label_of_their_own_are_told_together(make: EngineFactory, opened: bool) -> None:
    hosts = MOST_WILDCARD_LABELS + 40
    allowed = AllowLists(("*-123456789012.europe-west1.run.app",))
    with World(route("svc"), make=make, allowed=allowed) as world, structlog.testing.capture_logs():
        if not opened:
            world.refusals = [UpstreamConnectFailed("refused") for _ in range(hosts)]
        client = world.client()
        for number in range(hosts):
            path = f"/s{number}-123456789012.europe-west1.run.app/x"
            client.request(path, fields=[(ID_TOKEN_FIELD.encode(), b"false")], end=True)
            world.settle()
        origins = origins_of(world)
        assert len(world.pool.origin_pools) == hosts + 1
        assert len(origins) <= 2 * MOST_WILDCARD_LABELS
        uses = {one.label: len(one.uses) for one in state_of(world).open_routes()}
        assert uses.pop(OTHER) == hosts - MOST_WILDCARD_LABELS
        assert (len(uses), {*uses.values()}) == (MOST_WILDCARD_LABELS, {1})


@each_bare_engine
def test_hosts_that_deployments_have_named_are_told_with_each_authentication_and_its_token(make: EngineFactory) -> None:
    host, account = "greeter-123456789012.europe-west1.run.app", "invoker@p.iam.gserviceaccount.com"
    lists = AllowLists(("*-123456789012.europe-west1.run.app", "orders.example.com"), (account,))
    with Signed(make, route("svc"), allowed=lists) as world:
        state, client = state_of(world), world.client()
        assert state.allowed() == lists
        assert list(state.open_routes()) == []
        client.request(f"/{host}/a", end=True)
        client.request(f"/{host}/b", fields=[(ID_TOKEN_FIELD.encode(), b"false")], end=True)
        world.settle()
        world.may_mint.clear()
        client.request(f"/{host}/c", fields=[(IMPERSONATE_FIELD.encode(), account.encode())], end=True)
        world.settle()
        (opened,) = state.open_routes()
        assert opened.label == f"https://{host}"
        assert [(use.host, use.signed, use.impersonate) for use in opened.uses] == [
            (host, True, None),
            (host, False, None),
            (host, True, account),
        ]
        tokens = [use.token is not None for use in opened.uses]
        assert (tokens, opened.has_tokens) == ([True, False, False], False)
        assert opened.uses[0].audience == f"https://{host}"
        assert queues_of(world).route_waiting == {f"https://{host}": 1}
        world.may_mint.set()
        world.settle()
        (opened,) = state.open_routes()
        assert opened.has_tokens
        world.dispatcher.swap(RouteTable(world.routes, AllowLists(("orders.example.com",))))
        world.settle()
        assert list(state.open_routes()) == []
        world.dispatcher.swap(RouteTable(world.routes, AllowLists()))
        assert state.allowed() is None
        assert list(state.open_routes()) == []
