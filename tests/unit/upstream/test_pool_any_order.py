"""The pool under any sequence of requests, answers, dials, limits, GOAWAYs, losses, cancellations and time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from proxy.errors import Failure, UpstreamConnectFailed
from proxy.http2.choice import EngineFactory
from proxy.upstream.connection import Timing
from proxy.upstream.pool import Pool
from tests.support.loops import ManualLoop, loop_idle
from tests.support.peers.engines import each_bare_engine
from tests.support.peers.events import Unprocessed
from tests.support.peers.raw import REQUEST, RESPONSE
from tests.support.peers.receivers import RecordingReceiver
from tests.unit.upstream.stage import ORIGIN, Counts, Far, Service

T = TypeVar("T")

MAX_CONNECTIONS = 3
MAX_AGE_SECONDS = 20.0
TIMING = Timing(idle_timeout_seconds=1e9, ping_interval_seconds=1e9)
LIMITS = st.sampled_from([0, 1, 2, 3, 100])
REFUSED_STREAM = 0x7
LAST = (1 << 31) - 1


class Request:
    """One request: waits for a stream, opens it, and hears of its end."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.receiver = RecordingReceiver()
        self.far: Far | None = None
        self.stream = 0
        self.task: asyncio.Task[None]

    def __repr__(self) -> str:
        return f"request {self.number}"

    async def run(self, traffic: Traffic) -> None:
        connection = traffic.pool.origin_pool(ORIGIN).ready() or await traffic.pool.acquire(ORIGIN)
        far = next(far for far in traffic.live if far.connection is connection)
        # What counts is what the far end has been told, and what it allows by now.
        assert traffic.live[far] < traffic.limits[far], "no stream above the limit"
        assert far not in traffic.away, "no stream after GOAWAY"
        self.stream = self.receiver.stream_id = connection.open(REQUEST, True, self.receiver).id
        self.far = far
        traffic.live[far] += 1


