"""The command of the soak."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from pathlib import Path

import click

from tests.soak.conclusion import conclude
from tests.soak.run import Plan, soak


@click.command()
@click.option("--seconds", type=click.FloatRange(1, 864_000), default=60, show_default=True, help="How long, at least.")
@click.option("--rate", type=click.FloatRange(0.1, 10_000), default=20, show_default=True, help="Invocations a second.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of what goes wrong, and when.")
@click.option("--workers", type=click.IntRange(1, 16), default=2, show_default=True, help="Of the sidecar.")
@click.option("--engine", type=click.Choice(["auto", "nghttp2", "h2"]), default="auto", show_default=True)
@click.option("--restarts/--no-restarts", default=True, show_default=True, help="Replace, restart and kill it, too.")
def main(seconds: float, rate: float, seed: int, workers: int, engine: str, restarts: bool) -> None:
    """Let everything go wrong around the sidecar; exit code 1 if an invocation is lost, doubled or wrong."""
    logging.disable()  # of the emulated services, whose connections are cut
    plan = Plan(seconds=seconds, per_second=rate, seed=seed, workers=workers, engine=engine, restarts=restarts)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        report = asyncio.run(soak(plan, Path(folder)))
    conclude(report.lines(), report.wrong)


if __name__ == "__main__":
    main(prog_name="python -m tests.soak")
