"""Connections of clients end at their greatest age, step by step, and no stream is lost by that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import pairwise

import h2.events
import pytest

from proxy.downstream.ages import Ageing, ConnectionAges
from proxy.http2.choice import EngineFactory
from tests.support.loops import loop_idle, skip, with_manual_clock
from tests.support.peers.engines import each_bare_engine
from tests.support.peers.sockets import Peer, Reset, client
from tests.unit.downstream.http1_requests import GET, head_of
from tests.unit.downstream.stage import Listening, listening

HOST = "127.0.0.1"
HIGHEST = (1 << 31) - 1


def goaways(near: Peer) -> list[int]:
    return [event.last_stream_id or 0 for event in near.seen if isinstance(event, h2.events.ConnectionTerminated)]


async def served(it: Listening, near: Peer) -> None:
    stream = near.open("/svc/x", end=True)
    (await it.relay.request()).answer(b"well")
    assert (await near.response(stream)).content == b"well"


@each_bare_engine
@pytest.mark.asyncio
async def test_an_old_connection_ends_in_three_steps_and_its_streams_finish(make: EngineFactory) -> None:
    async with listening(make, ages=ConnectionAges(0.4)) as it, client(HOST, it.port) as near:
        first = near.open("/svc/x")
        early = await it.relay.request()
        while near.h2.remote_settings.max_concurrent_streams:
            near.windows.clear()
            await near.windows.wait()
        assert not near.went_away.done()
        # What follows had been queued before the client read that.
        near.h2.remote_settings.max_concurrent_streams = 100
        near.h2.remote_settings.acknowledge()
        zeroth = near.open("/svc/x", end=True)
        (await it.relay.request()).answer(b"in time")
        assert (await near.response(zeroth)).content == b"in time"
        assert (await near.went_away).error_code == 0
        assert goaways(near) == [HIGHEST]
        near.went_away = asyncio.get_running_loop().create_future()
        second = near.open("/svc/x", end=True)
        late = await it.relay.request()
        assert (await near.went_away).error_code == 0
        assert goaways(near) == [HIGHEST, second]
        refused = near.open("/svc/x", end=True)
        with pytest.raises(Reset) as reset:
            await near.head(refused)
        assert reset.value.code == 0x7
        late.answer(b"late")
        assert (await near.response(second)).content == b"late"
        await near.send(first, b"and still", end=True)
        await early.ended.wait()
        early.answer(b"early")
        assert (await near.response(first)).content == b"early"
        await near.closed
        assert goaways(near) == [HIGHEST, second]


@each_bare_engine
@pytest.mark.asyncio
async def test_an_old_connection_without_streams_closes(make: EngineFactory) -> None:
    async with listening(make, ages=ConnectionAges(0.2)) as it, client(HOST, it.port) as near:
        await served(it, near)
        await near.closed
        assert goaways(near) == [HIGHEST, 1]
        assert it.listener.live_exchanges == 0


@each_bare_engine
@pytest.mark.asyncio
async def test_draining_does_not_wait_for_a_connection_that_is_ending(make: EngineFactory) -> None:
    async with listening(make, ages=ConnectionAges(0.2)) as it, client(HOST, it.port) as near:
        await served(it, near)
        await near.went_away
        it.end.set()
        await near.closed
        assert await it.drained


@pytest.mark.asyncio
async def test_a_greatest_age_that_is_set_later_holds_for_connections_that_are_open() -> None:
    async with listening() as it, client(HOST, it.port) as near, client(HOST, it.port) as other:
        await served(it, near)
        await served(it, other)
        it.listener.ages.most_seconds = 0.001
        await near.closed
        await other.closed


@pytest.mark.asyncio
async def test_over_http_1_1_an_old_connection_closes_with_its_next_response() -> None:
    async with listening() as it:
        reader, writer = await it.raw(GET)
        (await it.relay.request()).answer(b"first")
        assert b"connection" not in (await head_of(reader)).lower()
        await reader.readuntil(b"0\r\n\r\n")
        it.listener.ages.most_seconds = 0.001  # reached: its timer is due before the next request is read
        writer.write(GET)
        (await it.relay.request()).answer(b"second")
        assert b"connection: close" in (await head_of(reader)).lower()
        await reader.readuntil(b"0\r\n\r\n")
        assert await reader.read() == b""


class Reached(ConnectionAges):
    """Connections are old as soon as they are accepted, before their protocol is known."""

    def __init__(self) -> None:
        super().__init__(0.0)
        self.accepted = asyncio.Event()

    def watch(self, connection: Ageing) -> None:
        connection.retire()
        self.accepted.set()


@pytest.mark.asyncio
async def test_a_connection_that_is_old_before_its_first_request_closes_with_the_response_over_http_1_1() -> None:
    ages = Reached()
    async with listening(ages=ages) as it:
        reader, writer = await it.raw()
        await ages.accepted.wait()
        writer.write(GET)
        (await it.relay.request()).answer(b"first")
        assert b"connection: close" in (await head_of(reader)).lower()
        await reader.readuntil(b"0\r\n\r\n")
        assert await reader.read() == b""


@each_bare_engine
@pytest.mark.asyncio
async def test_a_connection_that_is_old_before_its_first_request_serves_it_over_http_2(make: EngineFactory) -> None:
    async with listening(make, ages=Reached()) as it, client(HOST, it.port) as near:
        await served(it, near)
        await near.closed
        assert goaways(near) == [HIGHEST, 1]


class Old:
    """A connection that notes when it is retired."""

    def __init__(self, note: Callable[[float], None]) -> None:
        self.accepted_at = asyncio.get_running_loop().time()
        self._note = note

    def retire(self) -> None:
        self._note(asyncio.get_running_loop().time())


@with_manual_clock
async def test_connections_that_are_opened_together_do_not_end_together() -> None:
    ended: list[float] = []
    ages = ConnectionAges(100.0)
    for _ in range(200):
        ages.watch(Old(ended.append))
    for _ in range(100):
        await skip(1.0)
    assert len(ended) == 200
    assert min(ended) >= 75
    assert max(ended) <= 100
    assert max(later - earlier for earlier, later in pairwise(sorted(ended))) < 5, "they are spread"
    assert len(set(ended)) > 20


@with_manual_clock
async def test_a_connection_that_has_ended_is_left_alone() -> None:
    ended: list[float] = []
    ages = ConnectionAges(10.0)
    old = Old(ended.append)
    ages.watch(old)
    ages.forget(old)
    ages.most_seconds = 5.0
    await skip(11.0)
    assert not ended


@with_manual_clock
async def test_without_a_greatest_age_no_connection_ends() -> None:
    ended: list[float] = []
    ages = ConnectionAges(0.0)
    ages.watch(Old(ended.append))
    await skip(1e6)
    assert not ended


class Watched(ConnectionAges):
    """Knows which connections are watched."""

    def __init__(self) -> None:
        super().__init__(1e6)
        self.connections: set[Ageing] = set()

    def watch(self, connection: Ageing) -> None:
        self.connections.add(connection)
        super().watch(connection)

    def forget(self, connection: Ageing) -> None:
        self.connections.remove(connection)
        super().forget(connection)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "said", [b"", GET[:20], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"], ids=["unknown", "HTTP/1.1", "HTTP/2"]
)
async def test_nothing_is_kept_of_a_connection_that_has_closed(said: bytes) -> None:
    ages = Watched()
    async with listening(ages=ages) as it:
        _, writer = await it.raw(said)
        await loop_idle()
        assert len(ages.connections) == 1
        writer.transport.abort()
        while it.listener.admission.accepted:
            await loop_idle()
        assert not ages.connections
