"""sd_notify and sd_listen_fds, with real sockets."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.network.service_manager import ServiceManager, inherited_sockets


@pytest.fixture
def notified(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiving:
        receiving.bind(str(tmp_path / "notify"))
        receiving.setblocking(False)
        yield receiving


def lines(receiving: socket.socket) -> list[str]:
    return receiving.recv(4096).decode().split("\n")


def test_each_state_is_one_datagram(notified: socket.socket) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": notified.getsockname(), "WATCHDOG_USEC": "1000000"})
    manager.ready("serving")
    assert lines(notified) == ["READY=1", "STATUS=serving"]
    manager.reloading()
    said = lines(notified)
    assert said[0] == "RELOADING=1"
    assert int(said[1].removeprefix("MONOTONIC_USEC=")) > 0
    manager.stopping("draining")
    assert lines(notified) == ["STOPPING=1", "STATUS=draining"]
    manager.alive()
    assert lines(notified) == ["WATCHDOG=1"]


def test_a_service_manager_that_does_not_watch_is_not_told_that_the_process_lives(notified: socket.socket) -> None:
    ServiceManager({"NOTIFY_SOCKET": notified.getsockname()}).alive()
    with pytest.raises(BlockingIOError):
        notified.recv(64, socket.MSG_DONTWAIT)


def test_a_reload_before_the_end_of_the_start_does_not_end_it(notified: socket.socket) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": notified.getsockname()})
    manager.reloading()
    manager.reloaded(manager.reloads)
    manager.ready("all workers serve")
    assert lines(notified) == ["READY=1", "STATUS=all workers serve"]
    manager.reloading()
    assert lines(notified)[0] == "RELOADING=1"
    manager.reloaded(manager.reloads)
    assert lines(notified) == ["READY=1", "STATUS=serving"]


def test_the_end_of_a_reload_is_not_taken_for_that_of_the_next_one(notified: socket.socket) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": notified.getsockname()})
    manager.ready("serving")
    manager.reloading()
    first = manager.reloads
    manager.reloading()
    assert [lines(notified)[0] for _ in range(3)] == ["READY=1", "RELOADING=1", "RELOADING=1"]
    manager.reloaded(first)
    with pytest.raises(BlockingIOError):
        lines(notified)
    manager.reloaded(manager.reloads)
    assert lines(notified) == ["READY=1", "STATUS=serving"]


def test_an_abstract_socket_is_written_with_an_at_sign() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiving:
        receiving.bind(f"\0notify-{os.getpid()}")
        ServiceManager({"NOTIFY_SOCKET": f"@notify-{os.getpid()}"}).ready("serving")
        assert lines(receiving) == ["READY=1", "STATUS=serving"]


@pytest.mark.parametrize("path", ["", "vsock:2:1", "/nonexistent/notify"])
def test_nothing_happens_without_a_service_manager(path: str) -> None:
    ServiceManager({"NOTIFY_SOCKET": path}).ready("serving")


def test_a_manager_that_does_not_read_blocks_nothing(notified: socket.socket) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": notified.getsockname(), "WATCHDOG_USEC": "1000000"})
    for _ in range(10_000):
        manager.alive()


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": str(os.getpid())}, 0.5),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "1"}, 0.0),
        ({"WATCHDOG_USEC": "soon"}, 0.0),
        ({}, 0.0),
    ],
)
def test_the_watchdog_interval_is_for_this_process(variables: dict[str, str], seconds: float) -> None:
    assert ServiceManager({"NOTIFY_SOCKET": "/run/notify", **variables}).watchdog_seconds == seconds


def test_without_a_socket_to_notify_there_is_no_watchdog() -> None:
    assert ServiceManager({"WATCHDOG_USEC": "30000000"}).watchdog_seconds == 0.0


@pytest.mark.parametrize(
    "variables", [{}, {"LISTEN_FDS": "1", "LISTEN_PID": "1"}, {"LISTEN_FDS": "x", "LISTEN_PID": str(os.getpid())}]
)
def test_sockets_of_another_process_are_left_alone(variables: dict[str, str]) -> None:
    assert inherited_sockets(variables) == []


def test_passed_sockets_have_their_names_and_are_not_inherited_further() -> None:
    code = (
        "import os; from proxy.network.service_manager import inherited_sockets\n"
        "for name, passed in inherited_sockets({**os.environ, 'LISTEN_PID': str(os.getpid())}):\n"
        "    print(repr(name), passed.fileno(), passed.getsockname()[1], passed.get_inheritable(), passed.timeout)"
    )
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        command = ["bash", "-c", f'exec "$@" 3<&{one.fileno()} 4<&{two.fileno()}', "bash", sys.executable, "-c", code]
        done = subprocess.run(
            command,
            pass_fds=(one.fileno(), two.fileno()),
            env={**os.environ, "LISTEN_FDS": "2", "LISTEN_FDNAMES": "listen"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.splitlines() == [
            f"'listen' 3 {one.getsockname()[1]} False 0.0",
            f"'' 4 {two.getsockname()[1]} False 0.0",
        ]
