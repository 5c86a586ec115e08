"""The event loop of a worker: uvloop if it is installed, else asyncio's; and what is done with it.

A descriptor must have one owner. uvloop up to 0.23 breaks this rule: if `create_connection(sock=…)` or
`connect_accepted_socket` fails, libuv has closed the descriptor, but the socket object closes its number a second time
when it is collected. By then the number may belong to another connection, which is then closed; if it belongs to libuv,
libuv aborts the process. A peer that resets before the ClientHello is enough.
(https://github.com/MagicStack/uvloop/issues/738; fixed there after 0.23.)

The fix is in the loop because every caller is affected, aiohttp included.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Any, Final

import structlog

__all__ = ["loop_factory", "repeat", "report_unexpected"]

_log: Final = structlog.get_logger("sidecar")


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return the loop factory for `asyncio.Runner`; None means asyncio's own loop."""
    try:
        import uvloop
    except ImportError:
        return None

    class DetachingLoop(uvloop.Loop):
        """uvloop that detaches the socket object from its closed descriptor after a failed call.

        A call whose protocol closes the transport as soon as it is made has not failed, and does the same. No call
        needs threads of libuv, which ends the process where they cannot be started (a limit on processes).
        """

        async def sock_connect(self, sock: socket.socket, address: Any) -> None:
            """Connect a socket to an address, which is not a name: uvloop would look it up, on a thread of libuv."""
            try:
                sock.connect(address)
                return
            except BlockingIOError:
                connected = self.create_future()
            self.add_writer(sock, _finish, connected)
            try:
                await connected
            finally:
                self.remove_writer(sock)
            if number := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(number, os.strerror(number))

        async def create_connection(self, *args: Any, sock: socket.socket | None = None, **kwargs: Any) -> Any:
            transport: Any
            try:
                transport, protocol = await super().create_connection(*args, sock=sock, **kwargs)
            except BaseException:
                # Invalid arguments, refused before libuv has the descriptor, would leak it; no caller passes any.
                if sock is not None:
                    sock.detach()
                raise
            if sock is not None and transport.is_closing():
                sock.detach()
            return transport, protocol

        async def connect_accepted_socket(self, protocol_factory: Any, sock: socket.socket, **kwargs: Any) -> Any:
            try:
                return await super().connect_accepted_socket(protocol_factory, sock, **kwargs)
            except BaseException:
                sock.detach()
                raise

    return DetachingLoop


def _finish(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def repeat(loop: asyncio.AbstractEventLoop, seconds: float, report: Callable[[], None]) -> Callable[[], None]:
    """Call `report` now and every so many seconds, never if that is 0; return what ends it."""
    timers: list[asyncio.TimerHandle] = []

    def tick() -> None:
        report()
        timers[:] = [loop.call_later(seconds, tick)]

    if seconds:
        tick()

    def end() -> None:
        for timer in timers:
            timer.cancel()

    return end


def report_unexpected(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log an uncaught exception by its kind and place, without its text, which may have a secret in it."""
    exception = context.get("exception")
    where = exception.__traceback__ if exception is not None else None
    while where is not None and where.tb_next is not None:
        where = where.tb_next
    _log.error(
        "unexpected error",
        what=context.get("message"),
        error=type(exception).__name__ if exception is not None else None,
        at=f"{where.tb_frame.f_code.co_filename}:{where.tb_lineno}" if where is not None else None,
    )
