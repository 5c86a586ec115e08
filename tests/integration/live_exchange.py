"""A sidecar with one live exchange, for the tests of how it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
import pytest

from tests.support.chain import StartChain
from tests.support.peers.sockets import Peer, Reset, client
from tests.support.processes import connections_on
from tests.support.sidecar import Sidecar, worker_pids

one_or_two = pytest.mark.parametrize("workers", [1, 2])


@dataclass
class Live:
    """A sidecar with one exchange: a stream downstream and a stream upstream."""

    sidecar: Sidecar
    client: Peer
    stream: int
    peer: Peer
    upstream_stream: int
    idle: int | None
    """Process id of the worker without the exchange, if there are two workers."""

    @property
    def pid(self) -> int:
        return self.sidecar.program.pid

    async def draining(self) -> None:
        """Wait until the worker with the exchange drains, and the other one, if there is one, has exited."""
        await self.sidecar.program.line(r'"live": 1.*"draining"|"draining".*"live": 1')
        if self.idle is not None:
            await ended(self.idle)

    async def refused(self) -> None:
        """New requests get 503 with retry-after on an old connection and on a new one; no GOAWAY is sent."""
        async with client(*self.sidecar.address) as newcomer:
            for peer in (self.client, newcomer):
                await refused_by(peer)
        async with aiohttp.ClientSession() as http, http.get(f"http://{self.sidecar.admin}/readyz") as answer:
            assert answer.status == 503
        assert not self.client.went_away.done()

    async def finished(self) -> None:
        """Complete request and response."""
        await self.client.send(self.stream, b"last", end=True)
        assert await self.peer.body(self.upstream_stream) == b"last"
        await self.peer.send(self.upstream_stream, b"words", end=True)
        assert await self.client.body(self.stream) == b"words"
        assert (await self.client.went_away).error_code == 0
        await self.client.closed

    async def aborted(self) -> None:
        """Wait until the stream is reset."""
        with pytest.raises(Reset):
            await self.client.body(self.stream)


async def refused_by(peer: Peer) -> None:
    """A new request on this connection gets 503 with retry-after."""
    head = await peer.head(peer.open("/svc/late", end=True))
    assert (head[b":status"], head[b"x-cloudrun-sidecar-error"]) == (b"503", b"draining")
    assert 1 <= int(head[b"retry-after"]) <= 5


async def ended(pid: int) -> None:
    """Wait for the exit of a process that need not be our child."""
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop.add_reader(process, over.set)
    try:
        async with asyncio.timeout(20):
            await over.wait()
    finally:
        loop.remove_reader(process)
        os.close(process)


@asynccontextmanager
async def live(
    chain: StartChain, workers: int, *flags: str, env: Mapping[str, str] | None = None
) -> AsyncIterator[Live]:
    many = ["--workers", str(workers)]
    if workers > 1:
        many += ["--admin", free_address()]
    async with chain(*many, *flags, env=env) as (running, upstream, client):
        pids = await worker_pids(running.program) if workers > 1 else []
        stream = client.open("/svc/live")
        peer, upstream_stream, _, _ = await upstream.request()
        peer.respond(upstream_stream)
        await client.head(stream)
        idle = [pid for pid in pids if not connections_on(pid, running.address[1])]
        yield Live(running, client, stream, peer, upstream_stream, idle[0] if idle else None)


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def tell(pid: int, number: signal.Signals, whole_group: bool) -> None:
    """Signal the parent only, or the whole process group, as a terminal does."""
    (os.killpg if whole_group else os.kill)(pid, number)
