"""A client asks for discoveries in a loop: each wants a new token, and the tokens of others come no later."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from proxy.emulator import Certificates, Fault, Google, GoogleServer
from tests.isolation.stage import Stage, stage
from tests.support.peers.sockets import Peer

each_engine = pytest.mark.parametrize("engine", ["h2", "nghttp2"])

ROUTES = 10
"""Each has an audience of its own; nobody listens at their addresses."""
DISCOVERIES = 10
"""Of each route at a time."""
MINT_SECONDS = 0.2


async def discover(peer: Peer, at: Stage, over: asyncio.Event) -> int:
    """Ask for discoveries of all routes, again and again; return how often."""
    rounds = 0
    while not over.is_set():
        rounds += 1
        asked = [peer.queue(f"/bad{n % ROUTES}/discover", method="GET", end=True) for n in range(ROUTES * DISCOVERIES)]
        peer.flush()
        for stream in asked:
            assert (await peer.response(stream)).status in {424, 502, 503}
    return rounds


@each_engine
@pytest.mark.asyncio
async def test_discoveries_in_a_loop_share_mints_and_the_first_mints_of_others_go_before(
    engine: str, tmp_path: Path
) -> None:
    google = Google(slow_seconds=MINT_SECONDS)
    google.fail("metadata", Fault.SLOW)
    bad = [flag for n in range(ROUTES) for flag in ("--route", f"bad{n}=http://127.0.1.{n + 1}:9")]
    async with (
        GoogleServer(google, Certificates.create(tmp_path)) as there,
        stage(tmp_path, engine, *bad, metadata=there.metadata_address) as at,
        at.client() as greedy,
        at.client() as newcomer,
        asyncio.TaskGroup() as tasks,
    ):
        over = asyncio.Event()
        discovering = tasks.create_task(discover(greedy, at, over))
        await at.assert_unharmed()
        began = asyncio.get_running_loop().time()
        assert (await newcomer.response(newcomer.open("/late/invoke/S/h", end=True))).status == 200
        assert asyncio.get_running_loop().time() - began < 3 * MINT_SECONDS
        over.set()
        rounds = await discovering
        # Those of a round that come before a mint starts share it; while one is under way, the next one waits.
        for n in range(ROUTES):
            minted = [mint for mint in google.mints if mint.audience == f"http://127.0.1.{n + 1}:9"]
            assert 1 <= len(minted) <= 2 * rounds
