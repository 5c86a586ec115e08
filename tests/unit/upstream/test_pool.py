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
from tests.support.peers.events import ConnectionLost, HeadReceived
from tests.support.peers.raw import RESPONSE, codes
from tests.support.peers.receivers import RecordingReceiver
from tests.unit.upstream.pool_stage import REFUSED, PoolStage, failures_of, finish
from tests.unit.upstream.stage import ORIGIN, Far

OTHER = Origin("http", "127.0.0.1", 8080)


# ---- on demand


@each_bare_engine
@with_manual_clock
async def test_the_first_request_opens_a_connection_and_the_next_ones_find_it_ready(make: EngineFactory) -> None:
    stage = PoolStage(make)
    assert stage.pool.origin_pool(ORIGIN).ready() is None
    assert stage.service.dials == 0
    await stage.ask("a", "b", "c")
    assert stage.service.dials == 1
    far = await stage.service.accept()
    assert stage.opened == ["a", "b", "c"]
    assert stage.pool.origin_pool(ORIGIN).ready() is far.connection
    assert stage.pool.origin_pool(OTHER).ready() is None
    await stage.ask("d")
    assert stage.service.dials == 1
    assert stage.counts.opened == {"https://greeter.example": 1}
    await stage.close()


@each_bare_engine
@with_manual_clock
async def test_more_connections_are_opened_when_streams_run_out_and_no_more_than_needed(make: EngineFactory) -> None:
    stage = PoolStage(make)
    await stage.ask(*(str(number) for number in range(35)))
    assert stage.service.dials == 1
    await stage.service.accept(10)
    assert stage.service.dials == 4, "25 wait, a connection brings 10"
    while stage.service.dialling:
        await stage.service.accept(10)
    assert stage.service.dials == 4
    assert stage.opened == [str(number) for number in range(35)]
    assert [far.connection.engine.count_open_streams() for far in stage.service.fars] == [10, 10, 10, 5]
    await stage.close()


@with_manual_clock
async def test_a_burst_on_a_cold_origin_opens_as_many_connections_as_its_streams_need() -> None:
    stage = PoolStage()
    tasks = await stage.ask(*(str(number) for number in range(250)))
    assert stage.service.dials == 3
    await stage.close()
    assert await failures_of(tasks) == {"draining": 250}


@each_bare_engine
@with_manual_clock
async def test_a_lowered_stream_limit_is_respected_and_waiting_requests_continue_when_it_rises(
    make: EngineFactory,
) -> None:
    stage = PoolStage(make, max_connections=1)
    await stage.ask("a", "b")
    far = await stage.service.accept(2)
    far.limit(1)
    await stage.ask("c")
    finish(far, 1)
    await loop_idle()
    assert stage.opened == ["a", "b"]
    finish(far, 3)
    await loop_idle()
    assert stage.opened == ["a", "b", "c"]
    await stage.ask("d", "e")
    far.limit(0)
    finish(far, 5)
    await loop_idle()
    assert stage.opened == ["a", "b", "c"]
    far.limit(2)
    await loop_idle()
    assert stage.opened == ["a", "b", "c", "d", "e"]
    assert stage.service.dials == 1
    await stage.close()


@each_bare_engine
@with_manual_clock
async def test_a_limit_lowered_between_reservation_and_open_is_respected(make: EngineFactory) -> None:
    stage = PoolStage(make, max_connections=1)
    tasks = await stage.ask("a", "b", "c")
    origin, answer = stage.service.dialling.popleft()
    far = Far(make, Timing(), origin)
    stage.service.fars.append(far)
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
    assert sorted(stage.opened) == ["a", "b", "c"]
    assert all(task.done() for task in tasks)
    await stage.close()


@each_bare_engine
@with_manual_clock
async def test_a_peer_that_offers_no_streams_is_not_connected_to_repeatedly(make: EngineFactory) -> None:
    stage = PoolStage(make, wait_timeout_seconds=5.0)
    tasks = await stage.ask("a", "b")
    far = await stage.service.accept(0)
    more = await stage.ask("c")
    assert stage.service.dials == 1
    await skip(5.1)
    assert await failures_of(tasks + more) == {"upstream-saturated": 3}
    with pytest.raises(UpstreamSaturated, match="SETTINGS_MAX_CONCURRENT_STREAMS") as failure:
        await tasks[0]
    assert failure.value.remedy == "check the service", "more connections would not help"
    [late] = await stage.ask("d")
    far.limit(1)
    await late
    await stage.close()


