"""Sockets that were passed to this process: sorted by name, refused if they cannot be used."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import pytest

from proxy.downstream.binding import ListenFailed
from proxy.downstream.inherited import InheritedSockets


def listening(host: str = "127.0.0.1") -> socket.socket:
    return socket.create_server((host, 0))


def test_the_socket_named_admin_is_for_the_admin_port_and_all_others_are_for_restate() -> None:
    named = [("listen", listening()), ("admin", listening("0.0.0.0")), ("cloudrun-sidecar.socket", listening())]
    found = InheritedSockets.sorted_by_name(named, unsafe_listen=False)
    assert found.listeners == (named[0][1], named[2][1])
    assert found.admin is named[1][1]
    for _, each in named:
        each.close()


def test_two_admin_sockets_are_too_many() -> None:
    named = [("admin", listening()), ("admin", listening())]
    with pytest.raises(ListenFailed, match="2 sockets of the name admin") as raised:
        InheritedSockets.sorted_by_name(named, unsafe_listen=False)
    assert not raised.value.transient
    assert [each.fileno() for _, each in named] == [-1, -1]


def test_a_socket_for_other_machines_needs_unsafe_listen() -> None:
    wide = listening("0.0.0.0")
    with pytest.raises(ListenFailed, match=r"0\.0\.0\.0:\d+ \(passed to this process\): .*--unsafe-listen"):
        InheritedSockets.sorted_by_name([("listen", wide)], unsafe_listen=False)
    wide = listening("0.0.0.0")
    assert InheritedSockets.sorted_by_name([("listen", wide)], unsafe_listen=True).listeners == (wide,)
    wide.close()


def test_a_socket_of_another_kind_is_refused() -> None:
    for wrong in (
        socket.socket(),
        socket.socket(type=socket.SOCK_DGRAM),
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
    ):
        with pytest.raises(ListenFailed, match="not a listening stream socket"):
            InheritedSockets.sorted_by_name([("listen", wrong)], unsafe_listen=False)
        assert wrong.fileno() == -1


@pytest.mark.parametrize("name", ["listen", "admin"])
@pytest.mark.parametrize(("bound", "shown"), [("\0of-sidecar-tests-%s", "@of-sidecar-tests-%s"), ("s-%s", "s-%s")])
def test_a_unix_socket_without_an_absolute_path_is_refused(
    name: str, bound: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(bound % os.getpid())  # the machine has each abstract name once
    unix.listen()
    said = f"unix:{shown % os.getpid()} (passed to this process): a Unix socket needs the absolute path of a file"
    with pytest.raises(ListenFailed, match=re.escape(said)) as raised:
        InheritedSockets.sorted_by_name([(name, unix)], unsafe_listen=False)
    assert not raised.value.transient
    assert unix.fileno() == -1


def test_without_passed_sockets_the_settings_are_used() -> None:
    assert InheritedSockets.from_service_manager({}, unsafe_listen=False) == InheritedSockets()
