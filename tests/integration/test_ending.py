"""Start and end of the program, with one worker and with several: signals, deadlines, crashes, ports in use."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from proxy.downstream.binding import bind_tcp
from tests.support.chain import StartChain
from tests.support.peers.sockets import Gone, Peer, Reset, client
from tests.support.processes import connections_on, program
from tests.support.sidecar import Sidecar, sidecar, worker_pids

Routes = Callable[..., Path]

one_or_two = pytest.mark.parametrize("workers", [1, 2])


@dataclass
class Live:
    """A sidecar with one exchange: a stream downstream and a stream upstream."""

    sidecar: Sidecar
    client: Peer
    stream: int
    peer: Peer
    upstream_stream: int
    idle: int | None
    """Process id of the worker without the exchange, if there are two workers."""

    @property
    def pid(self) -> int:
        return self.sidecar.program.pid

    async def draining(self) -> None:
        """Wait until the worker with the exchange drains, and the other one, if there is one, has exited."""
        await self.sidecar.program.line(r'"live": 1.*"draining"|"draining".*"live": 1')
        if self.idle is not None:
            await ended(self.idle)

    async def refused(self) -> None:
        """New requests get 503 with retry-after on an old connection and on a new one; no GOAWAY is sent."""
        async with client(*self.sidecar.address) as newcomer:
            for peer in (self.client, newcomer):
                await refused_by(peer)
        async with aiohttp.ClientSession() as http, http.get(f"http://{self.sidecar.admin}/readyz") as answer:
            assert answer.status == 503
        assert not self.client.went_away.done()

    async def finished(self) -> None:
        """Complete request and response."""
        await self.client.send(self.stream, b"last", end=True)
        assert await self.peer.body(self.upstream_stream) == b"last"
        await self.peer.send(self.upstream_stream, b"words", end=True)
        assert await self.client.body(self.stream) == b"words"
        assert (await self.client.went_away).error_code == 0
        await self.client.closed

    async def aborted(self) -> None:
        """Wait until the stream is reset."""
        with pytest.raises(Reset):
            await self.client.body(self.stream)


async def refused_by(peer: Peer) -> None:
    """A new request on this connection gets 503 with retry-after."""
    head = await peer.head(peer.open("/svc/late", end=True))
    assert (head[b":status"], head[b"x-cloudrun-sidecar-error"]) == (b"503", b"draining")
    assert 1 <= int(head[b"retry-after"]) <= 5


async def ended(pid: int) -> None:
    """Wait for the exit of a process that need not be our child."""
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop.add_reader(process, over.set)
    try:
        async with asyncio.timeout(20):
            await over.wait()
    finally:
        loop.remove_reader(process)
        os.close(process)


@asynccontextmanager
async def live(
    chain: StartChain, workers: int, *flags: str, env: Mapping[str, str] | None = None
) -> AsyncIterator[Live]:
    many = ["--workers", str(workers)]
    if workers > 1:
        many += ["--admin", free_address()]
    async with chain(*many, *flags, env=env) as (running, upstream, client):
        pids = await worker_pids(running.program) if workers > 1 else []
        stream = client.open("/svc/live")
        peer, upstream_stream, _, _ = await upstream.request()
        peer.respond(upstream_stream)
        await client.head(stream)
        idle = [pid for pid in pids if not connections_on(pid, running.address[1])]
        yield Live(running, client, stream, peer, upstream_stream, idle[0] if idle else None)


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def tell(pid: int, number: signal.Signals, whole_group: bool) -> None:
    """Signal the parent only, or the whole process group, as a terminal does."""
    (os.killpg if whole_group else os.kill)(pid, number)


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


# ---- signals that do not end the program

OTHERS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTOU, signal.SIGTTIN, signal.SIGPIPE)


@pytest.mark.asyncio
@one_or_two
@pytest.mark.parametrize("whole_group", [False, True], ids=["parent", "group"])
async def test_other_signals_end_nothing(chain: StartChain, workers: int, whole_group: bool) -> None:
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
        settings = await asyncio.to_thread(open, fifo, "wb")  # returns when the program opens it, too

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


# ---- crashes


@pytest.mark.asyncio
async def test_workers_finish_live_streams_and_free_the_port_if_the_supervisor_is_killed(chain: StartChain) -> None:
    async with live(chain, 2) as it:
        workers = await worker_pids(it.sidecar.program)
        os.kill(it.pid, signal.SIGKILL)
        await it.draining()
        await refused_by(it.client)
        # A new supervisor can listen at once.
        with bind_tcp(*it.sidecar.address) as bound:
            bound.listen()
        await it.finished()
        for pid in workers:
            await ended(pid)


@pytest.mark.asyncio
async def test_workers_exit_after_the_drain_timeout_if_the_supervisor_is_killed(chain: StartChain) -> None:
    async with live(chain, 2, "--drain-timeout", "1") as it:
        workers = await worker_pids(it.sidecar.program)
        os.kill(it.pid, signal.SIGKILL)
        await it.aborted()
        for pid in workers:
            await ended(pid)


@pytest.mark.asyncio
async def test_after_the_death_of_a_worker_the_other_goes_on(chain: StartChain) -> None:
    async with live(chain, 2) as it:
        assert it.idle is not None
        os.kill(it.idle, signal.SIGKILL)
        await it.sidecar.program.line(rf'worker died: starting another.*"pid": {it.idle}, "signal": "SIGKILL"')
        # A new connection is served at once: it does not wait for the worker that starts.
        async with client(*it.sidecar.address) as newcomer:
            head = await newcomer.head(newcomer.open("/nowhere", end=True))
            assert head[b":status"] == b"404"
        await another_worker(it)
        it.sidecar.program.send(signal.SIGTERM)
        await it.sidecar.program.line(r'"live": 1.*"draining"|"draining".*"live": 1')
        await it.finished()
        assert await it.sidecar.program.ended() == 0


@pytest.mark.asyncio
async def test_the_death_of_a_worker_with_live_streams_ends_these_only(chain: StartChain) -> None:
    async with live(chain, 2) as it:
        (carrying,) = set(await worker_pids(it.sidecar.program)) - {it.idle}
        os.kill(carrying, signal.SIGKILL)
        with pytest.raises(Gone):
            await it.client.body(it.stream)
        with pytest.raises(Gone):
            await it.peer.body(it.upstream_stream)
        await another_worker(it)
        async with client(*it.sidecar.address) as newcomer:
            head = await newcomer.head(newcomer.open("/nowhere", end=True))
            assert head[b":status"] == b"404"
        it.sidecar.program.send(signal.SIGTERM)
        assert await it.sidecar.program.ended() == 0


@pytest.mark.asyncio
async def test_sigterm_to_one_worker_replaces_it_after_its_drain(chain: StartChain) -> None:
    async with live(chain, 2) as it:
        (carrying,) = set(await worker_pids(it.sidecar.program)) - {it.idle}
        os.kill(carrying, signal.SIGTERM)
        await it.sidecar.program.line(r'"live": 1.*"draining"|"draining".*"live": 1')
        # It gets no more connections.
        for _ in range(3):
            async with client(*it.sidecar.address) as newcomer:
                head = await newcomer.head(newcomer.open("/nowhere", end=True))
                assert head[b":status"] == b"404"
        await it.finished()
        await it.sidecar.program.line(rf'worker was told to end: starting another.*"pid": {carrying}, "exit_code": 0')
        await another_worker(it)
        it.sidecar.program.send(signal.SIGTERM)
        assert await it.sidecar.program.ended() == 0


async def another_worker(it: Live) -> int:
    """Wait until a third worker listens; return its process id."""
    first, second = await worker_pids(it.sidecar.program)
    said = await it.sidecar.program.line(rf'"worker": (?!{first}\b|{second}\b)(\d+)')
    return int(said.group(1))


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
