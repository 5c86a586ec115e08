"""The pool: who gets which stream, when it dials, and what it tells whoever waits."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from typing import Any

import pytest
import structlog

from proxy.errors import (
    Draining,
    Failure,
    Internal,
    UpstreamConnectFailed,
    UpstreamConnectionLost,
    UpstreamConnectTimeout,
    UpstreamSaturated,
)
from proxy.http2.choice import EngineFactory
from proxy.http2.events import StreamId
from proxy.http2.portable.engine import PortableEngine
from proxy.routes import Origin
from proxy.upstream.connection import Timing, UpstreamConnection
from proxy.upstream.pool import Pool
from tests.support.loops import loop_idle, skip, with_manual_clock
from tests.support.peers.engines import each_bare_engine
from tests.support.peers.raw import REQUEST, RESPONSE, codes
from tests.unit.upstream.stage import ORIGIN, Counts, Far, Receiver, Service

OTHER = Origin("http", "127.0.0.1", 8080)
REFUSED = UpstreamConnectFailed("https://greeter.example cannot be connected to (Connection refused)")


class House:
    """A pool, the service that it dials, and requests that wait for a stream and then open it."""

    def __init__(self, make: EngineFactory = PortableEngine, **options: Any) -> None:
        self.service = Service(make, options.pop("timing", None))
        self.counts = Counts()
        self.pool = Pool(self.service.connect, self.counts, **options)
        self.opened: list[str] = []
        """The names of requests that have a stream, in order."""

    def task(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        return asyncio.get_running_loop().create_task(work)

    async def _request(self, name: str, origin: Origin, receiver: Receiver) -> tuple[UpstreamConnection, StreamId]:
        connection = self.pool.origin_pool(origin).ready() or await self.pool.acquire(origin)
        stream = connection.open(REQUEST, True, receiver)
        self.opened.append(name)
        return connection, stream.id

    async def ask(
        self, *names: str, origin: Origin = ORIGIN, receiver: Receiver | None = None
    ) -> list[asyncio.Task[Any]]:
        """Let requests come, and give them time."""
        tasks = [self.task(self._request(name, origin, receiver or Receiver())) for name in names]
        await loop_idle()
        return tasks

    async def close(self) -> None:
        await self.pool.close(linger_seconds=1.0)
        await loop_idle()
        assert all([await far.gone() for far in self.service.fars])
        assert self.counts.opened == self.counts.closed


def finish(far: Far, stream: int) -> None:
    """Answer a request."""
    far.send(far.headers(stream, RESPONSE, end=True))


async def failures_of(tasks: list[asyncio.Task[Any]]) -> Counter[str]:
    """Return how many of these failed with which code."""
    results = await asyncio.gather(*tasks, return_exceptions=True)
    failures = [result for result in results if isinstance(result, Failure)]
    assert len(failures) == len(results), results
    return Counter(failure.code for failure in failures)


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


# ---- the line


@each_bare_engine
@with_manual_clock
async def test_requests_are_served_first_come_first_served(make: EngineFactory) -> None:
    house = House(make, max_connections=1)
    await house.ask("a")
    far = await house.service.accept(1)
    await house.ask("b")
    await house.ask("c")
    far.send(far.headers(1, RESPONSE, end=True))
    assert house.pool.origin_pool(ORIGIN).ready() is None, "the stream that is free is for b"
    await house.ask("d")
    for stream in (3, 5):
        finish(far, stream)
        await loop_idle()
    assert house.opened == ["a", "b", "c", "d"]
    await house.close()


@each_bare_engine
@with_manual_clock
async def test_a_request_whose_connection_sent_goaway_keeps_its_place_in_the_queue(make: EngineFactory) -> None:
    house = House(make, max_connections=2)
    await house.ask("a")
    first = await house.service.accept(1)
    await house.ask("b", "c")
    assert house.service.dials == 2
    finish(first, 1)
    first.send(first.go_away((1 << 31) - 1))
    await loop_idle()
    second = await house.service.accept(1)
    assert house.opened == ["a", "b"]
    finish(second, 1)
    await loop_idle()
    assert house.opened == ["a", "b", "c"]
    await house.close()


@with_manual_clock
async def test_a_stream_given_to_a_request_that_was_cancelled_is_given_to_the_next() -> None:
    house = House(max_connections=1)
    await house.ask("a")
    far = await house.service.accept(1)
    [b, c] = await house.ask("b", "c")
    finish(far, 1)
    b.cancel()
    await loop_idle()
    assert house.opened == ["a", "c"]
    assert b.cancelled()
    await c
    assert far.connection.reserved == 0
    await house.close()


@with_manual_clock
async def test_no_connection_is_opened_for_cancelled_requests() -> None:
    house = House()
    tasks = await house.ask(*(str(number) for number in range(20)))
    for task in tasks:
        task.cancel()
    await loop_idle()
    far = await house.service.accept(1)
    assert house.service.dials == 1
    assert far.connection.count_free_streams() == 1
    assert house.pool.origin_pool(ORIGIN).ready() is far.connection
    await house.close()


@with_manual_clock
async def test_a_reserved_stream_that_was_not_opened_goes_to_the_next_request() -> None:
    house = House(max_connections=1)
    await house.ask("a")
    far = await house.service.accept(1)
    idler = house.task(house.pool.acquire(ORIGIN))
    await loop_idle()
    await house.ask("b")
    finish(far, 1)
    await loop_idle()
    assert idler.result() is far.connection
    assert house.opened == ["a", "b"]
    await house.close()


@with_manual_clock
async def test_a_request_beyond_all_connections_times_out_and_names_the_limit() -> None:
    house = House(max_connections=1, wait_timeout_seconds=5.0)
    await house.ask("a")
    far = await house.service.accept(1)
    [b] = await house.ask("b")
    await skip(3.0)
    [c] = await house.ask("c")
    await skip(2.5)
    with pytest.raises(UpstreamSaturated, match=r"within 5 s: 1 connections are in use, 1 are allowed \(max_upstream"):
        await b
    assert not c.done()
    finish(far, 1)
    await c
    await house.close()


@with_manual_clock
async def test_a_dial_that_takes_too_long_is_a_timeout_for_the_request_and_goes_on_for_the_next() -> None:
    house = House(wait_timeout_seconds=5.0)
    [a] = await house.ask("a")
    await skip(5.1)
    with pytest.raises(UpstreamConnectTimeout, match=r"https://greeter\.example was not connected within 5 s"):
        await a
    [b] = await house.ask("b")
    await house.service.accept()
    await b
    assert house.service.dials == 1
    await house.close()


# ---- failures


@with_manual_clock
async def test_a_failed_attempt_fails_all_waiting_requests_once() -> None:
    house = House()
    tasks = await house.ask(*(str(number) for number in range(50)))
    assert house.service.dials == 1
    await house.service.refuse(REFUSED)
    assert await failures_of(tasks) == {"upstream-connect-failed": 50}
    assert house.service.dials == 1, "nobody asked since"
    again = await house.ask("a", "b", "c")
    assert house.service.dials == 2, "one for all that came meanwhile"
    await house.service.refuse(REFUSED)
    assert await failures_of(again) == {"upstream-connect-failed": 3}
    await house.close()


@with_manual_clock
async def test_one_of_several_dials_may_fail_unnoticed_but_two_are_an_outage() -> None:
    house = House()
    tasks = await house.ask(*(str(number) for number in range(250)))
    assert house.service.dials == 3
    with structlog.testing.capture_logs() as lines:
        await house.service.refuse(REFUSED)
    assert [line["code"] for line in lines if line["log_level"] == "warning"] == ["upstream-connect-failed"]
    assert not any(task.done() for task in tasks)
    await house.service.refuse(REFUSED)
    assert await failures_of(tasks) == {"upstream-connect-failed": 250}
    assert house.service.dials <= 4
    await house.close()


@with_manual_clock
async def test_a_failure_beside_a_connection_that_works_is_tried_again_after_a_pause() -> None:
    house = House(wait_timeout_seconds=30.0)
    await house.ask("a")
    first = await house.service.accept(1)
    [b] = await house.ask("b")
    await house.service.refuse(REFUSED)
    assert not b.done(), "the first connection may bring a stream"
    [c] = await house.ask("c")
    first.send(first.ping())
    assert house.service.dials == 2, "not at once"
    await skip(1.1)
    assert house.service.dials == 3, "one probes the way"
    await house.service.accept(1)
    assert house.service.dials == 4, "two wait, a connection brings one"
    await house.service.accept(1)
    await b
    await c
    await house.close()


@with_manual_clock
async def test_a_timed_out_request_says_why_no_other_connection_was_opened() -> None:
    house = House(wait_timeout_seconds=5.0)
    await house.ask("a")
    await house.service.accept(1)
    [b] = await house.ask("b")
    for _ in range(4):
        await house.service.refuse(REFUSED)
        await skip(1.1)
    assert house.service.dials == 6, "one a second"
    await skip(1.0)
    with pytest.raises(UpstreamSaturated, match="Connection refused"):
        await b
    await house.close()


@with_manual_clock
async def test_after_an_outage_one_attempt_is_made_for_all_requests() -> None:
    house = House()
    first = await house.ask("a")
    await house.service.refuse(REFUSED)
    assert await failures_of(first) == {"upstream-connect-failed": 1}
    tasks = await house.ask(*(str(number) for number in range(250)))
    assert house.service.dials == 2
    await house.service.accept(100)
    assert house.service.dials == 4
    while house.service.dialling:
        await house.service.accept(100)
    await asyncio.gather(*tasks)
    assert house.service.dials == 4
    await house.close()


@with_manual_clock
async def test_an_old_failure_is_not_named_as_the_reason_of_a_later_wait() -> None:
    house = House(max_connections=2, wait_timeout_seconds=5.0)
    await house.ask("a")
    far = await house.service.accept(1)
    [b] = await house.ask("b")
    await house.service.refuse(REFUSED)
    finish(far, 1)
    await b
    await skip(2.0)
    [c] = await house.ask("c")
    await skip(5.1)
    with pytest.raises(UpstreamSaturated, match="another is still being opened"):
        await c
    await house.close()


@with_manual_clock
async def test_the_pause_ends_when_the_last_connection_has_closed() -> None:
    house = House()
    await house.ask("a")
    first = await house.service.accept(1)
    [b] = await house.ask("b")
    await house.service.refuse(REFUSED)
    first.transport.lose(None)
    await loop_idle()
    assert house.service.dials == 3
    await house.service.accept(1)
    await b
    await skip(2.0)
    assert house.service.dials == 3
    await house.close()


@with_manual_clock
async def test_an_unexpected_failure_is_told_without_its_text() -> None:
    house = House()
    [a] = await house.ask("a")
    with structlog.testing.capture_logs() as lines:
        await house.service.refuse(ZeroDivisionError("ya29.secret"))
    with pytest.raises(Internal, match=r"connecting to https://greeter\.example failed: ZeroDivisionError") as failure:
        await a
    assert "secret" not in f"{failure.value} {lines}"
    assert [line["error"] for line in lines if line["log_level"] == "error"] == ["ZeroDivisionError"]
    await house.close()


@each_bare_engine
@pytest.mark.parametrize("way", ["goaway", "end"])
@with_manual_clock
async def test_a_peer_that_closes_every_new_connection_at_once_counts_as_failed(make: EngineFactory, way: str) -> None:
    house = House(make)
    tasks = await house.ask("a", "b")
    origin, answer = house.service.dialling.popleft()
    far = Far(make, Timing(), origin)
    house.service.fars.append(far)
    far.greet(100)
    if way == "goaway":
        far.send(far.go_away(0))
    else:
        far.connection.eof_received()
    answer.set_result(far.connection)
    with pytest.raises(UpstreamConnectionLost, match="as soon as it was open"):
        await tasks[0]
    assert await failures_of(tasks) == {"upstream-connection-lost": 2}
    assert house.service.dials == 1
    assert not house.counts.opened
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
