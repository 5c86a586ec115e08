"""Listening sockets. They are bound at once, so that the number of a free port is known before the server starts."""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import Final

__all__ = ["CannotListen", "address", "bind", "reset_on_close"]

WILDCARDS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 – nothing is bound here


class CannotListen(Exception):
    """Listening on a port fails; the text is one sentence that names the address."""

    def __init__(self, host: str, port: int, why: str) -> None:
        super().__init__(f"Cannot listen on {_join(host, port)}: {why}.")
        self.host = host
        self.port = port
        self.why = why
        """The reason alone."""


def bind(host: str, port: int) -> socket.socket:
    """Return a listening, non-blocking TCP socket; port 0 means a free one. Raises CannotListen."""
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(target)
            # With SO_REUSEADDR two sockets can bind one port, and only the second `listen` fails. It has to fail here.
            bound.listen(1024)
            bound.setblocking(False)
        except BaseException:
            bound.close()
            raise
    except UnicodeError as exc:  # of a name that is too long, or has an empty part
        raise CannotListen(host, port, "this is no name of a host") from exc
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            raise CannotListen(host, port, "the port is in use by another program") from exc
        raise CannotListen(host, port, exc.strerror or os.strerror(exc.errno or errno.EINVAL)) from exc
    return bound


def address(bound: socket.socket) -> str:
    """Return the address of a bound socket: `host:port`, IPv6 in brackets, loopback instead of a wildcard."""
    host, port = bound.getsockname()[:2]
    return _join(WILDCARDS.get(host, host), port)


def reset_on_close(connection: socket.socket) -> None:
    """Have a TCP connection end with RST instead of FIN: closing does that with a linger time of zero (socket(7))."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