@each_bare_engine
@with_manual_clock
async def test_a_connection_that_offers_no_streams_any_more_is_no_reason_to_open_none(make: EngineFactory) -> None:
    stage = PoolStage(make)
    await stage.ask("a")
    first = await stage.service.accept(10)
    finish(first, 1)
    first.limit(0)
    await stage.ask("b")
    assert stage.service.dials == 2
    second = await stage.service.accept(0)
    await stage.ask("c")
    assert stage.service.dials == 2, "this one has never offered any, nor would another one"
    second.limit(1)
    await loop_idle()
    assert stage.opened == ["a", "b"]
    assert stage.service.dials == 3
    await stage.service.accept(10)
    assert stage.opened == ["a", "b", "c"]
    await stage.close()


@with_manual_clock
async def test_a_request_hears_that_the_only_connection_allowed_offers_no_streams_any_more() -> None:
    stage = PoolStage(max_connections=1)
    await stage.ask("a")
    far = await stage.service.accept(10)
    finish(far, 1)
    far.limit(0)
    [b] = await stage.ask("b")
    await skip(5.1)
    with pytest.raises(UpstreamSaturated, match="SETTINGS_MAX_CONCURRENT_STREAMS"):
        await b
    await stage.close()


@with_manual_clock
async def test_the_first_connections_are_used_first_so_that_the_last_ones_become_idle() -> None:
    stage = PoolStage(timing=Timing(ping_interval_seconds=1000.0))
    await stage.ask("a", "b", "c")
    first = await stage.service.accept(2)
    second = await stage.service.accept(2)
    finish(first, 1)
    await stage.ask("d")
    assert first.connection.engine.count_open_streams() == 2
    assert second.connection.engine.count_open_streams() == 1
    finish(second, 1)
    await skip(100.0)
    first.send(first.ping())
    await skip(100.0)
    assert second.connection.closed
    assert stage.pool.origin_pool(ORIGIN).ready() is None
    assert not first.connection.closed
    assert stage.counts.closed == {"https://greeter.example": 1}
    await stage.close()


@with_manual_clock
async def test_origins_share_nothing() -> None:
    stage = PoolStage()
    here = await stage.ask("a")
    there = await stage.ask("b", origin=OTHER)
    await stage.service.refuse(REFUSED)
    assert await failures_of(here) == {"upstream-connect-failed": 1}
    far = await stage.service.accept()
    [(connection, _)] = [await task for task in there]
    assert connection is far.connection
    assert connection.origin == OTHER
    await stage.close()


# ---- GOAWAY


@each_bare_engine
@with_manual_clock
async def test_goaway_sends_new_requests_elsewhere_while_the_old_ones_finish(make: EngineFactory) -> None:
    stage = PoolStage(make)
    receivers = [RecordingReceiver(), RecordingReceiver()]
    await stage.ask("a", receiver=receivers[0])
    first = await stage.service.accept()
    first.send(first.go_away((1 << 31) - 1))
    await stage.ask("b", receiver=receivers[1])
    second = await stage.service.accept()
    first.send(first.go_away(1))
    finish(first, 1)
    finish(second, 1)
    for receiver in receivers:
        assert receiver.events == [HeadReceived(receiver.stream_id, RESPONSE, True)]
    assert await first.gone()
    assert not second.connection.closed
    assert stage.counts.opened["https://greeter.example"] == 2
    assert stage.counts.closed["https://greeter.example"] == 1
    await stage.close()


@each_bare_engine
@with_manual_clock
async def test_each_goaway_costs_one_new_connection(make: EngineFactory) -> None:
    stage = PoolStage(make)
    for number in range(20):
        [task] = await stage.ask(str(number))
        far = await stage.service.accept()
        await task
        far.send(far.go_away((1 << 31) - 1))
        far.send(far.go_away(1))
    assert stage.service.dials == 20
    assert all(not far.connection.closed for far in stage.service.fars)
    for far in stage.service.fars:
        finish(far, 1)
        assert await far.gone()
    assert stage.counts.closed["https://greeter.example"] == 20
    await stage.close()


