"""Start and end of the program, with one worker and with several: signals, draining, deadlines, ports in use."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.integration.live_exchange import live, one_or_two, tell
from tests.support.chain import Routes, StartChain
from tests.support.namespaces import unshared
from tests.support.peers.sockets import Gone, Peer, Server
from tests.support.pipes import open_with
from tests.support.processes import program
from tests.support.sidecar import Sidecar, sidecar, worker_pids

# ---- draining


@pytest.mark.asyncio
@one_or_two
@pytest.mark.parametrize(
    ("number", "whole_group"),
    [
        (signal.SIGTERM, False),
        (signal.SIGINT, True),
        (signal.SIGTERM, True),
        (signal.SIGQUIT, False),
        (signal.SIGQUIT, True),
    ],
    ids=["terminated", "ctrl-c", "group-terminated", "quit", "ctrl-backslash"],
)
async def test_new_requests_are_refused_and_live_streams_finish(
    chain: StartChain, workers: int, number: signal.Signals, whole_group: bool
) -> None:
    async with live(chain, workers) as it:
        tell(it.pid, number, whole_group)
        await it.draining()
        await it.refused()
        await it.finished()
        assert await it.sidecar.program.ended() == 0
        assert not [line for line in it.sidecar.program.lines if "Traceback" in line or '"severity": "ERROR"' in line]


@pytest.mark.asyncio
@one_or_two
async def test_live_streams_are_aborted_after_the_drain_timeout(chain: StartChain, workers: int) -> None:
    async with live(chain, workers, "--drain-timeout", "1") as it:
        loop = asyncio.get_running_loop()
        started = loop.time()
        it.sidecar.program.send(signal.SIGTERM)
        await it.aborted()
        assert await it.sidecar.program.ended() == 0
        # The default is 30 s; more than 1 s is time that a busy machine needs.
        assert loop.time() - started < 25


@pytest.mark.asyncio
@one_or_two
@pytest.mark.parametrize("whole_group", [False, True], ids=["parent", "group"])
async def test_a_second_signal_aborts_at_once(chain: StartChain, workers: int, whole_group: bool) -> None:
    async with live(chain, workers) as it:
        tell(it.pid, signal.SIGINT, whole_group)
        await it.draining()
        assert await it.client.ping() == b"12345678"
        tell(it.pid, signal.SIGINT, whole_group)
        await it.aborted()
        assert await it.sidecar.program.ended(within_seconds=5) == 0


@pytest.mark.asyncio
@one_or_two
async def test_an_idle_sidecar_exits_at_once_and_sends_go_away(chain: StartChain, workers: int) -> None:
    flags = ["--workers", str(workers), *(["--admin", "off"] if workers > 1 else [])]
    async with chain(*flags) as (running, _, client):
        assert await client.ping() == b"12345678"
        _, silent = await asyncio.open_connection(*running.address)
        _, http1 = await asyncio.open_connection(*running.address)
        http1.write(b"GET /nothing HTTP/1.1\r\nhost: localhost\r\n\r\n")
        running.program.send(signal.SIGTERM)
        assert (await client.went_away).error_code == 0
        assert await running.program.ended(within_seconds=5) == 0
        silent.close()
        http1.close()


@pytest.mark.asyncio
@one_or_two
async def test_the_sidecar_drains_without_uvloop(chain: StartChain, tmp_path: Path, workers: int) -> None:
    (tmp_path / "uvloop.py").write_text("raise ImportError\n")
    slow = {"PYTHONPATH": str(tmp_path), "PYTHONASYNCIODEBUG": "1"}
    async with live(chain, workers, "--drain-timeout", "1", env=slow) as it:
        _, silent = await asyncio.open_connection(*it.sidecar.address)
        reader, http1 = await asyncio.open_connection(*it.sidecar.address)
        http1.write(b"GET /nothing HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 404")
        it.sidecar.program.send(signal.SIGTERM)
        await it.aborted()
        assert await it.sidecar.program.ended(within_seconds=5) == 0
        silent.close()
        http1.close()


@pytest.mark.asyncio
@one_or_two
@pytest.mark.parametrize("second_signal", [False, True])
async def test_an_http1_request_without_a_response_is_answered_when_it_is_aborted(
    chain: StartChain, workers: int, second_signal: bool
) -> None:
    async with http1_exchange(chain, workers, second_signal) as (running, upstream, reader):
        await upstream.request()
        await end(running, second_signal)
        answer = (await reader.read()).lower()
        assert answer.startswith(b"http/1.1 503 service unavailable\r\n")
        assert b"\r\nconnection: close\r\n" in answer
        assert answer.endswith(b"the sidecar is shutting down, and waits no longer for the service\n")
        assert await running.program.ended() == 0


@pytest.mark.asyncio
@one_or_two
@pytest.mark.parametrize("second_signal", [False, True])
async def test_an_http1_response_that_has_begun_does_not_end_when_it_is_aborted(
    chain: StartChain, workers: int, second_signal: bool
) -> None:
    async with http1_exchange(chain, workers, second_signal) as (running, upstream, reader):
        peer, stream, _, _ = await upstream.request()
        peer.respond(stream)
        await peer.send(stream, b"some")
        assert (await reader.readuntil(b"some")).startswith(b"HTTP/1.1 200")
        await end(running, second_signal)
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() in (b"", b"\r\n")  # the end of the chunk, and none of the content
        assert await running.program.ended() == 0


@asynccontextmanager
async def http1_exchange(
    chain: StartChain, workers: int, second_signal: bool
) -> AsyncIterator[tuple[Sidecar, Server, asyncio.StreamReader]]:
    """Send a request by HTTP/1.1 to a sidecar that drains for a second, or for a minute if a second signal comes."""
    async with chain("--workers", str(workers), "--drain-timeout", "60" if second_signal else "1") as (
        running,
        upstream,
        _,
    ):
        reader, writer = await asyncio.open_connection(*running.address)
        writer.write(b"POST /svc/x HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n\r\nhi")
        yield running, upstream, reader
        writer.close()


async def end(running: Sidecar, second_signal: bool) -> None:
    running.program.send(signal.SIGTERM)
    if second_signal:
        await running.program.line('"draining"')
        running.program.send(signal.SIGTERM)


@pytest.mark.asyncio
async def test_clients_that_do_not_read_do_not_delay_the_exit(chain: StartChain) -> None:
    """Response data is queued for a client that gives no window, and for HTTP/1.1 clients that do not read."""
    async with (
        chain("--drain-timeout", "1", client_options={"acknowledging": False}) as (running, upstream, client),
        asyncio.TaskGroup() as sending,
    ):
        client.open("/svc/h2", end=True)
        _, http1 = await asyncio.open_connection(*running.address, limit=1)
        # The second request is read only after the first response, so a disconnect goes unnoticed.
        http1.write(b"GET /svc/http1 HTTP/1.1\r\nhost: localhost\r\n\r\n" * 2)
        peer, stream, _, _ = await upstream.request()
        streams = [stream, (await peer.request())[0]]
        for stream in streams:
            peer.respond(stream)
            sending.create_task(endless(peer, stream))
        await client.ping()
        running.program.send(signal.SIGTERM)
        assert await running.program.ended(within_seconds=6) == 0
        http1.close()
        await peer.close()


async def endless(peer: Peer, stream: int) -> None:
    with contextlib.suppress(Gone, Exception):
        while True:
            await peer.send(stream, bytes(65_536))


@pytest.mark.asyncio
@pytest.mark.parametrize("command", ["serve", "wait"])
async def test_process_1_of_a_container_can_be_ended_before_it_serves(tmp_path: Path, command: str) -> None:
    """The kernel drops signals for which process 1 has no handler."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    argv: list[str | Path] = [*unshared("--pid", "--fork", "--kill-child")]
    async with program(command, [*argv, sys.executable, "-m", "proxy", command, "--config", fifo]) as child:
        with await open_with(child.ended(within_seconds=None), fifo, "w"):
            os.kill(only_child(child.pid), signal.SIGTERM)
            assert await child.ended() == 128 + signal.SIGTERM


