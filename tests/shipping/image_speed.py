"""Measures the sidecar of the image and nghttpx, because users run what was compiled for the image."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

import click

from tests.load.contenders import contenders
from tests.load.figures import ratio, summarize
from tests.load.measuring import H2load
from tests.load.places import Processors
from tests.load.runner import Runner
from tests.load.targets import COMPILED
from tests.load.upstreams import Site, google
from tests.load.workloads import Plan
from tests.shipping.steps import Wrong, check

__all__ = ["look_at_the_speed"]

PEER: Final = "nghttpx"

AT_MOST: Final = 1.4
"""Limit relative to nghttpx' CPU. Short runs vary by a quarter; without -O3 the CPU is twice as much."""


async def look_at_the_speed(root: Path, folder: Path) -> None:
    """Measure the program that is installed in the file system `root`; raises Wrong."""
    processors, site = Processors.of_this_machine(), Site.create(folder)
    inside = Path(f"{root}{site.certificates.ca_file}")
    inside.parent.mkdir(parents=True)
    shutil.copy(site.certificates.ca_file, inside)
    program: list[str | Path] = ["chroot", root, "/opt/cloudrun-sidecar/bin/cloudrun-sidecar"]
    wanted = [one for one in contenders(program) if one.key in (COMPILED, PEER)]
    async with google(folder / "google", processors) as source:
        h2load = H2load(folder, processors)
        runner = Runner(Plan.quick(), site, processors, source, h2load, wanted, ["unary"], lambda text: None)
        await runner.run()
    summaries = summarize(runner.samples)["unary"]
    found = ratio(summaries, "cpu_us", COMPILED, PEER)
    if found is None:
        raise Wrong("; ".join(f"{key}: {one.void}" for key, one in summaries.items() if one.void))
    click.echo(f"     {found:.2f} of {PEER}' CPU a request, POST 1 KiB, 50 in flight")
    check(found <= AT_MOST, f"the sidecar in the image takes {found:.2f} of what {PEER} takes, more than {AT_MOST}")
