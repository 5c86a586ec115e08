"""The event loop of a worker: uvloop if it is installed, else asyncio's.

A descriptor must have one owner. uvloop up to 0.23 breaks this rule: if `create_connection(sock=…)` or
`connect_accepted_socket` fails, libuv has closed the descriptor, but the socket object closes its number a second time
when it is collected. By then the number may belong to another connection, which is then closed; if it belongs to libuv,
libuv aborts the process. A peer that resets before the ClientHello is enough.
(https://github.com/MagicStack/uvloop/issues/738; fixed there after 0.23.)

The fix is in the loop because every caller is affected, aiohttp included.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

__all__ = ["loop_factory"]


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return the loop factory for `asyncio.Runner`; None means asyncio's own loop."""
    try:
        import uvloop
    except ImportError:
        return None

    class DetachingLoop(uvloop.Loop):
        """uvloop that detaches the socket object from its closed descriptor after a failed call."""

        async def create_connection(self, *args: Any, sock: socket.socket | None = None, **kwargs: Any) -> Any:
            try:
                return await super().create_connection(*args, sock=sock, **kwargs)
            except BaseException:
                # Invalid arguments, refused before libuv has the descriptor, would leak it; no caller passes any.
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