def only_child(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text())


# ---- signals that do not end the program

OTHERS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTOU, signal.SIGTTIN, signal.SIGPIPE)


@pytest.mark.asyncio
@one_or_two
@pytest.mark.parametrize("whole_group", [False, True], ids=["parent", "group"])
async def test_other_signals_do_not_end_the_sidecar(chain: StartChain, workers: int, whole_group: bool) -> None:
    async with live(chain, workers) as it:
        for number in OTHERS:
            tell(it.pid, number, whole_group)
        await it.sidecar.program.line("settings reloaded: nothing has changed")
        assert await it.client.ping() == b"12345678"
        it.sidecar.program.send(signal.SIGTERM)
        await it.draining()
        for number in OTHERS:
            tell(it.pid, number, whole_group)
        await it.finished()
        assert await it.sidecar.program.ended() == 0


@pytest.mark.asyncio
@one_or_two
async def test_other_signals_at_any_time_change_nothing(routes: Routes, tmp_path: Path, workers: int) -> None:
    """The whole group is signalled repeatedly, from the reading of the settings until the end."""
    text = routes(svc="https://127.0.0.1:1").read_bytes()
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    flags = ["--workers", str(workers), "--listen", "127.0.0.1:0", "--admin", "off", "--log-format", "json"]
    argv: list[str | Path] = [sys.executable, "-m", "proxy", "serve", "--config", fifo, *flags]
    async with program("serve", argv) as child, asyncio.TaskGroup() as tasks:
        settings = await open_with(child.ended(within_seconds=None), fifo, "w")

        async def signal_all() -> None:
            while child.returncode is None:
                for number in OTHERS:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(child.pid, number)
                await asyncio.sleep(0.002)  # it has to get on in between

        tasks.create_task(signal_all())
        with settings:
            settings.write(text)
        if workers == 1:
            await child.line("listening")
        else:
            await worker_pids(child)
        child.send(signal.SIGTERM)
        assert await child.ended() == 0


