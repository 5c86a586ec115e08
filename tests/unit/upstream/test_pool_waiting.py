"""Requests that wait for a stream: their order, their cancellation, and how long they wait."""

from __future__ import annotations

import asyncio

import pytest

from proxy.errors import Failure, UpstreamConnectTimeout, UpstreamSaturated
from proxy.http2.choice import EngineFactory
from proxy.http2.engine import Stream
from proxy.http2.events import ErrorCode
from tests.support.loops import loop_idle, skip, with_manual_clock
from tests.support.peers.engines import each_bare_engine
from tests.support.peers.raw import REQUEST, RESPONSE
from tests.support.peers.receivers import RecordingReceiver
from tests.unit.upstream.pool_stage import REFUSED, PoolStage, finish
from tests.unit.upstream.stage import ORIGIN


@each_bare_engine
@with_manual_clock
async def test_requests_are_served_first_come_first_served(make: EngineFactory) -> None:
    stage = PoolStage(make, max_connections=1)
    await stage.ask("a")
    far = await stage.service.accept(1)
    await stage.ask("b")
    await stage.ask("c")
    far.connection.schedule_flush()  # those that wait are served then, at the end of this turn
    far.connection.data_received(far.headers(1, RESPONSE, end=True).serialize())
    assert stage.pool.origin_pool(ORIGIN).ready() is None, "the stream that is free is for b"
    await stage.ask("d")
    for stream in (3, 5):
        finish(far, stream)
        await loop_idle()
    assert stage.opened == ["a", "b", "c", "d"]
    await stage.close()


@each_bare_engine
@with_manual_clock
async def test_a_request_whose_connection_sent_goaway_keeps_its_place_in_the_queue(make: EngineFactory) -> None:
    stage = PoolStage(make, max_connections=2)
    await stage.ask("a")
    first = await stage.service.accept(1)
    await stage.ask("b", "c")
    assert stage.service.dials == 2
    finish(first, 1)
    first.send(first.go_away((1 << 31) - 1))
    await loop_idle()
    second = await stage.service.accept(1)
    assert stage.opened == ["a", "b"]
    finish(second, 1)
    await loop_idle()
    assert stage.opened == ["a", "b", "c"]
    await stage.close()


@with_manual_clock
async def test_a_stream_given_to_a_request_that_was_cancelled_is_given_to_the_next() -> None:
    stage = PoolStage(max_connections=1)
    await stage.ask("a")
    far = await stage.service.accept(1)
    [b, c] = await stage.ask("b", "c")
    finish(far, 1)
    b.cancel()
    await loop_idle()
    assert stage.opened == ["a", "c"]
    assert b.cancelled()
    await c
    assert far.connection.reserved == 0
    await stage.close()


@with_manual_clock
async def test_a_request_that_is_cancelled_as_soon_as_it_waits_is_forgotten() -> None:
    stage = PoolStage(max_connections=1)
    await stage.ask("a")
    await stage.service.accept(1)
    b = stage.task(stage.pool.acquire(ORIGIN))
    await asyncio.sleep(0)
    b.cancel()
    await loop_idle()
    assert b.cancelled()
    assert stage.pool.origin_pool(ORIGIN).waiting == 0
    await stage.close()


@with_manual_clock
async def test_no_connection_is_opened_for_cancelled_requests() -> None:
    stage = PoolStage()
    tasks = await stage.ask(*(str(number) for number in range(20)))
    for task in tasks:
        task.cancel()
    await loop_idle()
    far = await stage.service.accept(1)
    assert stage.service.dials == 1
    assert far.connection.count_free_streams() == 1
    assert stage.pool.origin_pool(ORIGIN).ready() is far.connection
    await stage.close()


@with_manual_clock
async def test_a_reserved_stream_that_was_not_opened_goes_to_the_next_request() -> None:
    stage = PoolStage(max_connections=1)
    await stage.ask("a")
    far = await stage.service.accept(1)
    idler = stage.task(stage.pool.acquire(ORIGIN))
    await loop_idle()
    await stage.ask("b")
    finish(far, 1)
    await loop_idle()
    assert idler.result() is far.connection
    assert stage.opened == ["a", "b"]
    await stage.close()


@with_manual_clock
async def test_a_request_beyond_all_connections_times_out_and_names_the_limit() -> None:
    stage = PoolStage(max_connections=1, wait_timeout_seconds=5.0)
    await stage.ask("a")
    far = await stage.service.accept(1)
    [b] = await stage.ask("b")
    await skip(3.0)
    [c] = await stage.ask("c")
    await skip(2.5)
    with pytest.raises(UpstreamSaturated, match=r"within 5 s: 1 connections are in use, 1 are allowed \(max_upstream"):
        await b
    assert not c.done()
    finish(far, 1)
    await c
    await stage.close()


