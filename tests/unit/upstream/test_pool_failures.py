"""What the pool does when connections cannot be opened, and what it tells waiting requests."""

from __future__ import annotations

import asyncio

import pytest
import structlog

from proxy.errors import Internal, UpstreamConnectionLost, UpstreamSaturated
from proxy.http2.choice import EngineFactory
from proxy.upstream.connection import Timing
from tests.support.loops import loop_idle, skip, with_manual_clock
from tests.support.peers.engines import each_bare_engine
from tests.support.peers.raw import RESPONSE
from tests.unit.upstream.pool_stage import REFUSED, PoolStage, failures_of, finish
from tests.unit.upstream.stage import ORIGIN, Far


@with_manual_clock
async def test_a_failed_attempt_fails_all_waiting_requests_once() -> None:
    stage = PoolStage()
    tasks = await stage.ask(*(str(number) for number in range(50)))
    assert stage.service.dials == 1
    await stage.service.refuse(REFUSED)
    assert await failures_of(tasks) == {"upstream-connect-failed": 50}
    assert stage.service.dials == 1, "no request has come since"
    again = await stage.ask("a", "b", "c")
    assert stage.service.dials == 1, "not at once"
    await skip(0.06)
    assert stage.service.dials == 2, "one for all that came meanwhile"
    await stage.service.refuse(REFUSED)
    assert await failures_of(again) == {"upstream-connect-failed": 3}
    await stage.close()


@with_manual_clock
async def test_one_failed_connection_of_several_is_not_reported_but_two_are_an_outage() -> None:
    stage = PoolStage()
    tasks = await stage.ask(*(str(number) for number in range(250)))
    assert stage.service.dials == 3
    with structlog.testing.capture_logs() as lines:
        await stage.service.refuse(REFUSED)
    assert [line["code"] for line in lines if line["log_level"] == "warning"] == ["upstream-connect-failed"]
    assert not any(task.done() for task in tasks)
    await stage.service.refuse(REFUSED)
    assert await failures_of(tasks) == {"upstream-connect-failed": 250}
    assert stage.service.dials <= 4
    await stage.close()


@with_manual_clock
async def test_a_failure_beside_a_connection_that_works_is_tried_again_after_a_pause() -> None:
    stage = PoolStage(wait_timeout_seconds=30.0)
    await stage.ask("a")
    first = await stage.service.accept(1)
    [b] = await stage.ask("b")
    await stage.service.refuse(REFUSED)
    assert not b.done(), "the first connection may bring a stream"
    [c] = await stage.ask("c")
    first.send(first.ping())
    assert stage.service.dials == 2, "not at once"
    await skip(1.1)
    assert stage.service.dials == 3, "one probes the way"
    await stage.service.accept(1)
    assert stage.service.dials == 4, "two wait, a connection brings one"
    await stage.service.accept(1)
    await b
    await c
    await stage.close()


@with_manual_clock
async def test_a_connection_that_opens_after_a_failure_ends_the_pause() -> None:
    stage = PoolStage()
    await stage.ask("a")
    await stage.service.accept(1)
    [_, c] = await stage.ask("b", "c")
    await stage.service.refuse(REFUSED)
    assert stage.service.dials == 3
    await stage.service.accept(1)
    assert stage.service.dials == 4
    await stage.service.accept(1)
    await c
    await stage.close()


@with_manual_clock
async def test_a_request_that_gives_up_as_an_attempt_fails_keeps_no_other_waiting() -> None:
    stage = PoolStage()
    gone, other = await stage.ask("a", "b")
    stage.service.dialling.popleft()[1].set_exception(REFUSED)
    gone.cancel()
    await loop_idle()
    assert gone.cancelled()
    assert other.done()
    assert await failures_of([other]) == {"upstream-connect-failed": 1}
    await stage.close()


@with_manual_clock
async def test_a_timed_out_request_says_why_no_other_connection_was_opened() -> None:
    stage = PoolStage(wait_timeout_seconds=5.0)
    await stage.ask("a")
    await stage.service.accept(1)
    [b] = await stage.ask("b")
    for _ in range(4):
        await stage.service.refuse(REFUSED)
        await skip(1.1)
    assert stage.service.dials == 6, "one a second"
    await skip(1.0)
    with pytest.raises(UpstreamSaturated, match=r"\(Connection refused\); check the url of the route, DNS"):
        await b
    await stage.close()


