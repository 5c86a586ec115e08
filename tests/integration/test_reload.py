"""The settings file is edited while the sidecar serves: what changes, what stays, and what is said about it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from tests.support.peers.sockets import Peer, Server, client, server
from tests.support.pipes import open_with
from tests.support.processes import connections_to
from tests.support.sidecar import Sidecar, sidecar, worker_pids

one_or_two = pytest.mark.parametrize("workers", [1, 2])

REQUESTS = 600


def table(name: str, port: int) -> str:
    return f'[routes.{name}]\nurl = "http://127.0.0.1:{port}"\ngcp_id_token = false\n'


def save(file: Path, *parts: str) -> None:
    """Replace the file as most editors do: by a new one of the same name."""
    new = file.with_name("routes.toml.new")
    new.write_text("\n".join(parts))
    new.rename(file)


class Service:
    """An upstream that answers each request with its name, as many as it may."""

    def __init__(self, name: bytes, listening: Server) -> None:
        self.name = name
        self.port = listening.port
        self._listening = listening
        self._may_answer = asyncio.Semaphore(0)

    def allow(self, requests: int) -> None:
        for _ in range(requests):
            self._may_answer.release()

    async def serve(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            while True:
                tasks.create_task(self._answer(await self._listening.accepted()))

    async def _answer(self, peer: Peer) -> None:
        while True:
            stream, _, _ = await peer.request()
            await self._may_answer.acquire()
            peer.respond(stream, 200)
            await peer.send(stream, self.name, end=True)


@asynccontextmanager
async def service(name: bytes) -> AsyncIterator[Service]:
    async with server() as listening, asyncio.TaskGroup() as tasks:
        running = Service(name, listening)
        serving = tasks.create_task(running.serve())
        try:
            yield running
        finally:
            serving.cancel()


async def answers(it: Sidecar, path: str, connections: int) -> list[tuple[bytes, bytes]]:
    """Return status and content of a request on each of some new connections, which all workers share evenly."""
    found = []
    async with AsyncExitStack() as stack:
        for _ in range(connections):
            peer = await stack.enter_async_context(client(*it.address))
            stream = peer.open(path, end=True)
            head = await peer.head(stream)
            found.append((head[b":status"], await peer.body(stream)))
    return found


async def metrics(it: Sidecar) -> str:
    async with aiohttp.ClientSession() as http, http.get(f"http://{it.admin}/metrics") as page:
        return await page.text()


@pytest.mark.asyncio
@one_or_two
async def test_routes_added_changed_broken_and_removed_under_load_fail_no_request(workers: int, tmp_path: Path) -> None:
    config = tmp_path / "routes.toml"
    async with service(b"one") as one, service(b"two") as two, service(b"other") as other:
        save(config, table("svc", one.port))
        async with sidecar("--config", config, "--workers", str(workers)) as it:
            pids = [it.program.pid] if workers == 1 else await worker_pids(it.program)
            load = await asyncio.create_subprocess_exec(
                "h2load", f"-n{REQUESTS}", "-c4", "-m5", f"{it.url}/svc/x", stdout=asyncio.subprocess.PIPE
            )
            other.allow(100)
            two.allow(100)
            one.allow(100)

            save(config, table("svc", one.port), table("other", other.port))
            await it.program.line(r'"settings reloaded".*"routes_added": \["other"\]')
            assert {content for _, content in await answers(it, "/other/x", 2 * workers)} == {b"other"}
            one.allow(50)

            save(config, table("svc", two.port), table("other", other.port))
            await it.program.line(r'"settings reloaded".*"routes_changed": \["svc"\]')
            assert {content for _, content in await answers(it, "/svc/x", 2 * workers)} == {b"two"}
            one.allow(REQUESTS)
            two.allow(50)

            save(config, table("svc", two.port), '[routes.other]\nurl = "ftp://x"\nspeed = 1\n')
            line = (await it.program.line('"settings refused: those in force stay".*')).string
            assert f"{config}: routes.other.url: " in line
            assert f"{config}: routes.other.speed: is not a setting" in line
            assert {content for _, content in await answers(it, "/other/x", 2 * workers)} == {b"other"}
            assert "settings_last_reload_successful 0\n" in await metrics(it)
            two.allow(50)

            save(config, table("svc", two.port))
            await it.program.line(r'"settings reloaded".*"routes_removed": \["other"\]')
            await it.program.line(r'"routes removed: .*"routes": \["other"\]')
            assert {status for status, _ in await answers(it, "/other/x", 2 * workers)} == {b"404"}
            assert "settings_last_reload_successful 1\n" in await metrics(it)
            two.allow(REQUESTS)

            out, _ = await load.communicate()
            assert f"{REQUESTS} succeeded, 0 failed, 0 errored".encode() in out
            assert f"status codes: {REQUESTS} 2xx, 0 3xx, 0 4xx, 0 5xx".encode() in out
            assert all(connections_to(pid, two.port) for pid in pids)
            assert [connections_to(pid, gone.port) for pid in pids for gone in (one, other)] == [0, 0] * workers
            exposed = await metrics(it)
            assert 'route="svc"' in exposed
            assert 'route="other"' not in exposed
            assert {port for port in (one.port, two.port, other.port) if f":{port}" in exposed} == {two.port}


@pytest.mark.asyncio
async def test_a_stream_in_flight_keeps_its_route_and_then_its_connection_is_closed(tmp_path: Path) -> None:
    config = tmp_path / "routes.toml"
    async with server() as old, service(b"new") as new:
        save(config, table("svc", old.port))
        async with sidecar("--config", config) as it, client(*it.address) as near:
            stream = near.open("/svc/x")
            far, arrived, _, _ = await old.request()
            new.allow(1)
            save(config, table("svc", new.port))
            await it.program.line(r'"routes_changed": \["svc"\]')
            later = near.open("/svc/x", end=True)
            assert await near.body(later) == b"new"
            await near.send(stream, b"request", end=True)
            assert await far.body(arrived) == b"request"
            far.respond(arrived, 200)
            await far.send(arrived, b"response", end=True)
            assert await near.body(stream) == b"response"
            assert (await far.went_away).error_code == 0


@pytest.mark.asyncio
async def test_a_worker_that_stands_still_takes_new_settings_when_it_goes_on(tmp_path: Path) -> None:
    config = tmp_path / "routes.toml"
    async with service(b"one") as one:
        one.allow(4)
        save(config, table("svc", one.port))
        async with sidecar("--config", config, "--workers", "2", "--admin", "off") as it:
            (still, _) = await worker_pids(it.program)
            os.kill(still, signal.SIGSTOP)
            try:
                save(config, table("svc", one.port), table("other", one.port))
                await it.program.line('"workers have not answered: .*"workers": 1')
            finally:
                os.kill(still, signal.SIGCONT)
            it.program.send(signal.SIGHUP)  # each worker takes settings in their order
            await it.program.line('nothing has changed.*"workers": 2')
            assert await answers(it, "/other/x", 4) == [(b"200", b"one")] * 4
            assert [line for line in await it.end() if line["severity"] == "ERROR"] == []


@pytest.mark.asyncio
@one_or_two
async def test_log_settings_change_and_what_needs_a_restart_is_named(workers: int, tmp_path: Path) -> None:
    config = tmp_path / "routes.toml"
    save(config, table("svc", 1))
    async with sidecar("--config", config, "--workers", str(workers), "--admin", "off") as it:
        save(config, 'access_log = true\nlog_level = "debug"\nstream_window = 65536\n', table("svc", 1))
        await it.program.line('"changed settings need a restart".*"settings": \\["stream_window"\\]')
        await answers(it, "/svc/x", 2 * workers)
        await it.logged('"message": "exchange"', 2 * workers)
        save(config, 'access_log = true\nlog_level = "warning"\nmax_concurrent_streams = 200\n', table("svc", 1))
        await it.program.line('"changed settings need a restart".*"settings": \\["max_concurrent_streams"\\]')
        said = len(it.log())
        await answers(it, "/svc/x", 2 * workers)
        lines = await it.end()
        assert sum(line["message"] == "exchange" for line in lines) == 2 * workers
        assert "INFO" not in [line["severity"] for line in lines[said:]]


@pytest.mark.asyncio
@one_or_two
async def test_sighup_reloads_the_file(workers: int, tmp_path: Path) -> None:
    config = tmp_path / "routes.toml"
    save(config, table("svc", 1))
    async with sidecar("--config", config, "--workers", str(workers), "--admin", "off") as it:
        it.program.send(signal.SIGHUP)
        await it.program.line(f'"settings reloaded: nothing has changed", "file": "{config}"')


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("changed", "reported"),
    [("stream_window = true\n", "settings refused"), ("stream_window = 65536\n", "changed settings need a restart")],
)
@one_or_two
async def test_what_was_refused_or_needed_a_restart_is_reported_when_it_is_put_back(
    workers: int, changed: str, reported: str, tmp_path: Path
) -> None:
    config = tmp_path / "routes.toml"
    save(config, table("svc", 1))
    async with sidecar("--config", config, "--workers", str(workers), "--admin", "off") as it:
        save(config, changed, table("svc", 1))
        await it.program.line(f'"message": "{reported}')
        save(config, table("svc", 1))
        await it.program.line(f'"settings reloaded: nothing has changed", "file": "{config}"')


@pytest.mark.asyncio
async def test_sighup_without_a_file_says_that_nothing_can_have_changed() -> None:
    async with sidecar("--route", "svc=http://127.0.0.1:1", "--no-gcp-id-token") as it:
        it.program.send(signal.SIGHUP)
        await it.program.line('"settings reloaded: nothing has changed", "file": "none: all settings are flags')


@pytest.mark.asyncio
@pytest.mark.parametrize("name", ["/dev/stdin", "fifo"])
async def test_settings_from_a_pipe_cannot_be_read_again_and_sighup_says_so(name: str, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "proxy", "serve", "--listen", "127.0.0.1:0", "--admin", "off"]
    text = table("svc", 1)
    if name == "fifo":
        os.mkfifo(tmp_path / "fifo")
        name = str(tmp_path / "fifo")
    running = await asyncio.create_subprocess_exec(
        *argv, "--config", name, stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert running.stdin is not None
    assert running.stderr is not None
    if name == "/dev/stdin":
        running.stdin.write(text.encode())
        running.stdin.close()
    else:
        with await open_with(running.wait(), Path(name), "w") as pipe:
            pipe.write(text.encode())
    assert b"listening" in await running.stderr.readline()
    running.send_signal(signal.SIGHUP)
    assert (
        f"{name}: is not a regular file, and cannot be read a second time".encode() in await running.stderr.readline()
    )
    running.terminate()
    assert await running.wait() == 0


@pytest.mark.asyncio
@one_or_two
async def test_a_change_of_links_in_a_kubernetes_volume_is_noticed(workers: int, tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"..{number}").mkdir()
        (tmp_path / f"..{number}" / "routes.toml").write_text(table(f"svc{number}", 1))
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "routes.toml").symlink_to("..data/routes.toml")
    flags = ("--config", tmp_path / "routes.toml", "--workers", str(workers), "--admin", "off")
    async with sidecar(*flags) as it:
        (tmp_path / "..data_tmp").symlink_to("..2")
        (tmp_path / "..data_tmp").rename(tmp_path / "..data")
        await it.program.line(r'"settings reloaded".*"routes_added": \["svc2"\], "routes_removed": \["svc1"\]')
        assert {status for status, _ in await answers(it, "/svc1/x", 2 * workers)} == {b"404"}
