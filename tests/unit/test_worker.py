"""A worker in this process: start, signals, draining, failures."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import aiohttp
import pytest

from proxy.downstream.channel import ABORT, DRAIN, SETTINGS, Channel
from proxy.downstream.config import ListenerConfig, Sockets
from proxy.network.loop import report_unexpected
from proxy.network.service_manager import ServiceManager
from proxy.reloads import Reloads
from proxy.settings.model import RouteSettings
from proxy.settings.plain import PlainSettings
from proxy.supervisor.channel import WorkerChannel
from proxy.worker import Worker
from tests.support.peers.sockets import Peer, Reset, Server, client, server
from tests.support.settings import plain_settings as settings
from tests.support.signals import signals_restored

HOST = "127.0.0.1"


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    with signals_restored():
        yield


@pytest.fixture(scope="module")
def loaded() -> frozenset[str]:
    """The modules that are imported before serving."""
    code = "import sys, proxy.worker; print(*sys.modules)"
    return frozenset(
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout.split()
    )


async def running(
    given: PlainSettings,
    meanwhile: Callable[[Worker, int], Awaitable[None]],
    capsys: pytest.CaptureFixture[str],
    channel: Channel | None = None,
) -> str:
    """Run a worker while `meanwhile` looks at it, which has to end it; return what it logged.

    `meanwhile` is told the port that it listens on, 0 where it has a channel.
    """
    config = ListenerConfig(given.listen, 1)
    sockets = config.create_sockets() if channel is None else Sockets([], [], [])
    port = sockets.insecure_sockets[0].getsockname()[1] if channel is None else 0
    worker = Worker(given, asyncio.get_running_loop(), b"cloudrun-sidecar-0123456789abcdef")
    try:
        async with asyncio.TaskGroup() as tasks:
            reloads = Reloads(worker, asyncio.get_running_loop(), None)
            tasks.create_task(worker.run(config, channel or sockets, reloads, ServiceManager({}), None))
            await meanwhile(worker, port)
    finally:
        config.release(sockets)
    told = capsys.readouterr()
    return told.out + told.err


@pytest.mark.parametrize(
    "name",
    [
        "click",
        "pydantic",
        "prometheus_client",
        "google",
        "cryptography",
        "rich",
        "multiprocessing.spawn",
        "proxy.doctor",
        "proxy.emulator",
    ],
)
def test_optional_modules_are_not_imported_at_start(name: str, loaded: frozenset[str]) -> None:
    assert "aiohttp.web" in loaded
    assert name not in loaded


@pytest.mark.asyncio
async def test_a_worker_answers_and_drains(capsys: pytest.CaptureFixture[str]) -> None:
    async def look(worker: Worker, port: int) -> None:
        async with client(HOST, port) as near:
            head = await near.head(near.open("/nowhere", end=True))
            assert head[b":status"] == b"404"
            assert worker.started
            assert not worker.draining
            worker.ending.on_ending_signal()
            assert (await near.went_away).error_code == 0
            assert worker.draining

    said = await running(settings(), look, capsys)
    assert "listening" in said
    assert "drained" in said


@pytest.mark.asyncio
async def test_a_reload_allows_a_host_name_at_the_listener_and_at_the_admin_port(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def look(worker: Worker, port: int) -> None:
        async def statuses() -> list[int]:
            assert worker._admin is not None
            found = []
            for address in (f"{HOST}:{port}", worker._admin.address):
                async with http.get(f"http://{address}/livez", headers={"host": "yours.example"}) as response:
                    found.append(response.status)
            return found

        async with aiohttp.ClientSession() as http, client(HOST, port) as near:
            assert (await near.head(near.open("/nowhere", end=True)))[b":status"] == b"404"  # it has started
            assert await statuses() == [403, 403]
            worker.apply(settings(allowed_hosts=("yours.example",)))
            assert await statuses() == [404, 200]
        worker.ending.on_ending_signal()

    await running(settings(), look, capsys)


@pytest.mark.asyncio
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
async def test_a_second_signal_aborts_live_streams(number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    async with server() as far:  # a Cloud Run that never answers

        async def look(worker: Worker, port: int) -> None:
            async with client(HOST, port) as near:
                stream = near.open("/svc/x", end=True)
                await far.request()
                assert worker.listener.live_exchanges == 1
                os.kill(os.getpid(), number)
                while not worker.draining:
                    await near.ping()
                os.kill(os.getpid(), number)
                with pytest.raises(Reset):
                    await near.head(stream)

        routes = {"svc": RouteSettings(url=f"http://{HOST}:{far.port}", gcp_id_token=False, allow_http=True)}
        said = await running(settings(routes=routes, admin="off"), look, capsys)
        assert "second signal: aborting live exchanges" in said


@pytest.mark.asyncio
async def test_a_worker_carries_out_the_commands_of_its_supervisor(capsys: pytest.CaptureFixture[str]) -> None:
    ours, its = socket.socketpair()
    supervisor = WorkerChannel(ours)
    async with server() as far:

        async def look(worker: Worker, _: int) -> None:
            with socket.create_server((HOST, 0)) as listening:
                listening.setblocking(False)
                async with client(HOST, listening.getsockname()[1]) as near:
                    supervisor.hand_over((await asyncio.get_running_loop().sock_accept(listening))[0])
                    stream = near.open("/svc/x", end=True)
                    await far.request()
                    supervisor.send_command(DRAIN)
                    while not worker.draining:
                        await near.ping()
                    os.kill(os.getpid(), signal.SIGTERM)  # the whole group may be told
                    await near.ping()
                    assert not near.went_away.done()
                    supervisor.send_command(ABORT)
                    with pytest.raises(Reset):
                        await near.head(stream)

        routes = {"svc": RouteSettings(url=f"http://{HOST}:{far.port}", gcp_id_token=False, allow_http=True)}
        given = settings(routes=routes, admin="off")
        with its:
            said = await running(given, look, capsys, Channel(its, [("192.0.2.1", 9080)]))
        # In which format depends on what this process has logged before.
        assert re.search(rf'worker"?(=|: ){os.getpid()}\b', said)
        assert "192.0.2.1:9080" in said
    supervisor.read_reports()
    assert supervisor.connections == 0
    supervisor.close()


@pytest.mark.asyncio
async def test_settings_without_their_file_are_not_in_force(capsys: pytest.CaptureFixture[str]) -> None:
    ours, its = socket.socketpair()
    supervisor = WorkerChannel(ours)

    async def look(worker: Worker, _: int) -> None:
        supervisor.send_command(SETTINGS)  # the file is lost where the worker has no descriptor for it
        readable = asyncio.Event()
        asyncio.get_running_loop().add_reader(ours, readable.set)
        while not supervisor.settings_kept:
            await readable.wait()
            readable.clear()
            supervisor.read_reports()
        asyncio.get_running_loop().remove_reader(ours)
        supervisor.send_command(ABORT)

    with its:
        said = await running(settings(admin="off"), look, capsys, Channel(its, []))
    assert "the settings were lost on their way to a worker: limit of open files reached; raise it (ulimit -n)" in said
    assert "internal error" not in said
    supervisor.close()


@pytest.mark.asyncio
async def test_a_worker_whose_supervisor_has_exited_drains(capsys: pytest.CaptureFixture[str]) -> None:
    ours, its = socket.socketpair()
    ours.close()

    async def look(worker: Worker, _: int) -> None:
        """Do nothing: it ends by itself."""

    with its:
        assert "drained" in await running(settings(admin="off"), look, capsys, Channel(its, []))


@pytest.mark.asyncio
async def test_probes_show_start_and_draining(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = f"{tmp_path}/admin"

    async def look(worker: Worker, port: int) -> None:
        async with client(HOST, port) as near, aiohttp.ClientSession(connector=aiohttp.UnixConnector(path)) as http:
            await near.ping()
            for page in ("startupz", "readyz"):
                async with http.get(f"http://admin/{page}") as answer:
                    assert answer.status == 200
            worker.ending.drain()
            worker.ending.drain()

    said = await running(settings(admin=f"unix:{path}"), look, capsys)
    assert f"unix:{path}" in said
    with pytest.raises(OSError, match="No such file"), socket.socket(socket.AF_UNIX) as probe:
        probe.connect(path)


@pytest.mark.asyncio
async def test_closing_is_safe_before_the_start() -> None:
    worker = Worker(settings(), asyncio.get_running_loop(), b"cloudrun-sidecar-0123456789abcdef")
    await worker.close()
    assert not worker.started


@pytest.mark.asyncio
async def test_an_unexpected_error_is_logged_by_class_and_place_only(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise ValueError("ya29.secret")
    except ValueError as exc:
        report_unexpected(asyncio.get_running_loop(), {"message": "in a callback", "exception": exc})
    report_unexpected(asyncio.get_running_loop(), {"message": "slow"})
    told = capsys.readouterr()
    said = told.out + told.err
    assert "ValueError" in said
    assert "test_worker.py:" in said
    assert "secret" not in said


@pytest.mark.asyncio
async def test_routes_swapped_under_load_fail_no_exchange_and_leave_nothing_behind(
    capsys: pytest.CaptureFixture[str],
) -> None:
    answered = 0
    changed = asyncio.Condition()

    async def answer(peer: Peer) -> None:
        nonlocal answered
        while True:
            stream, _, _ = await peer.request()
            async with changed:
                answered += 1
                changed.notify_all()
            peer.respond(stream, 200)
            await peer.send(stream, b"done", end=True)

    async def answer_all(far: Server) -> None:
        async with asyncio.TaskGroup() as tasks:
            while True:
                tasks.create_task(answer(await far.accepted()))

    async def until_answered(number: int) -> None:
        async with changed:
            await changed.wait_for(lambda: answered >= number)

    def settings_for(port: int) -> PlainSettings:
        routes = {"svc": RouteSettings(url=f"http://{HOST}:{port}", gcp_id_token=False, allow_http=True)}
        return settings(routes=routes, admin="off")

    async with server() as one, server() as other, asyncio.TaskGroup() as answering:
        answers = [answering.create_task(answer_all(far)) for far in (one, other)]
        given = [settings_for(far.port) for far in (one, other)]

        async def look(worker: Worker, port: int) -> None:
            url = f"http://{HOST}:{port}/svc/x"
            load = await asyncio.create_subprocess_exec(
                "h2load", "-n600", "-c4", "-m5", url, stdout=asyncio.subprocess.PIPE
            )
            swaps = 0
            for number in range(20, 600, 20):
                await until_answered(number)
                swaps += 1
                worker.apply(given[swaps % 2])
            out, _ = await load.communicate()
            assert b"600 succeeded, 0 failed, 0 errored" in out
            assert b"status codes: 600 2xx, 0 3xx, 0 4xx, 0 5xx" in out
            left = (one, other)[1 - swaps % 2]
            await asyncio.gather(*(peer.closed for peer in left.peers))
            worker.ending.on_ending_signal()

        await running(settings_for(one.port), look, capsys)
        for task in answers:
            task.cancel()