@with_manual_clock
async def test_after_an_outage_one_attempt_is_made_for_all_requests() -> None:
    stage = PoolStage()
    first = await stage.ask("a")
    await stage.service.refuse(REFUSED)
    assert await failures_of(first) == {"upstream-connect-failed": 1}
    tasks = await stage.ask(*(str(number) for number in range(250)))
    await skip(0.06)
    assert stage.service.dials == 2
    await stage.service.accept(100)
    assert stage.service.dials == 4
    while stage.service.dialling:
        await stage.service.accept(100)
    await asyncio.gather(*tasks)
    assert stage.service.dials == 4
    await stage.close()


@with_manual_clock
async def test_an_old_failure_is_not_named_as_the_reason_of_a_later_timeout() -> None:
    stage = PoolStage(max_connections=2, wait_timeout_seconds=5.0)
    await stage.ask("a")
    far = await stage.service.accept(1)
    [b] = await stage.ask("b")
    await stage.service.refuse(REFUSED)
    finish(far, 1)
    await b
    await skip(2.0)
    [c] = await stage.ask("c")
    await skip(5.1)
    with pytest.raises(UpstreamSaturated, match="another is still being opened"):
        await c
    await stage.close()


@with_manual_clock
async def test_the_pause_between_attempts_ends_when_the_last_connection_has_closed() -> None:
    stage = PoolStage()
    await stage.ask("a")
    first = await stage.service.accept(1)
    [b] = await stage.ask("b")
    await stage.service.refuse(REFUSED)
    first.transport.lose(None)
    await loop_idle()
    assert stage.service.dials == 3
    await stage.service.accept(1)
    await b
    await skip(2.0)
    assert stage.service.dials == 3
    await stage.close()


@with_manual_clock
async def test_an_unexpected_failure_is_reported_without_its_text() -> None:
    stage = PoolStage()
    [a] = await stage.ask("a")
    with structlog.testing.capture_logs() as lines:
        await stage.service.refuse(ZeroDivisionError("ya29.secret"))
    with pytest.raises(Internal, match=r"connecting to https://greeter\.example failed: ZeroDivisionError") as failure:
        await a
    assert "secret" not in f"{failure.value} {lines}"
    assert [line["error"] for line in lines if line["log_level"] == "error"] == ["ZeroDivisionError"]
    await stage.close()


@each_bare_engine
@pytest.mark.parametrize("way", ["goaway", "end"])
@with_manual_clock
async def test_a_peer_that_closes_every_new_connection_at_once_counts_as_failed(make: EngineFactory, way: str) -> None:
    stage = PoolStage(make)
    tasks = await stage.ask("a", "b")
    origin, answer = stage.service.dialling.popleft()
    far = Far(make, Timing(), origin)
    stage.service.fars.append(far)
    far.greet(100)
    if way == "goaway":
        far.send(far.go_away(0))
    else:
        far.connection.eof_received()
    answer.set_result(far.connection)
    with pytest.raises(UpstreamConnectionLost, match="as soon as it was open"):
        await tasks[0]
    assert await failures_of(tasks) == {"upstream-connection-lost": 2}
    assert stage.service.dials == 1
    assert not stage.counts.opened
    await stage.close()


@with_manual_clock
async def test_an_upstream_that_refuses_at_once_is_dialled_after_pauses_and_not_for_each_request() -> None:
    stage = PoolStage()
    tasks = await stage.ask("first")
    for number, seconds in enumerate((0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0), 1):
        assert stage.service.dials == number
        await stage.service.refuse(REFUSED)
        assert await failures_of(tasks) == {"upstream-connect-failed": len(tasks)}
        tasks = await stage.ask(*(f"{number} {one}" for one in range(5)))
        await skip(seconds - 0.01)
        assert stage.service.dials == number
        assert not any(task.done() for task in tasks)
        await skip(0.02)
    await stage.service.accept(100)
    await asyncio.gather(*tasks)
    await stage.close()


@each_bare_engine
@pytest.mark.parametrize("way", ["goaway", "end"])
@with_manual_clock
async def test_an_upstream_that_ends_each_connection_without_a_stream_is_dialled_after_pauses(
    make: EngineFactory, way: str
) -> None:
    stage = PoolStage(make)
    [task] = await stage.ask("first")
    for seconds in (0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.0):
        await skip(seconds + 0.01)
        far = await stage.service.accept(0)
        dials = stage.service.dials
        if way == "goaway":
            far.send(far.go_away((1 << 31) - 1))
        else:
            far.connection.eof_received()
        await loop_idle()
        assert (stage.service.dials > dials) == (seconds == 0.0), "the first one may be an accident"
    await skip(1.01)
    await stage.service.accept(100)
    await task
    await stage.close()


