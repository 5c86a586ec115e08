"""The composition root in this process: started, told to end, closed, whatever fails."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from multiprocessing import get_context
from pathlib import Path

import aiohttp
import pytest

from proxy.downstream.config import ListenerConfig
from proxy.downstream.orders import Orders
from proxy.settings import PlainSettings, RouteSettings, Settings
from proxy.sidecar import Sidecar, _report, serve
from tests.support.h2_peer import Reset, client, server
from tests.support.signals import signals_restored

HOST = "127.0.0.1"


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    with signals_restored():
        yield


@pytest.fixture(scope="module")
def loaded() -> frozenset[str]:
    """The modules of a process that could begin to serve."""
    code = "import sys, proxy.sidecar; print(*sys.modules)"
    return frozenset(
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout.split()
    )


def settings(**more: object) -> PlainSettings:
    return PlainSettings.from_json(in_json(**more))


def in_json(**more: object) -> str:
    routes = {"svc": RouteSettings(url="http://127.0.0.1:1", gcp_id_token=False, allow_http=True)}
    given: dict[str, object] = {"listen": ("127.0.0.1:0",), "admin": "127.0.0.1:0", "access_log": True, **more}
    return Settings.model_validate({"routes": routes, **given}).to_json()


async def running(
    given: PlainSettings,
    meanwhile: Callable[[Sidecar, int], Awaitable[None]],
    capsys: pytest.CaptureFixture[str],
    orders: Orders | None = None,
) -> str:
    """Run a sidecar while `meanwhile` looks at it, which has to end it; return what it logged."""
    config = ListenerConfig(given.listen, 1)
    sockets = config.create_sockets()
    port = sockets.insecure_sockets[0].getsockname()[1]
    sidecar = Sidecar(given, asyncio.get_running_loop(), b"cloudrun-sidecar-0123456789abcdef")
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(sidecar.run(config, sockets, orders))
            await meanwhile(sidecar, port)
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
def test_nothing_is_loaded_before_it_is_needed(name: str, loaded: frozenset[str]) -> None:
    assert "aiohttp.web" in loaded
    assert name not in loaded


@pytest.mark.asyncio
async def test_it_answers_and_ends(capsys: pytest.CaptureFixture[str]) -> None:
    async def look(sidecar: Sidecar, port: int) -> None:
        async with client(HOST, port) as near:
            head = await near.head(near.open("/nowhere", end=True))
            assert head[b":status"] == b"404"
            assert sidecar.started
            assert not sidecar.draining
            sidecar.end()
            assert (await near.went_away).error_code == 0
            assert sidecar.draining

    said = await running(settings(), look, capsys)
    assert "listening" in said
    assert "drained" in said


@pytest.mark.asyncio
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
async def test_the_second_signal_cuts(number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    async with server() as far:  # a Cloud Run that never answers

        async def look(sidecar: Sidecar, port: int) -> None:
            async with client(HOST, port) as near:
                stream = near.open("/svc/x", end=True)
                await far.request()
                assert sidecar.listener.live == 1
                os.kill(os.getpid(), number)
                while not sidecar.draining:
                    await near.ping()
                os.kill(os.getpid(), number)
                with pytest.raises(Reset):
                    await near.head(stream)

        routes = {"svc": RouteSettings(url=f"http://{HOST}:{far.port}", gcp_id_token=False, allow_http=True)}
        said = await running(settings(routes=routes, admin="off"), look, capsys)
        assert "cutting what is live" in said


@pytest.mark.asyncio
async def test_a_worker_obeys_its_parents_orders(capsys: pytest.CaptureFixture[str]) -> None:
    orders = Orders(get_context("spawn"))
    async with server() as far:

        async def look(sidecar: Sidecar, port: int) -> None:
            async with client(HOST, port) as near:
                stream = near.open("/svc/x", end=True)
                await far.request()
                orders.end()
                while not sidecar.draining:
                    await near.ping()
                os.kill(os.getpid(), signal.SIGTERM)  # the whole group may be told
                await near.ping()
                assert not near.went_away.done()
                orders.end()
                with pytest.raises(Reset):
                    await near.head(stream)

        routes = {"svc": RouteSettings(url=f"http://{HOST}:{far.port}", gcp_id_token=False, allow_http=True)}
        said = await running(settings(routes=routes, admin="off"), look, capsys, orders)
        assert f"worker={os.getpid()}" in said


@pytest.mark.asyncio
async def test_probes_see_it_start_and_drain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = f"{tmp_path}/admin"

    async def look(sidecar: Sidecar, port: int) -> None:
        async with client(HOST, port) as near, aiohttp.ClientSession(connector=aiohttp.UnixConnector(path)) as http:
            await near.ping()
            for page in ("startupz", "readyz"):
                async with http.get(f"http://admin/{page}") as answer:
                    assert answer.status == 200
            sidecar.drain()
            sidecar.drain()

    said = await running(settings(admin=f"unix:{path}"), look, capsys)
    assert f"unix:{path}" in said
    with pytest.raises(OSError, match="No such file"), socket.socket(socket.AF_UNIX) as probe:
        probe.connect(path)


@pytest.mark.asyncio
async def test_closing_is_safe_before_the_start() -> None:
    sidecar = Sidecar(settings(), asyncio.get_running_loop(), b"cloudrun-sidecar-0123456789abcdef")
    await sidecar.close()
    assert not sidecar.started


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("which", ["listen", "admin"])
def test_a_busy_address_ends_with_1_and_a_sentence(
    workers: int, which: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        busy = f"{HOST}:{taken.getsockname()[1]}"
        given: dict[str, object] = {"listen": (busy,), "admin": "off"} if which == "listen" else {"admin": busy}
        assert serve(in_json(workers=workers, **given)) == 1
    said = capsys.readouterr().err
    assert f"cloudrun-sidecar: cannot listen on {busy}" in said
    assert "Address already in use" in said


@pytest.mark.parametrize("workers", [1, 2])
def test_an_address_that_somebody_has_to_change_ends_with_2(
    workers: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert serve(in_json(workers=workers, listen=(f"unix:{tmp_path}/file",), admin="off")) == 2
    assert f"cloudrun-sidecar: cannot listen on unix:{tmp_path}/file" in capsys.readouterr().err


def test_serving_ends_with_0_when_it_is_told_to(tmp_path: Path) -> None:
    """The whole program, but for its process."""
    path = tmp_path / "s"

    def end() -> None:
        with socket.socket(socket.AF_UNIX) as probe:
            while probe.connect_ex(str(path)):
                pass
            probe.sendall(b"GET /nowhere HTTP/1.1\r\nhost: x\r\n\r\n")
            probe.recv(1)
        os.kill(os.getpid(), signal.SIGTERM)

    ending = threading.Thread(target=end)
    ending.start()
    assert serve(in_json(listen=(f"unix:{path}",), admin="off", http2_engine="h2")) == 0
    ending.join()
    assert not path.exists()


@pytest.mark.asyncio
async def test_what_nobody_caught_is_logged_by_its_kind_and_place_alone(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise ValueError("ya29.secret")
    except ValueError as exc:
        _report(asyncio.get_running_loop(), {"message": "in a callback", "exception": exc})
    _report(asyncio.get_running_loop(), {"message": "slow"})
    told = capsys.readouterr()
    said = told.out + told.err
    assert "ValueError" in said
    assert "test_sidecar.py:" in said
    assert "secret" not in said
