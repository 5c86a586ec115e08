"""The event loop of a worker: uvloop's where it is installed, asyncio's elsewhere.

A descriptor has one owner: who hands it on, detaches it. uvloop up to 0.23 does not: where
`create_connection(sock=…)` or `connect_accepted_socket` fails, libuv has closed the descriptor, but the socket object
still holds its number, and closes it a second time when it is collected. By then the number may belong to another
connection, which is cut; libuv aborts the process when one of its own is closed that way. A peer that resets before the
ClientHello is written is enough. (https://github.com/MagicStack/uvloop/issues/738; mended there after 0.23.)

The loop is where it goes wrong for every caller, aiohttp among them, so the loop is where it is mended.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

__all__ = ["loop_factory"]


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes the event loop of a worker; None, as for `asyncio.Runner`, means asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None

    class DetachingLoop(uvloop.Loop):
        """uvloop, whose failed calls leave the socket object without its closed descriptor."""

        async def create_connection(self, *args: Any, sock: socket.socket | None = None, **kwargs: Any) -> Any:
            try:
                return await super().create_connection(*args, sock=sock, **kwargs)
            except BaseException:
                # Arguments that are refused before libuv has the descriptor would leak it; nobody passes such.
                if sock is not None:
                    sock.detach()
                raise

        async def connect_accepted_socket(self, protocol_factory: Any, sock: socket.socket, **kwargs: Any) -> Any:
            try:
                return await super().connect_accepted_socket(protocol_factory, sock, **kwargs)
            except BaseException:
                sock.detach()
                raise

    return DetachingLoop
