"""A large read is served in slices, some of them in later loop turns."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from proxy.connection.reads import Reads
from proxy.http2.choice import EngineFactory
from proxy.http2.engine import Engine
from proxy.http2.events import ErrorCode
from tests.support.data_path import Wire, World
from tests.support.peers.engines import each_bare_engine
from tests.support.peers.memory import Client

KIB = 1 << 10


class MeteredEngine(Engine):
    """An engine that notes what it is given, while time passes as `cost` says: seconds for so many octets."""

    def __init__(self, cost: Callable[[int], float]) -> None:
        self.now = 0.0
        self.given: list[bytes] = []
        self._cost = cost

    def receive(self, data: bytes) -> None:
        self.given.append(data)
        self.now += self._cost(len(data))


def reads_at(seconds_per_octet: float) -> tuple[MeteredEngine, Reads]:
    engine = MeteredEngine(lambda octets: octets * seconds_per_octet)
    return engine, Reads(engine, lambda: engine.now)


def test_reads_of_content_are_served_whole_after_a_few_turns() -> None:
    engine, reads = reads_at(1e-9)
    buffer = bytearray(range(256)) * 256
    for _ in range(4):
        reads.take(buffer, len(buffer))
        assert not reads.left
    assert b"".join(engine.given) == bytes(buffer) * 4
    assert [len(data) for data in engine.given[-3:]] == [64 * KIB] * 3


def test_a_read_that_takes_long_is_served_over_several_turns_in_small_slices() -> None:
    engine, reads = reads_at(1e-5)
    buffer = bytearray(range(256)) * 256
    reads.take(buffer, len(buffer))
    turns = [engine.now]
    while reads.left:
        before = engine.now
        reads.serve()
        turns.append(engine.now - before)
    assert b"".join(engine.given) == bytes(buffer)
    assert turns[0] < 0.1, "the first slice is of 8 KiB"
    assert max(turns[4:]) < 0.006
    assert min(len(data) for data in engine.given) >= 64


def test_octets_that_arrive_meanwhile_wait_behind_the_rest_of_the_read() -> None:
    engine, reads = reads_at(1e-5)
    reads.take(bytearray(b"a" * 20_000), 20_000)
    assert reads.left
    reads.take(bytearray(b"b" * 100), 10)
    assert engine.given[-1] == b"a" * len(engine.given[-1])
    while reads.left:
        reads.serve()
    assert b"".join(engine.given) == b"a" * 20_000 + b"b" * 10


def test_slices_grow_again_when_reads_become_cheap() -> None:
    engine, reads = reads_at(1e-5)
    reads.take(bytearray(64 * KIB), 64 * KIB)
    while reads.left:
        reads.serve()
    engine.given.clear()
    cheap = MeteredEngine(lambda _: 0.0)
    engine._cost = cheap._cost
    for _ in range(3):
        reads.take(bytearray(64 * KIB), 64 * KIB)
    assert len(engine.given[-1]) == 64 * KIB


@pytest.mark.parametrize("octets", [-1, 65 * KIB])
@pytest.mark.parametrize("left", [False, True])
def test_more_octets_than_the_buffer_has_are_refused(octets: int, left: bool) -> None:
    _, reads = reads_at(1e-5)
    if left:
        reads.take(bytearray(64 * KIB), 64 * KIB)
    with pytest.raises(ValueError, match="buffer"):
        reads.take(bytearray(64 * KIB), octets)


# ---- on a connection


@pytest.fixture(autouse=True)
def in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave it to the connections how much they serve in a turn."""
    monkeypatch.setattr(Wire, "in_slices", True)


def tiny_frames(world: World, client: Client, frames: int) -> int:
    """Send a request whose content comes in DATA frames of one octet; return its stream."""
    stream = client.request("/svc/tiny")
    world.settle()
    head = bytes([0, 0, 1, 0, 0]) + stream.to_bytes(4, "big")
    wire = world.wire(client)
    octets = (head + b"x") * frames
    for start in range(0, len(octets), 64 * KIB):
        wire.give(octets[start : start + 64 * KIB])
    return stream


@each_bare_engine
def test_reading_pauses_until_what_was_read_is_served_and_nothing_is_lost(make: EngineFactory) -> None:
    with World(make=make) as world:
        client = world.client()
        stream = tiny_frames(world, client, 20_000)
        assert world.wire(client).transport.reading_paused
        world.settle()
        assert not world.wire(client).transport.reading_paused
        service, far = world.latest("/tiny")
        assert len(service.streams[far].content) == 20_000
        service.respond(far, end=True)
        client.engine.reset(stream, ErrorCode.CANCEL)
        world.settle()
        world.assert_at_rest()


@each_bare_engine
@pytest.mark.parametrize("end", ["eof", "lost"])
def test_a_response_that_was_read_before_its_connection_ended_arrives_whole(make: EngineFactory, end: str) -> None:
    with World(make=make) as world:
        client = world.client()
        stream = client.request("/svc/x", end=True)
        world.settle()
        service, far = world.latest("/x")
        service.respond(far)
        world.settle()
        frame = bytes([0, 0, 1, 0, 0]) + far.to_bytes(4, "big") + b"x"
        last = bytes([0, 0, 0, 0, 1]) + far.to_bytes(4, "big")
        wire = world.wire(service)
        wire.give(frame * 6_000 + last)
        if end == "eof":
            wire.protocol.eof_received()
        wire.lose()
        world.settle()
        assert (len(client.streams[stream].content), client.streams[stream].ended) == (6_000, True)


@each_bare_engine
def test_the_rest_of_a_read_is_dropped_when_the_connection_ends(make: EngineFactory) -> None:
    with World(make=make) as world:
        client = world.client()
        tiny_frames(world, client, 20_000)
        world.wire(client).lose()
        world.settle()
        world.assert_at_rest()
