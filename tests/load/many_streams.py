"""`python -m tests.load.many_streams`: thousands of streams echo for minutes, end, and come again; what they take.

With its defaults the sidecar has room for 6,400 streams to one service: 64 connections of 100 streams, which is what
Cloud Run takes. `max_upstream_connections` is the setting for more.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from tests.load.cost import Process
from tests.load.places import Processors
from tests.load.streams import StreamsClient
from tests.load.upstreams import Site, echo_upstream, google
from tests.support.sidecar import sidecar

__all__ = ["Measured", "main"]

_ON_A_CONNECTION: Final = 1_000
_UPSTREAM_STREAMS: Final = 100
_CLOSED_SECONDS: Final = 3.0
_REUSE_SLACK: Final = 1.1


@dataclass(frozen=True, slots=True)
class Measured:
    """Resident octets, and messages that came back."""

    idle: int
    opened: int
    """With all streams open, before the first message."""
    echoed: int
    """With all streams open, after the last message."""
    closed: int
    """After all of them have ended."""
    again: int
    """With as many new streams open, after they have echoed, too."""
    messages: int

    def stream_octets(self, streams: int) -> int:
        """Return what one stream takes."""
        return (self.echoed - self.idle) // streams

    def wrong(self) -> list[str]:
        """Return what is wrong, a sentence each."""
        if self.again > self.echoed * _REUSE_SLACK:
            return [f"memory is not used again: {self.echoed:,} octets at first, then {self.again:,}"]
        return []


async def _measure(streams: int, seconds: float, engine: str) -> Measured:
    processors = Processors.of_this_machine()
    connections = -(-streams // _ON_A_CONNECTION)
    with tempfile.TemporaryDirectory(prefix="streams-") as name, ThreadPoolExecutor(connections) as threads:
        site = Site.create(Path(name))
        async with google(Path(name) / "google", processors) as source, echo_upstream(site, processors) as (_, port):
            flags = ["--route", f"bench=https://127.0.0.1:{port}", "--upstream-ca", str(site.certificates.ca_file)]
            flags += ["--max-upstream-connections", str(-(-streams // _UPSTREAM_STREAMS) + 1)]
            async with sidecar(*flags, "--http2-engine", engine, env=source.environment) as running:
                process = Process(running.program.pid)
                listening = running.address[1]
                with StreamsClient(listening, "/bench/echo") as first:
                    first.open(1)
                idle = process.rss_octets()
                loop = asyncio.get_running_loop()
                samples: list[int] = []
                messages = 0
                for _ in range(2):
                    with ExitStack() as stack:
                        clients = [
                            stack.enter_context(StreamsClient(listening, "/bench/echo")) for _ in range(connections)
                        ]
                        opening = [
                            loop.run_in_executor(threads, client.open, streams // connections) for client in clients
                        ]
                        await asyncio.gather(*opening)
                        samples.append(process.rss_octets())
                        bouncing = [loop.run_in_executor(threads, client.bounce, seconds) for client in clients]
                        messages += sum(count for count, *_ in await asyncio.gather(*bouncing))
                        samples.append(process.rss_octets())
                    await asyncio.sleep(_CLOSED_SECONDS)
                    samples.append(process.rss_octets())
                opened, echoed, closed, _, again, _ = samples
                return Measured(idle, opened, echoed, closed, again, messages)


@click.command()
@click.option("--streams", type=click.IntRange(1, 60_000), default=10_000, show_default=True, help="At once.")
@click.option("--seconds", type=click.FloatRange(1, 36_000), default=120, show_default=True, help="How long, twice.")
@click.option("--engine", type=click.Choice(["auto", "nghttp2", "h2"]), default="auto", show_default=True)
def main(streams: int, seconds: float, engine: str) -> None:
    """Echo on many streams at once; exit code 1 if a stream fails, or memory is neither returned nor used again."""
    started = time.monotonic()
    measured = asyncio.run(_measure(streams, seconds, engine))
    click.echo(f"{measured.messages:,} messages on {streams:,} streams, twice, in {time.monotonic() - started:,.0f} s")
    for name in ("idle", "opened", "echoed", "closed", "again"):
        click.echo(f"  {getattr(measured, name) / (1 << 20):7.1f} MiB {name}")
    click.echo(f"{measured.stream_octets(streams) / 1024:.1f} KiB a stream")
    for sentence in (wrong := measured.wrong()):
        click.echo(f"✘ {sentence}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main(prog_name="python -m tests.load.many_streams")
