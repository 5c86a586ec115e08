"""Receives connections that the supervisor has accepted.

Supervisor and worker share a pair of stream sockets, the channel. Each octet to the worker is a message (`channel`);
some carry a descriptor (SCM_RIGHTS, unix(7)): `CONNECTION` and `TLS_CONNECTION` that of the connection, others that of
a file in memory. Each octet to the supervisor is a report: the worker is ready, it drains, it has put settings in
force, or a connection has closed, so that the supervisor knows how many the worker has. The end of the channel means
that the supervisor has exited.

To Hypercorn the channel is the socket to listen on: it calls `create_server` with it. `accept_from` replaces that
method of the event loop, and returns a `HandoverServer` for the channel.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Mapping
from io import FileIO
from typing import Any, Final, cast

import structlog

from proxy.downstream.channel import CONNECTION, LAST, LEAVING, READY, TLS_CONNECTION, Channel, content_of
from proxy.downstream.tls import Handshakes

__all__ = ["HandoverServer", "accept_from"]

_log: Final = structlog.get_logger("downstream")

_MOST_MESSAGES: Final = 64
"""Messages read in a row before other events are served."""
_LEAVE_SECONDS: Final = 1.0
"""How long the supervisor may take to send the last connections."""


class HandoverServer:
    """An asyncio server for Hypercorn: accepts connections from the channel, and carries out its commands."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        channel: Channel,
        make_protocol: Callable[[], asyncio.Protocol],
        *,
        commands: Mapping[bytes, Callable[[], None]],
        documents: Mapping[bytes, Callable[[bytes], None]],
        files: Mapping[bytes, Callable[[FileIO | None], None]],
        orphan: Callable[[], None],
        lost: Callable[[], None],
        handshakes: Handshakes | None = None,
    ) -> None:
        self._loop = loop
        self._channel = channel
        self._make_protocol = make_protocol
        self._commands = commands
        self._documents = documents
        self._files = files
        self._orphan = orphan
        self._lost = lost
        self._handshakes = handshakes
        self._last_sent = asyncio.Event()
        self._accepting: set[asyncio.Task[None]] = set()
        channel.socket.setblocking(False)
        loop.add_reader(channel.socket, self._read)

    async def leave(self) -> None:
        """Have the supervisor send no more, and accept what it has sent; wait a while at most."""
        self._channel.report(LEAVING)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LEAVE_SECONDS):
                await self._last_sent.wait()
                await self.wait_closed()

    def close(self) -> None:
        """Stop accepting."""
        self._loop.remove_reader(self._channel.socket)

    async def wait_closed(self) -> None:
        """Wait until every received connection has its protocol."""
        await asyncio.gather(*self._accepting, return_exceptions=True)
        if self._handshakes is not None:
            await self._handshakes.wait()

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            for _ in range(_MOST_MESSAGES):
                message, descriptor = self._channel.receive()
                if not message:
                    self.close()
                    self._last_sent.set()
                    self._orphan()
                    return
                if message in self._documents:
                    self._documents[message](content_of(descriptor))
                elif message in self._commands:
                    self._commands[message]()
                elif message in self._files:
                    self._files[message](FileIO(descriptor, "rb") if descriptor is not None else None)
                elif message == LAST:
                    self._last_sent.set()
                elif message not in (CONNECTION, TLS_CONNECTION):
                    self._ignore(descriptor)
                elif descriptor is not None and message == TLS_CONNECTION:
                    self._begin_tls(socket.socket(fileno=descriptor))
                elif descriptor is not None:
                    accepting = self._loop.create_task(self._accept(socket.socket(fileno=descriptor)))
                    self._accepting.add(accepting)
                    accepting.add_done_callback(self._accepting.discard)
                else:  # the kernel had no descriptor for it
                    self._lost()
                    self._channel.connection_closed()

    def _begin_tls(self, connection: socket.socket) -> None:
        """Accept a connection with TLS; without a certificate it is closed, and never served as it is."""
        if self._handshakes is not None:
            self._handshakes.begin(connection, self._make_protocol, self._channel.connection_closed)
            return
        _log.error("connection closed: this worker has no certificate for tls_listen")
        connection.close()
        self._channel.connection_closed()

    def _ignore(self, descriptor: int | None) -> None:
        """Drop a message that this worker has no use for."""
        if descriptor is not None:
            os.close(descriptor)

    async def _accept(self, connection: socket.socket) -> None:
        try:
            connection.setblocking(False)
            await self._loop.connect_accepted_socket(self._make_protocol, connection)
        except OSError as exc:
            _log.debug("connection closed before it was accepted", reason=exc.strerror)
            self._channel.connection_closed()


def accept_from(
    channel: Channel,
    loop: asyncio.AbstractEventLoop,
    *,
    commands: Mapping[bytes, Callable[[], None]],
    documents: Mapping[bytes, Callable[[bytes], None]],
    files: Mapping[bytes, Callable[[FileIO | None], None]],
    orphan: Callable[[], None],
    lost: Callable[[], None],
    on_ready: Callable[[], object] = bool,
    handshakes: Handshakes | None = None,
) -> None:
    """Make `loop.create_server(…, sock=channel.socket)` accept connections from the channel, and report READY.

    `on_ready` is called after that, `commands` on the messages that are their keys, `documents` with the content that
    theirs have, which is empty if it was lost, `files` with the file in memory, which they own; None if it was lost.
    Other processes may read it, and share its position. `orphan` is called when the supervisor has exited, `lost` when
    there was no descriptor for a connection. `handshakes` begins those of TLS connections.
    """
    create_server = loop.create_server

    async def create(make_protocol: Any, *args: Any, sock: socket.socket | None = None, **more: Any) -> Any:
        if sock is channel.socket:
            server = HandoverServer(
                loop,
                channel,
                make_protocol,
                commands=commands,
                documents=documents,
                files=files,
                orphan=orphan,
                lost=lost,
                handshakes=handshakes,
            )
            # Not before: what the supervisor says then, that all workers are ready, would be read some time later.
            channel.report(READY)
            on_ready()
            return server
        return await create_server(make_protocol, *args, sock=cast(socket.socket, sock), **more)

    setattr(loop, "create_server", create)  # noqa: B010 - a method of this one loop
