"""Workers and supervisors that are killed, and restarts: the clients of others do not notice, and new ones neither."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from tests.isolation.stage import Stage, assert_as_quick, stage, waited_seconds
from tests.support.peers.sockets import Gone, Peer, client
from tests.support.processes import connections_on
from tests.support.sidecar import sidecar, worker_pids

each_engine = pytest.mark.parametrize("engine", ["h2", "nghttp2"])

ASKED_BEFORE = 200
"""Requests of each client before the test does something."""


class Asking:
    """Makes requests one by one until it is over: on one connection, or each on a new one.

    A connection on which the server has said that it goes away is left for another one. So many may be lost.
    """

    def __init__(self, address: tuple[str, int], over: asyncio.Event, *, keeps: bool, losses: int = 0) -> None:
        self.seconds: list[float] = []
        """How long each request took, with the connection that it needed."""
        self.warm = asyncio.Event()
        self._address = address
        self._over = over
        self._keeps = keeps
        self._losses = losses

    async def run(self) -> None:
        while not self._over.is_set():
            try:
                await self._on_one_connection()
            except Gone:
                self._losses -= 1
                assert self._losses >= 0

    async def _on_one_connection(self) -> None:
        clock = asyncio.get_running_loop().time
        began = clock()
        async with client(*self._address) as peer:
            while not self._over.is_set() and takes_streams(peer):
                assert (await peer.response(peer.open("/good/x", end=True))).status == 200
                self.seconds.append(clock() - began)
                if len(self.seconds) == ASKED_BEFORE:
                    self.warm.set()
                began = clock()
                if not self._keeps:
                    break


def takes_streams(peer: Peer) -> bool:
    """Return False if the server has said GOAWAY, or offers no streams."""
    return not peer.went_away.done() and peer.h2.remote_settings.max_concurrent_streams > 0


@asynccontextmanager
async def unharmed(at: Stage, losses: int = 0) -> AsyncIterator[None]:
    """For the time of a `with`, clients of the sidecar are as quick as those of the one that nobody disturbs.

    Clients that come with each request anew may lose so many connections, others none.
    """
    over = asyncio.Event()
    keeping = [Asking(running.address, over, keeps=True) for running in (at.sidecar, at.undisturbed)]
    coming = [Asking(running.address, over, keeps=False, losses=losses) for running in (at.sidecar, at.undisturbed)]
    # What serves is another process afterwards.
    lasting = (at.good.pid, at.undisturbed.program.pid, os.getpid())
    waited_before = waited_seconds(*lasting)
    async with asyncio.TaskGroup() as tasks:
        try:
            for pair in (keeping, coming):
                for asking in pair:
                    tasks.create_task(asking.run())
                for asking in pair:
                    await asking.warm.wait()
            yield
        finally:
            over.set()
    waited = waited_seconds(*lasting) - waited_before
    for through, beside in (keeping, coming):
        assert_as_quick(through.seconds, beside.seconds, waited)


@each_engine
@pytest.mark.asyncio
async def test_the_clients_of_other_workers_do_not_notice_that_one_is_killed(engine: str, tmp_path: Path) -> None:
    async with stage(tmp_path, engine, "--workers", "2", "--admin", "off") as at, at.client() as victim:
        pids = await worker_pids(at.sidecar.program)
        await victim.ping()
        (killed,) = [pid for pid in pids if connections_on(pid, at.sidecar.address[1])]
        # Who keeps a connection has the other worker, which has none; who comes anew may have either.
        async with unharmed(at, losses=1):
            os.kill(killed, signal.SIGKILL)
            await at.sidecar.program.line(rf'worker died: starting another.*"pid": {killed}\b')
            known = "|".join(rf"{pid}\b" for pid in pids)
            await at.sidecar.program.line(
                rf'"listening".*"worker": (?!{known})\d+|"worker": (?!{known})\d+.*"listening"'
            )
        await victim.closed


@each_engine
@pytest.mark.asyncio
async def test_another_sidecar_serves_at_once_where_a_supervisor_was_killed(engine: str, tmp_path: Path) -> None:
    async with stage(tmp_path, engine, "--workers", "2") as at, at.client() as before:
        await before.ping()
        os.kill(at.sidecar.program.pid, signal.SIGKILL)
        await at.sidecar.program.ended()
        listen = "{}:{}".format(*at.sidecar.address)
        async with sidecar(*at.flags, "--listen", listen) as second:
            await worker_pids(second.program)
            async with unharmed(at):
                # The worker of the one before ends when its last client has gone.
                await before.close()


@each_engine
@pytest.mark.asyncio
async def test_clients_do_not_notice_that_another_sidecar_takes_over(engine: str, tmp_path: Path) -> None:
    async with (
        stage(tmp_path, engine, "--takeover-socket", f"unix:{tmp_path}/takeover") as at,
        AsyncExitStack() as stack,
        unharmed(at),
    ):
        second = await stack.enter_async_context(sidecar(*at.flags))
        assert second.listen == at.sidecar.listen
        assert await at.sidecar.program.ended(within_seconds=30) == 0
