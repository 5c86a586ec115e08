"""Several workers as one: their sum is what one worker would have counted that had all the traffic."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import Internal, TokenTimeout, UpstreamConnectFailed
from proxy.observe.background import dropped_lines
from proxy.observe.combined import Combined
from proxy.observe.exposition import Exposition
from proxy.observe.health import RouteHealth
from proxy.observe.history import INTERVALS, History
from proxy.observe.live import OpenRoute, OpenUse, OriginState, Queues, TokenState
from proxy.observe.metrics import Metrics
from proxy.observe.totals import Totals, state_line
from proxy.observe.view import View
from proxy.observe.worker_state import WorkerState
from proxy.routes import AllowLists, OpenRoutes, Origin, Route
from proxy.tokens.model import Token, TokenKey
from tests.support.live import StillState, view_of
from tests.support.observed import Observed

ROUTES = tuple(
    Route(name=name, origin=Origin("https", f"{name}.example", 443), impersonate=account)
    for name, account in (("greeter", None), ("orders", "invoker@p.iam.gserviceaccount.com"))
)

# Kind of event, and a number that says which route, status, duration, … it has.
EVENTS = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 30)), max_size=30)


class Worker:
    """What observes the traffic of one worker."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.metrics = Metrics("engine 1", credentials_kind=lambda: "service account", clock=clock)
        self.health = RouteHealth(self.metrics, clock=clock)
        self.live = StillState(ROUTES)
        self.history = History(self.metrics)
        self.routes = [self.metrics.route(route) for route in (*ROUTES, None)]
        self.observed = [self.health.route(route) for route in (*ROUTES, None)]
        self.reports = WorkerState(self.metrics, self.health, self.live, self.history, clock=clock)

    def happen(self, events: Iterable[tuple[int, int]]) -> None:
        for kind, number in events:
            counted, route = self.routes[number % 3], ROUTES[number % 2]
            origin = str(route.origin)
            match kind:
                case 0 | 1:
                    counted.started(Observed())
                    counted.measured(Observed(), number, 2 * number, number / 8)
                    counted.ended(Observed(), (0, 200, 204, 404, 503, 999)[number % 6], number / 4)
                case 2:
                    counted.local_reply(Observed(), Internal("broken"))
                    counted.stream_reset(Observed(), ("upstream", "downstream")[number % 2], number)
                case 3:
                    token = Token(key=TokenKey.for_route(route), authorization=b"", expires_at=0.0, principal=None)
                    self.metrics.minted(token, number / 16, False)
                case 4:
                    self.metrics.mint_failed(TokenKey.for_route(route), TokenTimeout("late"), number / 16, False)
                case 5:
                    self.metrics.upstream_opened(origin, 100)
                case 6:
                    self.metrics.upstream_going_away(origin, number, b"")
                    self.metrics.upstream_not_connected(origin, UpstreamConnectFailed("refused"))
                    self.metrics.response_refused(origin, 1, "malformed")
                case 7:
                    self.metrics.downstream_opened()
                    self.metrics.request_refused("bad-request", {})
                    self.metrics.caller_unverified(("missing", "expired")[number % 2])
                    self.metrics.connection_refused(("unused", "max-connections")[number % 2])
                    self.metrics.downstream_cut_off("127.0.0.1", number, "why")
                    self.metrics.handshake_failed("127.0.0.1", "why")
                case _:
                    counted.started(Observed())
                    counted.caller_token_dropped(Observed())

    def state(self) -> bytes:
        return "".join(self.reports.lines()).encode()


def combined(*states: bytes) -> Combined:
    found = Combined(StillState(ROUTES))
    assert set(found.add([state.splitlines() for state in states])) <= {""}
    return found


def test_a_combined_state_can_be_released_in_slices() -> None:
    one = Worker()
    one.happen([(0, 1), (3, 1), (5, 1)])
    together = combined(one.state())
    kept = (together.metrics.routes, together.metrics.minted_at, together.metrics.upstream_connections)
    assert all(kept)
    assert len(list(together.release())) >= len(one.metrics.routes) + 2
    assert not any(kept)


def samples(exposition: Exposition) -> dict[str, float]:
    lines = [line for line in "".join(exposition.pieces({})).splitlines() if not line.startswith("#")]
    found = {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}
    # The limit is that of each worker, and times are those of the test.
    return {name: value for name, value in found.items() if "_limit" not in name and "timestamp" not in name}


