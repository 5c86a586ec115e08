"""`python -m tests.load.soak`: the sidecar under mixed traffic for as long as you like, and whether it stays as it was.

Clients do on many streams at once what Restate does, and what goes wrong: unary calls, conversations, downloads, slow
readers, early answers, resets from either side (`tests.load.soak_acts`). The upstream sends every connection away after
some hundred streams, with the two GOAWAYs of Google's front end, and cuts a few without a word. Tokens live so shortly
that they are refreshed every other second; client connections come and go.

It passes when every exchange went as it must, but for those that a cut connection took with it; when memory and open
files at the end are what they were after the first quarter; when the sidecar had no error to log; and when it drains
and ends with 0.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import click
import h2.exceptions

from proxy.emulator import Certificates
from tests.load.cost import Process
from tests.load.places import Processors
from tests.load.soak_acts import ACTS, Unexpected
from tests.load.soak_upstream import SoakPeer, SoakUpstream
from tests.load.upstreams import google
from tests.support.peers.sockets import Gone, Reset, server_context
from tests.support.sidecar import Sidecar, sidecar

__all__ = ["Record", "main", "verdict"]

_TOKEN_SECONDS: Final = 64
_ACT_SECONDS: Final = 30.0
_EXCUSED_SECONDS: Final = 0.25
_ROTATION: Final = (100, 400)
_MEMORY_SLACK: Final = 4 << 20
_FILES_SLACK: Final = 12
_FAILURES_KEPT: Final = 20


@dataclass
class Record:
    """What happened."""

    done: Counter[str] = field(default_factory=Counter)
    excused: int = 0
    failures: list[str] = field(default_factory=list)
    rss: list[int] = field(default_factory=list)
    """Resident octets, a sample a second."""
    files: list[int] = field(default_factory=list)


def verdict(record: Record) -> list[str]:
    """Return what is wrong, a sentence each; nothing when all is well. Memory and files: first quarter and last apart.

    The first quarter is warming up; the medians of the second and of the last quarter are compared.
    """
    wrong = [f"exchange failed: {failure}" for failure in record.failures]
    quarter = len(record.rss) // 4
    if not quarter:
        return [*wrong, "it was too short to see whether memory grows"]
    for name, samples, slack in (("memory", record.rss, _MEMORY_SLACK), ("open files", record.files, _FILES_SLACK)):
        before = statistics.median(samples[quarter : 2 * quarter])
        after = statistics.median(samples[-quarter:])
        if after > before * 1.05 + slack:
            wrong.append(f"{name} grew from {before:,.0f} to {after:,.0f}")
    return wrong


@dataclass
class Soak:
    """The clients."""

    port: int
    until: float
    upstream: SoakUpstream
    chance: random.Random
    streams: int
    record: Record = field(default_factory=Record)

    async def connection(self) -> None:
        """Use one connection after the other until time is up."""
        while time.monotonic() < self.until:
            left = self.chance.randint(*_ROTATION)
            async with _connected(self.port) as peer, asyncio.TaskGroup() as workers:
                for _ in range(self.streams):
                    workers.create_task(self._work(peer, left // self.streams + 1))

    async def _work(self, peer: SoakPeer, count: int) -> None:
        names, weights = list(ACTS), [weight for _, weight in ACTS.values()]
        for _ in range(count):
            if time.monotonic() >= self.until:
                return
            await self._act(peer, self.chance.choices(names, weights)[0])

    async def _act(self, peer: SoakPeer, name: str) -> None:
        begun = time.monotonic()
        try:
            async with asyncio.timeout(_ACT_SECONDS):
                await ACTS[name][0](peer, self.chance)
        # KeyError: h2 on a stream that was reset so long ago that it has forgotten it.
        except (Unexpected, Reset, Gone, h2.exceptions.ProtocolError, KeyError, TimeoutError, AssertionError) as exc:
            await asyncio.sleep(_EXCUSED_SECONDS)  # the cut may be noted later than it is felt
            if any(begun <= moment <= time.monotonic() for moment in self.upstream.aborted_at):
                self.record.excused += 1
            elif len(self.record.failures) < _FAILURES_KEPT:
                what = f"it took over {_ACT_SECONDS:g} s" if isinstance(exc, TimeoutError) else str(exc) or repr(exc)
                self.record.failures.append(f"{name}: {what}")
        self.record.done[name] += 1

    async def watch(self, process: Process) -> None:
        """Sample memory and files until time is up."""
        while time.monotonic() < self.until:
            self.record.rss.append(process.rss_octets())
            self.record.files.append(process.open_files())
            await asyncio.sleep(1.0)


@asynccontextmanager
async def _connected(port: int) -> AsyncIterator[SoakPeer]:
    _, peer = await asyncio.get_running_loop().create_connection(lambda: SoakPeer(client=True), "127.0.0.1", port)
    try:
        yield peer
    finally:
        await peer.close()


async def _run(seconds: float, connections: int, streams: int, engine: str, seed: int, abort_share: float) -> list[str]:
    chance = random.Random(seed)
    upstream = SoakUpstream(chance, abort_share=abort_share)
    with tempfile.TemporaryDirectory(prefix="cloudrun-sidecar-soak-") as name:
        folder = Path(name)
        certificates = Certificates.create(folder / "certificates")
        tls = server_context(*certificates.server_files("127.0.0.1"))
        async with (
            google(folder / "google", Processors.of_this_machine(), token_seconds=_TOKEN_SECONDS) as source,
            upstream.listening(tls) as upstream_port,
        ):
            flags = ["--route", f"soak=https://127.0.0.1:{upstream_port}", "--http2-engine", engine]
            flags += ["--upstream-ca", str(certificates.ca_file)]
            async with sidecar(*flags, env=source.environment) as running:
                soak = Soak(running.address[1], time.monotonic() + seconds, upstream, chance, streams)
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(soak.watch(Process(running.program.pid)))
                    for _ in range(connections):
                        tasks.create_task(soak.connection())
                wrong = verdict(soak.record) + await _ended(running)
    _tell(soak.record, upstream)
    return wrong


async def _ended(running: Sidecar) -> list[str]:
    """End the sidecar and return what is wrong with how it went."""
    status = await running.program.stop()
    wrong = [] if status == 0 else [f"the sidecar ended with {status}"]
    errors = [line for line in running.log() if line.get("severity") == "ERROR"]
    return wrong + [f"the sidecar logged: {error}" for error in errors[:_FAILURES_KEPT]]


def _tell(record: Record, upstream: SoakUpstream) -> None:
    for name in ACTS:
        click.echo(f"  {record.done[name]:8,}  {name}")
    click.echo(
        f"{record.done.total():,} exchanges, {upstream.connections:,} upstream connections, of which "
        f"{upstream.went_away:,} sent away and {len(upstream.aborted_at):,} cut, with {record.excused:,} exchanges lost"
    )
    if record.rss:
        first, last, most = (f"{octets / (1 << 20):.1f}" for octets in (record.rss[0], record.rss[-1], max(record.rss)))
        click.echo(f"memory {first} MiB at first, {last} MiB at last, {most} MiB at most")
        click.echo(f"open files {record.files[0]} at first, {record.files[-1]} at last, {max(record.files)} at most")


@click.command()
@click.option("--seconds", type=click.FloatRange(1, 86_400), default=60, show_default=True, help="How long.")
@click.option("--connections", type=click.IntRange(1, 200), default=4, show_default=True, help="From clients.")
@click.option("--streams", type=click.IntRange(1, 100), default=8, show_default=True, help="Exchanges at once on each.")
@click.option("--engine", type=click.Choice(["auto", "nghttp2", "h2"]), default="auto", show_default=True)
@click.option("--seed", type=int, default=1, show_default=True, help="Of all chance.")
@click.option("--abort-share", type=click.FloatRange(0, 1), default=0.1, show_default=True, help="Upstream connections that are cut instead of sent away.")  # fmt: skip  # noqa: E501 – one option, one line
def main(seconds: float, connections: int, streams: int, engine: str, seed: int, abort_share: float) -> None:
    """Soak the sidecar in mixed traffic; exit code 1 when something was not as it must be."""
    wrong = asyncio.run(_run(seconds, connections, streams, engine, seed, abort_share))
    for sentence in wrong:
        click.echo(f"✘ {sentence}")
    click.echo("✔ as it must be" if not wrong else f"{len(wrong)} things are wrong")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main(prog_name="python -m tests.load.soak")
