"""A sidecar with a good service and a bad one behind it, and a neighbour that must not notice what others do.

The neighbour is h2load, and the good service has a process of its own, so that what the test does between them is not
measured with them. Another h2load sends the same requests to the service itself at the same time: what slows that down,
the machine does.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from h2.exceptions import StreamClosedError

from tests.load.figures import percentile
from tests.load.h2load import parse_log
from tests.support.peers.sockets import Gone, Peer, Reset, Server, client, server
from tests.support.processes import program
from tests.support.sidecar import Sidecar, sidecar

__all__ = ["CAP_OCTETS", "LARGE_HEADS", "BadService", "Stage", "stage"]

CAP_OCTETS = 8 << 20
"""`queued_octets` of the sidecar."""

LARGE_HEADS = ("--max-field-section", str(64 << 10))
"""Flags of a sidecar that takes heads which are worth repeating."""

_REQUESTS = 200
# What may be added to three times the quiet latency on a machine that has other work.
_NOISE_SECONDS = 0.5
# What the allocator may keep that is not counted: the cap of these tests is small.
_NOISE_OCTETS = 8 << 20

Behaviour = Callable[[Peer, int], Awaitable[None]]
"""Answers a request on a stream of a peer."""


class BadService:
    """An upstream that behaves as the test says, by the last segment of the path."""

    def __init__(self, listening: Server) -> None:
        self._listening = listening
        self.behaviours: dict[str, Behaviour] = {}

    async def serve(self) -> None:
        """Serve until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                tasks.create_task(self._serve(await self._listening.accepted(), tasks))

    @property
    def peers(self) -> list[Peer]:
        """Its connections."""
        return self._listening.peers

    async def _serve(self, peer: Peer, tasks: asyncio.TaskGroup) -> None:
        while True:
            stream, fields, _ = await peer.request()
            tasks.create_task(self._behave(peer, stream, dict(fields)[b":path"].decode().rpartition("/")[2]))

    async def _behave(self, peer: Peer, stream: int, segment: str) -> None:
        # It is no failure of the service that its client resets a stream or ends a connection.
        with suppress(Gone, Reset, StreamClosedError):
            await self.behaviours[segment](peer, stream)


@dataclass(frozen=True, slots=True)
class Stage:
    """What runs: routes `bad` and `good`, a service behind each, and the neighbour."""

    sidecar: Sidecar
    service: BadService
    good_url: str
    folder: Path
    idle_octets: int
    """Resident memory before anybody misbehaves."""
    quiet_seconds: float
    """The time that 99 % of the neighbour's requests take at most before."""

    @asynccontextmanager
    async def client(self, **options: Any) -> AsyncIterator[Peer]:
        """Another client of the sidecar; its connection is aborted in the end."""
        async with client(*self.sidecar.address, **options) as peer:
            try:
                yield peer
            finally:
                peer.transport.abort()

    async def assert_unharmed(self) -> None:
        """The neighbour's requests succeed, about as fast as alone, and memory stays within the cap."""
        async with asyncio.TaskGroup() as tasks:
            through = tasks.create_task(p99_seconds(f"{self.sidecar.url}/good", self.folder / "through.log"))
            direct = tasks.create_task(p99_seconds(self.good_url, self.folder / "direct.log"))
        most_seconds = 3 * max(self.quiet_seconds, direct.result()) + _NOISE_SECONDS
        assert through.result() <= most_seconds, f"{through.result():.3f} s, more than {most_seconds:.3f} s"
        grown = self.sidecar.resident_octets - self.idle_octets
        assert grown <= 1.25 * CAP_OCTETS + _NOISE_OCTETS, f"{grown >> 20} MiB more than idle"


async def p99_seconds(url: str, log: Path) -> float:
    """Send requests, one after the other; return the seconds that 99 % of them took at most. All must succeed."""
    load = ["h2load", f"-n{_REQUESTS}", "-c1", "-m1", f"--log-file={log}", f"{url}/x"]
    async with program("h2load", load) as loading:
        assert await loading.ended(within_seconds=60.0) == 0, loading.tail()
    requests = parse_log(await asyncio.to_thread(log.read_text))
    await asyncio.to_thread(log.unlink)
    assert [request.status for request in requests] == [200] * _REQUESTS, loading.tail()
    return percentile([request.microseconds / 1e6 for request in requests], 99)


@asynccontextmanager
async def stage(folder: Path, engine: str, *flags: str) -> AsyncIterator[Stage]:
    """Run a sidecar with this engine, `CAP_OCTETS` and more flags."""
    good = program("good service", [sys.executable, "-m", "tests.isolation.good_service"])
    async with server() as listening, good as serving, asyncio.TaskGroup() as tasks:
        port = (await serving.line(r"listening (\d+)"))[1]
        bad = BadService(listening)
        answering = tasks.create_task(bad.serve())
        good_url = f"http://127.0.0.1:{port}"
        routes = ["--route", f"bad=http://127.0.0.1:{listening.port}", "--route", f"good={good_url}"]
        limits = ["--no-gcp-id-token", "--http2-engine", engine, "--queued-octets", str(CAP_OCTETS)]
        try:
            async with sidecar(*routes, *limits, *flags) as running:
                quiet_seconds = await p99_seconds(f"{running.url}/good", folder / "quiet.log")
                yield Stage(running, bad, good_url, folder, running.resident_octets, quiet_seconds)
        finally:
            answering.cancel()
