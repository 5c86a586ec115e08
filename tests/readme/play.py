"""`unshare --net python -m tests.readme.play`: somebody follows the README to the letter, without a network.

A network namespace of its own lets every port of the README be free. In it are a restate-server and an emulated Google
under its real names; `gcloud` is a stand-in that takes exactly the options it knows and does to that Google what the
real one does. So the page is right only when the roles, flags and settings that it names are enough.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import shlex
import shutil
import socket
import struct
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import click

from proxy.emulator import API_HOSTS, Certificates, CloudRun, CloudRunServer, Google, GoogleServer
from proxy.emulator.cloud_run import Application
from tests.demo.service import app
from tests.readme.gcloud import Gcloud
from tests.support.processes import Program, ProgramFailed, program
from tests.support.readme import REPOSITORY, Block, blocks, commands
from tests.support.restate_server import RestateServer
from tests.support.world import resolving

__all__ = ["main"]

SERVICE_HOST: Final = "greeter-123456789012.europe-west1.run.app"
SERVICE_ADDRESS: Final = "127.0.0.2"
GOOGLE_ADDRESS: Final = "127.0.0.3"
BINARY: Final = ".venv/bin/cloudrun-sidecar"
STOOD_IN: Final = ("docker", "kubectl", "export", "python3", "install", "systemctl")
"""Commands whose blocks are not for here: there is no engine and no cluster."""


class Wrong(Exception):
    """The README says something that is not so."""


def loopback_up() -> None:
    """Bring the namespace's loopback interface up (netdevice(7))."""
    with socket.socket() as any_socket:
        flags = struct.pack("16sh14x", b"lo", 0x1)  # IFF_UP
        fcntl.ioctl(any_socket, 0x8914, flags)  # SIOCSIFFLAGS


@dataclass
class Reader:
    """Who follows the page: a folder with the repository in it, and a shell."""

    folder: Path
    environment: dict[str, str | None]
    stack: AsyncExitStack
    serving: Program | None = None
    run: list[str] = field(default_factory=list)

    async def read(self, block: Block) -> None:
        """Do what a block shows."""
        if block.language == "toml":
            (self.folder / "config" / "routes.toml").write_text(block.text)
        if block.language != "console" or any(one.startswith(STOOD_IN) for one in commands(block)):
            return
        for command in commands(block):
            await self.type(command)
            self.run.append(command)

    async def type(self, command: str) -> None:
        """Run one command; raises Wrong when it does not do what the page says."""
        words = shlex.split(command)
        if words[0] == "make":
            await self.make(words[1])
        elif words[:2] == [BINARY, "serve"]:
            self.serving = await self.stack.enter_async_context(
                program("serve", ["bash", "-c", f"cd {self.folder} && exec {command}"], env=self.environment)
            )
            await self.serving.answers("http://127.0.0.1:9091/readyz")
        else:
            output = await self.shell(command)
            if words[0] == "curl":
                self.answered(command, output)

    async def make(self, target: str) -> None:
        """Run a target that is about running; of the others, see that nothing is left to do or that they are there."""
        if target == "demo":
            output = await self.shell("make --no-print-directory demo ONCE=1")
            if "Hello, Ada!" not in output:
                raise Wrong(f"the demo did not greet:\n{output}")
        elif target == "setup":
            await self.shell("make --no-print-directory --question setup")
        else:
            await self.shell(f"make --dry-run {target}")

    async def shell(self, command: str) -> str:
        """Return what a command prints; raises Wrong when it fails."""
        try:
            async with program(
                command, ["bash", "-c", f"cd {self.folder} && {command}"], env=self.environment
            ) as running:
                status = await running.ended(within_seconds=120.0)
                output = "\n".join(running.lines)
        except ProgramFailed as exc:
            raise Wrong(f"$ {command}\n{exc}") from exc
        if status:
            raise Wrong(f"$ {command}\nended with {status}:\n{output}")
        return output

    def answered(self, command: str, output: str) -> None:
        """Hold an answer to what it is the answer to."""
        body = re.search(r"\{.*\}", output, re.DOTALL)
        names = {service["name"] for service in json.loads(body[0])["services"]} if body else set()
        if names != {"Greeter"}:
            raise Wrong(f"$ {command}\nanswered\n{output}")


@asynccontextmanager
async def google(folder: Path) -> AsyncIterator[tuple[dict[str, str | None], Gcloud]]:
    """Run Google, with nothing in it but what `gcloud` will put there; yields the environment of the reader."""
    emulated, certificates = Google(), Certificates.create(folder / "google")
    cloud_run = CloudRun(cast(Application, app), emulated, url=f"https://{SERVICE_HOST}", invokers=[])
    async with (
        GoogleServer(emulated, certificates, host=GOOGLE_ADDRESS, tls_port=443),
        CloudRunServer(cloud_run, certificates, host=SERVICE_ADDRESS, port=443, names=(SERVICE_HOST,)),
    ):
        environment: dict[str, str | None] = dict(resolving(folder, GOOGLE_ADDRESS))
        hosts = [f"{GOOGLE_ADDRESS} {name}" for name in API_HOSTS] + [f"{SERVICE_ADDRESS} {SERVICE_HOST}"]
        (folder / "hosts").write_text("\n".join(hosts) + "\n")
        environment |= {
            "SSL_CERT_FILE": str(certificates.ca_file),
            "CURL_CA_BUNDLE": str(certificates.ca_file),
            "CLOUDSDK_CONFIG": str(folder / "gcloud"),
            "GOOGLE_APPLICATION_CREDENTIALS": None,
            "NO_COLOR": "1",
        }
        yield environment, Gcloud(emulated, cloud_run, folder)


def lay_out(folder: Path) -> None:
    """Have a folder look like a clone: links to everything, and a copy of what somebody may edit."""
    for entry in REPOSITORY.iterdir():
        if entry.name not in ("config", ".git"):
            (folder / entry.name).symlink_to(entry)
    shutil.copytree(REPOSITORY / "config", folder / "config", ignore=shutil.ignore_patterns("routes.toml"))


async def follow(say: Callable[[str], Any]) -> None:
    """Follow the README from top to bottom; raises Wrong."""
    loopback_up()
    with tempfile.TemporaryDirectory(prefix="cloudrun-sidecar-readme-") as name:
        place = Path(name)
        clone = place / "clone"
        clone.mkdir()
        lay_out(clone)
        async with AsyncExitStack() as stack:
            environment, gcloud = await stack.enter_async_context(google(place))
            await stack.enter_async_context(gcloud.on_path(environment))
            reader = Reader(clone, environment, stack)
            pages = blocks()
            first = next(index for index, block in enumerate(pages) if block.text.startswith("$ make demo"))
            await reader.read(pages[first])
            data = place / "restate"
            data.mkdir()
            await stack.enter_async_context(RestateServer.running(data, admin_port=9070, ingress_port=8080))
            for block in pages[first + 1 :]:
                await reader.read(block)
            for command in reader.run:
                say(f"$ {command}")
            gcloud.check()
            assert reader.serving is not None
            if await reader.serving.stop() != 0:
                raise Wrong(f"serve ended with {reader.serving.returncode}")


def main() -> int:
    """Return 0 when the README is right, 1 with what is wrong otherwise."""
    os.environ.pop("LD_PRELOAD", None)
    try:
        asyncio.run(follow(click.echo))
    except Wrong as exc:
        click.echo(exc, err=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
