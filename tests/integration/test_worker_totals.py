"""Metrics, readiness and status of two workers together, also when one of them is killed."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise
from typing import Any

import aiohttp
import jsonschema
import pytest

from proxy.admin.plane import OPENAPI
from tests.support.chain import Chain, StartChain
from tests.support.peers.sockets import Gone, Peer, Server, client
from tests.support.sidecar import Sidecar, worker_pids

SAMPLE = re.compile(r"^(?P<name>[a-z_]+(?:\{.*\})?) (?P<value>\S+)$", re.MULTILINE)
TYPE = re.compile(r"^# TYPE (\S+) (\S+)$", re.MULTILINE)
DOCUMENT = json.loads(OPENAPI)
STATUS = {"$ref": "#/components/schemas/Status", "components": DOCUMENT["components"]}
ANSWERED = 'cloudrun_sidecar_requests_total{route="svc",status="200"}'
UNMATCHED = 'cloudrun_sidecar_requests_total{route="(unmatched)",status="404"}'


class Scraped:
    """One scrape."""

    def __init__(self, text: str) -> None:
        self.types = dict(TYPE.findall(text))
        self.samples = {found["name"]: float(found["value"]) for found in SAMPLE.finditer(text)}

    def counters(self) -> dict[str, float]:
        """Return what must never decrease."""
        return {
            name: value
            for name, value in self.samples.items()
            if self.types.get(re.sub(r"(_bucket|_sum|_count)?(\{.*)?$", "", name)) in ("counter", "histogram")
        }


async def get(running: Sidecar, path: str) -> tuple[int, str]:
    """Ask on a new connection, which either worker may get."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://{running.admin}{path}", headers={"Connection": "close"}) as response,
    ):
        return response.status, await response.text()


async def scrape(running: Sidecar) -> Scraped:
    status, text = await get(running, "/metrics")
    assert status == 200, text
    return Scraped(text)


async def status_of(running: Sidecar) -> dict[str, Any]:
    """Return what /status shows, as the document describes it."""
    async with aiohttp.ClientSession() as session, session.get(f"http://{running.admin}/status") as response:
        found: dict[str, Any] = await response.json()
    jsonschema.validate(found, STATUS, cls=jsonschema.Draft202012Validator)
    return found


async def answer_all(far: Server) -> None:
    """Answer every request on every connection, until cancelled."""

    async def answer(peer: Peer) -> None:
        while True:
            stream, _, _ = await peer.request()
            peer.respond(stream, end=True)

    async with asyncio.TaskGroup() as answering:
        while True:
            answering.create_task(answer(await far.accepted()))


@asynccontextmanager
async def two_workers(
    chain: StartChain, *flags: str, **more: Any
) -> AsyncIterator[tuple[Chain, list[int], list[Peer]]]:
    """Start two workers, with two connections to each."""
    async with chain("--workers", "2", *flags, **more) as started, AsyncExitStack() as stack:
        pids = await worker_pids(started.sidecar.program)
        others = [await stack.enter_async_context(client(*started.sidecar.address)) for _ in range(3)]
        answering = asyncio.get_running_loop().create_task(answer_all(started.upstream))
        try:
            yield started, pids, [started.client, *others]
        finally:
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)


async def ask(peer: Peer, path: str = "/svc/invoke/S/h") -> int:
    return (await peer.response(peer.open(path, end=True))).status


@pytest.mark.asyncio
async def test_each_worker_exposes_the_sums_of_both(chain: StartChain) -> None:
    async with two_workers(chain) as (started, pids, peers):
        for number, peer in enumerate(peers):
            for _ in range(10 + number):
                assert await ask(peer) == 200
            assert await ask(peer, "/nowhere") == 404
        # Each goes to one worker or the other.
        for scraped in [await scrape(started.sidecar) for _ in range(8)]:
            assert scraped.samples[ANSWERED] == 10 + 11 + 12 + 13
            assert scraped.samples[UNMATCHED] == 4
            assert scraped.samples['cloudrun_sidecar_request_duration_seconds_count{route="svc"}'] == 46
            assert scraped.samples["cloudrun_sidecar_downstream_connections"] == 4
            assert scraped.samples["cloudrun_sidecar_workers"] == 2
            assert scraped.samples["cloudrun_sidecar_worker_restarts_total"] == 0
            origin = f'{{origin="https://127.0.0.1:{started.upstream.port}"}}'
            assert scraped.samples[f"cloudrun_sidecar_upstream_connections{origin}"] == 2
        status = await status_of(started.sidecar)
        assert status["pid"] == started.sidecar.program.pid
        assert {row["pid"] for row in status["processes"]} == {*pids}
        assert [(row["state"], row["connections"]) for row in status["processes"]] == [("ready", 2)] * 2
        assert [route["ended"] for route in status["routes"]] == [46]
        assert (status["downstream_connections"], status["worker_restarts"]) == (4, 0)


