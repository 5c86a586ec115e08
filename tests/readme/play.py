"""`unshare --net python -m tests.readme.play`: run the README's commands exactly, without a network.

A network namespace of its own lets every port of the README be free. In it are a restate-server and an emulated Google
under its real names; `gcloud` and `kubectl` are stand-ins that take exactly the options they know and do what the real
ones do, to that Google and to a cluster's idea of what is right. So the page is right only when the roles, flags and
settings that it names are enough. First come the blocks, from top to bottom, then the commands in prose and tables.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import click

from tests.readme.kubectl import Kubectl
from tests.readme.shell import Shell
from tests.readme.stages import Stage, complete, program_of, stage_of
from tests.readme.stand_in import on_path
from tests.readme.surroundings import ADDRESSES, Surroundings, clone, google, loopback_up
from tests.shipping.steps import Wrong
from tests.support.processes import Program
from tests.support.readme import Block, blocks, commands, inline_commands
from tests.support.restate_server import RestateServer
from tests.support.world import resolving

__all__ = ["main"]

BINARY: Final = ".venv/bin/cloudrun-sidecar"


@dataclass
class Reader:
    """Runs the README's commands in a shell, in a folder with the repository."""

    shell: Shell
    stack: AsyncExitStack
    say: Callable[[str], Any]
    restate: RestateServer | None = None
    serving: Program | None = None
    emulating: Program | None = None
    done: set[str] = field(default_factory=set)

    async def read(self, block: Block) -> None:
        """Run the commands of a block, unless another program does."""
        if block.language == "toml":
            (self.shell.folder / "config" / "routes.toml").write_text(block.text)
        if block.language == "console" and stage_of(block) is Stage.PLAY:
            for command in commands(block):
                await self.type(command)
                self.say(f"$ {command}")

    async def read_inline(self, command: str) -> None:
        """Run a command in prose, unless a block has run it."""
        if complete(command) not in self.done:
            await self.type(complete(command))
        self.say(f"$ {command}")

    async def type(self, command: str) -> None:
        """Run one command; raises Wrong unless it does what the README says."""
        program = program_of(command)
        if program not in Stage.PLAY.programs:
            raise Wrong(f"$ {command}\ncannot be run here: {program} is unknown")
        if program == "make":
            await self.make(command)
        elif command.startswith(f"{BINARY} emulate"):
            self.emulating = await self.stack.enter_async_context(self.shell.running(command))
            await self.emulating.line("The emulated Google is ready")
        elif command.startswith(f"{BINARY} serve") and "--print-config" not in command:
            await self.serve(command)
        else:
            registers = command.startswith("restate deployments register")
            if registers and self.restate:
                await self.restate.forget()  # what `curl` and `register` have registered already
            output = await self.shell.type(command)
            if (
                (program == "curl" and "/emulator/" not in command)
                or registers
                or command.startswith(f"{BINARY} register")
            ):
                self.answered(command, output)
        self.done.add(command)

    async def make(self, command: str) -> None:
        """Run a target: the demo to its end. For the set-up, which runs this test, check that it is up to date."""
        match shlex.split(command)[1:]:
            case ["demo"] | ["demo", "ONCE=1"]:
                if "make demo ONCE=1" not in self.done:
                    output = await self.shell.type("make --no-print-directory demo ONCE=1")
                    if "Hello, Ada!" not in output:
                        raise Wrong(f"the demo did not greet:\n{output}")
                    self.done.add("make demo ONCE=1")
            case ["setup"]:
                await self.shell.type("make --no-print-directory --question setup")
            case _:
                raise Wrong(f"$ {command}\ncannot be run here: its duration is unknown")

    async def serve(self, command: str) -> None:
        """Start `serve` instead of the previous one; without a settings file if the command has routes."""
        await self.stop_serving()
        folder = self.shell.folder
        if "--route" in command:
            folder = folder.with_name("without-a-file")
            folder.mkdir()
            (folder / ".venv").symlink_to(self.shell.folder / ".venv")
        self.serving = await self.stack.enter_async_context(self.shell.running(command, folder))
        await self.serving.answers("http://127.0.0.1:9091/readyz")

    async def stop_serving(self) -> None:
        """Stop `serve` in order."""
        if self.serving and await self.serving.stop() != 0:
            raise Wrong(f"serve ended with {self.serving.returncode}")

    def answered(self, command: str, output: str) -> None:
        """Check the response to a command."""
        body = re.search(r"\{.*\}", output, re.DOTALL)
        names = {service["name"] for service in json.loads(body[0])["services"]} if body else output.split()
        if "Greeter" not in names:
            raise Wrong(f"$ {command}\nanswered\n{output}")


def environment(folder: Path, around: Surroundings, path: str) -> dict[str, str | None]:
    """Return the environment of the programs."""
    environment: dict[str, str | None] = dict(resolving(folder, ""))
    (folder / "hosts").write_text("".join(f"{address} {name}\n" for name, address in ADDRESSES.items()))
    return environment | {
        "PATH": path,
        "HOME": str(folder),
        "SSL_CERT_FILE": str(around.authority),
        "CURL_CA_BUNDLE": str(around.authority),
        "CLOUDSDK_CONFIG": None,
        "GOOGLE_APPLICATION_CREDENTIALS": None,
        "DO_NOT_TRACK": "1",
        "NO_COLOR": "1",
    }


async def follow(say: Callable[[str], Any]) -> None:
    """Run the README's commands: the blocks from top to bottom, then those in prose; raises Wrong."""
    loopback_up()
    with tempfile.TemporaryDirectory(prefix="cloudrun-sidecar-readme-") as name:
        place = Path(name)
        data = place / "restate"
        data.mkdir()
        async with AsyncExitStack() as stack:
            around = await stack.enter_async_context(google(place))
            programs = {"gcloud": around.gcloud.do, "kubectl": Kubectl().do}
            path = await stack.enter_async_context(on_path(place, programs))
            reader = Reader(Shell(clone(place), environment(place, around, path)), stack, say)
            pages = blocks()
            first = next(index for index, block in enumerate(pages) if block.text.startswith("$ make demo"))
            await reader.read(pages[first])
            # The section on open routes registers by path and by authority.
            running = RestateServer.running(
                data, admin_port=9070, ingress_port=8080, http_proxy="http://127.0.0.1:9081"
            )
            reader.restate = await stack.enter_async_context(running)
            for block in pages[first + 1 :]:
                await reader.read(block)
            for command in inline_commands():
                if stage_of(command) is Stage.PLAY:
                    await reader.read_inline(command)
            around.gcloud.check()
            await reader.stop_serving()
            if reader.emulating and await reader.emulating.stop() != 0:
                raise Wrong(f"emulate ended with {reader.emulating.returncode}")


def main() -> int:
    """Return 0 if the README is right; otherwise print the problem and return 1."""
    os.environ.pop("LD_PRELOAD", None)
    try:
        asyncio.run(follow(click.echo))
    except Wrong as exc:
        click.echo(exc, err=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
