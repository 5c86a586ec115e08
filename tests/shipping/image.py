"""`python -m tests.shipping.image`: run the README's Docker commands exactly, and check their effects.

`docker` is a stand-in: Buildah builds, and what docker-compose.yml says runs in the built images. The base image is a
Debian that debootstrap makes, Restate's is that with restate-server in it; `gcloud` and a real Cloud Run service are
emulated. At the end the sidecar in the image is measured beside nghttpx. Needs root and Debian's buildah, debootstrap
and nghttp2, no registry and no engine. What it makes, it removes.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from tests.readme.stages import Stage, assigned
from tests.readme.surroundings import loopback_up
from tests.shipping.buildah import Builder, BuildFailed
from tests.shipping.containers import isolated
from tests.shipping.docker_lines import SIDECAR, Reader
from tests.shipping.image_speed import look_at_the_speed
from tests.shipping.steps import Wrong, check, step
from tests.support.compose import load
from tests.support.processes import ProgramFailed
from tests.support.readme import REPOSITORY
from tests.support.restate_server import find_restate_server


def images(made: Builder, suite: str) -> None:
    """Make the images of registries, with their names in Dockerfile and compose file."""
    named = re.search(r"^ARG BASE=(\S+)$", (REPOSITORY / "Dockerfile").read_text(), re.MULTILINE)
    assert named
    with step(f"debootstrap {suite}"):
        made.base(named[1], suite)
    with step("make an image like Restate's"):
        restate = load(REPOSITORY / "docker-compose.yml", {})["restate"].image
        made.restate(restate, named[1], find_restate_server().resolve())


def inside(folder: Path, network: int, suite: str) -> None:
    """Run everything in new namespaces; raises BuildFailed, Wrong or ProgramFailed."""
    folder.chmod(0o755)
    loopback_up()
    made = Builder(folder, network)
    images(made, suite)
    reader = Reader(made, folder)
    asyncio.run(reader.follow())
    with step("the sidecar in the image is as fast as it is outside"):
        root = made.mounted(made.inspect(SIDECAR))
        (folder / "speed").mkdir()
        asyncio.run(look_at_the_speed(root, folder / "speed"))
    left_out = [command for command in assigned(Stage.IMAGE) if command not in reader.ran]
    check(not left_out, f"these commands of the pages were not run: {left_out}")


@click.command()
@click.option("--suite", default="trixie", show_default=True, help="Debian release that stands in for the base.")
@click.option("--inside", "place", hidden=True, nargs=2, type=(click.Path(path_type=Path), int))
def main(suite: str, place: tuple[Path, int] | None) -> None:
    """Run every command of the README that is about Docker, without Docker."""
    try:
        if place:
            inside(*place, suite)
            return
        check(os.geteuid() == 0, "Debian's base and its containers are made by root alone; run it as root")
        # The new namespace has no network. Package downloads use this one.
        network = os.open("/proc/self/ns/net", os.O_RDONLY)
        with TemporaryDirectory(prefix="cloudrun-sidecar-image-") as name:
            argv = ["-m", "tests.shipping.image", "--suite", suite, "--inside", name, str(network)]
            sys.exit(isolated(*argv, pass_fds=[network]))
    except (BuildFailed, FileNotFoundError, ProgramFailed, Wrong) as exc:
        click.echo(f"\n{click.style('failed:', fg='red')} {exc}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main(prog_name="python -m tests.shipping.image")