# ---- the end


@each_bare_engine
@with_manual_clock
async def test_close_sends_goaway_and_fails_waiting_and_later_requests(make: EngineFactory) -> None:
    stage = PoolStage(make, max_connections=2)
    receiver = RecordingReceiver()
    await stage.ask("a", receiver=receiver)
    far = await stage.service.accept(1)
    far.take()
    [b] = await stage.ask("b")
    assert len(stage.service.dialling) == 1
    await stage.pool.close(linger_seconds=1.0)
    assert not stage.service.dialling, "the dial was given up"
    assert far.connection.gone.done()
    assert codes(far.take(), "GoAway") == [0]
    assert receiver.kinds == [ConnectionLost]
    for task in (b, *await stage.ask("c")):
        with pytest.raises(Draining):
            await task
    await stage.close()


@with_manual_clock
async def test_close_does_not_wait_longer_than_its_limit_for_a_peer_that_does_not_read() -> None:
    stage = PoolStage()
    await stage.ask("a")
    far = await stage.service.accept()
    far.transport.reading = False
    closing = stage.task(stage.pool.close(linger_seconds=1.0))
    await loop_idle()
    assert not closing.done()
    await skip(1.1)
    await closing
    assert far.transport.aborted
    await stage.close()


@with_manual_clock
async def test_close_waits_for_connections_that_were_retiring_already() -> None:
    stage = PoolStage()
    await stage.ask("a")
    far = await stage.service.accept()
    far.transport.reading = False
    far.connection.retire("idle")
    closing = stage.task(stage.pool.close(linger_seconds=1.0))
    await loop_idle()
    assert not closing.done()
    far.transport.abort()
    await loop_idle()
    assert closing.done()
    await stage.close()


@with_manual_clock
async def test_a_request_that_was_just_given_a_stream_is_told_of_the_close_at_once() -> None:
    stage = PoolStage(max_connections=1)
    await stage.ask("a")
    far = await stage.service.accept(1)
    [b] = await stage.ask("b")
    finish(far, 1)
    assert far.connection.reserved == 1
    await stage.pool.close()
    await loop_idle()
    assert b.done()
    with pytest.raises(Draining):
        await b
    await stage.close()


@with_manual_clock
async def test_close_without_connections_returns_at_once() -> None:
    stage = PoolStage()
    await stage.pool.close(linger_seconds=1.0)
    await stage.close()


@with_manual_clock
async def test_no_connection_is_opened_after_close() -> None:
    stage = PoolStage()
    await stage.ask("a")
    await stage.service.accept(1)
    waiting = await stage.ask("b")
    await stage.service.refuse(REFUSED)
    await stage.pool.close()
    await skip(2.0)
    assert stage.service.dials == 2
    assert await failures_of(waiting) == {"draining": 1}
    await stage.close()


@with_manual_clock
async def test_attempts_to_connect_have_ended_when_close_returns_and_none_begins_meanwhile() -> None:
    stage = PoolStage(max_connections=2)
    await stage.ask("a")
    far = await stage.service.accept(1)
    waiting = await stage.ask("b")
    assert stage.service.dials == 2
    closing = stage.task(stage.pool.close())
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # the attempt has ended by now
    assert not closing.done()
    far.send(far.go_away((1 << 31) - 1))  # the pool would replace this connection
    await closing
    assert not stage.service.dialling
    assert stage.service.dials == 2
    assert await failures_of(waiting) == {"draining": 1}
    await stage.close()


@with_manual_clock
async def test_connections_to_which_no_route_leads_any_more_are_closed_also_when_they_are_being_opened() -> None:
    stage = PoolStage(max_connections=2)
    await stage.ask("other", origin=OTHER)
    kept = await stage.service.accept()
    await stage.ask("a")
    open_one = await stage.service.accept(1)
    waiting = await stage.ask("b")
    stage.pool.retain([OTHER])
    assert await failures_of(waiting) == {"upstream-connection-lost": 1}
    late = await stage.service.accept()
    assert await open_one.gone()
    assert await late.gone()
    assert not kept.connection.retiring
    assert [pool.origin for pool in stage.pool.origin_pools] == [OTHER]
    await stage.close()
