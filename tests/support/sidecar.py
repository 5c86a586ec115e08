"""The sidecar under test: the real command, unmodified, on free ports, with nothing but its flags and environment."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from proxy.network.address import parse_address
from tests.support.processes import Program, program

__all__ = ["Sidecar", "sidecar", "worker_pids"]


@dataclass(frozen=True, slots=True)
class Sidecar:
    """A running sidecar and where it listens."""

    program: Program
    listen: tuple[str, ...]
    admin: str

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the first listener."""
        return parse_address(self.listen[0])[:2]

    @property
    def url(self) -> str:
        """The first listener as a base URL."""
        return f"http://{self.listen[0]}"

    @property
    def resident_octets(self) -> int:
        """Resident memory of the process."""
        pages = int(Path(f"/proc/{self.program.pid}/statm").read_text().split()[1])
        return pages * 4096

    def log(self) -> list[dict[str, object]]:
        """Return its log lines so far."""
        return [json.loads(line) for line in self.program.lines if line.startswith("{")]

    async def logged(self, pattern: str, count: int = 1) -> list[dict[str, object]]:
        """Return the first `count` log lines in which the text matches; a line may come after what it tells of."""
        return [json.loads(match.string) for match in await self.program.matches(pattern, count)]

    async def end(self) -> list[dict[str, object]]:
        """End it by SIGTERM and return all its log lines."""
        await self.program.stop()
        return self.log()


@asynccontextmanager
async def sidecar(
    *flags: str | Path,
    env: Mapping[str, str | None] | None = None,
    log: Path | None = None,
    under: Sequence[str] = (),
    pass_fds: Sequence[int] = (),
) -> AsyncIterator[Sidecar]:
    """Run `cloudrun-sidecar serve` for the time of a `with`; ports are free ones unless the flags say otherwise.

    `under` is a command that executes the one that follows it, in other surroundings.
    """
    given = [str(flag) for flag in flags]
    argv: list[str | Path] = [*under, sys.executable, "-m", "proxy", "serve", "--log-format", "json"]
    if "--listen" not in given:
        argv += ["--listen", "127.0.0.1:0"]
    if "--admin" not in given:
        argv += ["--admin", "127.0.0.1:0"]
    own = {name: None for name in os.environ if name.startswith("CLOUDRUN_SIDECAR_")}
    clean = {**own, "GOOGLE_APPLICATION_CREDENTIALS": None, "CLOUDSDK_CONFIG": "/nonexistent", **(env or {})}
    async with program("cloudrun-sidecar", [*argv, *given], env=clean, log=log, pass_fds=pass_fds) as running:
        line = (await running.line(r'^\{.*"listening".*$')).group(0)
        said = json.loads(line)
        yield Sidecar(running, tuple(said["listen"]), said["admin"])


async def worker_pids(running: Program) -> list[int]:
    """Return the process ids of the two workers of a program once both listen."""
    first = await running.line(r'"listening".*"worker": (\d+)|"worker": (\d+).*"listening"')
    one = first.group(1) or first.group(2)
    other = await running.line(rf'"listening".*"worker": (?!{one}\b)(\d+)|"worker": (?!{one}\b)(\d+).*"listening"')
    return [int(one), int(other.group(1) or other.group(2))]
