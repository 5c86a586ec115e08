"""Nothing that the admin port renders keeps the event loop for long, whatever the number of routes."""

from __future__ import annotations

import asyncio
import gc
import http.client
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass

import pytest

from proxy.admin import peers as admin_peers
from proxy.admin.plane import AdminPlane
from proxy.admin.slices import SLICE_SECONDS, collector_paused, in_slices
from proxy.admin.status import Status
from proxy.observe.exposition import Exposition
from proxy.observe.health import RouteHealth
from proxy.observe.history import History
from proxy.observe.live import TokenState
from proxy.observe.metrics import Metrics
from proxy.observe.worker_state import WorkerState
from proxy.routes import Origin, Route
from proxy.supervisor import collecting
from tests.support.live import StillState, view_of
from tests.support.observed import Observed
from tests.support.supervised import supervised

MOST_SECONDS = 0.002
ROUTES = 5_000


def busy_routes(count: int = ROUTES) -> tuple[Metrics, RouteHealth, StillState]:
    """Many routes with all kinds of samples."""
    metrics = Metrics("engine")
    health = RouteHealth(metrics)
    routes = [
        Route(name=f"team-{number}/service", origin=Origin("https", f"service-{number}.run.app", 443))
        for number in range(count)
    ]
    exchange = Observed()
    for route in routes:
        counted = metrics.route(route)
        health.route(route)
        for status in (200, 404, 503):
            counted.started(exchange)
            counted.measured(exchange, 1, 1, 0.1)
            counted.ended(exchange, status, 0.2)
        counted.stream_reset(exchange, "upstream", 8)
        metrics.upstream_opened(str(route.origin), 100)
    tokens = {route.name: TokenState(None, None, 1.0) for route in routes}
    return metrics, health, StillState(routes, tokens=tokens)


@dataclass
class Started:
    """A worker that serves."""

    started: bool = True
    draining: bool = False


class Pauses:
    """The processor time that this thread spent between the turns of a task that asks for every turn of the loop.

    Processor time, because a busy machine may stop the thread at any moment.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def watch(self) -> None:
        before = time.thread_time()
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            self.seconds.append(now - before)
            before = now


@asynccontextmanager
async def watched() -> AsyncIterator[Pauses]:
    # As a worker does after its start: what is there already is not looked at by the collector again.
    gc.collect()
    gc.freeze()
    pauses = Pauses()
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(pauses.watch())
        try:
            yield pauses
        finally:
            task.cancel()
            gc.unfreeze()


async def fetch(plane: AdminPlane, path: str) -> int:
    """Return how many octets an answer has. The client is a thread of its own, whose time does not count."""
    host, port = plane.address.split(":")

    def get() -> int:
        connection = http.client.HTTPConnection(host, int(port))
        with closing(connection):
            connection.request("GET", path)
            response = connection.getresponse()
            assert response.status == 200
            return len(response.read())

    return await asyncio.to_thread(get)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("path", "least_octets"), [("/metrics", 5_000_000), ("/routes", 500_000), ("/status", 1_000_000)]
)
async def test_thousands_of_routes_do_not_hold_up_the_event_loop(path: str, least_octets: int) -> None:
    plane = AdminPlane("127.0.0.1:0", Started(), *busy_routes())
    await plane.start()
    try:
        await fetch(plane, "/metrics")  # loads what is needed for the first one only
        async with watched() as pauses:
            octets = await fetch(plane, path)
    finally:
        await plane.close()
    assert octets > least_octets
    check(pauses)


def check(pauses: Pauses) -> None:
    """Check that there were many turns of the loop, and no long pause between two."""
    assert len(pauses.seconds) > 10
    ordered = sorted(pauses.seconds)
    assert ordered[len(ordered) * 99 // 100] < MOST_SECONDS
    # Once, the garbage collector looks at the 55,000 objects that the states of all workers are made into: 10 to 25 ms.
    # Interrupts and emptied caches of a busy machine are charged to the thread, too; a scrape at one go is 0.6 s.
    assert ordered[-1] < 25 * MOST_SECONDS


@pytest.mark.asyncio
@pytest.mark.parametrize(("path", "least_octets"), [("/metrics", 5_000_000), ("/status", 1_000_000)])
async def test_thousands_of_routes_of_several_workers_do_not_either(
    path: str, least_octets: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    loop.set_debug(False)  # What a turn of the loop costs in debug mode is not to be measured.
    # Both workers are in this thread, on a machine that may be busy.
    monkeypatch.setattr(collecting, "_REPORT_SECONDS", 60.0)
    monkeypatch.setattr(admin_peers, "_COLLECT_SECONDS", 60.0)
    planes = [AdminPlane("127.0.0.1:0", Started(), *busy_routes()) for _ in range(2)]
    for plane in planes:
        await plane.start()
    async with supervised(*planes):
        await fetch(planes[0], "/metrics")  # loads what is needed for the first one only
        async with watched() as pauses:
            octets = await fetch(planes[0], path)
    assert octets > least_octets
    check(pauses)


@pytest.mark.asyncio
async def test_the_event_loop_runs_between_slices_even_of_empty_pieces() -> None:
    turns = 0

    def pieces() -> Iterator[str]:
        for _ in range(4):
            until = time.perf_counter() + SLICE_SECONDS
            while time.perf_counter() < until:
                pass
            yield ""
        yield "the end"

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as tasks:
        counting = tasks.create_task(count())
        text = [each async for each in in_slices(pieces())]
        counting.cancel()
    assert "".join(text) == "the end"
    assert turns >= 4


@pytest.mark.parametrize("what", ["metrics", "status", "state"])
def test_rendering_keeps_nothing_that_the_collector_looks_at_and_leaves_no_cycle(what: str) -> None:
    metrics, health, live = busy_routes(1_000)
    history = History(metrics)
    gc.collect()
    young = gc.get_stats()[0]["collections"]
    match what:
        case "metrics":
            octets = sum(map(len, Exposition(view_of(metrics, live, health)).pieces({})))
        case "status":
            octets = sum(map(len, Status(view_of(metrics, live, health, history)).pieces("ready", "")))
        case _:
            octets = sum(map(len, WorkerState(metrics, health, live, history).lines()))
    assert octets > 100_000
    assert gc.get_stats()[0]["collections"] - young <= 1
    assert gc.collect() == 0


def test_the_collector_runs_again_after_the_last_of_several_pauses() -> None:
    with collector_paused():
        with collector_paused():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


@pytest.mark.asyncio
async def test_there_is_one_slice_in_a_turn_of_the_loop_however_many_clients_ask() -> None:
    loop = asyncio.get_running_loop()
    turn = 0
    slices: Counter[int] = Counter()

    def next_turn() -> None:
        nonlocal turn
        turn += 1
        if turn > 0:
            loop.call_soon(next_turn)

    def pieces() -> Iterator[str]:
        for _ in range(4):
            slices[turn] += 1
            time.sleep(SLICE_SECONDS)
            yield "x"

    async def client() -> None:
        assert "".join([text async for text in in_slices(pieces())]) == "xxxx"

    next_turn()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(20):
            tasks.create_task(client())
    assert sum(slices.values()) == 80
    assert max(slices.values()) == 1
    turn = -1  # ends the count
