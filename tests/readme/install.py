"""`unshare --mount python -m tests.readme.install`: install the system service as root, exactly as in the README.

In a mount namespace of its own: what is written to /etc and /opt covers what the machine has there, and is gone at the
end. The source distribution is the one that `make dist` builds, the virtual environment and what is installed into it
are real. `systemctl` is a stand-in, which starts the installed unit.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import click

from tests.readme.shell import Shell
from tests.readme.stages import Stage, program_of, within
from tests.readme.stand_in import on_path
from tests.readme.surroundings import clone
from tests.readme.systemctl import UNITS, Systemctl
from tests.shipping.dist import NO_COMPILER, constraints, source_distribution
from tests.shipping.steps import Wrong, check
from tests.support.readme import blocks, commands

__all__ = ["main"]

COVERED: Final = (Path("/etc"), Path("/opt"))


def cover(folder: Path, place: Path) -> None:
    """Redirect all writes below the folder to `place`; mounts in the folder stay."""
    mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    before, written, work = (place / f"{folder.name}-{what}" for what in ("before", "written", "work"))
    for made in (before, written, work):
        made.mkdir()
    mount("--rbind", folder, before)
    layers = f"lowerdir={before},upperdir={written},workdir={work}"
    mount("--types", "overlay", "--options", layers, "overlay", folder)
    for point in mounted:
        if Path(point).is_relative_to(folder) and point != str(folder):
            mount("--bind", before / Path(point).relative_to(folder), point)


def mount(*arguments: str | Path) -> None:
    """Mount; raises Wrong."""
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    check(done.returncode == 0, done.stderr)


async def follow(place: Path, say: Callable[[str], Any]) -> None:
    """Run the commands of the block, in a clone with the README's settings and source distribution."""
    folder = clone(place)
    settings = [block.text for block in blocks() if block.language == "toml"]
    (folder / "config/routes.toml").write_text(settings[-1])
    (folder / "dist").mkdir()
    source_distribution(folder / "dist")
    async with on_path(place, {"systemctl": Systemctl().do}) as path:
        # Locked versions, so that new releases do not break the test. No compiler: `make dist` tests that, in minutes.
        # No bytecode either: most of it is never used. "0" is how pip wants this one.
        pip = {"PIP_CONSTRAINT": str(constraints(place)), "PIP_NO_COMPILE": "0"}
        shell = Shell(folder, {"PATH": path, **pip, **NO_COMPILER})
        for block in within(Stage.INSTALL):
            for command in commands(block):
                check(program_of(command) in Stage.INSTALL.programs, f"# {command}\nis not for here")
                await shell.type(command)
                say(f"$ {command}")
    check(any(UNITS.glob("*.wants/cloudrun-sidecar.service")), "the unit is not enabled")


def main() -> int:
    """Return 0 if the service was installed and ran; otherwise print the problem and return 1."""
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cloudrun-sidecar-install-")))
        try:
            mount("--types", "tmpfs", "--options", "mode=755", "tmpfs", place)
            for folder in COVERED:
                cover(folder, place)
            asyncio.run(follow(place, click.echo))
        except Wrong as exc:
            click.echo(exc, err=True)
            return 1
        finally:
            for folder in reversed(COVERED):
                subprocess.run(["umount", "--recursive", "--lazy", folder], capture_output=True, check=False)
            subprocess.run(["umount", "--recursive", "--lazy", place], capture_output=True, check=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