@pytest.mark.asyncio
@one_or_two
async def test_repeated_ending_signals_do_not_change_the_exit_code(routes: Routes, workers: int) -> None:
    config = routes(svc="https://127.0.0.1:1")
    async with sidecar("--config", config, "--workers", str(workers), "--admin", "off") as running:
        if workers > 1:
            await worker_pids(running.program)
        # Not `Program.send`: `Popen.send_signal` may reap the process, whose exit code is then lost to asyncio.
        process = os.pidfd_open(running.program.pid)
        while running.program.returncode is None:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(process, number)
            await asyncio.sleep(0)
        os.close(process)
        assert await running.program.ended() == 0


# ---- ports in use


@pytest.mark.asyncio
@one_or_two
@pytest.mark.parametrize("busy", ["listen", "admin", "unix"])
async def test_an_address_in_use_is_named_in_one_line(routes: Routes, tmp_path: Path, workers: int, busy: str) -> None:
    config = routes(svc="https://127.0.0.1:1")
    with socket.socket() as taken, socket.socket(socket.AF_UNIX) as taken_unix:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        taken_unix.bind(str(tmp_path / "s"))
        taken_unix.listen()
        address = f"unix:{tmp_path}/s" if busy == "unix" else f"127.0.0.1:{taken.getsockname()[1]}"
        flags = ["--listen", "127.0.0.1:0", "--admin", address] if busy == "admin" else ["--listen", address]
        argv = [sys.executable, "-m", "proxy", "serve", "--config", str(config), "--workers", str(workers), *flags]
        async with program("serve", argv) as child:
            assert await child.ended() == 1
            (said,) = [line for line in child.lines if "cannot listen" in line]
            assert said.startswith(f"cloudrun-sidecar: cannot listen on {address}")
            assert re.search("already in use", said)
            assert not any("Traceback" in line for line in child.lines)
        assert (tmp_path / "s").is_socket()


@pytest.mark.asyncio
@one_or_two
async def test_files_of_unix_sockets_that_belong_to_the_next_process_stay(
    routes: Routes, tmp_path: Path, workers: int
) -> None:
    config = routes(svc="https://127.0.0.1:1")
    files = [tmp_path / name for name in ("listen", "admin", "takeover-socket")]
    flags = [text for file in files for text in (f"--{file.name}", f"unix:{file}")]
    async with sidecar("--config", config, "--workers", str(workers), *flags) as running:
        with contextlib.ExitStack() as stack:
            for file in files:
                file.unlink()
                stack.enter_context(socket.socket(socket.AF_UNIX)).bind(str(file))
            await running.end()
            assert all(file.is_socket() for file in files)
