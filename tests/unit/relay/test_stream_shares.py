"""When all streams of a service are in use, the client with most gives one up, and waiting clients have their turns."""

from __future__ import annotations

import pytest
import structlog

from proxy.errors import ERROR_FIELD
from proxy.http2.choice import EngineFactory
from proxy.http2.engine import Limits
from proxy.http2.events import ErrorCode, StreamId
from proxy.upstream.connection import UpstreamConnection
from tests.support.data_path import World
from tests.support.peers.engines import each_bare_engine
from tests.support.peers.memory import Client


def scarce(make: EngineFactory) -> World:
    """Return a world in which a service takes eight requests at a time."""
    return World(make=make, max_connections=1, service_limits=Limits(max_concurrent_streams=8))


def hang(world: World, client: Client, name: str, count: int) -> list[StreamId]:
    """Send requests that are not answered."""
    streams = [client.request(f"/svc/{name}{number}", end=True) for number in range(count)]
    world.settle()
    return streams


def answer(world: World, path: str) -> None:
    """Answer the latest request with this path."""
    service, stream = world.latest(path)
    service.respond(stream, end=True)
    world.settle()


@each_bare_engine
def test_a_newcomer_gets_a_stream_of_the_client_with_most(make: EngineFactory) -> None:
    with scarce(make) as world, structlog.testing.capture_logs():
        greedy, neighbour = world.client(), world.client()
        hanging = hang(world, greedy, "hang", 20)
        for path in ("/first", "/second"):
            stream = neighbour.request(f"/svc{path}", end=True)
            world.settle()
            answer(world, path)
            assert neighbour.streams[stream].status == 200
        ended = [stream for stream in hanging if greedy.streams[stream].ended]
        assert ended[0] == hanging[7], "the newest of those under way"
        assert {greedy.streams[stream].value(ERROR_FIELD) for stream in ended} == {b"overloaded"}
        assert len(ended) <= 2


@each_bare_engine
@pytest.mark.parametrize("newcomer", ["many", "another"])
def test_an_address_with_many_connections_gives_way_before_one_connection_with_more_streams(
    make: EngineFactory, newcomer: str
) -> None:
    with scarce(make) as world, structlog.testing.capture_logs():
        calm = world.client(address="calm")
        theirs = hang(world, calm, "calm", 3)
        many = [world.client(address="many") for _ in range(5)]
        for number, client in enumerate(many):
            hang(world, client, f"many{number}-", 1)
        late = world.client(address=newcomer)
        hang(world, late, "late", 1)
        # Within an address, one stream is no less than half of one.
        assert bool(world.arrivals("/late0")) == (newcomer == "another")
        assert not any(calm.streams[stream].ended for stream in theirs)


@each_bare_engine
@pytest.mark.parametrize("most", [2, 3])
@pytest.mark.parametrize("addresses", [1, 8])
def test_who_has_less_than_half_as_many_streams_gets_one_from_who_has_most(
    make: EngineFactory, addresses: int, most: int
) -> None:
    with scarce(make) as world, structlog.testing.capture_logs():
        *clients, late = [world.client(address=f"address {number % addresses}") for number in range(10 - most)]
        streams = [hang(world, client, f"{number}-", 1) for number, client in enumerate(clients)]
        streams[2] += hang(world, clients[2], "more", most - 1)
        hang(world, late, "first", 1)
        hang(world, late, "second", 1)
        assert world.arrivals("/first0")
        assert not world.arrivals("/second0"), "it has half as many now"
        assert clients[2].streams[streams[2][-1]].ended


@each_bare_engine
def test_a_stream_whose_reset_is_held_back_is_taken_before_one_in_use(make: EngineFactory) -> None:
    with scarce(make) as world, structlog.testing.capture_logs():
        client = world.client()
        streams = hang(world, client, "hang", 8)
        (upstream,) = [wire.protocol for wire in world.wires if isinstance(wire.protocol, UpstreamConnection)]
        upstream.cancels.limit.per_minute = 1
        for stream in streams[:2]:
            client.engine.reset(stream, ErrorCode.CANCEL)
        world.settle()
        hang(world, world.client(), "late", 2)
        assert world.arrivals("/late1")
        assert not any(client.streams[stream].ended for stream in streams[2:])


@each_bare_engine
def test_freed_streams_go_to_each_client_in_turn(make: EngineFactory) -> None:
    with scarce(make) as world, structlog.testing.capture_logs():
        greedy, neighbour = world.client(), world.client()
        hang(world, greedy, "theirs", 4)
        hang(world, neighbour, "mine", 4)
        hang(world, greedy, "more", 10)
        hang(world, neighbour, "last", 1)
        assert not world.arrivals("/more0")
        assert not world.arrivals("/last0")
        answer(world, "/theirs0")
        answer(world, "/theirs1")
        assert world.arrivals("/more0")
        assert world.arrivals("/last0")
        assert not world.arrivals("/more1")


@each_bare_engine
def test_clients_with_about_as_many_streams_take_none_from_each_other(make: EngineFactory) -> None:
    with scarce(make) as world, structlog.testing.capture_logs():
        one, other = world.client(), world.client()
        streams = hang(world, one, "one", 5)
        others = hang(world, other, "other", 6)
        assert not any(one.streams[stream].ended for stream in streams)
        assert not any(other.streams[stream].ended for stream in others)


@each_bare_engine
def test_one_client_alone_loses_no_exchange_to_itself(make: EngineFactory) -> None:
    with scarce(make) as world, structlog.testing.capture_logs():
        client = world.client()
        streams = hang(world, client, "hang", 20)
        assert not any(client.streams[stream].ended for stream in streams)
        answer(world, "/hang0")
        assert client.streams[streams[0]].status == 200
        assert world.arrivals("/hang8")