class Traffic(RuleBasedStateMachine):
    make: EngineFactory

    def __init__(self) -> None:
        super().__init__()
        self.loop = ManualLoop()
        self.counts = Counts()
        self.service = Service(self.make, TIMING)
        self.pool = Pool(
            self.service.connect,
            self.counts,
            max_connections=MAX_CONNECTIONS,
            wait_timeout_seconds=5.0,
            max_age_seconds=MAX_AGE_SECONDS,
            random_fraction=lambda: 0.0,
        )
        self.requests: list[Request] = []
        self.live: dict[Far, int] = {}
        """How many streams each far end has open."""
        self.limits: dict[Far, int] = {}
        self.away: set[Far] = set()
        """Those that take no more streams, or are gone."""

    def run_loop(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def waiting(self) -> list[Request]:
        return [request for request in self.requests if not request.task.done()]

    def answerable(self) -> list[Request]:
        """Requests whose streams are live on connections that are, too."""
        opened = (one for one in self.requests if one.far is not None and not one.receiver.events)
        return [request for request in opened if request.far in self.open()]

    def open(self) -> list[Far]:
        return [far for far in self.live if not far.connection.closed and not far.transport.is_closing()]

    def usable(self) -> list[Far]:
        return [far for far in self.open() if far not in self.away and not far.connection.retiring]

    def teardown(self) -> None:
        self.run_loop(self.pool.close(linger_seconds=1.0))
        self.run_loop(loop_idle())
        results = self.run_loop(self.results())
        assert all(one is None or isinstance(one, Failure | asyncio.CancelledError) for one in results), results
        for request, result in zip(self.requests, results, strict=True):
            assert (request.far is not None) == (result is None), "answered with a stream or a failure"
            assert len(request.receiver.events) == (request.far is not None), "and a stream ends once"
        assert all(far.connection.gone.done() for far in self.live), "no connection leaks"
        assert all(far.budget.queued_octets == 0 for far in self.live)
        assert self.counts.opened == self.counts.closed
        assert not self.service.dialling
        self.loop.close()
        assert not self.loop.uncaught

    async def results(self) -> list[Any]:
        return await asyncio.gather(*(request.task for request in self.requests), return_exceptions=True)

    # ---- the events

    def requests_come(self, data: st.DataObject) -> None:
        for _ in range(data.draw(st.integers(1, 6), label="requests")):
            request = Request(len(self.requests))
            request.task = self.loop.create_task(request.run(self))
            self.requests.append(request)

    def a_dial_succeeds(self, data: st.DataObject) -> None:
        streams = data.draw(LIMITS, label="limit")
        origin, answer = self.service.dialling.popleft()
        far = Far(self.make, TIMING, origin)
        self.live[far], self.limits[far] = 0, streams
        far.greet(streams)
        answer.set_result(far.connection)

    def a_dial_fails(self, _: st.DataObject) -> None:
        self.service.dialling.popleft()[1].set_exception(UpstreamConnectFailed("refused"))

    def a_stream_ends(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.answerable()), label="ends")
        far = request.far
        assert far is not None
        self.live[far] -= 1
        far.take()
        if data.draw(st.booleans(), label="refused"):
            far.send(far.reset(request.stream, REFUSED_STREAM))
        else:
            far.send(far.headers(request.stream, RESPONSE, end=True))

    def a_limit_changes(self, data: st.DataObject) -> None:
        far = data.draw(st.sampled_from(self.open()), label="connection")
        self.limits[far] = streams = data.draw(LIMITS, label="limit")
        far.limit(streams)

    def goaway(self, data: st.DataObject) -> None:
        far = data.draw(st.sampled_from(self.open()), label="connection")
        mine = [request for request in self.answerable() if request.far is far]
        last = data.draw(st.sampled_from([0, LAST, *(request.stream for request in mine)]), label="last")
        self.away.add(far)
        far.send(far.go_away(last))
        for request in mine:
            assert request.receiver.events == ([Unprocessed(request.stream)] if request.stream > last else [])
            self.live[far] -= len(request.receiver.events)

    def a_connection_is_lost(self, data: st.DataObject) -> None:
        far = data.draw(st.sampled_from(self.open()), label="connection")
        self.away.add(far)
        if data.draw(st.booleans(), label="error"):
            far.transport.lose(ConnectionResetError())
        else:
            far.connection.eof_received()

    def a_request_is_cancelled(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.waiting()), label="cancelled").task.cancel()

    def time_passes(self, data: st.DataObject) -> None:
        self.loop.now += data.draw(st.sampled_from([0.5, 1.1, 5.1, 20.1]), label="seconds")

    def possible(self) -> list[Callable[[st.DataObject], None]]:
        actions: list[Callable[[st.DataObject], None]] = [self.requests_come, self.time_passes]
        if self.service.dialling:
            actions += [self.a_dial_succeeds, self.a_dial_succeeds, self.a_dial_fails]
        if self.answerable():
            actions += [self.a_stream_ends, self.a_stream_ends]
        if self.open():
            actions += [self.a_limit_changes, self.goaway, self.a_connection_is_lost]
        if self.waiting():
            actions.append(self.a_request_is_cancelled)
        return actions

    @rule(data=st.data())
    def much_happens_at_once(self, data: st.DataObject) -> None:
        async def happen() -> None:
            for _ in range(data.draw(st.integers(1, 4), label="actions")):
                data.draw(st.sampled_from(self.possible()), label="action")(data)
                for _ in range(data.draw(st.integers(0, 3), label="turns of the loop before the next")):
                    await asyncio.sleep(0)

        self.run_loop(happen())

    @rule()
    def nobody_waits_beside_a_free_stream_nor_without_hope(self) -> None:
        self.run_loop(loop_idle())
        if self.waiting():
            assert all(self.live[far] >= self.limits[far] for far in self.usable()), "a stream is free"
            pausing = self.pool.origin_pool(ORIGIN).pause is not None
            assert self.usable() or self.service.dialling or pausing, "nothing is done for waiting requests"
        assert all(far.connection.reserved == 0 for far in self.usable()), "no promise is forgotten"

    # ---- what is always true

    @invariant()
    def nothing_was_lost_on_the_way(self) -> None:
        assert not self.loop.uncaught

    @invariant()
    def no_more_connections_than_allowed_are_dialled(self) -> None:
        replacement = 1
        assert len(self.usable()) + len(self.service.dialling) <= MAX_CONNECTIONS + replacement

    @invariant()
    def every_stream_ends_once(self) -> None:
        for request in self.requests:
            assert len(request.receiver.events) <= 1, request.receiver.events


@each_bare_engine
def test_the_pool_keeps_its_limits_and_order_under_any_sequence_of_events(make: EngineFactory) -> None:
    class TrafficOnThisEngine(Traffic):
        pass

    TrafficOnThisEngine.make = make
    run_state_machine_as_test(TrafficOnThisEngine, settings=settings(max_examples=60, stateful_step_count=25))
