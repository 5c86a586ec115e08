"""Runs the README's Docker commands as an ordinary user with the stand-in, and checks their effects."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import aiohttp
import click

from tests.readme.shell import Shell
from tests.readme.stages import Stage, program_of, stage_of
from tests.readme.stand_in import Does, on_path
from tests.readme.surroundings import ADDRESSES, Surroundings, google
from tests.shipping.buildah import Builder, Image
from tests.shipping.docker import Docker, Up
from tests.shipping.steps import check, step
from tests.support.readme import REPOSITORY, Block, blocks, commands, parts

__all__ = ["SIDECAR", "Reader"]

SIDECAR: Final = "cloudrun-sidecar"
READER: Final = 1000
"""User id of an ordinary user."""
INVOKER: Final = "restate-invoker@my-project.iam.gserviceaccount.com"
EMULATED_INVOKER: Final = "restate-invoker@emulated.iam.gserviceaccount.com"


@dataclass
class Reader:
    """Runs the README's Docker commands in a shell, and inspects the engine."""

    builder: Builder
    folder: Path
    ran: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.docker = Docker(self.builder, self.folder)

    async def follow(self) -> None:
        """Run each block, and the commands in prose after it, without running containers before; raises Wrong."""
        for number, (block, after) in enumerate(chapters()):
            async with self.shell(block, self.folder / f"chapter-{number}") as (shell, around):
                for command in commands(block):
                    await self.type(command, shell)
                await self.look_at_what_is_up(around)
                for command in after:
                    await self.type(command, shell)
                if after:
                    await self.type([*commands(block)][-1], shell)
                    self.ran.pop()
                with step("all containers stop in order"):
                    await self.docker.down()

    @asynccontextmanager
    async def shell(self, block: Block, folder: Path) -> AsyncIterator[tuple[Shell, Surroundings | None]]:
        """Yield a shell for a block. Unless the block starts an emulated Google, one runs, set up as in the README."""
        home = folder / "home"
        home.mkdir(parents=True)
        os.chown(home, READER, READER)
        programs: dict[str, Does] = {"docker": self.docker.do}
        around = None
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self.docker.close)
            if "compose" not in block.text or "gcloud" in block.text:
                around = await stack.enter_async_context(google(folder))
                programs["gcloud"] = around.gcloud.do
            self.docker.put_into(ADDRESSES if around else {}, around.authority if around else None)
            path = await stack.enter_async_context(on_path(folder, programs))
            environment: dict[str, str | None] = {**dict.fromkeys(os.environ), "PATH": path, "HOME": str(home)}
            shell = Shell(REPOSITORY, environment, within_seconds=900.0, user=READER)
            if around:
                for command in on_googles_side():
                    await shell.type(command)
            yield shell, around

    async def type(self, command: str, shell: Shell) -> None:
        """Run one command, and check its effect."""
        check(program_of(command) in Stage.IMAGE.programs, f"$ {command}\nis not for here")
        with step(f"$ {textwrap.shorten(command, 74, placeholder='…')}"):
            if command.startswith("docker run "):
                await self.stay(command, shell, workers=1)
                await self.stay(f"{command} --workers 2", shell, workers=2)
            else:
                output = await shell.type(command)
                greeted = ", Ada!" in output or '"name":"Greeter"' in output
                check(greeted or program_of(command) != "curl", f"$ {command}\nanswered\n{output}")
        self.ran.append(command)
        if command.startswith("docker build "):
            with step("look into the image"):
                look(self.builder, self.builder.inspect(SIDECAR))

    async def stay(self, command: str, shell: Shell, *, workers: int) -> None:
        """Run the image in the foreground, and check the number of workers."""
        async with shell.running(command) as terminal:
            await terminal.answers("http://127.0.0.1:9091/readyz")
            await self.docker.up[SIDECAR].healthy()
            await look_at_the_sidecar(self.docker.up[SIDECAR])
            status = await terminal.stop(within_seconds=60)
        check(status == 0, f"$ {command}\nended with {status}:\n{terminal.tail()}")
        check(sum('"listening"' in line for line in terminal.lines) == workers, terminal.tail())

    async def look_at_what_is_up(self, around: Surroundings | None) -> None:
        """Check the principal of the token, and the properties of the sidecar's image."""
        for name, one in self.docker.up.items():
            if name.startswith("sidecar"):
                with step(f"{name}: the compiled engine is in use, and nothing can be written"):
                    await look_at_the_sidecar(one)
        if "sidecar-gcloud" in self.docker.up and around:
            with step("the token was for the account that the developer's credentials impersonate"):
                called_by = {seen.claims["email"] for seen in around.container.discoveries()}
                check(called_by == {INVOKER}, f"the service was called by {called_by}")
        if "google" in self.docker.up:
            with step("the token was minted by IAM Credentials, for the impersonated account"):
                await look_at_google(self.docker.up["google"])


