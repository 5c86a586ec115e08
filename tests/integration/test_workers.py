"""Several workers share the connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from tests.support.chain import Routes
from tests.support.peers.sockets import Peer, client
from tests.support.processes import connections_on
from tests.support.sidecar import Sidecar, sidecar, worker_pids


@asynccontextmanager
async def two_workers(routes: Routes) -> AsyncIterator[tuple[Sidecar, list[int]]]:
    config = routes(svc="https://127.0.0.1:1")
    async with sidecar("--config", config, "--workers", "2", "--admin", "off") as running:
        yield running, await worker_pids(running.program)


async def answered(peer: Peer) -> None:
    """Check that the connection is served."""
    head = await peer.head(peer.open("/nowhere", end=True))
    assert head[b":status"] == b"404"


@pytest.mark.asyncio
async def test_two_workers_get_eight_of_sixteen_connections_each(routes: Routes) -> None:
    async with two_workers(routes) as (running, workers), AsyncExitStack() as stack:
        for _ in range(16):
            await answered(await stack.enter_async_context(client(*running.address)))
        assert [connections_on(pid, running.address[1]) for pid in workers] == [8, 8]


@pytest.mark.asyncio
async def test_simultaneous_connections_are_shared_evenly(routes: Routes) -> None:
    async with two_workers(routes) as (running, workers), AsyncExitStack() as stack:
        connections = [stack.enter_async_context(client(*running.address)) for _ in range(50)]
        for peer in await asyncio.gather(*connections):
            await answered(peer)
        assert [connections_on(pid, running.address[1]) for pid in workers] == [25, 25]


@pytest.mark.asyncio
async def test_http1_connections_are_handed_over_too(routes: Routes) -> None:
    async with two_workers(routes) as (running, _):
        for _ in range(4):
            reader, writer = await asyncio.open_connection(*running.address)
            writer.write(b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 404 ")
            writer.close()
            await writer.wait_closed()
