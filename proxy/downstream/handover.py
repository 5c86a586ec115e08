"""Receives connections that the supervisor has accepted.

Supervisor and worker share a pair of stream sockets, the channel. Each octet to the worker is a message (`channel`);
`CONNECTION` carries a descriptor (SCM_RIGHTS, unix(7)). Each octet to the supervisor is a report: the worker is ready,
it drains, or a connection has closed, so that the supervisor knows how many the worker has. The end of the channel
means that the supervisor has exited.

To Hypercorn the channel is the socket to listen on: it calls `create_server` with it. `accept_from` replaces that
method of the event loop, and returns a `HandoverServer` for the channel.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Any, Final, cast

import structlog

from proxy.downstream.channel import ABORT, CONNECTION, DRAIN, Channel

__all__ = ["HandoverServer", "accept_from"]

_log: Final = structlog.get_logger("downstream")

_MOST_MESSAGES: Final = 64
"""Messages read in a row before other events are served."""


class HandoverServer:
    """An asyncio server for Hypercorn: accepts connections from the channel, and carries out its commands."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        channel: Channel,
        make_protocol: Callable[[], asyncio.Protocol],
        *,
        drain: Callable[[], None],
        abort: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._channel = channel
        self._make_protocol = make_protocol
        self._commands = {DRAIN: drain, ABORT: abort, b"": drain}
        self._accepting: set[asyncio.Task[None]] = set()
        channel.socket.setblocking(False)
        loop.add_reader(channel.socket, self._read)

    def close(self) -> None:
        """Stop accepting."""
        self._loop.remove_reader(self._channel.socket)

    async def wait_closed(self) -> None:
        """Wait until every received connection has its protocol."""
        await asyncio.gather(*self._accepting, return_exceptions=True)

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            for _ in range(_MOST_MESSAGES):
                message, descriptor = self._channel.receive()
                if message != CONNECTION:
                    self._commands[message]()
                    if not message:
                        self.close()
                        return
                elif descriptor is not None:
                    accepting = self._loop.create_task(self._accept(socket.socket(fileno=descriptor)))
                    self._accepting.add(accepting)
                    accepting.add_done_callback(self._accepting.discard)
                else:  # the kernel had no descriptor for it
                    _log.error("connection lost: limit of open files reached (ulimit -n)")
                    self._channel.connection_closed()

    async def _accept(self, connection: socket.socket) -> None:
        try:
            connection.setblocking(False)
            await self._loop.connect_accepted_socket(self._make_protocol, connection)
        except OSError as exc:
            _log.debug("connection closed before it was accepted", reason=exc.strerror)
            self._channel.connection_closed()


def accept_from(
    channel: Channel, loop: asyncio.AbstractEventLoop, *, drain: Callable[[], None], abort: Callable[[], None]
) -> None:
    """Make `loop.create_server(…, sock=channel.socket)` accept connections from the channel.

    `drain` and `abort` are called on the commands of these names, `drain` also when the supervisor has exited.
    """
    create_server = loop.create_server

    async def create(make_protocol: Any, *args: Any, sock: socket.socket | None = None, **more: Any) -> Any:
        if sock is channel.socket:
            return HandoverServer(loop, channel, make_protocol, drain=drain, abort=abort)
        return await create_server(make_protocol, *args, sock=cast(socket.socket, sock), **more)

    setattr(loop, "create_server", create)  # noqa: B010 - a method of this one loop
