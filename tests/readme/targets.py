"""`python -m tests.readme.targets [TARGET...]`: run the README's long make targets in a new clone, all or these.

What is not committed is not in the clone. Takes an hour or more, and root for `make image`.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import click

from tests.readme.shell import Shell
from tests.readme.stages import Stage, assigned
from tests.shipping.steps import Wrong, check, step
from tests.support.readme import REPOSITORY

__all__ = ["main"]

LONGEST_SECONDS: Final = 3600.0
QUICK: Final = {
    "make bench": "make bench QUICK=1",
    "make cluster": "make cluster ARGS='--phase-seconds 20'",
    "make fuzz": "make fuzz SECONDS=60",
    # The image is that of `make image`.
    "make release-check": "make release-check ARGS='--rehearsal --once --no-image'",
    "make soak": "make soak ARGS='--seconds 1 --rate 5'",
}
OURSELVES: Final = "make readme"


async def follow(place: Path, commands: Sequence[str]) -> None:
    """Run the commands in a new clone; raises Wrong."""
    environment: dict[str, str | None] = {"PATH": f"{os.environ['PATH']}:{place}/uv/bin"}
    around = Shell(place, environment, within_seconds=LONGEST_SECONDS)
    clone = Shell(place / "clone", environment, within_seconds=LONGEST_SECONDS)
    with step("git clone"):
        await around.type(f"git clone --quiet {REPOSITORY} clone")
    needing_uv = {"make lock", "make oldest", "make release-check"} & set(commands)
    if needing_uv:
        with step(f"install uv, which {', '.join(sorted(needing_uv))} need"):
            await around.type("python3 -m venv uv && uv/bin/pip install --quiet uv")
    for command in commands:
        with step(f"$ {command}"):
            await clone.type(QUICK.get(command, command))


@click.command()
@click.argument("targets", nargs=-1)
def main(targets: tuple[str, ...]) -> None:
    """Run every long make target that the README names, in a new clone, or only these."""
    known = [command for command in assigned(Stage.TARGETS) if command != OURSELVES]
    wanted = [f"make {target}" for target in targets] or known
    try:
        check(set(wanted) <= set(known), f"the README has {', '.join(known)}")
        with TemporaryDirectory(prefix="cloudrun-sidecar-targets-") as name:
            asyncio.run(follow(Path(name), wanted))
    except Wrong as exc:
        click.echo(f"\n{click.style('failed:', fg='red')} {exc}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main(prog_name="python -m tests.readme.targets")
