"""Listening sockets: bound, named in errors, and their files removed."""

from __future__ import annotations

import grp
import os
import pickle
import pwd
import re
import socket
import stat
import tempfile
from pathlib import Path

import pytest

from proxy.downstream.binding import ListenFailed, UnixAccess, bind_unix
from proxy.downstream.config import ListenerConfig
from tests.support.ports import free_port


def test_no_limit_of_hypercorn_closes_a_connection_of_restate() -> None:
    config = ListenerConfig(("127.0.0.1:0",), 1)
    assert config.keep_alive_timeout >= 11 * 60
    assert config.keep_alive_max_requests > 1 << 60
    assert config.read_timeout is None
    assert config.max_requests is None
    assert config.response_headers("h11") == []


def test_the_configuration_can_be_pickled_for_a_worker_process() -> None:
    config = ListenerConfig(("127.0.0.1:0",), 2, '{"x": 1}', max_head_octets=7)
    copy = pickle.loads(pickle.dumps(config))
    assert (copy.payload, copy.workers, copy.bind) == ('{"x": 1}', 2, ["127.0.0.1:0"])
    assert copy.h11_max_incomplete_size == 7


@pytest.mark.parametrize("workers", [1, 2])
def test_every_address_is_bound_and_listens(workers: int, tmp_path: Path) -> None:
    config = ListenerConfig(("127.0.0.1:0", "127.0.0.1:0", f"unix:{tmp_path}/s"), workers)
    sockets = config.create_sockets()
    try:
        names = [bound.getsockname() for bound in sockets.insecure_sockets]
        assert len(set(names)) == 3
        assert not sockets.secure_sockets
        for bound, name in zip(sockets.insecure_sockets, names, strict=True):
            with socket.socket(bound.family) as probe:
                probe.connect(name)
        assert config.workers == workers
    finally:
        config.release(sockets)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ipv4", ["0.0.0.0", "127.0.0.1"])
@pytest.mark.parametrize("first", ["IPv4", "IPv6"])
def test_all_of_ipv6_leaves_ipv4_to_the_address_that_names_it(ipv4: str, first: str) -> None:
    port = free_port()
    addresses = (f"{ipv4}:{port}", f"[::]:{port}")
    config = ListenerConfig(addresses if first == "IPv4" else addresses[::-1], 1)
    sockets = config.create_sockets()
    try:
        for bound in sockets.insecure_sockets:
            host = "127.0.0.1" if bound.family == socket.AF_INET else "::1"
            with socket.create_connection((host, port)), bound.accept()[0]:
                pass
    finally:
        config.release(sockets)


def test_all_of_ipv6_takes_ipv4_where_no_address_names_that() -> None:
    config = ListenerConfig(("[::]:0", "127.0.0.1:0"), 1)
    sockets = config.create_sockets()
    try:
        bound = sockets.insecure_sockets[0]
        with socket.create_connection(("127.0.0.1", bound.getsockname()[1])), bound.accept()[0]:
            pass
    finally:
        config.release(sockets)


@pytest.mark.parametrize("workers", [1, 2])
def test_no_other_process_can_share_the_address_with_any_number_of_workers(workers: int) -> None:
    config = ListenerConfig(("127.0.0.1:0",), workers)
    sockets = config.create_sockets()
    try:
        (bound,) = sockets.insecure_sockets
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            with pytest.raises(OSError, match="in use"):
                other.bind(bound.getsockname())
    finally:
        config.release(sockets)


def test_accepted_sockets_use_tcp_keep_alive() -> None:
    config = ListenerConfig(("127.0.0.1:0",), 1)
    sockets = config.create_sockets()
    try:
        (bound,) = sockets.insecure_sockets
        with socket.create_connection(bound.getsockname()):
            accepted, _ = bound.accept()
            with accepted:
                assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 15
    finally:
        config.release(sockets)


# Hypercorn does not close a socket that it could not bind.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("workers", [1, 2])
def test_an_address_in_use_is_named_and_the_others_are_released(tmp_path: Path, workers: int) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        busy = f"127.0.0.1:{taken.getsockname()[1]}"
        config = ListenerConfig((f"unix:{tmp_path}/s", busy), workers)
        with pytest.raises(ListenFailed, match=f"cannot listen on {busy}: Address already in use"):
            config.create_sockets()
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("unix:{folder}/none/s", "No such file or directory"),
        ("unix:{folder}/file", "a file of that name exists, and is not a socket"),
        ("unix:{folder}/link", "a file of that name exists, and is not a socket"),
        ("unix:{folder}/file/s", "Not a directory"),
        ("192.0.2.1:0", "Cannot assign requested address; no interface of this machine has this address now"),
    ],
)
def test_an_address_that_cannot_be_bound_is_named_with_the_reason(tmp_path: Path, address: str, reason: str) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "link").symlink_to("socket that is not there any more")
    address = address.format(folder=tmp_path)
    with pytest.raises(ListenFailed, match=rf"^cannot listen on {re.escape(address)}: {re.escape(reason)}$"):
        ListenerConfig((address,), 1).create_sockets()
    assert (tmp_path / "file").read_text() == "kept"


