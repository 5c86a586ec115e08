"""Connections that the supervisor has accepted: how they come into a worker.

Each worker has one end of a pair of stream sockets, its channel; the supervisor has the other. Each octet that comes
is a message (`channel`), `CONNECTION` with a descriptor beside it (SCM_RIGHTS, unix(7)). Each octet that goes back
says that one of these connections is gone, so that the supervisor knows how many this worker has. Where the channel
ends, the supervisor is gone.

To Hypercorn the channel is the socket to listen on. It asks the event loop for a server on it, and `accept_from` has
the loop answer with a `HandoverServer`, which knows how to accept there.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Any, Final, cast

import structlog

from proxy.downstream.channel import CONNECTION, CUT, DRAIN, Channel

__all__ = ["HandoverServer", "accept_from"]

_log: Final = structlog.get_logger("downstream")

_MOST_MESSAGES: Final = 64
"""Read at once, before others get their turn."""


class HandoverServer:
    """What Hypercorn takes for a server: it accepts what comes through the channel, and obeys its orders."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        channel: Channel,
        make_protocol: Callable[[], asyncio.Protocol],
        *,
        drain: Callable[[], None],
        cut: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._channel = channel
        self._make_protocol = make_protocol
        self._orders = {DRAIN: drain, CUT: cut, b"": drain}
        self._accepting: set[asyncio.Task[None]] = set()
        channel.socket.setblocking(False)
        loop.add_reader(channel.socket, self._read)

    def close(self) -> None:
        """Accept nothing any more."""
        self._loop.remove_reader(self._channel.socket)

    async def wait_closed(self) -> None:
        """Wait until no connection is between the channel and its protocol."""
        await asyncio.gather(*self._accepting, return_exceptions=True)

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            for _ in range(_MOST_MESSAGES):
                message, descriptor = self._channel.receive()
                if message != CONNECTION:
                    self._orders[message]()
                    if not message:
                        self.close()
                        return
                elif descriptor is not None:
                    accepting = self._loop.create_task(self._accept(socket.socket(fileno=descriptor)))
                    self._accepting.add(accepting)
                    accepting.add_done_callback(self._accepting.discard)
                else:  # the kernel has closed it
                    _log.error("connection lost: this process may not have more open files (ulimit -n)")
                    self._channel.connection_closed()

    async def _accept(self, connection: socket.socket) -> None:
        try:
            connection.setblocking(False)
            await self._loop.connect_accepted_socket(self._make_protocol, connection)
        except OSError as exc:
            _log.debug("connection gone before it was accepted", reason=exc.strerror)
            self._channel.connection_closed()


def accept_from(
    channel: Channel, loop: asyncio.AbstractEventLoop, *, drain: Callable[[], None], cut: Callable[[], None]
) -> None:
    """Have `loop.create_server(…, sock=channel.socket)` accept what comes through the channel.

    `drain` and `cut` are called when the supervisor orders it, `drain` also when it is gone.
    """
    create_server = loop.create_server

    async def create(make_protocol: Any, *args: Any, sock: socket.socket | None = None, **more: Any) -> Any:
        if sock is channel.socket:
            return HandoverServer(loop, channel, make_protocol, drain=drain, cut=cut)
        return await create_server(make_protocol, *args, sock=cast(socket.socket, sock), **more)

    setattr(loop, "create_server", create)  # noqa: B010 - a method of this one loop
