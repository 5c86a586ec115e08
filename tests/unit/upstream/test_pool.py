"""When the pool opens connections, and when it closes them."""

from __future__ import annotations

import asyncio

import pytest

from proxy.errors import Draining, UpstreamSaturated
from proxy.http2.choice import EngineFactory
from proxy.routes import Origin
from proxy.upstream.connection import Timing
from tests.support.loops import loop_idle, skip, with_manual_clock
from tests.support.peers.engines import each_bare_engine
from tests.support.peers.raw import RESPONSE, codes
from tests.unit.upstream.pool_stage import REFUSED, House, failures_of, finish
from tests.unit.upstream.stage import ORIGIN, Far, Receiver

OTHER = Origin("http", "127.0.0.1", 8080)


# ---- on demand


@each_bare_engine
@with_manual_clock
async def test_the_first_request_dials_and_the_next_find_a_stream_ready(make: EngineFactory) -> None:
    house = House(make)
    assert house.pool.origin_pool(ORIGIN).ready() is None
    assert house.service.dials == 0
    await house.ask("a", "b", "c")
    assert house.service.dials == 1
    far = await house.service.accept()
    assert house.opened == ["a", "b", "c"]
    assert house.pool.origin_pool(ORIGIN).ready() is far.connection
    assert house.pool.origin_pool(OTHER).ready() is None
    await house.ask("d")
    assert house.service.dials == 1
    assert house.counts.opened == {"https://greeter.example": 1}
    await house.close()


@each_bare_engine
@with_manual_clock
async def test_more_connections_are_opened_when_streams_run_out_and_no_more_than_needed(make: EngineFactory) -> None:
    house = House(make)
    await house.ask(*(str(number) for number in range(35)))
    assert house.service.dials == 1
    await house.service.accept(10)
    assert house.service.dials == 4, "25 wait, a connection brings 10"
    while house.service.dialling:
        await house.service.accept(10)
    assert house.service.dials == 4
    assert house.opened == [str(number) for number in range(35)]
    assert [far.connection.engine.count_open_streams() for far in house.service.fars] == [10, 10, 10, 5]
    await house.close()


@with_manual_clock
async def test_a_burst_on_a_cold_origin_opens_as_many_connections_as_its_streams_need() -> None:
    house = House()
    tasks = await house.ask(*(str(number) for number in range(250)))
    assert house.service.dials == 3
    await house.close()
    assert await failures_of(tasks) == {"draining": 250}


@each_bare_engine
@with_manual_clock
async def test_a_lowered_stream_limit_is_kept_and_waiting_requests_continue_when_it_rises(
    make: EngineFactory,
) -> None:
    house = House(make, max_connections=1)
    await house.ask("a", "b")
    far = await house.service.accept(2)
    far.limit(1)
    await house.ask("c")
    finish(far, 1)
    await loop_idle()
    assert house.opened == ["a", "b"]
    finish(far, 3)
    await loop_idle()
    assert house.opened == ["a", "b", "c"]
    await house.ask("d", "e")
    far.limit(0)
    finish(far, 5)
    await loop_idle()
    assert house.opened == ["a", "b", "c"]
    far.limit(2)
    await loop_idle()
    assert house.opened == ["a", "b", "c", "d", "e"]
    assert house.service.dials == 1
    await house.close()


@each_bare_engine
@with_manual_clock
async def test_a_limit_lowered_between_reservation_and_open_is_kept(make: EngineFactory) -> None:
    house = House(make, max_connections=1)
    tasks = await house.ask("a", "b", "c")
    origin, answer = house.service.dialling.popleft()
    far = Far(make, Timing(), origin)
    house.service.fars.append(far)
    far.greet(3)
    answer.set_result(far.connection)
    while far.connection.reserved < 3:  # noqa: ASYNC110 - the turn matters: in the next, the streams are opened
        await asyncio.sleep(0)
    far.limit(1)
    await loop_idle()
    assert far.connection.engine.count_open_streams() == 1
    finish(far, 1)
    await loop_idle()
    finish(far, 3)
    await loop_idle()
    assert sorted(house.opened) == ["a", "b", "c"]
    assert all(task.done() for task in tasks)
    await house.close()


@each_bare_engine
@with_manual_clock
async def test_a_peer_that_offers_no_streams_is_not_dialled_again_and_again(make: EngineFactory) -> None:
    house = House(make, wait_timeout_seconds=5.0)
    tasks = await house.ask("a", "b")
    far = await house.service.accept(0)
    more = await house.ask("c")
    assert house.service.dials == 1
    await skip(5.1)
    assert await failures_of(tasks + more) == {"upstream-saturated": 3}
    with pytest.raises(UpstreamSaturated, match="SETTINGS_MAX_CONCURRENT_STREAMS"):
        await tasks[0]
    [late] = await house.ask("d")
    far.limit(1)
    await late
    await house.close()


