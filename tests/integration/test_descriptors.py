"""The limit of open files is raised at the start; when it is nearly reached, the admin port still answers."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest

from tests.support.chain import Routes, StartChain
from tests.support.peers.sockets import client
from tests.support.sidecar import sidecar, worker_pids

one_or_two = pytest.mark.parametrize("workers", [1, 2])


def soft_limit(pid: int) -> int:
    (line,) = [each for each in Path(f"/proc/{pid}/limits").read_text().splitlines() if "open files" in each]
    return int(line.split()[3])


async def closed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Close a connection, and wait until the sidecar has closed it, too."""
    with contextlib.suppress(ConnectionError):
        writer.write_eof()
        await reader.read()
    writer.close()


@pytest.mark.asyncio
@one_or_two
async def test_the_soft_limit_is_raised_to_the_hard_one(routes: Routes, workers: int) -> None:
    config = routes(svc="https://127.0.0.1:1")
    flags = ["--workers", str(workers), "--admin", "off"]
    async with sidecar("--config", config, *flags, under=["prlimit", "--nofile=64:300"]) as running:
        pids = [running.program.pid, *(await worker_pids(running.program) if workers > 1 else [])]
        assert {soft_limit(pid) for pid in pids} == {300}


@pytest.mark.asyncio
async def test_the_admin_port_answers_when_connections_use_up_the_descriptors(routes: Routes) -> None:
    config = routes(svc="https://127.0.0.1:1")
    async with sidecar("--config", config, under=["prlimit", "--nofile=128:128"]) as running:
        silent = [await asyncio.open_connection(*running.address) for _ in range(200)]
        async with AsyncExitStack() as stack:
            for reader, writer in silent:
                stack.push_async_callback(closed, reader, writer)
            await running.program.line("closing new connections: limit of open files nearly reached")
            for _ in range(5):
                async with aiohttp.ClientSession() as http, http.get(f"http://{running.admin}/readyz") as answer:
                    assert answer.status == 200
        # There is room again.
        async with client(*running.address) as peer:
            assert (await peer.head(peer.open("/nowhere", end=True)))[b":status"] == b"404"


@pytest.mark.asyncio
async def test_a_service_is_connected_to_when_clients_have_used_up_their_descriptors(chain: StartChain) -> None:
    async with chain(under=["prlimit", "--nofile=128:128"]) as (running, upstream, early), AsyncExitStack() as stack:
        for _ in range(200):
            stack.push_async_callback(closed, *await asyncio.open_connection(*running.address))
        await running.program.line("closing new connections: limit of open files nearly reached")
        stream = early.open("/svc/x", end=True)
        peer, upstream_stream, _, _ = await upstream.request()
        peer.respond(upstream_stream, end=True)
        assert (await early.head(stream))[b":status"] == b"200"
