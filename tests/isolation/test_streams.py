"""A client takes all streams of a service: its neighbours on the same route do not notice."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.isolation.stage import stage
from tests.support.peers.sockets import Peer

each_engine = pytest.mark.parametrize("engine", ["h2", "nghttp2"])

CONNECTIONS = 2
REQUESTS = 600
"""On each connection; together more than the 1,000 that the service takes at a time."""
FLAGS = ("--max-upstream-connections", "1", "--stream-wait-timeout", "5")


async def hang(peer: Peer, stream: int) -> None:
    """Never answer."""


async def answer(peer: Peer, stream: int) -> None:
    """Answer at once."""
    peer.respond(stream, 200, end=True)


@each_engine
@pytest.mark.asyncio
async def test_requests_that_hang_in_all_streams_of_a_service_leave_it_open_to_others(
    engine: str, tmp_path: Path
) -> None:
    async with stage(tmp_path, engine, *FLAGS) as at, AsyncExitStack() as stack:
        at.service.behaviours |= {"hang": hang, "quick": answer}
        greedy = [await stack.enter_async_context(at.client()) for _ in range(CONNECTIONS)]
        for client in greedy:
            for _ in range(REQUESTS):
                client.queue("/bad/hang", end=True)
            client.flush()
            await client.ping()
        neighbour = await stack.enter_async_context(at.client())
        for _ in range(50):
            assert (await neighbour.response(neighbour.open("/bad/quick", end=True))).status == 200
        await at.assert_unharmed()
