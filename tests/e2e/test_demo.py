"""The demo as a person runs it, and what it prints as a person would type it."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.demo.picture import PICTURE
from tests.support.processes import Program, program

DEMO = [sys.executable, "-m", "tests.demo"]
SECONDS = 60.0


@pytest.mark.asyncio
async def test_the_demo_shows_the_answer_and_what_the_container_saw() -> None:
    async with program("demo", [*DEMO, "--once", "--free-ports"]) as demo:
        assert await demo.ended(within_seconds=SECONDS) == 0, demo.tail()
    text = "\n".join(demo.lines)
    assert "→ 403 Forbidden" in text
    assert '"greeting": "Hello, Ada!"' in text
    assert "metadata@emulated.iam.gserviceaccount.com" in text
    assert "Bearer what-the-application-itself-expects" in text
    assert "\x1b" not in text
    assert [without_figures(line) for line in drawn()] == [without_figures(line) for line in demo.lines if line]


@pytest.mark.asyncio
async def test_the_commands_that_the_demo_prints_work_and_ctrl_c_stops_everything() -> None:
    async with program("demo", [*DEMO, "--free-ports"]) as demo:
        await demo.line("Ctrl-C stops everything", within_seconds=SECONDS)
        said = {purpose: await typed(command) for purpose, command in commands(demo)}
        children = children_of(demo.pid)
        assert len(children) == 3
        assert await demo.stop(signal.SIGINT, within_seconds=SECONDS) == 0
    assert '"greeting": "Welcome back, Ada!", "visits": 2' in said["call it again"]
    assert said["call Cloud Run without the sidecar"] == "403\n"
    assert "cloudrun-sidecar: the metadata server answered 500" in said["register again, and read the sidecar's reason"]
    assert '"server-error"' not in said["what Google saw"]
    assert said["is the sidecar ready?"]
    assert running(children) == []


@pytest.mark.asyncio
@pytest.mark.parametrize("how", ["flag", "variable"])
async def test_a_busy_port_is_named(how: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        flags = ["--ingress-port", str(port)] if how == "flag" else []
        env = {} if flags else {"DEMO_INGRESS_PORT": str(port)}
        async with program("demo", [*DEMO, "--once", "--free-ports", *flags], env=env) as demo:
            assert await demo.ended(within_seconds=SECONDS) == 2
    assert len(demo.lines) == 1
    assert f"port {port} is taken by another program" in demo.lines[0]
    assert "--ingress-port" in demo.lines[0]


@pytest.mark.asyncio
async def test_a_program_that_fails_is_named_with_its_last_output(tmp_path: Path) -> None:
    broken = tmp_path / "restate-server"
    broken.write_text("#!/bin/sh\necho my last words\nexit 7\n")
    broken.chmod(0o755)
    async with program("demo", [*DEMO, "--once", "--free-ports"], env={"RESTATE_SERVER": str(broken)}) as demo:
        await demo.line("cloudrun-sidecar ", within_seconds=SECONDS)
        children = children_of(demo.pid)
        assert await demo.ended(within_seconds=SECONDS) == 1
    text = "\n".join(demo.lines)
    assert "restate-server ended with 7" in text
    assert "my last words" in text
    assert "Traceback" not in text
    assert running(children) == []


@pytest.mark.asyncio
async def test_a_program_that_ends_later_ends_the_demo() -> None:
    async with program("demo", [*DEMO, "--free-ports"]) as demo:
        await demo.line("Ctrl-C stops everything", within_seconds=SECONDS)
        children = children_of(demo.pid)
        os.kill(children[-1], signal.SIGKILL)
        assert await demo.ended(within_seconds=SECONDS) == 1
    assert "ended by itself, with -9" in "\n".join(demo.lines)
    assert running(children) == []


@pytest.mark.asyncio
async def test_an_interrupted_demo_leaves_nothing_behind() -> None:
    async with program("demo", [*DEMO, "--free-ports"]) as demo:
        await demo.line("private Cloud Run service", within_seconds=SECONDS)
        children = children_of(demo.pid)
        assert children
        assert await demo.stop(signal.SIGINT, within_seconds=SECONDS) == 130
    assert "Traceback" not in "\n".join(demo.lines)
    assert running(children) == []


@pytest.mark.asyncio
async def test_a_demo_that_is_interrupted_before_it_has_begun_says_nothing(tmp_path: Path) -> None:
    # One of the first modules that it imports.
    (tmp_path / "aiohttp.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    async with program("demo", DEMO, env={"PYTHONPATH": str(tmp_path)}) as demo:
        assert await demo.ended(within_seconds=SECONDS) == 130
    assert demo.lines == []


@pytest.mark.asyncio
async def test_a_port_that_another_program_takes_meanwhile_is_named(tmp_path: Path) -> None:
    late = tmp_path / "restate-server"
    late.write_text(f"#!/bin/sh\nread line < {tmp_path}/fifo\nexit 7\n")
    late.chmod(0o755)
    os.mkfifo(tmp_path / "fifo")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [*DEMO, "--once", "--free-ports", "--ingress-port", str(port)]
    async with program("demo", words, env={"RESTATE_SERVER": str(late)}) as demo:
        await demo.line("cloudrun-sidecar ", within_seconds=SECONDS)
        with socket.create_server(("127.0.0.1", port)):
            (tmp_path / "fifo").write_text("taken\n")
            assert await demo.ended(within_seconds=SECONDS) == 2
    assert f"port {port} is taken by another program" in demo.lines[-1]
    assert "--ingress-port" in demo.lines[-1]


@pytest.mark.asyncio
async def test_the_settings_of_a_sidecar_of_the_user_are_not_those_of_the_demo(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text("nonsense = 1\n")
    env = {
        "CLOUDRUN_SIDECAR_CONFIG": str(mine),
        "CLOUDRUN_SIDECAR_LISTEN": "nonsense",
        "CLOUDRUN_SIDECAR_NONSENSE": "1",
    }
    async with program("demo", [*DEMO, "--once", "--free-ports"], env=env) as demo:
        assert await demo.ended(within_seconds=SECONDS) == 0, demo.tail()


@pytest.mark.asyncio
async def test_a_demo_that_is_killed_leaves_nothing_behind(tmp_path: Path) -> None:
    # But its folder: no process is left to remove it.
    async with program("demo", [*DEMO, "--free-ports"], env={"TMPDIR": str(tmp_path)}) as demo:
        await demo.line("Ctrl-C stops everything", within_seconds=SECONDS)
        ends = [ended(pid) for pid in children_of(demo.pid)]
        demo.send(signal.SIGKILL)
        async with asyncio.timeout(SECONDS):
            await asyncio.gather(*ends)


def drawn() -> list[str]:
    """Return the lines of the README's picture but the command; `python -m tests.demo.picture` draws it."""
    rows = ElementTree.parse(PICTURE).iter("{http://www.w3.org/2000/svg}text")
    return ["".join(row.itertext()) for row in rows][1:]


def without_figures(line: str) -> str:
    """Return a line without ports, times and dates, and the spaces between its columns."""
    return " ".join(re.sub(r"[0-9]+", "0", line).split())


def commands(demo: Program) -> list[tuple[str, str]]:
    """Return what the demo says may be typed: purpose and command."""
    lines = [line.strip() for line in demo.lines]
    return [(line[2:], lines[at + 1]) for at, line in enumerate(lines) if line.startswith("# ")]


async def typed(command: str) -> str:
    """Run a command in a shell as it stands, and return what it prints."""
    shell = await asyncio.create_subprocess_shell(command, stdout=asyncio.subprocess.PIPE)
    printed, _ = await shell.communicate()
    assert shell.returncode == 0, command
    return printed.decode()


async def ended(pid: int) -> None:
    """Return when the process has ended, whether or not it was started here."""
    over, descriptor = asyncio.Event(), os.pidfd_open(pid)
    asyncio.get_running_loop().add_reader(descriptor, over.set)
    try:
        await over.wait()
    finally:
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)


def running(pids: list[int]) -> list[int]:
    """Return those of the processes that have not ended."""
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def children_of(pid: int) -> list[int]:
    """Return the processes that this one has started and that run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # It has just ended.
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found