@given(EVENTS, EVENTS, EVENTS)
def test_the_metrics_of_several_workers_are_those_of_one_with_all_their_traffic(
    first: list[tuple[int, int]], second: list[tuple[int, int]], of_a_dead_worker: list[tuple[int, int]]
) -> None:
    one, other, dead, alone = Worker(), Worker(), Worker(), Worker()
    one.happen(first)
    other.happen(second)
    dead.happen(of_a_dead_worker)
    for events in (first, second, of_a_dead_worker):
        alone.happen(events)
    totals = Totals()
    for line in dead.state().splitlines():
        totals.add(line)
    together = combined(one.state(), other.state(), "".join(totals.lines()).encode())
    expected = samples(Exposition(view_of(alone.metrics, alone.live, alone.health)))
    found = samples(Exposition(replace(View.of(together), group=None)))
    # What is open or in flight has ended with the worker.
    gauges = ("cloudrun_sidecar_requests_in_flight", "cloudrun_sidecar_upstream_connections{")
    now = (*gauges, "cloudrun_sidecar_downstream_connections ")
    steady = {name for name in expected | found if not f"{name} ".startswith(now)}
    assert {name: found.get(name, 0.0) for name in steady} == {name: expected.get(name, 0.0) for name in steady}


def test_gauges_are_summed_and_end_with_their_worker() -> None:
    one, other = Worker(), Worker()
    one.happen([(8, 0), (5, 0), (7, 0)])
    other.happen([(8, 0), (8, 0), (5, 0), (7, 0)])
    one.live.queued_octets, other.live.queued_octets = 5, 7
    one.live.waiting, other.live.waiting = 1, 2
    one.live.waiting_clients, other.live.waiting_clients = 1, 3
    one.live.to_services, other.live.to_services = 10, 20
    one.live.held_back, other.live.held_back = 2, 3
    one.live.queues = Queues(2, 20, 15, Counter(greeter=5, orders=1), Counter(greeter=3))
    other.live.queues = Queues(3, 20, 25, Counter(greeter=7))
    together = combined(one.state(), other.state())
    assert together.metrics.routes["greeter"].in_flight == 3
    assert together.metrics.upstream_connections["https://greeter.example"].now == 2
    assert together.metrics.downstream_connections.now == 2
    assert (together.queued_octets, together.queued_octets_limit) == (12, 2 << 20)
    origins = {origin.origin: origin for origin in together.origins() if origin is not None}
    assert origins["https://greeter.example"] == OriginState("https://greeter.example", 0, 3, 4, 30, 5)
    queues = Queues()
    assert set(together.count_queues(queues)) == {None}
    assert queues == Queues(5, 40, 25, Counter(greeter=12, orders=1), Counter(greeter=3, orders=0))
    totals = Totals()
    for line in one.state().splitlines():
        totals.add(line)
    left = combined("".join(totals.lines()).encode(), other.state())
    assert left.metrics.routes["greeter"].in_flight == 2
    assert left.metrics.downstream_connections.now == 1
    assert left.metrics.downstream_connections.ever == 2


def test_a_value_without_a_sum_is_the_most_significant_of_all_workers() -> None:
    one, other = Worker(), Worker()
    one.live.tokens["greeter"] = TokenState("a@p", None, 100.0)
    other.live.tokens["greeter"] = TokenState("b@p", None, 200.0)
    one.metrics.clock_ahead_seconds, other.metrics.clock_ahead_seconds = -9.0, 2.0
    one.live.draining = True
    other.health.mint_failed(TokenKey.for_route(ROUTES[1]), TokenTimeout("late"), 5.0, False)
    one.live.tokens["orders"] = TokenState("c@p", None, 300.0)
    together = combined(one.state(), other.state())
    assert together.token(ROUTES[0]) == TokenState("b@p", None, 200.0)
    assert together.metrics.clock_ahead_seconds == -9.0
    assert not together.draining
    # One worker cannot mint and has no token, whatever the other one has.
    found = together.mint_trouble(ROUTES[1], has_token=True)
    assert found is not None
    assert found.code == "token-timeout"
    assert together.mint_trouble(ROUTES[0]) is None
    assert together.trouble(ROUTES[1], has_token=True) == found


def test_failures_of_all_workers_are_listed_newest_last() -> None:
    one, other = Worker(), Worker()
    for worker in (one, other, one, other):
        worker.observed[0].local_reply(Observed(status=503), Internal("broken"))
    failures = combined(one.state(), other.state()).last_failures
    assert [failure.at for failure in failures] == sorted(failure.at for failure in failures)
    assert len(failures) == 4


