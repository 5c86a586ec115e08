"""The proxies that are compared: what each is called, whether it can be had here, and how it is started."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from tests.load import peer_configs
from tests.load.cost import Process
from tests.load.peer_configs import Way
from tests.load.places import (
    Processors,
    Unavailable,
    install_envoy,
    listens,
    locate,
    run_program,
    version_of,
)
from tests.load.plain_forwarder import SETTINGS as HYPERCORN_SETTINGS
from tests.load.targets import COMPILED, PLAIN, PORTABLE
from tests.support.ports import free_port
from tests.support.processes import Program, ProgramFailed

__all__ = [
    "Contender",
    "Running",
    "Surroundings",
    "admin_address",
    "contenders",
    "with_environment",
    "with_more_routes",
]

Environment = Mapping[str, str | None]
ROUTE: Final = "bench"
_ATTEMPTS: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a contender is put into."""

    folder: Path
    """For its configuration."""
    processors: Processors
    upstream_port: int
    ca_file: Path
    google: Environment
    """The environment in which the emulated Google is found."""
    authorization: str
    """What the peers send, which mint nothing: a token from the same Google, for the same audience."""


@dataclass(frozen=True, slots=True)
class Running:
    """A contender that takes requests."""

    program: Program
    process: Process
    port: int
    version: str


@dataclass(frozen=True, slots=True)
class Command:
    """How to start a program that listens on a given port."""

    argv: list[str | Path]
    env: Environment
    version: str
    """Empty for the sidecar, which announces it."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A proxy; `command` raises Unavailable where it cannot be had."""

    key: str
    label: str
    command: Callable[[Way, Surroundings], Awaitable[Command]]

    @asynccontextmanager
    async def running(self, around: Surroundings) -> AsyncIterator[Running]:
        """Run it on the proxy's processor for the time of a `with`; raises Unavailable or ProgramFailed at the start.

        If another program took the port in between, another port is tried.
        """
        for attempt in range(_ATTEMPTS):
            way = Way(
                port=free_port(),
                upstream_port=around.upstream_port,
                ca_file=around.ca_file,
                authorization=around.authorization,
            )
            command = await self.command(way, around)
            pinned = around.processors.prefix(proxy=True) + command.argv
            async with run_program(self.label, pinned, env=command.env) as program:
                try:
                    await listens(program, way.port)
                    version = command.version or await _announced(program)
                except ProgramFailed:
                    if attempt + 1 < _ATTEMPTS:
                        continue
                    raise
                yield Running(program, Process(program.pid), way.port, version)
                return

    async def check(self, around: Surroundings) -> str:
        """Return the version; raises Unavailable, with the reason, for what cannot be had or does not start."""
        try:
            async with self.running(around) as running:
                return running.version
        except ProgramFailed as exc:
            raise Unavailable(f"it does not start: {exc.reason}; {' '.join(exc.program.tail(1).split())}") from exc


def contenders(sidecar: Sequence[str | Path] = (sys.executable, "-m", "proxy")) -> list[Contender]:
    """Return all of them, the sidecar first; `sidecar` is its program."""
    return [
        Contender(COMPILED, "sidecar (nghttp2)", _sidecar(sidecar, "nghttp2")),
        Contender(PORTABLE, "sidecar (h2)", _sidecar(sidecar, "h2")),
        Contender("envoy", "Envoy", _envoy),
        Contender("nghttpx", "nghttpx", _nghttpx),
        Contender("haproxy", "HAProxy", _haproxy),
        Contender("cloud-run-proxy", "cloud-run-proxy", _cloud_run_proxy),
        Contender(PLAIN, "Hypercorn + h2", _plain),
    ]


def _sidecar(program: Sequence[str | Path], engine: str) -> Callable[[Way, Surroundings], Awaitable[Command]]:
    async def command(way: Way, around: Surroundings) -> Command:
        argv: list[str | Path] = [*program, "serve", "--http2-engine", engine]
        argv += ["--listen", f"127.0.0.1:{way.port}", "--admin", "127.0.0.1:0", "--log-format", "json"]
        # As many connections as 10,000 streams need at 100 each.
        argv += ["--upstream-ca", way.ca_file, "--max-upstream-connections", "128"]
        argv += ["--route", f"{ROUTE}=https://{way.authority}"]
        none: Environment = {"GOOGLE_APPLICATION_CREDENTIALS": None, "CLOUDSDK_CONFIG": "/nonexistent"}
        return Command(argv, {**none, **around.google}, "")

    return command