@with_manual_clock
async def test_a_slow_connection_attempt_times_out_for_the_request_and_continues_for_the_next() -> None:
    stage = PoolStage(wait_timeout_seconds=5.0)
    [a] = await stage.ask("a")
    await skip(5.1)
    with pytest.raises(UpstreamConnectTimeout, match=r"https://greeter\.example was not connected within 5 s"):
        await a
    [b] = await stage.ask("b")
    await stage.service.accept()
    await b
    assert stage.service.dials == 1
    await stage.close()


@with_manual_clock
async def test_requests_that_have_given_up_are_forgotten_while_all_streams_stay_in_use() -> None:
    stage = PoolStage(max_connections=1, wait_timeout_seconds=5.0)
    await stage.ask("long")
    await stage.service.accept(1)
    tasks = []
    for second in range(50):
        tasks += [stage.task(stage.pool.acquire(ORIGIN, owner)) for owner in ("a", "b", f"only at {second}")]
        await skip(1.0)
    pool = stage.pool.origin_pool(ORIGIN)
    waiting, kept = pool.waiting, pool.queue.take_all()
    for waiter in kept:
        waiter.cancel()
    await stage.close()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert waiting < 20
    assert len(kept) == waiting


class _Owned(RecordingReceiver):
    """The receiver of a stream that somebody owns."""

    def __init__(self, owner: str) -> None:
        super().__init__()
        self._owner = owner
        self.stream: Stream | None = None

    def owner(self) -> object:
        return self._owner

    def on_evicted(self, failure: Failure) -> None:
        assert self.stream is not None
        self.stream.reset_now(ErrorCode.CANCEL)


async def _own(stage: PoolStage, owner: str) -> None:
    """Wait for a stream, and keep it."""
    connection = await stage.pool.acquire(ORIGIN, owner)
    receiver = _Owned(owner)
    receiver.stream = connection.open(REQUEST, True, receiver)
    stage.opened.append(owner)


@each_bare_engine
@with_manual_clock
async def test_a_client_that_comes_while_streams_are_promised_gets_one_of_the_client_with_most(
    make: EngineFactory,
) -> None:
    stage = PoolStage(make, max_connections=1)
    greedy = [stage.task(_own(stage, "greedy")) for _ in range(6)]
    await loop_idle()
    accepted = stage.task(stage.service.accept(4))
    neighbours: list[asyncio.Task[None]] = []
    # Its first step comes in the turn of the loop in which the connection opens, and after that.
    asyncio.get_running_loop().call_soon(lambda: neighbours.append(stage.task(_own(stage, "neighbour"))))
    await accepted
    assert stage.opened == ["greedy"] * 4 + ["neighbour"]
    for task in greedy:
        task.cancel()
    await asyncio.gather(*greedy, *neighbours, return_exceptions=True)
    await stage.close()


@each_bare_engine
@with_manual_clock
async def test_nobody_gives_way_while_another_connection_is_being_opened_unless_the_attempt_before_failed(
    make: EngineFactory,
) -> None:
    stage = PoolStage(make, max_connections=2)
    tasks = [stage.task(_own(stage, "greedy")) for _ in range(4)]
    await loop_idle()
    far = await stage.service.accept(4)
    tasks.append(stage.task(_own(stage, "neighbour")))
    await loop_idle()
    assert stage.service.dials == 2
    assert stage.opened == ["greedy"] * 4
    await stage.service.refuse(REFUSED)
    await skip(1.0)
    assert stage.service.dials == 3
    tasks.append(stage.task(_own(stage, "another")))
    await loop_idle()
    assert stage.opened == ["greedy"] * 4 + ["another"]
    assert far.connection.engine.count_open_streams() == 4
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await stage.close()


@each_bare_engine
@with_manual_clock
async def test_nobody_gives_way_to_a_request_that_gets_a_stream_in_the_same_turn(make: EngineFactory) -> None:
    stage = PoolStage(make, max_connections=1)
    tasks = [stage.task(_own(stage, "greedy")) for _ in range(4)]
    await loop_idle()
    far = await stage.service.accept(4)
    tasks.append(stage.task(_own(stage, "neighbour")))
    answer = far.headers(1, RESPONSE, end=True).serialize()
    asyncio.get_running_loop().call_soon(far.connection.data_received, answer)
    far.connection.schedule_flush()  # what waits is served then: behind both in that turn
    await loop_idle()
    assert stage.opened == ["greedy"] * 4 + ["neighbour"]
    assert far.connection.engine.count_open_streams() == 4
    await asyncio.gather(*tasks)
    await stage.close()
