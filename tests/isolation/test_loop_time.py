"""A client makes the sidecar work much for few octets: the neighbours have their turns meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.isolation.stage import LARGE_HEADS, stage
from tests.support.peers.sockets import Peer

each_engine = pytest.mark.parametrize("engine", ["h2", "nghttp2"])


@each_engine
@pytest.mark.asyncio
async def test_content_in_frames_of_one_octet_does_not_delay_others(engine: str, tmp_path: Path) -> None:
    frames = 65_535

    async def take(peer: Peer, stream: int) -> None:
        """Take all content, whose windows go back at once."""

    async with stage(tmp_path, engine) as at:
        at.service.behaviours["tiny"] = take
        async with at.client() as client, asyncio.TaskGroup() as tasks:
            stream = client.open("/bad/tiny")
            await client.ping()
            client.transport.write((bytes([0, 0, 1, 0, 0]) + stream.to_bytes(4, "big") + b"x") * frames)
            tasks.create_task(client.ping())
            await at.assert_unharmed()


@each_engine
@pytest.mark.asyncio
async def test_fully_indexed_heads_do_not_delay_others(engine: str, tmp_path: Path) -> None:
    async def answer(peer: Peer, stream: int) -> None:
        peer.respond(stream, 204, end=True)

    fields = [(b"x-large", b"v" * 4_000)] * 15
    async with stage(tmp_path, engine, *LARGE_HEADS) as at:
        at.service.behaviours["quick"] = answer
        async with at.client() as client:
            first = client.open("/bad/quick", fields=fields, end=True)
            await client.response(first)
            for _ in range(100):
                client.queue("/bad/quick", fields=fields, end=True)
            client.flush()
            await at.assert_unharmed()


@each_engine
@pytest.mark.asyncio
async def test_content_in_chunks_of_one_octet_does_not_delay_others(engine: str, tmp_path: Path) -> None:
    head = b"POST /bad/tiny HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = 50_000

    async def answer(peer: Peer, stream: int) -> None:
        assert await peer.body(stream) == b"x" * chunks
        peer.respond(stream, 204, end=True)

    async with stage(tmp_path, engine) as at:
        at.service.behaviours["tiny"] = answer
        reader, writer = await asyncio.open_connection(*at.sidecar.address)
        writer.write(head + b"1\r\nx\r\n" * chunks + b"0\r\n\r\n")
        await at.assert_unharmed()
        assert (await reader.readline()).startswith(b"HTTP/1.1 204")
        writer.close()