def test_failures_without_a_success_in_between_are_counted_together() -> None:
    one, other = Worker(), Worker()
    for worker in (one, other, one, other, other):
        worker.observed[0].local_reply(Observed(status=503), Internal("broken"))
    together = combined(one.state(), other.state())
    assert [failure.count for failure in together.last_failures] == [1, 2, 3, 4, 5]
    first = together.last_failures[0].since
    assert {failure.since for failure in together.last_failures} == {first}
    found = together.trouble(ROUTES[0])
    assert found is not None
    assert (found.count, found.since) == (5, first)
    # The trouble of one worker ends: what it had is history.
    one.routes[0].started(Observed())
    one.routes[0].ended(Observed(), 200, 0.1)
    other.observed[0].local_reply(Observed(status=503), Internal("broken"))
    together = combined(one.state(), other.state())
    assert together.last_failures[-1].count == 4
    found = together.trouble(ROUTES[0])
    assert found is not None
    assert found.count == 4


def test_a_later_success_in_another_worker_ends_the_trouble_of_one_that_gets_no_more_requests() -> None:
    now = 100.0
    one, other = Worker(lambda: now), Worker(lambda: now)
    other.state()

    def succeed() -> None:
        other.routes[0].started(Observed())
        other.routes[0].ended(Observed(), 200, 0.1)

    def count() -> int:
        together = combined(*states) if now % 2 else combined(*reversed(states))
        found = together.trouble(ROUTES[0], has_token=True)
        assert together.trouble(ROUTES[0]) == found
        return found.count if found is not None else 0

    succeed()  # before the failure
    now = 101.0
    one.observed[0].local_reply(Observed(status=503), Internal("broken"))
    states = one.state(), other.state()
    assert count() == 1
    now = 102.0
    states = one.state(), other.state()
    assert count() == 1
    succeed()
    now = 103.0
    states = one.state(), other.state()
    assert count() == 0
    # Without another success it is over, too, until the next failure.
    now = 104.0
    states = one.state(), other.state()
    assert count() == 0
    one.observed[0].local_reply(Observed(status=503), Internal("broken"))
    states = one.state(), other.state()
    assert count() == 2


def test_a_later_mint_in_another_worker_ends_a_failed_one_and_a_success_with_an_older_token_does_not() -> None:
    now = 100.0
    one, other = Worker(lambda: now), Worker(lambda: now)
    key = TokenKey.for_route(ROUTES[1])
    token = Token(key=key, authorization=b"", expires_at=3700.0, principal=None)
    other.metrics.minted(token, 0.1, False)
    now = 101.0
    one.health.mint_failed(key, TokenTimeout("late"), 5.0, False)
    other.state()
    now = 102.0
    other.routes[1].started(Observed())
    other.routes[1].ended(Observed(), 200, 0.1)
    other.state()
    for expected in ("token-timeout", None):
        together = combined(one.state(), other.state())
        for found in (together.mint_trouble(ROUTES[1]), together.trouble(ROUTES[1])):
            assert (found.code if found is not None else None) == expected
        other.metrics.minted(token, 0.1, False)


def test_what_is_known_of_successes_goes_with_the_route() -> None:
    one = Worker()
    for _ in range(2):
        one.state()
        one.happen([(0, 1)])
    one.state()
    assert one.reports._succeeded.keys() == {"orders"}
    one.metrics.route_removed(ROUTES[1])
    one.state()
    assert "orders" not in {*one.reports._seen, *one.reports._succeeded}


def test_failures_that_are_not_listed_any_more_are_counted_all_the_same() -> None:
    one, other = Worker(), Worker()
    for _ in range(5):
        one.observed[0].local_reply(Observed(status=503), Internal("broken"))
    for _ in range(20):
        one.observed[1].local_reply(Observed(status=503), Internal("broken"))
    other.observed[0].local_reply(Observed(status=503), Internal("broken"))
    newest = combined(one.state(), other.state()).last_failures[-1]
    assert (newest.route, newest.count) == ("greeter", 6)


def test_the_last_minutes_of_all_workers_are_summed() -> None:
    one, other = Worker(), Worker()
    for worker, seconds in ((one, 0.02), (other, 2.0)):
        worker.routes[0].ended(Observed(), 500, seconds)
        list(worker.history.sample())
    list(one.history.sample())
    intervals = combined(one.state(), other.state()).of("greeter")
    assert len(intervals) == INTERVALS
    assert [interval.requests for interval in intervals[-2:]] == [1, 1]
    other.routes[0].ended(Observed(), 200, 2.0)
    list(other.history.sample())
    last = combined(one.state(), other.state()).of("greeter")[-2]
    assert (last.requests, last.errors) == (2, 2)
    assert last.p99 > 1 > last.p50 > 0.01


