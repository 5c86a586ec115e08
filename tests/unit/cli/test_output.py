"""Standard output that is closed, full, or without a reader, or whose encoding lacks a character."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import pytest

from proxy.admin import AdminPlane
from proxy.observe.health import RouteHealth
from proxy.observe.metrics import Metrics
from tests.support.live import StillState
from tests.support.processes import program
from tests.unit.cli.conftest import NO_CREDENTIALS

UNREACHABLE = ("--upstream", "https://127.0.0.1:1", "--no-gcp-id-token")
FULL = "cloudrun-sidecar: standard output cannot be written: No space left on device\n"
PRINTING = (
    ("--help",),
    ("--version",),
    ("serve", "--help"),
    ("serve", *UNREACHABLE, "--print-config"),
    ("check", "--help"),
    ("check", *UNREACHABLE),
    ("check", *UNREACHABLE, "--json"),
    ("register", "--help"),
    ("emulate",),
)
"""Commands that print something and need no other server; those of `check` fail."""


@dataclass
class State:
    started: bool = True
    draining: bool = False


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "proxy", *arguments]


def closing(closed: str, *arguments: str) -> list[str]:
    """Return the command that is run with these redirections of the shell."""
    return ["bash", "-c", f'exec "$@" {closed}', "bash", *command(*arguments)]


def run(argv: Sequence[str], **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv, capture_output=True, check=False, text=True, env={**os.environ, **NO_CREDENTIALS, **variables}
    )


@pytest.fixture
def unread() -> Iterator[int]:
    """The end of a pipe whose reader has gone, as in `| head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


# ---- closed


@pytest.mark.asyncio
@pytest.mark.parametrize("workers", ["1", "2"])
async def test_it_serves_with_stdout_closed(workers: str) -> None:
    flags = ("--listen", "127.0.0.1:0", "--admin", "off", "--workers", workers, "--log-format", "json")
    async with program("serve", closing(">&-", "serve", *UNREACHABLE, *flags)) as running:
        await running.line('"listening"')
        await running.stop()
    assert running.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(("check", *UNREACHABLE), 1), (("token", "--raw", "", "--upstream", "https://a"), 1), (("--help",), 0)],
)
@pytest.mark.parametrize("closed", [">&-", "<&- >&-"])
def test_a_command_ends_as_ever_with_stdout_closed(arguments: tuple[str, ...], code: int, closed: str) -> None:
    ran = run(closing(closed, *arguments))
    assert (ran.returncode, ran.stdout) == (code, "")
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("closed", [">&-", "<&- >&-", "<&- >&- 2>&-"])
def test_closed_streams_need_no_dev_null(closed: str) -> None:
    code = "import os; os.devnull = '/dev/nowhere'; from proxy.cli import main; main()"
    ran = run(["bash", "-c", f'exec "$@" {closed}', "bash", sys.executable, "-c", code, "check", *UNREACHABLE])
    assert (ran.returncode, ran.stderr) == (1, "")


# ---- full


@pytest.mark.parametrize("arguments", PRINTING, ids=" ".join)
def test_a_full_disk_is_told_in_one_sentence_and_fails_the_command(arguments: tuple[str, ...]) -> None:
    ran = run(closing(">/dev/full", *arguments))
    assert (ran.returncode, ran.stderr) == (1, FULL)


@pytest.mark.parametrize("arguments", PRINTING[:4], ids=" ".join)
def test_the_exit_code_tells_it_where_stderr_is_full_too(arguments: tuple[str, ...]) -> None:
    assert run(closing(">/dev/full 2>&1", *arguments)).returncode == 1


@pytest.mark.parametrize("arguments", [("serve",), ("check",), ("sreve",)])
def test_unusable_settings_have_their_exit_code_where_stderr_is_full(arguments: tuple[str, ...]) -> None:
    assert run(closing("2>/dev/full", *arguments)).returncode == 2


@pytest.mark.asyncio
@pytest.mark.parametrize("name", ["wait", "healthcheck"])
async def test_a_healthy_sidecar_is_healthy_where_stdout_is_full(name: str) -> None:
    metrics = Metrics()
    plane = AdminPlane("127.0.0.1:0", State(), metrics, RouteHealth(metrics), StillState())
    await plane.start()
    try:
        ran = await asyncio.to_thread(run, closing(">/dev/full", name, "--admin", plane.address))
    finally:
        await plane.close()
    assert (ran.returncode, ran.stderr) == (0, FULL)


# ---- without a reader


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(("--help",), 0), (("serve", *UNREACHABLE, "--print-config"), 0), (("check", *UNREACHABLE), 1)],
    ids=str,
)
def test_a_reader_that_has_gone_is_no_failure(arguments: tuple[str, ...], code: int, unread: int) -> None:
    ran = subprocess.run(command(*arguments), stdout=unread, stderr=subprocess.PIPE, check=False)
    assert (ran.returncode, ran.stderr) == (code, b"")


def test_a_pipe_that_does_not_block_is_waited_for() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    filled = 0
    with suppress(BlockingIOError):
        while True:
            filled += os.write(writer, bytes(4096))
    with subprocess.Popen(command("serve", "--help"), stdout=writer, stderr=subprocess.PIPE) as process:
        os.close(writer)
        assert process.stderr is not None
        with open(reader, "rb") as pipe:
            said = pipe.read()
        assert (said[filled:].startswith(b"Usage: "), process.stderr.read()) == (True, b"")
    assert process.returncode == 0


# ---- another encoding


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "latin-1:strict"])
@pytest.mark.parametrize("name", ["serve", "check", "register", "token", "emulate"])
def test_help_is_shown_in_any_encoding(name: str, encoding: str) -> None:
    ran = run(command(name, "--help"), PYTHONIOENCODING=encoding)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "Usage: " in ran.stdout


def test_a_character_that_the_encoding_lacks_is_escaped() -> None:
    shown = run(command("serve", "--help"), PYTHONIOENCODING="latin-1").stdout
    assert "https://greeter-\\u2026.run.app" in shown
