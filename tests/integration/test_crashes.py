"""Killed supervisors and workers: what becomes of live streams, and of the program."""

from __future__ import annotations

import os
import signal

import pytest

from proxy.downstream.binding import bind_tcp
from tests.integration.live_exchange import Live, ended, live, refused_by
from tests.support.chain import StartChain
from tests.support.peers.sockets import Gone, client
from tests.support.sidecar import worker_pids


@pytest.mark.asyncio
async def test_workers_finish_live_streams_and_free_the_port_if_the_supervisor_is_killed(chain: StartChain) -> None:
    async with live(chain, 2) as it:
        workers = await worker_pids(it.sidecar.program)
        os.kill(it.pid, signal.SIGKILL)
        await it.draining()
        await refused_by(it.client)
        # A new supervisor can listen at once. (The kernel closes the listener up to 15 ms after the workers' channels.)
        await ended(it.pid)
        with bind_tcp(*it.sidecar.address) as bound:
            bound.listen()
        await it.finished()
        for pid in workers:
            await ended(pid)


@pytest.mark.asyncio
async def test_workers_exit_after_the_drain_timeout_if_the_supervisor_is_killed(chain: StartChain) -> None:
    async with live(chain, 2, "--drain-timeout", "1") as it:
        workers = await worker_pids(it.sidecar.program)
        os.kill(it.pid, signal.SIGKILL)
        await it.aborted()
        for pid in workers:
            await ended(pid)


@pytest.mark.asyncio
async def test_other_workers_continue_after_a_worker_dies(chain: StartChain) -> None:
    async with live(chain, 2) as it:
        assert it.idle is not None
        os.kill(it.idle, signal.SIGKILL)
        await it.sidecar.program.line(rf'worker died: starting another.*"pid": {it.idle}, "signal": "SIGKILL"')
        # A new connection is served at once: it does not wait for the worker that starts.
        async with client(*it.sidecar.address) as newcomer:
            head = await newcomer.head(newcomer.open("/nowhere", end=True))
            assert head[b":status"] == b"404"
        await another_worker(it)
        it.sidecar.program.send(signal.SIGTERM)
        await it.sidecar.program.line(r'"live": 1.*"draining"|"draining".*"live": 1')
        await it.finished()
        assert await it.sidecar.program.ended() == 0


@pytest.mark.asyncio
async def test_a_dying_worker_ends_only_its_own_live_streams(chain: StartChain) -> None:
    async with live(chain, 2) as it:
        (carrying,) = set(await worker_pids(it.sidecar.program)) - {it.idle}
        os.kill(carrying, signal.SIGKILL)
        with pytest.raises(Gone):
            await it.client.body(it.stream)
        with pytest.raises(Gone):
            await it.peer.body(it.upstream_stream)
        await another_worker(it)
        async with client(*it.sidecar.address) as newcomer:
            head = await newcomer.head(newcomer.open("/nowhere", end=True))
            assert head[b":status"] == b"404"
        it.sidecar.program.send(signal.SIGTERM)
        assert await it.sidecar.program.ended() == 0


@pytest.mark.asyncio
async def test_sigterm_to_one_worker_replaces_it_after_its_drain(chain: StartChain) -> None:
    async with live(chain, 2) as it:
        (carrying,) = set(await worker_pids(it.sidecar.program)) - {it.idle}
        os.kill(carrying, signal.SIGTERM)
        await it.sidecar.program.line(r'"live": 1.*"draining"|"draining".*"live": 1')
        # It gets no more connections.
        for _ in range(3):
            async with client(*it.sidecar.address) as newcomer:
                head = await newcomer.head(newcomer.open("/nowhere", end=True))
                assert head[b":status"] == b"404"
        await it.finished()
        await it.sidecar.program.line(rf'worker was told to end: starting another.*"pid": {carrying}\b')
        await another_worker(it)
        it.sidecar.program.send(signal.SIGTERM)
        assert await it.sidecar.program.ended() == 0


async def another_worker(it: Live) -> int:
    """Wait until a third worker listens; return its process id."""
    first, second = await worker_pids(it.sidecar.program)
    said = await it.sidecar.program.line(rf'"worker": (?!{first}\b|{second}\b)(\d+)')
    return int(said.group(1))
