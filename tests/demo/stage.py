"""The programs of the demo: three real programs, unmodified, that only share addresses."""

from __future__ import annotations

import errno
import json
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.processes import Program, program
from tests.support.restate_server import RestateServer
from tests.support.sidecar import Sidecar, sidecar

__all__ = ["PortTaken", "Ports", "Stage", "emulated_google", "greeter_sidecar"]

START_SECONDS = 120.0
"""Under an emulated processor the emulator takes half a minute. A program that ends is noticed at once."""


class PortTaken(Exception):
    """A port of the demo is in use; the text is a sentence that names port and option."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """The ports on 127.0.0.1; 0 means a free one."""

    ingress: int
    restate_admin: int
    sidecar: int
    sidecar_admin: int
    cloud_run: int
    metadata: int

    def check(self) -> None:
        """Raise PortTaken for the first port that cannot be bound."""
        for name in self.__slots__:
            port = getattr(self, name)
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", port))
                    probe.listen()
                except OSError as exc:
                    if exc.errno != errno.EADDRINUSE:
                        raise
                    option = f"--{name.replace('_', '-')}-port"
                    raise PortTaken(
                        f"port {port} is taken by another program; stop that one, choose another port with {option}, "
                        "or take any with --free-ports (make demo ARGS=--free-ports)"
                    ) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """The running programs, all ready."""

    emulator: Program
    places: dict[str, Any]
    """The addresses of the emulated Google, from `cloudrun-sidecar emulate --json`."""
    sidecar: Sidecar
    restate: RestateServer

    @property
    def deployment_url(self) -> str:
        """The URL to register with Restate: the sidecar's address and the route's name."""
        return f"{self.sidecar.url}/greeter"


@asynccontextmanager
async def emulated_google(folder: Path, ports: Ports, app: str) -> AsyncIterator[tuple[Program, dict[str, Any]]]:
    """Run the emulator with an application in its Cloud Run service; yield it with its addresses."""
    argv: list[str | Path] = [
        sys.executable,
        "-m",
        "proxy",
        "emulate",
        "--json",
        "--app",
        app,
        "--directory",
        folder / "google",
    ]
    argv += ["--cloud-run-port", str(ports.cloud_run), "--metadata-port", str(ports.metadata)]
    async with program("cloudrun-sidecar emulate", argv, log=folder / "emulate.log") as emulator:
        announced = await emulator.line(r"^\{.*\}$", within_seconds=START_SECONDS)
        yield emulator, json.loads(announced[0])


@asynccontextmanager
async def greeter_sidecar(folder: Path, ports: Ports, places: dict[str, Any]) -> AsyncIterator[Sidecar]:
    """Run the sidecar with one route, `greeter`; yield it when it is ready."""
    settings = folder / "routes.toml"
    settings.touch()  # Without it, the user's own settings would be those of the demo.
    flags = ["--config", str(settings), "--route", f"greeter={places['cloud_run']}"]
    flags += ["--listen", f"127.0.0.1:{ports.sidecar}", "--admin", f"127.0.0.1:{ports.sidecar_admin}"]
    async with sidecar(*flags, env=places["environment"], log=folder / "sidecar.log") as running:
        await running.program.answers(f"http://{running.admin}/readyz", within_seconds=START_SECONDS)
        yield running