def test_reloads_and_lines_that_the_supervisor_has_dropped_are_known() -> None:
    one, other = Worker(), Worker()
    for worker in (one, other):
        worker.metrics.settings_reloaded(())
    known = {
        "pid": 7,
        "started_at": 1.0,
        "workers": [[8, "ready", 2.0, 3]],
        "restarts": 4,
        "log_lines_dropped": 6,
        "settings": {"reloaded": 1, "refused": 2, "problems": ["bad"], "refused_at": 5.0},
    }
    together = combined(one.state(), other.state(), state_line("supervisor", "", None, known).encode())
    settings = together.metrics.settings
    assert (settings.reloaded, settings.refused, settings.problems, settings.refused_at) == (1, 2, ("bad",), 5.0)
    assert (together.group.pid, together.group.restarts) == (7, 4)
    assert together.group.log_lines_dropped == 6 + 2 * dropped_lines()
    assert [(row.pid, row.state, row.connections) for row in together.group.workers] == [(8, "ready", 3)]


def test_the_worker_that_queues_most_is_seen_beside_the_sum() -> None:
    states = []
    for pid, queued_octets in ((8, 5), (9, 30)):
        worker = Worker()
        worker.live.queued_octets = queued_octets
        states.append(worker.state().replace(b'"pid":%d,' % os.getpid(), b'"pid":%d,' % pid))
    rows = [[8, "ready", 2.0, 3], [9, "ready", 2.0, 3], [10, "starting", 3.0, 0]]
    known = {"pid": 7, "started_at": 1.0, "workers": rows, "restarts": 0, "log_lines_dropped": 0, "settings": {}}
    together = combined(*states, state_line("supervisor", "", None, known).encode())
    assert [(row.pid, row.queued_octets) for row in together.group.workers] == [(8, 5), (9, 30), (10, 0)]
    told = samples(Exposition(View.of(together)))
    assert told["cloudrun_sidecar_queued_bytes"] == 35
    assert told["cloudrun_sidecar_worker_queued_bytes_largest"] == 30


def test_process_metrics_are_summed_and_counters_survive_an_ended_process() -> None:
    one, dead = Worker(), Worker()
    states = []
    for worker, seconds in ((one, 10.0), (dead, 20.0)):
        state = WorkerState(worker.metrics, worker.health, worker.live, worker.history)
        state.process = {"process_cpu_seconds_total": seconds, "process_open_fds": 5.0, "process_max_fds": 100.0}
        states.append("".join(state.lines()).encode())
    assert combined(*states).process == {
        "process_cpu_seconds_total": 30.0,
        "process_open_fds": 10.0,
        "process_max_fds": 100.0,
    }
    totals = Totals()
    for line in states[1].splitlines():
        totals.add(line)
    process = combined(states[0], "".join(totals.lines()).encode()).process
    assert process["process_cpu_seconds_total"] == 30.0
    assert process["process_open_fds"] == 5.0


def test_hosts_of_open_routes_are_those_of_all_workers_with_the_token_that_expires_last() -> None:
    lists = AllowLists(("a.example",))
    use = OpenUse("a.example", True, "https://a.example", None, ("d@p",), TokenState("i@p", 1.0, 100.0))
    unused = OpenUse("a.example", False, "https://a.example", None, (), None)
    one, other = Worker(), Worker()
    one.live.opened = (OpenRoute("https://a.example", (use,)), OpenRoute("https://gone.example", ()))
    other.live.opened = (
        OpenRoute("https://a.example", (use._replace(token=TokenState("i@p", 2.0, 200.0)), unused)),
        OpenRoute("(other)", (use._replace(host="b.example", token=None),)),
    )
    found = OpenRoutes(lists).route("a.example", ())
    other.metrics.route(found)
    other.health.route(found).local_reply(Observed(status=503), Internal("broken"))
    for states in ((one.state(), other.state()), (other.state(), one.state())):
        together = combined(*states)
        opened = {route.label: {*route.uses} for route in together.open_routes()}
        assert opened == {
            "https://a.example": {use._replace(token=TokenState("i@p", 2.0, 200.0)), unused},
            "(other)": {use._replace(host="b.example", token=None)},
            "https://gone.example": set(),
        }
        trouble = together.open_trouble("https://a.example", has_tokens=True)
        assert trouble is not None
        assert trouble.code == "internal"
        assert together.open_trouble("(other)", has_tokens=False) is None
