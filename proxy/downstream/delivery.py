"""What clients have taken of what was written to them, where the transport does not say it: below TLS."""

from __future__ import annotations

import asyncio
import select
import socket
from typing import Final

__all__ = ["events_of", "is_tls", "tls_delivered"]

_PAUSE_SECONDS: Final = 0.1
"""Between the first two looks whether a client has read; then twice as long each time."""
_GREATEST_PAUSE_SECONDS: Final = 1.0
_TURNS: Final = 3
"""Turns of the loop in which the transport writes what the socket takes."""


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
    transport does not say what it holds below TLS: but while it holds something, the socket takes no more.
    """
    if transport.is_closing() or not is_tls(transport):
        return
    connection: socket.socket = transport.get_extra_info("socket")
    turns, pause = 0, _PAUSE_SECONDS
    while turns < _TURNS and not transport.is_closing() and connection.fileno() >= 0:
        if transport.get_write_buffer_size() == 0 and events_of(connection, select.POLLOUT):
            turns += 1
            await asyncio.sleep(0)
        else:
            turns = 0
            await asyncio.sleep(pause)
            pause = min(2 * pause, _GREATEST_PAUSE_SECONDS)
