"""Ports to listen on: taken at once, so that whoever asks for a free one can tell its number to others."""

from __future__ import annotations

import errno
import os
import socket
from typing import Final

__all__ = ["CannotListen", "address", "bind"]

WILDCARDS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 – nothing is bound here


class CannotListen(Exception):
    """A port cannot be listened on; the text is one sentence that names it."""

    def __init__(self, host: str, port: int, why: str) -> None:
        super().__init__(f"Cannot listen on {_join(host, port)}: {why}.")
        self.host = host
        self.port = port


def bind(host: str, port: int) -> socket.socket:
    """Return a TCP socket bound to the address, port 0 meaning a free one; raises CannotListen."""
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(target)
            # Two may bind a port where only one may listen (SO_REUSEADDR), and this is the one that must hear of it.
            bound.listen(1024)
            bound.setblocking(False)
        except BaseException:
            bound.close()
            raise
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            raise CannotListen(host, port, "the port is taken by another program") from exc
        raise CannotListen(host, port, exc.strerror or os.strerror(exc.errno or errno.EINVAL)) from exc
    return bound


def address(bound: socket.socket) -> str:
    """Return where to reach a bound socket: `host:port`, IPv6 in brackets, loopback for a wildcard."""
    host, port = bound.getsockname()[:2]
    return _join(WILDCARDS.get(host, host), port)


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
