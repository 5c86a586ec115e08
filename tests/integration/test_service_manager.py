"""What a service manager does for the sidecar: listening sockets that outlive it, notifications, a watchdog."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.support.chain import Routes
from tests.support.peers.sockets import client
from tests.support.processes import program
from tests.support.sidecar import sidecar, worker_pids

one_or_two = pytest.mark.parametrize("workers", [1, 2])
HOST = "127.0.0.1"


class Manager:
    """Receives notifications as a service manager does."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)
        self.socket.setblocking(False)

    async def next(self) -> dict[str, str]:
        """Wait for the next notification; return its lines."""
        async with asyncio.timeout(30):
            lines = (await asyncio.get_running_loop().sock_recv(self.socket, 4096)).decode().split("\n")
        return dict(each.split("=", 1) for each in lines)

    async def told(self, line: str) -> dict[str, str]:
        """Wait for the notification with this line; return all of its lines."""
        name, _, value = line.partition("=")
        async with asyncio.timeout(30):
            while (lines := await self.next()).get(name) != value:
                pass
        return lines


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path / "notify")
    with made.socket:
        yield made


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server((HOST, 0)) as made:
        yield made


def passing(*sockets: socket.socket, names: str) -> tuple[str, ...]:
    """Return the command that passes these sockets on to the one after it, as systemd does."""
    redirections = " ".join(f"{3 + place}<&{each.fileno()}" for place, each in enumerate(sockets))
    variables = f"LISTEN_PID=$$ LISTEN_FDS={len(sockets)} LISTEN_FDNAMES={names}"
    return ("bash", "-c", f'{variables} exec "$@" {redirections}', "bash")


async def asked(address: tuple[str, int]) -> bytes:
    """Make one request on a new connection; return its status."""
    async with client(*address) as peer:
        return (await peer.head(peer.open("/nowhere", end=True)))[b":status"]


# ---- notifications


@pytest.mark.asyncio
@one_or_two
async def test_systemd_is_notified_of_readiness_and_of_the_end(routes: Routes, manager: Manager, workers: int) -> None:
    flags: list[str | Path] = [
        "--config",
        routes(svc="https://127.0.0.1:1"),
        "--workers",
        str(workers),
        "--admin",
        "off",
    ]
    async with sidecar(*flags, env={"NOTIFY_SOCKET": manager.path}) as running:
        assert (await manager.told("READY=1"))["STATUS"] == "serving"
        assert await asked(running.address) == b"404"
        running.program.send(signal.SIGTERM)
        assert (await manager.told("STOPPING=1"))["STATUS"] == "draining"
        assert await running.program.ended() == 0


