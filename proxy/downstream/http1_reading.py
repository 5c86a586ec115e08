"""When the octets of an HTTP/1.1 connection are read: not before the request that they belong to has its turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

__all__ = ["NextRequest", "Pushback"]


class NextRequest:
    """Hypercorn's event `can_read`: set when the next, pipelined request may be read.

    While Hypercorn waits for it, it does not read and would not notice that the client is gone. So `wait` also runs
    `client_sends`, and raises ConnectionResetError if that returns False.
    """

    def __init__(self, client_sends: Callable[[asyncio.Event], Coroutine[Any, Any, bool]]) -> None:
        self._may_read = asyncio.Event()
        self._client_sends = client_sends
        self._client_gone = False

    def is_set(self) -> bool:
        """Return True if it may be read now."""
        return self._may_read.is_set()

    async def clear(self) -> None:
        """From now on it may not be read."""
        self._may_read.clear()

    async def set(self) -> None:
        """It may be read now."""
        self._may_read.set()

    async def wait(self) -> None:
        """Wait until it may be read. Raises ConnectionResetError."""
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(self._watch_client())
            await self._may_read.wait()
            watching.cancel()
        if self._client_gone:
            raise ConnectionResetError("the client is gone")

    async def _watch_client(self) -> None:
        if not await self._client_sends(self._may_read):
            self._client_gone = True
            self._may_read.set()


class Pushback:
    """A reader that can take data back, to return it again."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._returned = b""
        self._reader = reader

    def at_eof(self) -> bool:
        """Return True if there is nothing more to read."""
        return not self._returned and self._reader.at_eof()

    def give_back(self, data: bytes) -> None:
        """Return `data` again from the next read, before anything else."""
        self._returned = data + self._returned

    async def read(self, n: int) -> bytes:
        """Return up to `n` octets; b"" at the end."""
        if self._returned:
            data, self._returned = self._returned[:n], self._returned[n:]
            return data
        return await self._reader.read(n)
