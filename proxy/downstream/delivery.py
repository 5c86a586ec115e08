"""When the kernel has all that was written to a client, where the transport does not say it: below TLS."""

from __future__ import annotations

import asyncio
import fcntl
import select
import socket
import struct
import sys
import termios
from typing import Final

__all__ = ["events_of", "is_tls", "tls_delivered"]

_PAUSE_SECONDS: Final = 0.1
"""Between the first two looks whether a client has read; then twice as long each time."""
_GREATEST_PAUSE_SECONDS: Final = 1.0
_TURNS: Final = 3
"""Turns of the loop in which the transport writes what the socket takes."""

_TCP_INFO: Final = getattr(socket, "TCP_INFO", None)
_ACKNOWLEDGED: Final = struct.Struct("=120xQ")
"""`tcpi_bytes_acked` in `struct tcp_info` of linux/tcp.h."""


def is_tls(transport: asyncio.BaseTransport) -> bool:
    """Return True if the connection speaks TLS."""
    return transport.get_extra_info("ssl_object") is not None


def events_of(connection: socket.socket, asked: int) -> int:
    """Return which of the events `asked` there are on a socket, or POLLHUP or POLLERR (poll(2)); 0 for none."""
    poll = select.poll()
    poll.register(connection.fileno(), asked)
    found = poll.poll(0)
    return found[0][1] if found else 0


async def tls_delivered(transport: asyncio.WriteTransport) -> None:
    """Return when the kernel has all that was written to a TLS connection, or it has ended; at once without TLS.

    The end of TLS waits for the client, for a short time, in which a slow one would have to read all of that. The
    transport does not say what it holds below TLS: but while it holds something, the socket takes no more, or has just
    taken some, because the client reads.
    """
    if transport.is_closing() or not is_tls(transport):
        return
    connection: socket.socket = transport.get_extra_info("socket")
    turns, pause, taken = 0, _PAUSE_SECONDS, 0
    while turns < _TURNS and not transport.is_closing() and connection.fileno() >= 0:
        if transport.get_write_buffer_size() == 0 and events_of(connection, select.POLLOUT):
            before, taken = taken, _taken(connection)
            turns = turns + 1 if taken == before else 1
            await asyncio.sleep(0)
        else:
            turns = 0
            await asyncio.sleep(pause)
            pause = min(2 * pause, _GREATEST_PAUSE_SECONDS)


def _taken(connection: socket.socket) -> int:
    """Return how many octets the kernel has taken of a TCP connection so far; 0 where it does not say it."""
    try:
        if _TCP_INFO is None or connection.family == socket.AF_UNIX:
            return 0
        (acknowledged,) = _ACKNOWLEDGED.unpack(connection.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _ACKNOWLEDGED.size))
        waiting = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4))  # not acknowledged (tcp(7), SIOCOUTQ)
    except (OSError, struct.error):  # it has ended; Linux before 4.1
        return 0
    return int(acknowledged) + int.from_bytes(waiting, sys.byteorder)
