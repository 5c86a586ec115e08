from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from proxy.admin import AdminPlane
from proxy.cli import probe as module
from proxy.cli.commands import commands
from proxy.observe.health import RouteHealth
from proxy.observe.metrics import Metrics
from proxy.settings.model import Settings
from tests.support.live import StillState
from tests.support.names import silent_name_servers


@dataclass
class State:
    started: bool = True
    draining: bool = False


@asynccontextmanager
async def admin(state: State, address: str = "127.0.0.1:0") -> AsyncIterator[str]:
    metrics = Metrics()
    plane = AdminPlane(address, state, metrics, RouteHealth(metrics), StillState())
    await plane.start()
    try:
        yield plane.address
    finally:
        await plane.close()


async def ask(*arguments: str, env: dict[str, str] | None = None) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, commands, ["healthcheck", *arguments], env=env)


def ask_now(*arguments: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(commands, ["healthcheck", *arguments], env=env)


def write(name: str, text: str) -> None:
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text(text)


@contextmanager
def answering(octets: bytes) -> Iterator[str]:
    """A server that sends these octets to its first client, and then nothing more."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection, suppress(ConnectionError):
                connection.sendall(octets)
                while connection.recv(4096):
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


@contextmanager
def dripping(head: bytes, *, pause_seconds: float) -> Iterator[str]:
    """A server that sends a head, and then an octet after each pause until its client has gone, or the block ends."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            connection.settimeout(pause_seconds)
            with connection, suppress(ConnectionError):
                connection.sendall(head)
                while not over.is_set():
                    with suppress(TimeoutError):
                        if not connection.recv(4096):
                            return
                    connection.sendall(b"x")

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        over.set()
        thread.join()


@pytest.mark.asyncio
async def test_a_healthy_sidecar_gives_one_line_and_exit_code_0() -> None:
    async with admin(State()) as address:
        told = await ask("--admin", address)
        assert (told.exit_code, told.stdout, told.stderr) == (0, f"{address}/readyz: ready: taking requests\n", "")


@pytest.mark.asyncio
async def test_a_draining_sidecar_gives_one_line_and_exit_code_1() -> None:
    async with admin(State(draining=True)) as address:
        told = await ask("--admin", address)
        assert (told.exit_code, told.stdout) == (1, "")
        assert told.stderr.startswith(f"cloudrun-sidecar: unhealthy: {address}/readyz: 503 draining: ")
        assert told.stderr.count("\n") == 1


@pytest.mark.asyncio
async def test_another_path_can_be_requested() -> None:
    async with admin(State(draining=True)) as address:
        assert (await ask("--admin", address, "--path", "/livez")).exit_code == 0
        assert "(not shown)" not in (await ask("--admin", address, "--path", "/readyz?routes")).stderr
        assert "404 no such path" in (await ask("--admin", address, "--path", "/nope")).stderr


@pytest.mark.asyncio
async def test_it_finds_the_port_as_serve_does() -> None:
    async with admin(State()) as address:
        write("my.toml", f'admin = "{address}"\nworkers = "not looked at"\n')
        wrong = {"CLOUDRUN_SIDECAR_ADMIN": "127.0.0.1:1"}
        assert (await ask("--admin", address, env=wrong)).exit_code == 0
        assert (await ask("--config", "my.toml", env={"CLOUDRUN_SIDECAR_ADMIN": address})).exit_code == 0
        assert (await ask("--config", "my.toml")).exit_code == 0
        assert (await ask(env={"CLOUDRUN_SIDECAR_CONFIG": "my.toml"})).exit_code == 0
        assert (await ask(env={"CLOUDRUN_SIDECAR_CONFIG": "my.toml\n"})).exit_code == 0
        assert (await ask(env={"CLOUDRUN_SIDECAR_ADMIN": f" {address}\r\n"})).exit_code == 0
        assert (await ask("--config", "my.toml", env=wrong)).exit_code == 1
        write("config/routes.toml", f'admin = "{address}"')
        assert (await ask()).exit_code == 0


def test_without_settings_it_connects_to_the_default_port() -> None:
    assert Settings.model_fields["admin"].default == module.DEFAULT_ADMIN


@pytest.mark.asyncio
async def test_for_a_wildcard_address_it_connects_to_loopback() -> None:
    async with admin(State(), "0.0.0.0:0") as address:
        told = await ask("--admin", address)
        assert (told.exit_code, told.stdout) == (0, f"{address}/readyz: ready: taking requests\n")


@pytest.mark.asyncio
async def test_a_name_of_this_machine_is_asked_as_localhost(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve = socket.getaddrinfo

    def resolved(host: str, *more: Any, **options: Any) -> Any:
        return resolve("127.0.0.1" if host == "sidecar.example.com" else host, *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    async with admin(State()) as address:
        told = await ask("--admin", f"sidecar.example.com:{address.rpartition(':')[2]}")
        assert (told.exit_code, told.stderr) == (0, "")


@pytest.mark.asyncio
async def test_it_connects_to_a_unix_socket(tmp_path: Path) -> None:
    async with admin(State(), f"unix:{tmp_path}/a.sock") as address:
        assert (await ask("--admin", address)).exit_code == 0
    told = await ask("--admin", address)
    assert told.stderr == f"cloudrun-sidecar: unhealthy: {address}/readyz: No such file or directory\n"


def test_a_refused_connection_gives_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    told = ask_now("--admin", f"127.0.0.1:{port}")
    assert (told.exit_code, told.stderr) == (
        1,
        f"cloudrun-sidecar: unhealthy: 127.0.0.1:{port}/readyz: Connection refused\n",
    )


@pytest.mark.parametrize("host", ["no-such-host.invalid", "no..label", "x" * 64])
def test_an_unknown_host_gives_one_line(host: str) -> None:
    told = ask_now("--admin", f"{host}:1")
    assert told.exit_code == 1
    assert told.stderr.startswith(f"cloudrun-sidecar: unhealthy: {host}:1/readyz: ")
    assert told.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("address", "why"),
    [("off", "cannot be asked"), ("9091", "has no host"), ("127.0.0.1:x", "the port must be a number")],
)
def test_an_unusable_address_says_why(address: str, why: str) -> None:
    told = ask_now(env={"CLOUDRUN_SIDECAR_ADMIN": address})
    assert told.exit_code == 1
    assert why in told.stderr


def test_a_settings_file_that_cannot_be_read_is_unhealthy_not_a_traceback() -> None:
    Path("bad.toml").write_text("admin = ")
    for name, why in (("bad.toml", "is not valid TOML"), ("none.toml", "no such file")):
        told = ask_now("--config", name)
        assert told.exit_code == 1
        assert told.stderr.startswith(f"cloudrun-sidecar: unhealthy: {name}: ")
        assert why in told.stderr


def test_a_settings_file_that_hangs_is_unhealthy_after_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT_SECONDS", 0.05)
    os.mkfifo("pipe.toml")
    told = ask_now("--config", "pipe.toml")
    os.close(os.open("pipe.toml", os.O_RDWR))  # ends the thread that opens it
    said = "cloudrun-sidecar: unhealthy: the settings file was not read: it takes more than 0.05 s\n"
    assert (told.exit_code, told.stderr) == (1, said)


def test_another_protocol_on_the_port_is_reported() -> None:
    with answering(b"SSH-2.0-OpenSSH_9.2\r\n") as address:
        told = ask_now("--admin", address)
    assert (told.exit_code, told.stderr) == (
        1,
        f"cloudrun-sidecar: unhealthy: {address}/readyz: what answers there does not speak HTTP\n",
    )


def test_a_server_that_does_not_answer_is_unhealthy_after_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    assert module.TIMEOUT_SECONDS == 3
    monkeypatch.setattr(module, "TIMEOUT_SECONDS", 0.05)
    with answering(b"") as address:
        told = ask_now("--admin", address)
    assert (told.exit_code, told.stderr) == (
        1,
        f"cloudrun-sidecar: unhealthy: {address}/readyz: no answer within 0.05 s\n",
    )


def test_a_server_whose_answer_never_ends_is_unhealthy_after_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT_SECONDS", 0.3)
    with dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", pause_seconds=0.05) as address:
        told = ask_now("--admin", address)
    assert (told.exit_code, told.stderr) == (
        1,
        f"cloudrun-sidecar: unhealthy: {address}/readyz: no answer within 0.3 s\n",
    )


def test_name_servers_that_do_not_answer_are_unhealthy_after_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT_SECONDS", 0.05)
    with silent_name_servers(monkeypatch):
        told = ask_now("--admin", "sidecar.example.com:9091")
    assert (told.exit_code, told.stderr) == (
        1,
        "cloudrun-sidecar: unhealthy: sidecar.example.com:9091/readyz: no answer within 0.05 s\n",
    )


def test_a_hostile_answer_is_shown_as_one_printable_line() -> None:
    body = b"well \x1b[31m\xff\x00" + b"x" * 10_000
    with answering(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)) as address:
        told = ask_now("--admin", address)
    assert told.exit_code == 0
    assert told.stdout.rstrip("\n").isprintable()
    assert len(told.stdout) < 1_000