@pytest.mark.asyncio
async def test_no_counter_decreases_when_a_worker_is_killed_under_load(chain: StartChain) -> None:
    async with two_workers(chain) as (started, pids, peers):
        running = started.sidecar
        stopping = asyncio.Event()

        async def load(peer: Peer) -> int:
            answered = 0
            try:
                while not stopping.is_set():
                    assert await ask(peer) == 200
                    answered += 1
            except Gone:
                pass
            return answered

        scrapes: list[Scraped] = []
        scraped = asyncio.Condition()

        async def scrape_on() -> None:
            while not stopping.is_set():
                try:
                    found = await scrape(running)
                except aiohttp.ClientError:  # it had reached the worker that was killed
                    continue
                async with scraped:
                    scrapes.append(found)
                    scraped.notify_all()

        async def scrapes_are(count: int) -> None:
            async with scraped:
                await scraped.wait_for(lambda: len(scrapes) >= count)

        async with asyncio.TaskGroup() as tasks:
            loads = [tasks.create_task(load(peer)) for peer in peers]
            tasks.create_task(scrape_on())
            await scrapes_are(5)
            os.kill(pids[0], signal.SIGKILL)
            await running.program.line(rf'worker died: starting another.*"pid": {pids[0]}\b')
            await running.program.line(rf'"worker": (?!{pids[0]}\b|{pids[1]}\b)\d+')
            assert "ready" in await running.program.answers(f"http://{running.admin}/readyz")
            await scrapes_are(len(scrapes) + 5)
            stopping.set()
        scrapes.append(await scrape(running))
        for earlier, later in pairwise(scrapes):
            before, after = earlier.counters(), later.counters()
            assert {
                name: (value, after.get(name)) for name, value in before.items() if after.get(name, -1) < value
            } == {}
        last = scrapes[-1].samples
        answered = sum(task.result() for task in loads)
        # What the killed worker had answered since its last report is not known any more.
        assert scrapes[4].samples[ANSWERED] <= last[ANSWERED] <= answered + len(peers)
        assert last["cloudrun_sidecar_worker_restarts_total"] == 1
        assert last["cloudrun_sidecar_workers"] == 2
        status = await status_of(running)
        assert (status["worker_restarts"], status["state"]) == (1, "ready")
        assert pids[0] not in [row["pid"] for row in status["processes"]]


@pytest.mark.asyncio
async def test_a_worker_that_drains_leaves_its_exact_totals(chain: StartChain) -> None:
    async with two_workers(chain) as (started, pids, peers):
        for peer in peers:
            for _ in range(25):
                assert await ask(peer) == 200
        os.kill(pids[0], signal.SIGTERM)
        await started.sidecar.program.line("worker was told to end: starting another")
        await started.sidecar.program.answers(f"http://{started.sidecar.admin}/readyz")
        assert (await scrape(started.sidecar)).samples[ANSWERED] == 100


@pytest.mark.asyncio
async def test_a_reload_is_counted_once_and_totals_of_removed_routes_are_dropped(chain: StartChain) -> None:
    removed = "".join(f'[routes.{name}]\nurl = "{{upstream}}"\ngcp_id_token = false\n' for name in ("other", '""'))
    async with two_workers(chain, settings=removed) as (started, pids, peers):
        running = started.sidecar
        for peer in peers:
            assert await ask(peer, "/other/invoke/S/h") == 200
            assert await ask(peer, "/invoke/S/h") == 200
        counted = (await scrape(running)).samples
        assert all([name for name in counted if f'route="{label}"' in name] for label in ("other", "/"))
        os.kill(pids[0], signal.SIGKILL)
        await running.program.answers(f"http://{running.admin}/readyz")
        config = chain.folder / "routes.toml"
        config.write_text(config.read_text().partition("[routes.other]")[0] + _svc(config.read_text()))
        await running.logged("settings reloaded")
        running.program.send(signal.SIGHUP)
        await running.logged("settings reloaded: nothing has changed")
        config.write_text("[routes.svc]\n")
        await running.logged("settings refused")
        samples = (await scrape(running)).samples
        assert samples['cloudrun_sidecar_settings_reloads_total{result="reloaded"}'] == 2
        assert samples['cloudrun_sidecar_settings_reloads_total{result="refused"}'] == 1
        assert samples["cloudrun_sidecar_settings_last_reload_successful"] == 0
        settings = json.loads((await get(running, "/status"))[1])["settings"]
        assert (settings["reloaded"], settings["refused"], settings["need_restart"]) == (2, 1, [])
        (problem,) = settings["problems"]
        assert problem.startswith(f"{config}: routes.svc.url")
        assert settings["read_at"] < settings["refused_at"]
        assert not [name for name in samples if 'route="other"' in name or 'route="/"' in name]


def _svc(text: str) -> str:
    return '[routes."svc"]' + text.partition('[routes."svc"]')[2]


@pytest.mark.asyncio
async def test_readiness_waits_for_all_workers(chain: StartChain) -> None:
    async with two_workers(chain, "--drain-timeout", "60") as (started, pids, peers):
        running = started.sidecar
        # A worker that listens learns a moment later that the other does, too.
        assert await running.program.answers(f"http://{running.admin}/readyz") == "ready: taking requests\n"
        held = [peer.open("/svc/invoke/S/h") for peer in peers]
        os.kill(pids[0], signal.SIGTERM)
        await running.logged('"draining"')
        status, text = await get(running, "/readyz")
        assert (status, text.partition(":")[0]) == (503, "draining")
        for peer, stream in zip(peers, held, strict=True):
            peer.reset(stream, 8)
        await running.program.line("worker was told to end: starting another")
        await running.program.answers(f"http://{running.admin}/readyz")


@pytest.mark.asyncio
async def test_a_worker_that_stands_still_counts_with_its_last_report(chain: StartChain) -> None:
    async with two_workers(chain) as (started, pids, peers):
        for peer in peers:
            for _ in range(5):
                assert await ask(peer) == 200
        assert (await scrape(started.sidecar)).samples[ANSWERED] == 20
        os.kill(pids[0], signal.SIGSTOP)
        try:
            # The one that still runs accepts all connections to the admin port.
            scraped = await scrape(started.sidecar)
            assert scraped.samples[ANSWERED] == 20
            status = await status_of(started.sidecar)
            assert {row["pid"]: row["state"] for row in status["processes"]} == {pids[0]: "silent", pids[1]: "ready"}
        finally:
            os.kill(pids[0], signal.SIGCONT)
        assert {row["state"] for row in (await status_of(started.sidecar))["processes"]} == {"ready"}
