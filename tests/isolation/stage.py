"""A sidecar with a good service and a bad one behind it, and a neighbour that must not notice what others do.

The neighbour is h2load, and the good service has a process of its own, so that what the test does between them is not
measured with them. Another h2load sends the same requests at the same time through a second sidecar that nobody
disturbs: what slows that down, the machine does.
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
from tests.support.processes import Program, program
from tests.support.sidecar import Sidecar, sidecar

__all__ = ["CAP_OCTETS", "LARGE_HEADS", "BadService", "Stage", "assert_as_quick", "stage", "waited_seconds"]

CAP_OCTETS = 8 << 20
"""`queued_octets` of the sidecar."""

LARGE_HEADS = ("--max-field-section", str(64 << 10))
"""Flags of a sidecar that takes heads which are worth repeating."""

_REQUESTS = 200
# What the machine may do to one of the two neighbours alone: some slices of its scheduler for h2load.
_NOISE_SECONDS = 0.02
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
    """What runs: routes `bad` and `good`, a service behind each, and the neighbour.

    The route `late` leads to the good service, too, by another name, and nobody uses it before the test does.
    """

    sidecar: Sidecar
    service: BadService
    good: Program
    """The good service."""
    flags: list[str]
    """Flags of the sidecar."""
    undisturbed: Sidecar
    """The second sidecar, without the route `bad`."""
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
        waited_before = waited_seconds(self.sidecar.program.pid, self.good.pid)
        async with asyncio.TaskGroup() as tasks:
            through = tasks.create_task(seconds_of(f"{self.sidecar.url}/good", self.folder / "through.log"))
            beside = tasks.create_task(seconds_of(f"{self.undisturbed.url}/good", self.folder / "beside.log"))
        waited = waited_seconds(self.sidecar.program.pid, self.good.pid) - waited_before
        assert_as_quick(through.result(), [self.quiet_seconds, *beside.result()], waited)
        grown = self.sidecar.resident_octets - self.idle_octets
        assert grown <= 1.25 * CAP_OCTETS + _NOISE_OCTETS, f"{grown >> 20} MiB more than idle"


def waited_seconds(*pids: int) -> float:
    """How long these processes were ready to run, and had no processor, since they began (Linux)."""
    return sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) for pid in pids) / 1e9


def assert_as_quick(through: list[float], beside: list[float], waited: float) -> None:
    """99 % of the requests took three times as long at most as the slowest of those that nobody disturbed; in seconds.

    That one, and not its 99 %, because what the machine does to a neighbour now and then it does to each at its time.
    For the same reason, the time may be added for which processes that took part have `waited` for a processor.
    """
    took = percentile(through, 99)
    most_seconds = 3 * max(beside) + waited + _NOISE_SECONDS
    assert took <= most_seconds, f"{took:.3f} s, more than {most_seconds:.3f} s"


async def seconds_of(url: str, log: Path) -> list[float]:
    """Send requests, one after the other; return the seconds that each of them took. All must succeed."""
    load = ["h2load", f"-n{_REQUESTS}", "-c1", "-m1", f"--log-file={log}", f"{url}/x"]
    async with program("h2load", load) as loading:
        assert await loading.ended(within_seconds=60.0) == 0, loading.tail()
    requests = parse_log(await asyncio.to_thread(log.read_text))
    await asyncio.to_thread(log.unlink)
    assert [request.status for request in requests] == [200] * _REQUESTS, loading.tail()
    return [request.microseconds / 1e6 for request in requests]


@asynccontextmanager
async def stage(folder: Path, engine: str, *flags: str, metadata: str | None = None) -> AsyncIterator[Stage]:
    """Run a sidecar with this engine, `CAP_OCTETS` and more flags.

    Its routes send tokens of the metadata server at this address, or none.
    """
    good = program("good service", [sys.executable, "-m", "tests.isolation.good_service"])
    async with server() as listening, good as serving, asyncio.TaskGroup() as tasks:
        port = (await serving.line(r"listening (\d+)"))[1]
        bad = BadService(listening)
        answering = tasks.create_task(bad.serve())
        to_good = ["--route", f"good=http://127.0.0.1:{port}"]
        to_good += ["--route", f"late=http://localhost:{port}"]
        routes = ["--route", f"bad=http://127.0.0.1:{listening.port}", *to_good]
        options = ["--http2-engine", engine, "--queued-octets", str(CAP_OCTETS)]
        options.append("--no-gcp-id-token" if metadata is None else "--allow-http")
        env = {"GCE_METADATA_HOST": metadata}
        all_flags = [*routes, *options, *flags]
        try:
            async with (
                sidecar(*all_flags, env=env) as running,
                sidecar(*to_good, *options, env=env) as undisturbed,
            ):
                for one in (running, undisturbed):
                    # The first request of each waits for a connection, and perhaps for a token.
                    await seconds_of(f"{one.url}/good", folder / "first.log")
                quiet = percentile(await seconds_of(f"{running.url}/good", folder / "quiet.log"), 99)
                yield Stage(running, bad, serving, all_flags, undisturbed, folder, running.resident_octets, quiet)
        finally:
            answering.cancel()