def chapters() -> Iterator[tuple[Block, list[str]]]:
    """Yield each block with Docker commands, and the commands in prose after it."""
    mine = [part for part in parts() if not isinstance(part, Block) or part.language == "console"]
    mine = [part for part in mine if stage_of(part) is Stage.IMAGE]
    starts = [number for number, part in enumerate(mine) if isinstance(part, Block)]
    for start, end in zip(starts, [*starts[1:], len(mine)], strict=True):
        block = mine[start]
        assert isinstance(block, Block)
        yield block, [str(part) for part in mine[start + 1 : end]]


def on_googles_side() -> Sequence[str]:
    """Return the commands of the blocks with `gcloud` only, which a reader has run before."""
    every = [list(commands(block)) for block in blocks() if block.language == "console"]
    return [one for block in every if {program_of(one) for one in block} == {"gcloud"} for one in block]


def look(made: Builder, image: Image) -> None:
    """Check the promises about the sidecar's image."""
    check(image.user == "65532:65532", f"the user is {image.user}")
    check(image.entrypoint == ("cloudrun-sidecar",), f"the entrypoint is {image.entrypoint}")
    check(image.health_command == ("cloudrun-sidecar", "healthcheck"), f"the check is {image.health_command}")
    root = made.mounted(image)
    tools = {"sh", "bash", "dash", "apt-get", "dpkg", "pip", "pip3", "perl", "gcc"}
    found = [
        str(path) for path in root.rglob("*") if path.name in tools and path.is_file() and os.access(path, os.X_OK)
    ]
    check(not found, f"there is {', '.join(found)}")
    privileged = [str(path) for path in root.rglob("*") if path.is_file() and path.stat().st_mode & 0o6000]
    check(not privileged, f"these have setuid or setgid: {', '.join(privileged)}")
    octets = sum(path.lstat().st_size for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    click.echo(f"     {octets >> 20} MiB, {len(list((root / 'var/lib/dpkg/status.d').iterdir()))} Debian packages")
    check(octets < 150 << 20, f"it has {octets >> 20} MiB")


async def look_at_the_sidecar(one: Up) -> None:
    """Check in a container that it is fast, and cannot write."""
    await one.program.line(r'"engine": ?"libnghttp2 ')
    status, said = await one.container.execute("python3", "-c", "open('/home/nonroot/x', 'w')")
    check(status == 1 and "Read-only file system" in said, said)


async def look_at_google(one: Up) -> None:
    """Check in the emulator which principal called the service, and which minted its token."""
    line = await one.program.line(r"^the container saw (.*/invoke/Greeter/greet.*)$")
    email = json.loads(line[1])["claims"]["email"]
    check(email == EMULATED_INVOKER, f"it is for {email}")
    async with aiohttp.ClientSession() as http, http.get("http://127.0.0.1:80/emulator/state") as response:
        mints = (await response.json())["mints"]
    check(mints["iam"] == 2 and mints["metadata"] == 0, f"the mints are {mints}")
