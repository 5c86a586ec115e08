"""`python -m tests.load.invocations`: what the sidecar costs a user of Restate.

A real restate-server calls the same private (emulated) Cloud Run service in turns: through the sidecar, and by itself
with its own Google authentication. Measured is what a caller of Restate's ingress sees: how long one invocation takes
when nothing else runs, and how many come to an end in a second with 50 under way. The service is written with
Restate's Python SDK, and shares a process with the callers and the emulated Google: it, and not the way there, is what
takes most of the time. So the difference between the two ways is the figure, and not what either takes.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import click

from tests.support.restate_server import RestateServer
from tests.support.world import World, world

__all__ = ["Way", "measure"]

IN_FLIGHT: Final = 50
WARM_INVOCATIONS: Final = 50


@dataclass
class Way:
    """How Restate reaches the service, and what came of each round."""

    label: str
    url: str
    gcp_id_token: bool
    milliseconds: list[float] = field(default_factory=list)
    """Median of a round's invocations, one at a time."""
    per_second: list[float] = field(default_factory=list)


async def _invoke(restate: RestateServer) -> float:
    """Return how long an invocation took, in seconds."""
    begun = time.perf_counter()
    answer = await restate.invoke("Greeter", "greet", "Ada")
    assert answer == (200, "Hello, Ada!"), answer
    return time.perf_counter() - begun


async def _round(restate: RestateServer, way: Way, invocations: int) -> None:
    answer = await restate.register(way.url, force=True, gcp_id_token=way.gcp_id_token)
    assert answer.status in (200, 201), answer.body
    for _ in range(WARM_INVOCATIONS):
        await _invoke(restate)
    alone = [await _invoke(restate) for _ in range(invocations)]
    way.milliseconds.append(1e3 * statistics.median(alone))
    left = iter(range(invocations * 4))

    async def caller() -> None:
        for _ in left:
            await _invoke(restate)

    begun = time.perf_counter()
    async with asyncio.TaskGroup() as callers:
        for _ in range(IN_FLIGHT):
            callers.create_task(caller())
    way.per_second.append(invocations * 4 / (time.perf_counter() - begun))


async def measure(here: World, *, rounds: int, invocations: int) -> tuple[Way, Way]:
    """Return both ways, measured in turns: through the sidecar, and by Restate's own authentication."""
    through = Way("through the sidecar", here.deployment_url, gcp_id_token=False)
    assert here.cloud_run.url
    native = Way("Restate's own authentication", here.cloud_run.url, gcp_id_token=True)
    for turn in range(rounds):
        for way in (through, native) if turn % 2 else (native, through):
            await _round(here.restate, way, invocations)
    return through, native


async def _main(rounds: int, invocations: int) -> None:
    with tempfile.TemporaryDirectory(prefix="cloudrun-sidecar-invocations-") as folder:
        async with world(Path(folder)) as here:
            ways = await measure(here, rounds=rounds, invocations=invocations)
    click.echo(f"{'':30}{'one at a time, p50':>20}{f'{IN_FLIGHT} under way':>18}   (median of {rounds})")
    for way in ways:
        click.echo(
            f"{way.label:30}{statistics.median(way.milliseconds):17.2f} ms{statistics.median(way.per_second):16,.0f}/s"
        )


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--invocations", type=click.IntRange(10), default=200, show_default=True, help="One at a time, a round.")
def main(rounds: int, invocations: int) -> None:
    """Compare invocations through the sidecar with those of Restate's own Google authentication."""
    asyncio.run(_main(rounds, invocations))


if __name__ == "__main__":
    main(prog_name="python -m tests.load.invocations")
