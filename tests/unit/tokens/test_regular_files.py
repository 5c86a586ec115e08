from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from proxy.tokens.regular_files import FileTooLarge, NotRegularFile, read_regular


def test_a_file_is_read_also_through_a_link_and_to_the_last_octet_allowed(tmp_path: Path) -> None:
    path, link = tmp_path / "file", tmp_path / "link"
    path.write_bytes(b"x" * 100)
    link.symlink_to(path)
    assert read_regular(str(link), 100) == b"x" * 100
    with pytest.raises(FileTooLarge) as caught:
        read_regular(str(path), 99)
    assert caught.value.strerror == "it is larger than 0 KiB"


def test_a_named_pipe_is_refused_at_once_with_or_without_a_writer(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(NotRegularFile, match="it is a named pipe, not a regular file"):
        read_regular(str(pipe))
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(pipe, os.O_WRONLY)
    with pytest.raises(NotRegularFile):
        read_regular(str(pipe))
    os.close(writer)
    os.close(reader)


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null"])
def test_a_device_is_refused(path: str) -> None:
    with pytest.raises(NotRegularFile, match="not a regular file"):
        read_regular(path)


def test_a_directory_and_a_socket_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotRegularFile, match="a directory"):
        read_regular(str(tmp_path))
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "socket"))
        with pytest.raises(NotRegularFile, match="a socket"):
            read_regular(str(tmp_path / "socket"))


def test_an_endless_file_is_read_up_to_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(FileTooLarge, match="larger than 1024 KiB"):
        read_regular(str(path))


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe")
    before = sorted(os.listdir("/proc/self/fd"))
    read_regular(str(path))
    for name in (str(tmp_path / "pipe"), str(tmp_path / "none"), "a\0b"):
        with pytest.raises((OSError, ValueError)):
            read_regular(name)
    assert sorted(os.listdir("/proc/self/fd")) == before
