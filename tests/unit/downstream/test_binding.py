from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from proxy.downstream.binding import ListenFailed, SocketFile, bind_tcp
from tests.support.namespaces import unshared
from tests.support.readme import REPOSITORY


def failure(host: str, port: int) -> ListenFailed:
    try:
        bind_tcp(host, port).close()
    except OSError as exc:
        return ListenFailed(f"{host}:{port}", exc)
    raise AssertionError(f"{host}:{port} can be bound")


def test_a_name_is_bound_by_its_ipv4_address_first() -> None:
    with bind_tcp("localhost", 0) as bound:
        assert bound.getsockname()[0] == "127.0.0.1"


def test_an_ipv6_address_is_bound_as_it_is() -> None:
    with bind_tcp("::1", 0) as bound:
        assert bound.getsockname()[0] == "::1"


def test_an_ipv6_wildcard_accepts_ipv4_too() -> None:
    with bind_tcp("::", 0) as bound:
        bound.listen()
        with socket.create_connection(("127.0.0.1", bound.getsockname()[1])):
            pass


def test_a_port_in_use_is_a_transient_failure() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        failed = failure("127.0.0.1", taken.getsockname()[1])
    assert failed.transient
    assert "Address already in use" in str(failed)


def test_an_address_that_no_interface_has_is_a_transient_failure() -> None:
    failed = failure("192.0.2.1", 0)
    assert failed.transient
    assert "no interface of this machine has this address now" in str(failed)


@pytest.mark.parametrize("host", ["a..b", "x" * 64])
def test_an_invalid_host_name_is_a_permanent_failure(host: str) -> None:
    failed = failure(host, 0)
    assert not failed.transient
    assert "the name does not resolve" in str(failed)


@pytest.mark.parametrize(
    ("number", "transient"),
    [
        (errno.EADDRINUSE, True),
        (errno.EADDRNOTAVAIL, True),
        (errno.EMFILE, True),
        (errno.ENOBUFS, True),
        (errno.EACCES, False),
        (errno.EPERM, False),
        (errno.ENOENT, False),
        (errno.EEXIST, False),
        (errno.EROFS, False),
        (errno.EAFNOSUPPORT, False),
    ],
)
def test_errors_of_bind_are_transient_or_permanent(number: int, transient: bool) -> None:
    assert ListenFailed("127.0.0.1:1", OSError(number, os.strerror(number))).transient is transient


@pytest.mark.parametrize(
    ("number", "transient"), [(socket.EAI_AGAIN, True), (socket.EAI_FAIL, True), (socket.EAI_NONAME, False)]
)
def test_errors_of_name_resolution_are_transient_or_permanent(number: int, transient: bool) -> None:
    assert ListenFailed("host:1", socket.gaierror(number, "words")).transient is transient


WITHOUT_IPV6 = textwrap.dedent(
    """
    from proxy.downstream.binding import bind_tcp
    from tests.readme.surroundings import loopback_up

    loopback_up()
    with open("/proc/sys/net/ipv6/conf/all/disable_ipv6", "w") as switch:
        switch.write("1")
    assert bind_tcp("localhost", 0).getsockname()[0] == "127.0.0.1"
    try:
        bind_tcp("::1", 0)
    except OSError:
        print("no IPv6, and localhost is bound")
    """
)


def test_localhost_is_bound_on_a_machine_without_ipv6() -> None:
    argv = [*unshared("--net"), sys.executable, "-c", WITHOUT_IPV6]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert done.stdout == "no IPv6, and localhost is bound\n", done.stderr


def test_a_file_is_removed_but_not_the_next_one_that_the_file_system_has_given_its_number(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))
        file = SocketFile(str(path))
        made = path.stat().st_mtime_ns
        os.utime(path, ns=(made, made + 1))
        file.remove()
        assert path.is_socket()
        os.utime(path, ns=(made, made))
        file.remove()
        assert not path.exists()
        file.remove()
