"""A swap of the snapshot: new exchanges take the new routes, those under way keep theirs, the rest is closed."""

from __future__ import annotations

import random

import pytest
import structlog

from proxy.http2.choice import EngineFactory
from proxy.routes import Route, RouteTable
from proxy.tokens.model import TokenKey
from tests.support.data_path import World, route
from tests.support.peers.engines import each_bare_engine
from tests.unit.relay.stage import Signed

OLD, NEW, KEPT = route("old"), route("new"), route("kept")


def signed(name: str, audience: str) -> Route:
    made = route(name)
    return Route(name=name, origin=made.origin, audience=audience)


@each_bare_engine
def test_new_exchanges_take_the_new_routes(make: EngineFactory) -> None:
    with World(OLD, KEPT, make=make) as world, structlog.testing.capture_logs():
        client = world.client()
        world.dispatcher.swap(RouteTable([NEW, KEPT]))
        streams = {name: client.request(f"/{name}/x", end=True) for name in ("old", "new", "kept")}
        world.settle()
        for service, stream in world.arrivals("/x"):
            service.respond(stream, 200, end=True)
        world.settle()
        assert {name: client.streams[stream].status for name, stream in streams.items()} == {
            "old": 404, "new": 200, "kept": 200
        }  # fmt: skip
        world.assert_at_rest()


@each_bare_engine
def test_a_live_exchange_keeps_its_route_and_then_its_connection_is_closed(
    make: EngineFactory,
) -> None:
    with World(OLD, make=make) as world:
        client = world.client()
        stream = client.request("/old/x")
        world.settle()
        service, far = world.latest("/x")
        world.dispatcher.swap(RouteTable([NEW]))
        world.settle()
        client.engine.send_data(stream, b"request", end_stream=True)
        service.respond(far, 200)
        world.settle()
        assert not world.wire(service).transport.is_closing()
        assert "old" in world.metrics.routes
        service.engine.send_data(far, b"response", end_stream=True)
        world.settle()
        assert service.streams[far].content == b"request"
        assert client.streams[stream].content == b"response"
        assert client.streams[stream].ended
        assert world.wire(service).transport.is_closing()
        assert "old" not in world.metrics.routes


@each_bare_engine
def test_a_request_that_waits_for_a_connection_keeps_its_route_across_a_swap(make: EngineFactory) -> None:
    with World(OLD, make=make) as world:
        client = world.client()
        stream = client.request("/old/x", end=True)
        world.step()
        assert world.dispatcher.waiting.count == 1
        world.dispatcher.swap(RouteTable([NEW]))
        world.settle()
        service, far = world.latest("/x")
        service.respond(far, 200, end=True)
        world.settle()
        assert client.streams[stream].status == 200
        assert world.wire(service).transport.is_closing()


@each_bare_engine
def test_an_origin_that_stays_keeps_its_connections(make: EngineFactory) -> None:
    with World(OLD, make=make) as world:
        client = world.client()
        client.request("/old/x", end=True)
        world.settle()
        service, far = world.latest("/x")
        service.respond(far, 200, end=True)
        renamed = Route(name="renamed", origin=OLD.origin, signed=False, base_path="/base")
        world.dispatcher.swap(RouteTable([renamed]))
        world.settle()
        client.request("/renamed/x", end=True)
        world.settle()
        assert world.latest("/base/x")[0] is service


@each_bare_engine
def test_a_token_stays_while_a_route_uses_it_and_is_dropped_with_the_last_one(make: EngineFactory) -> None:
    with Signed(make, signed("a", "https://one"), signed("b", "https://two")) as world:
        client = world.client()

        def ask(name: str) -> None:
            client.request(f"/{name}/x", end=True)
            world.settle()
            service, far = world.latest("/x")
            service.respond(far, 200, end=True)
            world.settle()

        ask("a")
        ask("b")
        assert [key.audience for key in world.mints] == ["https://one", "https://two"]
        world.dispatcher.swap(RouteTable([signed("c", "https://one")]))
        world.settle()
        ask("c")
        assert len(world.mints) == 2, "its token was there"
        world.dispatcher.swap(RouteTable([signed("b", "https://two")]))
        world.settle()
        ask("b")
        assert [key.audience for key in world.mints] == ["https://one", "https://two", "https://two"]


@each_bare_engine
def test_a_running_mint_for_a_dropped_key_serves_its_request_and_is_not_cached(make: EngineFactory) -> None:
    with Signed(make, signed("a", "https://one")) as world:
        world.may_mint.clear()
        client = world.client()
        stream = client.request("/a/x", end=True)
        world.settle()
        world.dispatcher.swap(RouteTable([NEW]))
        world.settle()
        world.may_mint.set()
        world.settle()
        service, far = world.latest("/x")
        service.respond(far, 200, end=True)
        world.settle()
        assert client.streams[stream].status == 200
        key = TokenKey(None, (), "https://one")
        assert world.tokens.slot(key).usable_token(world.clock()) is None


@each_bare_engine
@pytest.mark.parametrize("seed", range(3))
def test_swaps_under_load_fail_no_exchange_and_leave_nothing_behind(make: EngineFactory, seed: int) -> None:
    dice = random.Random(seed)
    # What a name leads to changes from table to table; each name is always there.
    tables = [
        [
            Route(name=name, origin=route(f"{name}{dice.randrange(3)}").origin, audience=f"https://{dice.randrange(4)}")
            for name in ("a", "b", "c")
        ]
        for _ in range(12)
    ]
    with Signed(make, *tables[0]) as world:
        clients = [world.client() for _ in range(3)]
        streams = []
        answered: set[tuple[int, int]] = set()
        for table in tables[1:]:
            for number in range(20):
                client = clients[number % 3]
                end = bool(dice.randrange(2))
                streams.append((client, client.request(f"/{dice.choice('abc')}/x", end=end), end))
                if not dice.randrange(3):
                    world.step()
            world.dispatcher.swap(RouteTable(table))
            for _ in range(dice.randrange(6)):
                world.step()
            arrived = [(service, far) for service, far in world.arrivals("/x") if (id(service), far) not in answered]
            for service, far in dice.sample(arrived, len(arrived) // 2):
                answered.add((id(service), far))
                service.respond(far, 200)
                service.engine.send_data(far, b"done", end_stream=True)
        for client, stream, end in streams:
            if not end:
                client.engine.send_data(stream, b"", end_stream=True)
        world.settle()
        for service, far in world.arrivals("/x"):
            if (id(service), far) not in answered:
                service.respond(far, 200)
                service.engine.send_data(far, b"done", end_stream=True)
        world.settle()
        for client, stream, _ in streams:
            assert client.streams[stream].status == 200
            assert client.streams[stream].content == b"done"
            assert client.streams[stream].ended
            assert client.streams[stream].reset is None
        world.assert_at_rest()
        used = {made.origin for made in tables[-1]}
        open_origins = {
            wire.protocol.origin
            for wire in world.wires
            if hasattr(wire.protocol, "origin") and not wire.transport.is_closing()
        }
        assert open_origins <= used
        assert set(world.metrics.routes) <= {"a", "b", "c", "(unmatched)"}
