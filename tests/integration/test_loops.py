"""Routes that lead back to the sidecar itself, or through each other: a request is refused after one round."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from tests.support.chain import Routes
from tests.support.peers.sockets import client
from tests.support.sidecar import Sidecar, sidecar

REQUESTS = 10


class Pipe:
    """A port that is known before its target is."""

    def __init__(self) -> None:
        self.port = 0
        self.target: asyncio.Future[tuple[str, int]] = asyncio.get_running_loop().create_future()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Join one connection to the target."""
        far_reader, far_writer = await asyncio.open_connection(*await self.target)
        await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(1 << 16):
            target.write(data)
            await target.drain()
    except ConnectionError:
        pass
    finally:
        target.close()


@asynccontextmanager
async def pipe() -> AsyncIterator[Pipe]:
    made = Pipe()
    async with await asyncio.start_server(made.carry, "127.0.0.1", 0) as server:
        made.port = server.sockets[0].getsockname()[1]
        yield made


def assert_told(status: int, code: str | None, body: str, words: str) -> None:
    assert (status, code) == (508, "loop-detected")
    assert words in body
    assert body.count("\n") == 1


async def ask(listening: Sidecar, path: str, *, http2: bool, words: str) -> None:
    """Send a discovery on a connection of its own, and look at the answer."""
    if http2:
        async with client(*listening.address) as peer:
            stream = peer.open(path, method="GET", end=True)
            head = await peer.head(stream)
            body = await peer.body(stream)
        assert_told(int(head[b":status"]), head[b"x-cloudrun-sidecar-error"].decode(), body.decode(), words)
    else:
        async with aiohttp.ClientSession() as http, http.get(listening.url + path) as response:
            code = response.headers.get("x-cloudrun-sidecar-error")
            assert_told(response.status, code, await response.text(), words)


async def exchanges(listening: Sidecar) -> int:
    """End the sidecar, and return how many exchanges its access log has."""
    return sum(line["message"] == "exchange" for line in await listening.end())


@pytest.mark.asyncio
@pytest.mark.parametrize("http2", [True, False], ids=["h2c", "http-1.1"])
@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_request_on_a_route_to_the_sidecar_itself_is_refused_after_one_round(
    routes: Routes, http2: bool, workers: str
) -> None:
    async with pipe() as entry:
        # The returning request has the path `/round/discover` again.
        config = routes(round=f"{entry.url}/round")
        flags = ["--config", str(config), "--access-log", "--workers", workers, "--admin", "off"]
        async with sidecar(*flags) as running:
            entry.target.set_result(running.address)
            for _ in range(REQUESTS):
                await ask(running, "/round/discover", http2=http2, words="leads back to the sidecar itself")
            assert await exchanges(running) == 2 * REQUESTS


@pytest.mark.asyncio
async def test_a_request_on_routes_through_each_other_is_refused_after_one_round(routes: Routes) -> None:
    async with pipe() as to_first, pipe() as to_second:
        flags = ["--access-log", "--admin", "off"]
        there = routes(a=f"{to_second.url}/a")
        async with sidecar("--config", there, *flags) as first:
            back = routes(a=f"{to_first.url}/a")
            async with sidecar("--config", back, *flags) as second:
                to_first.target.set_result(first.address)
                to_second.target.set_result(second.address)
                await ask(first, "/a/discover", http2=True, words="leads back to the sidecar itself")
                assert await exchanges(second) == 1
            assert await exchanges(first) == 2


@pytest.mark.asyncio
async def test_a_sidecar_behind_a_sidecar_works(routes: Routes) -> None:
    """The inner one has no route for the path: it is reached, and its answer comes back."""
    inner_routes = routes(other="http://127.0.0.1:1")
    async with sidecar("--config", inner_routes) as inner:
        outer_routes = routes(a=f"{inner.url}/nowhere")
        async with (
            sidecar("--config", outer_routes) as outer,
            aiohttp.ClientSession() as http,
            http.get(f"{outer.url}/a/x") as response,
        ):
            assert response.status == 404
            assert response.headers["x-cloudrun-sidecar-error"] == "route-not-found"
