"""A hop of the network, which forwards TCP connections and can be made bad."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

__all__ = ["Hop"]

_HOST: Final = "127.0.0.1"
_READ_OCTETS: Final = 1 << 16
_DRIBBLED_OCTETS: Final = 60
_RESET_AT_CLOSE: Final = struct.pack("ii", 1, 0)


class Hop:
    """Forwards connections from one port of 127.0.0.1 to another one."""

    def __init__(self, port: int, target: int) -> None:
        self.port = port
        self.delay_seconds = 0.0
        """How long everything that is read waits before it is forwarded."""
        self.dribbles = False
        """True if octets are forwarded one by one, up to 60 of each read."""
        self.cuts = 0
        """Number of connections that were cut."""
        self._target = target
        self._flows = asyncio.Event()
        self._flows.set()
        self._pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Forward for the time of a `with`."""
        await self.start()
        try:
            yield
        finally:
            self.stall(False)
            self.stop()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._accept, _HOST, self.port)

    def stop(self) -> None:
        """Refuse new connections, and cut all that there are."""
        if self._server is not None:
            self._server.close()
        self.cut(1.0, random.Random(0))

    def cut(self, share: float, chance: random.Random) -> None:
        """Reset this share of the connections, in both directions."""
        for pair in list(self._pairs):
            if chance.random() < share:
                self.cuts += 1
                for writer in pair:
                    with contextlib.suppress(OSError):
                        raw = writer.get_extra_info("socket")
                        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
                    writer.transport.abort()

    def stall(self, stalled: bool) -> None:
        """Forward nothing, without closing anything; or go on."""
        if stalled:
            self._flows.clear()
        else:
            self._flows.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            there, further = await asyncio.open_connection(_HOST, self._target)
        except OSError:
            writer.transport.abort()
            return
        pair = (writer, further)
        self._pairs.add(pair)
        try:
            async with asyncio.TaskGroup() as pumps:
                for source, sink in ((reader, further), (there, writer)):
                    pumps.create_task(self._pump(source, sink))
        finally:
            self._pairs.discard(pair)
            for end in pair:
                end.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(_READ_OCTETS):
                await self._flows.wait()
                if self.delay_seconds:
                    await asyncio.sleep(self.delay_seconds)
                if self.dribbles:
                    for octet in data[:_DRIBBLED_OCTETS]:
                        writer.write(bytes([octet]))
                        await asyncio.sleep(0.001)
                    data = data[_DRIBBLED_OCTETS:]
                writer.write(data)
                await writer.drain()
            writer.write_eof()
        except OSError:  # reset by one side: so it is for the other
            writer.transport.abort()
