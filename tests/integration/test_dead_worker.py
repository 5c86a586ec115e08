"""A worker that is killed under load: the others lose nothing, and new connections are served at once."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import AsyncExitStack

import pytest

from tests.support.chain import StartChain
from tests.support.peers.sockets import Gone, Peer, client
from tests.support.processes import connections_on
from tests.support.sidecar import worker_pids

CONNECTIONS = 8
REQUESTS_AFTER = 200


async def served(peer: Peer) -> None:
    """Make one request, which the sidecar answers itself."""
    head = await peer.head(peer.open("/nowhere", end=True))
    assert head[b":status"] == b"404"


async def keep_asking(peer: Peer, killed: asyncio.Event) -> int:
    """Make requests one by one; return how many were answered after the kill, 0 if the connection was lost."""
    after = 0
    try:
        while after < REQUESTS_AFTER:
            await served(peer)
            after += killed.is_set()
    except Gone:
        return 0
    return after


@pytest.mark.asyncio
async def test_the_connections_of_other_workers_lose_no_request(chain: StartChain) -> None:
    async with chain("--workers", "2", "--admin", "off") as (running, _, _), AsyncExitStack() as stack:
        first, second = await worker_pids(running.program)
        address = running.address
        # With the client of the chain there are as many on each worker.
        peers = [await stack.enter_async_context(client(*address)) for _ in range(CONNECTIONS - 1)]
        for peer in peers:
            await served(peer)
        assert [connections_on(pid, address[1]) for pid in (first, second)] == [CONNECTIONS / 2] * 2
        killed = asyncio.Event()
        async with asyncio.TaskGroup() as asking:
            tasks = [asking.create_task(keep_asking(peer, killed)) for peer in peers]
            os.kill(first, signal.SIGKILL)
            killed.set()
            await running.program.line(rf'worker died: starting another.*"pid": {first}\b')
            for _ in range(CONNECTIONS):
                async with client(*address) as newcomer:
                    await served(newcomer)
        answered = sorted(task.result() for task in tasks)
        assert answered.count(REQUESTS_AFTER) >= CONNECTIONS / 2 - 1
        assert set(answered) == {0, REQUESTS_AFTER}
        said = await running.program.line(rf'"worker": (?!{first}\b|{second}\b)(\d+)')
        # The new worker has no connection yet, so it gets the next ones.
        replacement = int(said.group(1))
        async with client(*address) as newcomer:
            await served(newcomer)
            assert connections_on(replacement, address[1]) == 1
