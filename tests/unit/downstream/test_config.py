"""Listening sockets: bound, named in errors, and their files removed."""

from __future__ import annotations

import os
import pickle
import re
import socket
import stat
from pathlib import Path

import pytest

from proxy.downstream.binding import ListenFailed
from proxy.downstream.config import ListenerConfig


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
        ("unix:{folder}/file/s", "Not a directory"),
        ("192.0.2.1:0", "Cannot assign requested address; no interface of this machine has this address now"),
    ],
)
def test_an_address_that_cannot_be_bound_is_named_with_the_reason(tmp_path: Path, address: str, reason: str) -> None:
    (tmp_path / "file").write_text("kept")
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


def test_a_unix_socket_is_accessible_to_its_owner_only(tmp_path: Path) -> None:
    """Connecting needs write permission."""
    before = os.umask(0o022)
    config = ListenerConfig((f"unix:{tmp_path}/s",), 1)
    try:
        sockets = config.create_sockets()
        assert stat.S_IMODE((tmp_path / "s").stat().st_mode) & 0o022 == 0
        config.release(sockets)
    finally:
        os.umask(before)


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