def test_a_unix_socket_in_use_is_not_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as owner:
        owner.bind(path)
        owner.listen(0)
        with pytest.raises(ListenFailed, match="Address already in use"):
            ListenerConfig((f"unix:{path}",), 1).create_sockets()
        owner.accept()[0].close()
        with socket.socket(socket.AF_UNIX) as queued, socket.socket(socket.AF_UNIX) as refused:
            queued.connect(path)
            refused.setblocking(False)
            with pytest.raises(BlockingIOError):
                refused.connect(path)
            with pytest.raises(ListenFailed, match="Address already in use"):
                ListenerConfig((f"unix:{path}",), 1).create_sockets()


def test_a_stale_unix_socket_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(path)
        gone.listen()
    config = ListenerConfig((f"unix:{path}",), 1)
    sockets = config.create_sockets()
    with socket.socket(socket.AF_UNIX) as probe:
        probe.connect(path)
    config.release(sockets)
    assert not os.path.exists(path)


@pytest.mark.parametrize("umask", [0, 0o022, 0o777])
@pytest.mark.parametrize(("mode", "permissions"), [(None, 0o660), ("0600", 0o600), ("666", 0o666)])
def test_a_unix_socket_has_the_permissions_of_the_settings(
    tmp_path: Path, mode: str | None, permissions: int, umask: int
) -> None:
    """Connecting needs write permission: by default owner and group have it."""
    access = UnixAccess() if mode is None else UnixAccess.parse(mode, None, None)
    before = os.umask(umask)
    config = ListenerConfig((f"unix:{tmp_path}/s",), 1, unix_access=access)
    try:
        sockets = config.create_sockets()
        assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == permissions
        config.release(sockets)
    finally:
        os.umask(before)


@pytest.mark.parametrize("with_user", [True, False])
@pytest.mark.parametrize("with_group", [True, False])
def test_a_unix_socket_has_the_owner_of_the_settings(tmp_path: Path, with_user: bool, with_group: bool) -> None:
    # Only root can give it away.
    user, group = (7, 8) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    access = UnixAccess.parse("0660", str(user) if with_user else None, str(group) if with_group else None)
    config = ListenerConfig((f"unix:{tmp_path}/s",), 1, unix_access=access)
    sockets = config.create_sockets()
    found = (tmp_path / "s").stat()
    assert found.st_uid == (user if with_user else os.geteuid())
    assert found.st_gid == (group if with_group else os.getegid())
    config.release(sockets)


def test_an_owner_may_be_a_name(tmp_path: Path) -> None:
    names = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(os.getegid()).gr_name
    config = ListenerConfig((f"unix:{tmp_path}/s",), 1, unix_access=UnixAccess.parse("0660", *names))
    config.release(config.create_sockets())


@pytest.mark.parametrize(("user", "group", "missing"), [("none", None, "user"), (None, "none", "group")])
def test_an_owner_that_there_is_not_is_named_and_no_file_stays(
    tmp_path: Path, user: str | None, group: str | None, missing: str
) -> None:
    config = ListenerConfig((f"unix:{tmp_path}/s",), 1, unix_access=UnixAccess.parse("0660", user, group))
    with pytest.raises(ListenFailed, match=rf"this machine has no {missing} none \(socket_{missing}\)") as failed:
        config.create_sockets()
    assert not failed.value.transient
    assert not list(tmp_path.iterdir())


def test_an_owner_to_whom_the_socket_cannot_be_given_is_named() -> None:
    reading, writing = os.pipe()
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        child = os.fork()
        if child == 0:  # as a user that is not root
            try:
                if os.geteuid() == 0:
                    os.setresuid(65534, 65534, 65534)
                bind_unix(f"{folder}/s", UnixAccess.parse("0660", "root", None))
            except OSError as exc:
                os.write(writing, str(exc).encode())
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert b"cannot be given to the socket_user or socket_group in the settings: only root can" in os.read(
            reading, 1_000
        )
        assert not os.listdir(folder)
    os.close(reading)
    os.close(writing)


def test_release_keeps_a_file_that_replaced_the_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "s"
    config = ListenerConfig((f"unix:{path}",), 1)
    sockets = config.create_sockets()
    path.unlink()
    with socket.socket(socket.AF_UNIX) as successor:
        successor.bind(str(path))
        config.release(sockets)
        assert path.is_socket()
    path.unlink()
    config.release(sockets)
