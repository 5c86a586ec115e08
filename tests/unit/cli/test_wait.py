"""`cloudrun-sidecar wait`: returns as soon as a sidecar is ready."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from proxy.admin import AdminPlane
from proxy.cli import probe
from proxy.cli.commands import commands
from proxy.observe.health import RouteHealth
from proxy.observe.metrics import Metrics
from tests.support.live import StillState
from tests.support.names import silent_name_servers


@dataclass
class State:
    started: bool = False
    draining: bool = False


def admin_plane(address: str, state: State) -> AdminPlane:
    metrics = Metrics()
    return AdminPlane(address, state, metrics, RouteHealth(metrics), StillState())


def wait_now(*arguments: str) -> Result:
    return CliRunner().invoke(commands, ["wait", *arguments])


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.asyncio
async def test_it_returns_once_the_sidecar_is_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = State()
    address = f"unix:{tmp_path}/admin"
    plane = admin_plane(address, state)
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    ask = probe.ask

    def noting(*arguments: object) -> tuple[int, str]:
        try:
            return ask(*arguments)  # type: ignore[arg-type]  # handed on as they came
        finally:
            loop.call_soon_threadsafe(asked.set)

    monkeypatch.setattr("proxy.cli.wait.ask", noting)
    waiting = asyncio.create_task(asyncio.to_thread(wait_now, "--admin", address))  # noqa: TID251 - awaited below
    await asked.wait()  # nothing listens yet
    await plane.start()
    asked.clear()
    await asked.wait()  # it is starting
    state.started = True
    told = await waiting
    await plane.close()
    assert (told.exit_code, told.stdout) == (0, f"{address}: ready\n")


def test_it_ends_with_1_after_the_timeout() -> None:
    address = free_address()
    told = wait_now("--admin", address, "--timeout", "0.1")
    assert (told.exit_code, told.stdout) == (1, "")
    assert told.stderr == f"cloudrun-sidecar: not ready: {address}: Connection refused, after 0.1 s\n"


@pytest.mark.asyncio
async def test_it_says_that_the_sidecar_drains(tmp_path: Path) -> None:
    plane = admin_plane("127.0.0.1:0", State(started=True, draining=True))
    await plane.start()
    told = await asyncio.to_thread(wait_now, "--admin", plane.address, "--timeout", "0")
    await plane.close()
    assert told.exit_code == 1
    assert "draining: live exchanges finish, new ones are refused, after 0 s" in told.stderr


def test_a_listener_is_ready_when_it_takes_connections(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "s"))
        for address in (f"127.0.0.1:{tcp.getsockname()[1]}", f"unix:{tmp_path}/s"):
            listens = not address.startswith("unix:")
            told = wait_now("--listener", address, "--timeout", "0")
            assert told.exit_code == (0 if listens else 1)
        unix.listen()
        assert wait_now("--listener", f"unix:{tmp_path}/s", "--timeout", "0").exit_code == 0


def test_a_listener_without_http_is_not_ready() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        with socket.create_connection(listening.getsockname()):
            pass
        listening.settimeout(5)

        async def both() -> Result:
            def answer() -> None:
                for _ in range(2):
                    connection, _ = listening.accept()
                    with connection:
                        connection.sendall(b"no HTTP\r\n\r\n")

            answering = asyncio.to_thread(answer)
            told, _ = await asyncio.gather(asyncio.to_thread(wait_now, "--admin", address, "--timeout", "0"), answering)
            return told

        told = asyncio.run(both())
    assert told.exit_code == 1
    assert "what answers there does not speak HTTP" in told.stderr


def test_a_question_gets_the_time_that_is_left_but_at_least_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []

    def ask(address: object, path: str, seconds: float) -> tuple[int, str]:
        given.append(seconds)
        return 200, "ready"

    monkeypatch.setattr("proxy.cli.wait.ask", ask)
    for timeout in ("0", "2", "60"):
        assert wait_now("--timeout", timeout).exit_code == 0
    assert given == [1.0, pytest.approx(2.0, abs=0.9), probe.TIMEOUT_SECONDS]


@pytest.mark.parametrize("option", ["--admin", "--listener"])
def test_name_servers_that_do_not_answer_do_not_make_it_wait_longer(
    monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    with silent_name_servers(monkeypatch):
        told = wait_now(option, "sidecar.example.com:9091", "--timeout", "0.1")
    said = "cloudrun-sidecar: not ready: sidecar.example.com:9091: no answer, after 0.1 s\n"
    assert (told.exit_code, told.stderr) == (1, said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--admin", "off"], "the admin port is off"),
        (["--admin", "nonsense"], "has no port"),
        (["--listener", "http://127.0.0.1:1"], "is a URL"),
        (["--config", "/nonexistent/routes.toml"], "/nonexistent/routes.toml"),
    ],
)
def test_an_address_that_cannot_be_used_is_reported_at_once(arguments: list[str], said: str) -> None:
    told = wait_now(*arguments)
    assert told.exit_code == 2
    assert said in told.stderr
