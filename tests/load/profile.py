"""`python -m tests.load.profile`: instructions of one exchange, ours and nghttpx', by callgrind.

Instructions repeat where seconds do not: the same program with the same input takes as many of them whatever else the
machine does. All get the same requests (POST 1 KiB, one connection, 50 at a time) and the same TLS upstream; the first
requests, which set things up, are not counted. The sidecar is counted with the extra `otel` installed and traces off,
and again in an environment without OpenTelemetry: the numbers differ by chance only.

Under callgrind a program runs some 50 times slower. One that asks the clock how long it may go on does so too often
then: the sidecar serves what it has read for 2 ms a turn, and counted 15 to 40 % too many. So all have a monotonic
clock that goes 50 times slower (`slow_clock.c`, preloaded), and do what they do at their usual speed.
"""

from __future__ import annotations

import asyncio
import re
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Final

import click

from tests.load.contenders import ROUTE, Contender, Surroundings, contenders, with_environment
from tests.load.h2load import Load
from tests.load.peer_configs import Way
from tests.load.places import (
    Processors,
    Unavailable,
    compile_library,
    listens,
    locate,
    python_build,
    run_program,
)
from tests.load.targets import COMPILED
from tests.load.upstreams import Google, Site, google, static_upstream
from tests.support.packages import python_path_without
from tests.support.ports import free_port
from tests.support.processes import ProgramFailed

__all__ = ["SLOW_CLOCK", "layer", "main", "parse"]

WARM_REQUESTS: Final = 1_000
REQUESTS: Final = 3_000

# callgrind counts each repetition of `rep movsb` as an instruction: the C library is told to copy without it.
_TUNABLES: Final = "glibc.cpu.x86_rep_movsb_threshold=1073741824:glibc.cpu.x86_rep_stosb_threshold=1073741824"

SLOW_CLOCK: Final = Path(__file__).with_name("slow_clock.c")
"""The source of the clock that goes as slow as callgrind."""

_LAYERS: Final = (
    (re.compile(r"libnghttp2"), "libnghttp2"),
    (re.compile(r"libcrypto|libssl|_ssl"), "TLS"),
    (re.compile(r"uvloop"), "uvloop"),
    (re.compile(r"/proxy/"), "the sidecar's own modules"),
    (re.compile(r"slow_clock|libc\.so|libc-|ld-linux|libpthread|vgpreload"), "C library"),
    (re.compile(r"python"), "Python"),
)


def layer(object_file: str) -> str:
    """Return the layer that an object file belongs to."""
    return next((name for pattern, name in _LAYERS if pattern.search(object_file)), "other")


def parse(text: str) -> Counter[str]:
    """Return instructions by object file, of themselves without what they call, from a file that callgrind wrote."""
    names: dict[str, str] = {}
    found: Counter[str] = Counter()
    current, calls = "", False
    for line in text.splitlines():
        if match := re.match(r"(c?ob)=\((\d+)\)(?: (.*))?$", line):
            kind, number, name = match.groups()
            if name:
                names[number] = name
            if kind == "ob":
                current = names[number]
        elif line.startswith("calls="):
            calls = True
        elif re.match(r"[+\-*\d]", line):
            if not calls:
                found[current] += int(line.split()[1])
            calls = False
    return found


