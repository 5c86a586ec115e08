"""Upstreams that move, and upstreams that fail at once, under steady traffic. Time is what is tested here."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from proxy.emulator import Certificates
from tests.support.chain import Routes, StartChain
from tests.support.names import name_server
from tests.support.peers.sockets import Peer, Server, client, server_context
from tests.support.sidecar import sidecar

AGE_SECONDS = 1.0
MOVED_WITHIN_SECONDS = 3.0
"""The age, and some time for a busy machine."""
NAME = "greeter.test"
FAILING_SECONDS = 2.0
MOST_CONNECTIONS = 20
"""In that time. Pauses are 0.05, 0.1, 0.2, 0.4, 0.8 and then 1 s long."""


async def answer_all(upstream: Server, log: Counter[str], name: str, held: asyncio.Queue[tuple[Peer, int]]) -> None:
    """Answer every request at once, but hold those to /held back; count the others in `log`."""

    async def answer(peer: Peer) -> None:
        while True:
            stream, fields, _ = await peer.request()
            if dict(fields)[b":path"].startswith(b"/held"):
                held.put_nowait((peer, stream))
            else:
                log[name] += 1
                peer.respond(stream, fields=[(b"served-by", name.encode())], end=True)

    async with asyncio.TaskGroup() as tasks:
        while True:
            tasks.create_task(answer(await upstream.accepted()))


@asynccontextmanager
async def background(*work: asyncio.Task[None]) -> AsyncIterator[None]:
    """Cancel these tasks at the end."""
    try:
        yield
    finally:
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)


@pytest.mark.asyncio
@pytest.mark.parametrize("engine", ["nghttp2", "h2"])
async def test_a_name_that_moves_is_followed_under_steady_traffic_and_no_request_fails(
    chain: StartChain, certificates: Certificates, tmp_path: Path, engine: str
) -> None:
    loop = asyncio.get_running_loop()
    served: Counter[str] = Counter()
    held: asyncio.Queue[tuple[Peer, int]] = asyncio.Queue()
    moved = loop.create_future()
    async with (
        name_server({NAME: ["127.0.0.1"]}) as names,
        chain(
            *("--http2-engine", engine),
            settings=f"max_upstream_connection_age = {AGE_SECONDS}\n",
            host=NAME,
            under=names.under(tmp_path),
        ) as (_, old, near),
    ):
        tls = server_context(*certificates.server_files(NAME))
        new = await Server().start(tls, old.port, host="127.0.0.2")
        answering = [
            loop.create_task(answer_all(each, served, name, held)) for each, name in ((old, "old"), (new, "new"))
        ]
        async with background(*answering):

            async def traffic() -> float:
                """Send requests one after the other until one is served at the new address; return when it was."""
                seen = [b"old"]
                while seen[-1] != b"new":
                    answer = await near.response(near.open("/svc/discover", method="GET", end=True))
                    assert answer.status == 200
                    seen.append(answer.fields[b"served-by"])
                    if served["old"] > 50 and not moved.done():
                        names.addresses[NAME] = ["127.0.0.2"]
                        moved.set_result(loop.time())
                assert seen.count(b"new") == 1
                return loop.time()

            slow = near.open("/svc/held")
            peer, stream = await held.get()
            async with asyncio.TaskGroup() as tasks:
                clients = [tasks.create_task(traffic()) for _ in range(4)]
            for each in clients:
                assert each.result() - moved.result() < MOVED_WITHIN_SECONDS
            before = served["old"]
            for _ in range(20):
                answer = await near.response(near.open("/svc/discover", method="GET", end=True))
                assert answer.fields[b"served-by"] == b"new"
            assert served["old"] == before
            peer.respond(stream, end=True)
            assert (await near.response(slow)).status == 200, "what began at the old address finishes there"
            await near.close()
        await new.close()


class Failing:
    """An upstream without TLS that accepts connections and serves no request, until it is mended."""

    def __init__(self, way: str) -> None:
        self.way = way
        self.upstream = Server()
        self.mended = False

    async def serve(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            while True:
                tasks.create_task(self._end(await self.upstream.accepted()))

    async def _end(self, peer: Peer) -> None:
        if self.way == "closes" and not self.mended:
            peer.transport.abort()
            return
        while True:
            stream, _, _ = await peer.request()
            if self.mended:
                peer.respond(stream, end=True)
            elif self.way == "goes away":
                peer.go_away(0)
                peer.transport.close()
                return
            else:
                peer.transport.abort()


@pytest.mark.asyncio
@pytest.mark.parametrize("engine", ["nghttp2", "h2"])
async def test_an_upstream_that_fails_at_once_is_not_dialled_for_every_request(routes: Routes, engine: str) -> None:
    loop = asyncio.get_running_loop()
    failing = [Failing(way) for way in ("closes", "goes away", "resets")]
    for each in failing:
        await each.upstream.start(None)
    good = Failing("is mended")
    good.mended = True
    await good.upstream.start(None)
    targets = {f"f{number}": f"http://127.0.0.1:{each.upstream.port}" for number, each in enumerate(failing)}
    config = routes("stream_wait_timeout = 20\n", good=f"http://127.0.0.1:{good.upstream.port}", **targets)
    statuses: Counter[tuple[str, int]] = Counter()
    async with (
        sidecar("--config", config, "--http2-engine", engine) as running,
        client(*running.address) as near,
        background(*(loop.create_task(each.serve()) for each in [*failing, good])),
    ):
        until = loop.time() + FAILING_SECONDS

        async def ask(route: str) -> int:
            status = (await near.response(near.open(f"/{route}/invoke/S/h", end=True))).status
            statuses[route, status] += 1
            return status

        async def keep_asking(route: str) -> None:
            while loop.time() < until:
                await ask(route)

        async with asyncio.TaskGroup() as tasks:
            for route in [*targets, "good"]:
                for _ in range(8):
                    tasks.create_task(keep_asking(route))
        for route, each in zip(targets, failing, strict=True):
            assert 0 < len(each.upstream.peers) <= MOST_CONNECTIONS, (each.way, statuses)
            assert {status for name, status in statuses if name == route} == {503}
            each.mended = True
            assert await ask(route) == 200, "the next attempt is not far"
        assert {status for name, status in statuses if name == "good"} == {200}
        assert statuses["good", 200] > MOST_CONNECTIONS
        assert len(good.upstream.peers) == 1
        await near.close()
    for each in [*failing, good]:
        await each.upstream.close()
