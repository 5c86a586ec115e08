"""A client cancels its requests as soon as it has sent them, on one connection after the other."""

from __future__ import annotations

import asyncio
from pathlib import Path

import h2.events
import hpack
import pytest
from hyperframe.frame import HeadersFrame, RstStreamFrame, SettingsFrame

from tests.isolation.stage import Stage, stage
from tests.support.peers.sockets import Peer

each_engine = pytest.mark.parametrize("engine", ["h2", "nghttp2"])

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD = [(b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"sidecar"), (b":path", b"/bad/hang")]

CONNECTIONS = 3
REQUESTS = 900
"""On each connection: fewer than one connection alone is ended for."""
CANCELS = 1_000
UPSTREAM_CANCELS = 60
FLAGS = ("--cancels-per-minute", str(CANCELS), "--upstream-cancels-per-minute", str(UPSTREAM_CANCELS))


async def hang(peer: Peer, stream: int) -> None:
    """Never answer."""


async def rapid_reset(at: Stage, address: str) -> None:
    """Send the requests of one connection, each with its reset behind it, and wait for the end of the connection."""
    reader, writer = await asyncio.open_connection(*at.sidecar.address, local_addr=(address, 0))
    block = hpack.Encoder().encode([hpack.NeverIndexedHeaderTuple(*line) for line in HEAD])
    frames = [SettingsFrame(0).serialize()]
    for stream in range(1, 2 * REQUESTS, 2):
        frames.append(HeadersFrame(stream, block, flags=["END_HEADERS"]).serialize())
        frames.append(RstStreamFrame(stream, 8).serialize())
    try:
        writer.write(PREFACE + b"".join(frames))
        writer.write_eof()
        await reader.read()
    except ConnectionError:
        pass
    finally:
        writer.close()


def resets(peer: Peer) -> int:
    return sum(isinstance(event, h2.events.StreamReset) for event in peer.seen)


@each_engine
@pytest.mark.asyncio
async def test_a_client_that_resets_rapidly_and_reconnects_is_cut_off_and_its_neighbours_do_not_notice(
    engine: str, tmp_path: Path
) -> None:
    async with stage(tmp_path, engine, *FLAGS) as at:
        at.service.behaviours["hang"] = hang

        async def attack(address: str) -> None:
            for _ in range(CONNECTIONS):
                await rapid_reset(at, address)

        # The neighbour has 127.0.0.1.
        for address in ("127.0.0.2", "127.0.0.1"):
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(attack(address))
                await at.assert_unharmed()
            (told, *_) = await at.sidecar.logged(f'a client cancels too many requests.*"client": "{address}"')
            assert (told["severity"], told["cancels_per_minute"]) == ("WARNING", CANCELS)
        line = (await at.sidecar.logged("closing the connection of a client"))[0]
        assert (line["client"], line["code"], line["reason"]) == (
            "127.0.0.2",
            "ENHANCE_YOUR_CALM",
            "too many requests are cancelled (cancels_per_minute)",
        )
        requests = sum(isinstance(event, h2.events.RequestReceived) for peer in at.service.peers for event in peer.seen)
        # For each address as many as may be cancelled, what was under way then, and what is permitted meanwhile.
        assert requests <= 2 * (CANCELS + REQUESTS + CANCELS // 6)
        assert max(map(resets, at.service.peers), default=0) <= UPSTREAM_CANCELS + UPSTREAM_CANCELS // 2