def with_environment(contender: Contender, environment: Environment, label: str = "") -> Contender:
    """Return this contender with these variables, and with another label if one is given."""

    async def command(way: Way, around: Surroundings) -> Command:
        found = await contender.command(way, around)
        return replace(found, env={**found.env, **environment})

    return replace(contender, label=label or contender.label, command=command)


def with_more_routes(sidecar: Contender, count: int) -> Contender:
    """Return this sidecar with so many more routes, to services that nothing calls."""

    async def command(way: Way, around: Surroundings) -> Command:
        plain = await sidecar.command(way, around)
        tables = (
            f'[routes."team-{number}/service"]\nurl = "https://service-{number}-123456789012.europe-west1.run.app"\n'
            for number in range(count)
        )
        return replace(plain, argv=[*plain.argv, "--config", _write(around, "routes.toml", "".join(tables))])

    return replace(sidecar, command=command)


async def admin_address(sidecar: Running) -> str:
    """Return host and port of its admin port."""
    return str((await _listening(sidecar.program))["admin"])


async def _announced(program: Program) -> str:
    """Return version and engine as the sidecar announces them."""
    said = await _listening(program)
    return f"{said['version']}, engine {said['engine']}"


async def _listening(program: Program) -> dict[str, Any]:
    said: dict[str, Any] = json.loads((await program.line(r'^\{.*"listening".*$'))[0])
    return said


async def _envoy(way: Way, around: Surroundings) -> Command:
    envoy = await install_envoy()
    config = _write(around, "envoy.json", peer_configs.envoy(way))
    argv: list[str | Path] = [envoy, "--config-path", config, "--concurrency", "1", "--disable-hot-restart"]
    return Command([*argv, "--log-level", "error"], {}, await version_of([envoy, "--version"]))


async def _nghttpx(way: Way, around: Surroundings) -> Command:
    nghttpx = locate("nghttpx", "Debian's nghttp2-proxy")
    config = _write(around, "nghttpx.conf", peer_configs.nghttpx(way))
    return Command([nghttpx, f"--conf={config}"], {}, await version_of([nghttpx, "--version"]))


async def _haproxy(way: Way, around: Surroundings) -> Command:
    haproxy = locate("haproxy", "Debian's haproxy")
    config = _write(around, "haproxy.cfg", peer_configs.haproxy(way))
    return Command([haproxy, "-db", "-f", config], {}, await version_of([haproxy, "-v"]))


async def _cloud_run_proxy(way: Way, around: Surroundings) -> Command:
    path = locate("cloud-run-proxy", "github.com/GoogleCloudPlatform/cloud-run-proxy")
    async with run_program("cloud-run-proxy", [path, "-help"]) as asked:
        await asked.ended()
        if not any("-http2" in line for line in asked.lines):
            raise Unavailable("this cloud-run-proxy has no -http2")
    argv: list[str | Path] = [path, "-http2", "-host", f"https://{way.authority}", "-bind", f"127.0.0.1:{way.port}"]
    # Unless told otherwise, it lengthens every user-agent, which the sidecar does not.
    argv += ["-token", way.authorization.removeprefix("Bearer "), "-prepend-user-agent=false"]
    environment = {"SSL_CERT_FILE": str(way.ca_file), "GOMAXPROCS": "1"}
    return Command(argv, environment, await version_of([path, "-version"]))


async def _plain(way: Way, around: Surroundings) -> Command:
    config = _write(around, "hypercorn.toml", HYPERCORN_SETTINGS.format(port=way.port))
    argv: list[str | Path] = [sys.executable, "-m", "hypercorn", "--config", config]
    environment = {
        "PLAIN_UPSTREAM": str(way.upstream_port),
        "PLAIN_CA": str(way.ca_file),
        "PLAIN_AUTHORIZATION": way.authorization,
    }
    return Command(
        [*argv, "tests.load.plain_forwarder:app"],
        environment,
        importlib.metadata.version("hypercorn"),
    )


def _write(around: Surroundings, name: str, text: str) -> Path:
    file = around.folder / name
    file.write_text(text)
    return file
