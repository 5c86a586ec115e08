"""A port that is reserved for a program that is about to start."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from tests.support.ports import free_port


def test_a_free_port_is_open_to_servers_and_given_to_no_one_else() -> None:
    port = free_port()
    with socket.socket() as other, pytest.raises(OSError, match=os.strerror(errno.EADDRINUSE)):
        other.bind(("127.0.0.1", port))
    with socket.create_server(("127.0.0.1", port)) as listening:
        assert listening.getsockname()[1] == port