@pytest.mark.asyncio
@one_or_two
async def test_systemd_is_notified_of_each_reload_and_of_its_end(
    routes: Routes, manager: Manager, workers: int
) -> None:
    config = routes(svc="https://127.0.0.1:1")
    flags: list[str | Path] = ["--config", config, "--workers", str(workers), "--admin", "off"]
    async with sidecar(*flags, env={"NOTIFY_SOCKET": manager.path}) as running:
        await manager.told("READY=1")
        before = time.monotonic_ns() // 1000
        running.program.send(signal.SIGHUP)
        told = await manager.told("RELOADING=1")
        assert before <= int(told["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
        # The next notification: nothing is left out in between.
        assert (await manager.next())["READY"] == "1"
        before_mistake = config.read_text()
        config.write_text("[routes.svc]\n")
        assert (await manager.next())["RELOADING"] == "1"
        told = await manager.next()
        assert told["READY"] == "1"
        assert "refused" in told["STATUS"]
        await running.logged("settings refused")
        config.write_text(before_mistake)
        assert (await manager.next())["RELOADING"] == "1"
        assert await manager.next() == {"READY": "1", "STATUS": "serving"}
        running.program.send(signal.SIGTERM)
        assert (await manager.next())["STOPPING"] == "1"


@pytest.mark.asyncio
@one_or_two
async def test_systemd_is_told_of_no_end_of_a_reload_before_the_next_one_that_has_begun_is_over(
    routes: Routes, manager: Manager, workers: int
) -> None:
    flags: list[str | Path] = ["--config", routes(svc="https://127.0.0.1:1"), "--workers", str(workers)]
    async with sidecar(*flags, env={"NOTIFY_SOCKET": manager.path}) as running:
        await manager.told("READY=1")
        for _ in range(2):
            running.program.send(signal.SIGHUP)
            await manager.told("RELOADING=1")
        await manager.told("READY=1")
        async with aiohttp.ClientSession() as http, http.get(f"http://{running.admin}/metrics") as page:
            assert 'settings_reloads_total{result="reloaded"} 2\n' in await page.text()


@pytest.mark.asyncio
@one_or_two
async def test_the_watchdog_is_notified_while_the_sidecar_runs(routes: Routes, manager: Manager, workers: int) -> None:
    flags: list[str | Path] = [
        "--config",
        routes(svc="https://127.0.0.1:1"),
        "--workers",
        str(workers),
        "--admin",
        "off",
    ]
    async with sidecar(*flags, env={"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": "2000000"}):
        for _ in range(3):
            await manager.told("WATCHDOG=1")


@pytest.mark.asyncio
async def test_a_stopped_worker_is_replaced_while_the_sidecar_runs(routes: Routes, manager: Manager) -> None:
    flags: list[str | Path] = ["--config", routes(svc="https://127.0.0.1:1"), "--workers", "2", "--admin", "off"]
    async with sidecar(*flags, env={"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": "4000000"}) as running:
        first, second = await worker_pids(running.program)
        os.kill(first, signal.SIGSTOP)
        await running.program.line(rf'stands still: killing it.*"pid": {first}\b')
        await running.program.line(rf'worker died: starting another.*"pid": {first}, "signal": "SIGKILL"')
        await running.program.line(rf'"worker": (?!{first}\b|{second}\b)\d+')
        await manager.told("WATCHDOG=1")
        assert await asked(running.address) == b"404"


# ---- sockets


@pytest.mark.asyncio
async def test_systemd_starts_it_at_the_first_connection(routes: Routes) -> None:
    activate = shutil.which("systemd-socket-activate")
    assert activate, "systemd-socket-activate is not installed: `make test` installs it (Debian: systemd)"
    with socket.create_server((HOST, 0)) as one, socket.create_server((HOST, 0)) as two:
        ports = [each.getsockname()[1] for each in (one, two)]
    argv = [activate, f"--listen={HOST}:{ports[0]}", f"--listen={HOST}:{ports[1]}", "--fdname=listen:admin"]
    argv += [sys.executable, "-m", "proxy", "serve", "--log-format", "json", "--config"]
    async with program("activated", [*argv, routes(svc="https://127.0.0.1:1")]) as running:
        await running.line("Listening on .* as 4")
        assert await asked((HOST, ports[0])) == b"404"
        async with aiohttp.ClientSession() as http, http.get(f"http://{HOST}:{ports[1]}/readyz") as answer:
            assert answer.status == 200
        await running.line(rf'"listen": \["{HOST}:{ports[0]}"\], "admin": "{HOST}:{ports[1]}"')
        assert await running.stop() == 0


@pytest.mark.asyncio
@one_or_two
async def test_no_connection_is_refused_during_a_restart(
    routes: Routes, listening: socket.socket, workers: int
) -> None:
    with socket.create_server((HOST, 0)) as admin:
        flags: list[str | Path] = ["--config", routes(svc="https://127.0.0.1:1"), "--workers", str(workers)]
        under = passing(listening, admin, names="listen:admin")
        descriptors = [listening.fileno(), admin.fileno()]
        address = listening.getsockname()
        answers: list[bytes] = []
        restarted = asyncio.Event()

        async def keep_asking() -> None:
            while not restarted.is_set():
                answers.append(await asked(address))

        async with asyncio.TaskGroup() as asking:
            async with sidecar(*flags, under=under, pass_fds=descriptors) as first:
                assert first.address == address
                clients = [asking.create_task(keep_asking()) for _ in range(4)]
                assert await first.program.stop() == 0
            async with sidecar(*flags, under=under, pass_fds=descriptors) as second:
                assert await asked(second.address) == b"404"
                async with aiohttp.ClientSession() as http, http.get(f"http://{second.admin}/readyz") as answer:
                    assert answer.status == 200
                restarted.set()
                await asyncio.gather(*clients)
    # 503: it was on its way while the first one began to drain.
    assert set(answers) <= {b"404", b"503"}
    assert answers.count(b"503") <= 4


@pytest.mark.asyncio
@pytest.mark.parametrize(("flags", "status"), [([], 2), (["--unsafe-listen"], 0)])
async def test_a_socket_for_other_machines_needs_unsafe_listen(routes: Routes, flags: list[str], status: int) -> None:
    with socket.create_server(("0.0.0.0", 0)) as wide:
        under = passing(wide, names="listen")
        argv = [*under, sys.executable, "-m", "proxy", "serve", "--log-format", "json", "--admin", "off", *flags]
        config = routes(svc="https://127.0.0.1:1")
        async with program("serve", [*argv, "--config", config], pass_fds=[wide.fileno()]) as running:
            if status:
                port = wide.getsockname()[1]
                await running.line(rf"cannot listen on 0\.0\.0\.0:{port} \(passed to this process\): .*--unsafe-listen")
            else:
                await running.line("listening")
                running.send(signal.SIGTERM)
            assert await running.ended() == status


@pytest.mark.asyncio
async def test_a_socket_that_does_not_listen_is_named(routes: Routes, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(str(tmp_path / "d"))
        argv = [*passing(datagrams, names="listen"), sys.executable, "-m", "proxy", "serve", "--config"]
        async with program(
            "serve", [*argv, routes(svc="https://127.0.0.1:1")], pass_fds=[datagrams.fileno()]
        ) as running:
            await running.line(r"cannot listen on unix:.*/d \(passed .*ListenStream= with Accept=no")
            assert await running.ended() == 2
