"""Ports for programs that cannot listen on port 0 and say which one they got."""

from __future__ import annotations

import socket

__all__ = ["free_port"]


def free_port() -> int:
    """Return a port of 127.0.0.1, reserved for a minute for a program that sets SO_REUSEADDR, as servers do.

    A connection in TIME-WAIT holds the port: the kernel gives it to no one who asks for any port, or connects.
    """
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            accepted, _ = listening.accept()
            accepted.close()  # the side that closes first has TIME-WAIT
    return port