@with_manual_clock
async def test_the_first_connections_stay_full_so_that_the_last_fall_idle() -> None:
    house = House(timing=Timing(ping_interval_seconds=1000.0))
    await house.ask("a", "b", "c")
    first = await house.service.accept(2)
    second = await house.service.accept(2)
    finish(first, 1)
    await house.ask("d")
    assert first.connection.engine.count_open_streams() == 2
    assert second.connection.engine.count_open_streams() == 1
    finish(second, 1)
    await skip(100.0)
    first.send(first.ping())
    await skip(100.0)
    assert second.connection.closed
    assert house.pool.origin_pool(ORIGIN).ready() is None
    assert not first.connection.closed
    assert house.counts.closed == {"https://greeter.example": 1}
    await house.close()


@with_manual_clock
async def test_origins_share_nothing() -> None:
    house = House()
    here = await house.ask("a")
    there = await house.ask("b", origin=OTHER)
    await house.service.refuse(REFUSED)
    assert await failures_of(here) == {"upstream-connect-failed": 1}
    far = await house.service.accept()
    [(connection, _)] = [await task for task in there]
    assert connection is far.connection
    assert connection.origin == OTHER
    await house.close()


# ---- GOAWAY


@each_bare_engine
@with_manual_clock
async def test_goaway_sends_new_requests_elsewhere_while_the_old_ones_finish(make: EngineFactory) -> None:
    house = House(make)
    receivers = [Receiver(), Receiver()]
    await house.ask("a", receiver=receivers[0])
    first = await house.service.accept()
    first.send(first.go_away((1 << 31) - 1))
    await house.ask("b", receiver=receivers[1])
    second = await house.service.accept()
    first.send(first.go_away(1))
    finish(first, 1)
    finish(second, 1)
    assert [receiver.told for receiver in receivers] == [[("head", RESPONSE, True)]] * 2
    assert await first.gone()
    assert not second.connection.closed
    assert house.counts.opened["https://greeter.example"] == 2
    assert house.counts.closed["https://greeter.example"] == 1
    await house.close()


@each_bare_engine
@with_manual_clock
async def test_one_goaway_after_another_costs_one_dial_each(make: EngineFactory) -> None:
    house = House(make)
    for number in range(20):
        [task] = await house.ask(str(number))
        far = await house.service.accept()
        await task
        far.send(far.go_away((1 << 31) - 1))
        far.send(far.go_away(1))
    assert house.service.dials == 20
    assert all(not far.connection.closed for far in house.service.fars)
    for far in house.service.fars:
        finish(far, 1)
        assert await far.gone()
    assert house.counts.closed["https://greeter.example"] == 20
    await house.close()


# ---- the end


@each_bare_engine
@with_manual_clock
async def test_close_sends_goaway_and_fails_waiting_and_later_requests(make: EngineFactory) -> None:
    house = House(make, max_connections=2)
    receiver = Receiver()
    await house.ask("a", receiver=receiver)
    far = await house.service.accept(1)
    far.take()
    [b] = await house.ask("b")
    assert len(house.service.dialling) == 1
    await house.pool.close(linger_seconds=1.0)
    assert not house.service.dialling, "the dial was given up"
    assert far.connection.gone.done()
    assert codes(far.take(), "GoAway") == [0]
    assert [one[0] for one in receiver.told] == ["lost"]
    for task in (b, *await house.ask("c")):
        with pytest.raises(Draining):
            await task
    await house.close()


@with_manual_clock
async def test_close_does_not_wait_longer_than_its_limit_for_a_peer_that_does_not_read() -> None:
    house = House()
    await house.ask("a")
    far = await house.service.accept()
    far.transport.reading = False
    closing = house.task(house.pool.close(linger_seconds=1.0))
    await loop_idle()
    assert not closing.done()
    await skip(1.1)
    await closing
    assert far.transport.aborted
    await house.close()


@with_manual_clock
async def test_close_waits_for_connections_that_were_leaving_already() -> None:
    house = House()
    await house.ask("a")
    far = await house.service.accept()
    far.transport.reading = False
    far.connection.retire("idle")
    closing = house.task(house.pool.close(linger_seconds=1.0))
    await loop_idle()
    assert not closing.done()
    far.transport.abort()
    await loop_idle()
    assert closing.done()
    await house.close()


@with_manual_clock
async def test_a_request_that_was_just_given_a_stream_hears_of_the_end_at_once() -> None:
    house = House(max_connections=1)
    await house.ask("a")
    far = await house.service.accept(1)
    [b] = await house.ask("b")
    finish(far, 1)
    assert far.connection.reserved == 1
    await house.pool.close()
    await loop_idle()
    assert b.done()
    with pytest.raises(Draining):
        await b
    await house.close()


@with_manual_clock
async def test_close_without_anything_open_is_nothing() -> None:
    house = House()
    await house.pool.close(linger_seconds=1.0)
    await house.close()


@with_manual_clock
async def test_no_connection_is_opened_after_close() -> None:
    house = House()
    await house.ask("a")
    await house.service.accept(1)
    waiting = await house.ask("b")
    await house.service.refuse(REFUSED)
    await house.pool.close()
    await skip(2.0)
    assert house.service.dials == 2
    assert await failures_of(waiting) == {"draining": 1}
    await house.close()