async def _profile(contender: Contender, around: Surroundings, requests: int) -> Counter[str]:
    """Return the instructions of so many requests by layer."""
    way = Way(
        port=free_port(),
        upstream_port=around.upstream_port,
        ca_file=around.ca_file,
        authorization=around.authorization,
    )
    command = await contender.command(way, around)
    out = around.folder / f"callgrind.{contender.key}"
    valgrind = [str(locate("valgrind", "Debian's valgrind")), "--tool=callgrind", "--instr-atstart=no"]
    valgrind += [f"--callgrind-out-file={out}", "--trace-children=yes", "--compress-pos=no", "--"]
    clock = await compile_library(SLOW_CLOCK, around.folder)
    env = {**command.env, "GLIBC_TUNABLES": _TUNABLES, "PYTHONHASHSEED": "0", "LD_PRELOAD": str(clock)}
    async with run_program(contender.label, [*valgrind, *command.argv], env=env) as program:
        await listens(program, way.port, within_seconds=120.0)
        load = Load(connections=1, streams=50, body=around.folder / "www" / "small")
        url = f"http://127.0.0.1:{way.port}/{ROUTE}/small"
        await _load(load, url, WARM_REQUESTS, around.folder)
        await _control("--instr=on", program.pid)
        # Meanwhile connections may have been closed that were idle.
        await _load(load, url, WARM_REQUESTS, around.folder)
        await _control("--zero", program.pid)
        await _load(load, url, requests, around.folder)
        await _control("--instr=off", program.pid)
        await _control("--dump", program.pid)
    written = sorted(around.folder.glob(f"callgrind.{contender.key}*"))
    total: Counter[str] = Counter()
    for file in written:
        for name, count in parse(file.read_text(errors="replace")).items():
            total[layer(name)] += count
    return total


async def _control(what: str, pid: int) -> None:
    async with run_program("callgrind_control", ["callgrind_control", what, str(pid)]) as control:
        await control.ended(within_seconds=60.0)


async def _load(load: Load, url: str, requests: int, folder: Path) -> None:
    h2load = locate("h2load", "Debian's nghttp2-client")
    argv = load.argv(str(h2load), url, requests, folder / "h2load.log")
    async with run_program("h2load", argv) as program:
        if await program.ended(within_seconds=300.0) != 0 or f"{requests} succeeded" not in "\n".join(program.lines):
            raise ProgramFailed(program, "did not succeed")


async def _run(folder: Path, requests: int) -> dict[str, Counter[str]]:
    processors = Processors.of_this_machine()
    site = Site.create(folder)
    wanted = [
        next(contender for contender in contenders() if contender.key == COMPILED),
        _without_opentelemetry(folder),
        next(contender for contender in contenders() if contender.key == "nghttpx"),
    ]
    async with google(folder / "google", processors) as source, static_upstream(site, processors) as port:
        around = await _surroundings(folder, processors, site, source, port)
        return {contender.label: await _profile(contender, around, requests) for contender in wanted}


def _without_opentelemetry(folder: Path) -> Contender:
    python_path = python_path_without("opentelemetry", folder)
    sidecar = contenders((sys.executable, "-S", "-m", "proxy"))[0]
    return replace(with_environment(sidecar, {"PYTHONPATH": python_path}, "without otel"), key="without-otel")


async def _surroundings(folder: Path, processors: Processors, site: Site, source: Google, port: int) -> Surroundings:
    return Surroundings(
        folder=folder,
        processors=processors,
        upstream_port=port,
        ca_file=site.certificates.ca_file,
        google=source.environment,
        authorization=await source.authorization(port),
    )


@click.command()
@click.option("--requests", type=click.IntRange(100), default=REQUESTS, show_default=True)
def main(requests: int) -> None:
    """Count the instructions of an exchange, by layer, beside nghttpx."""
    try:
        with tempfile.TemporaryDirectory(prefix="cloudrun-sidecar-profile-") as folder:
            found = asyncio.run(_run(Path(folder), requests))
    except (Unavailable, ProgramFailed) as exc:
        raise click.ClickException(str(exc)) from exc
    labels = list(found)
    layers = sorted({name for counts in found.values() for name in counts}, key=lambda name: -found[labels[0]][name])
    click.echo(f"{python_build()}\n\ninstructions of one exchange\n")
    click.echo(f"{'':28}" + "".join(f"{label:>20}" for label in labels))
    for name in layers:
        click.echo(f"{name:28}" + "".join(f"{found[label][name] / requests:20,.0f}" for label in labels))
    totals = [found[label].total() / requests for label in labels]
    click.echo(f"{'all':28}" + "".join(f"{total:20,.0f}" for total in totals))
    click.echo()
    for label, total in zip(labels[1:], totals[1:], strict=True):
        click.echo(f"{totals[0] / total:.4f} of {label}")


if __name__ == "__main__":
    main(prog_name="python -m tests.load.profile")