@each_bare_engine
@pytest.mark.parametrize("way", ["goaway", "end"])
@with_manual_clock
async def test_an_upstream_that_ends_each_connection_before_a_response_is_dialled_after_pauses(
    make: EngineFactory, way: str
) -> None:
    stage = PoolStage(make)
    await skip(100.0)
    for seconds in (0.0, 0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0):
        await stage.ask("one", "another")
        if seconds:
            await skip(seconds - 0.01)
            assert not stage.service.dialling
            await skip(0.02)
        far = await stage.service.accept(100)
        if way == "goaway":
            far.send(far.go_away(0))
        else:
            far.connection.eof_received()
        await loop_idle()
    await stage.close()


@each_bare_engine
@pytest.mark.parametrize("reason", ["it is old", "it has served a request", "the peer serves the request"])
@with_manual_clock
async def test_a_connection_whose_end_is_usual_is_followed_by_another_without_a_pause(
    make: EngineFactory, reason: str
) -> None:
    stage = PoolStage(make)
    for dials in range(1, 5):
        await stage.ask("first")
        assert stage.service.dials == dials
        far = await stage.service.accept(100)
        if reason == "the peer serves the request":
            far.send(far.go_away(1))
            finish(far, 1)
        elif reason == "it has served a request":
            finish(far, 1)
            await stage.ask("second")
            far.connection.eof_received()
        else:
            await skip(1.01)
            far.send(far.go_away(0))
        await loop_idle()
    await stage.close()


@with_manual_clock
async def test_a_connection_that_ends_early_now_and_then_is_followed_by_another_without_a_pause() -> None:
    stage = PoolStage()
    for dials in range(1, 7, 2):
        await stage.ask("first")
        far = await stage.service.accept(100)
        far.connection.eof_received()
        await stage.ask("again")
        assert stage.service.dials == dials + 1
        far = await stage.service.accept(100)
        finish(far, 1)
        far.send(far.go_away(1))
        await skip(10.01)
    await stage.close()


@with_manual_clock
async def test_an_attempt_that_took_long_is_followed_by_another_without_a_pause() -> None:
    stage = PoolStage()
    tasks = await stage.ask("a")
    await skip(4.0)
    await stage.service.refuse(REFUSED)
    assert await failures_of(tasks) == {"upstream-connect-failed": 1}
    await stage.ask("b")
    assert stage.service.dials == 2
    await stage.service.accept(100)
    await stage.close()


@with_manual_clock
async def test_a_request_that_waits_out_a_pause_in_vain_is_told_of_the_failure_before_it() -> None:
    stage = PoolStage(wait_timeout_seconds=0.02)
    tasks = await stage.ask("a")
    await stage.service.refuse(REFUSED)
    assert await failures_of(tasks) == {"upstream-connect-failed": 1}
    tasks = await stage.ask("b")
    await skip(0.03)
    assert await failures_of(tasks) == {"upstream-connect-failed": 1}
    assert stage.service.dials == 1
    await stage.close()


@with_manual_clock
async def test_a_request_that_waits_while_connections_end_early_is_told_of_that() -> None:
    stage = PoolStage(wait_timeout_seconds=0.02)
    for _ in range(2):
        await stage.ask("first")
        far = await stage.service.accept(100)
        far.connection.eof_received()
        await loop_idle()
    [task] = await stage.ask("again")
    await skip(0.03)
    with pytest.raises(UpstreamConnectionLost, match="ends connections before it has answered a request"):
        await task
    await stage.close()


@with_manual_clock
async def test_a_failure_is_forgotten_when_a_connection_has_been_opened_since() -> None:
    stage = PoolStage(max_connections=2)
    await stage.ask("a")
    await stage.service.accept(1)
    [b] = await stage.ask("b")
    await stage.service.refuse(REFUSED)
    await skip(1.0)
    await stage.service.accept(1)
    await b
    [c] = await stage.ask("c")
    await skip(5.1)
    with pytest.raises(UpstreamSaturated, match="2 connections are in use, 2 are allowed"):
        await c
    await stage.close()


@each_bare_engine
@with_manual_clock
async def test_a_response_that_breaks_a_rule_is_reported_with_its_origin(make: EngineFactory) -> None:
    stage = PoolStage(make)
    await stage.ask("a")
    far = await stage.service.accept(100)
    far.send(far.headers(1, [*RESPONSE, (b"Upper", b"case", False)], end=True))
    await loop_idle()
    assert [origin for origin, _ in stage.counts.refused] == [str(ORIGIN)]
    await stage.close()
