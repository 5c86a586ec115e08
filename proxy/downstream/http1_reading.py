"""When the octets of an HTTP/1.1 connection are read: not before the request that they belong to has its turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

from proxy.connection.budget import Account, Budget

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
    """A reader that can take data back, to return it again, and whose data can be charged to an account."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._returned = b""
        self._reader = reader
        self._account: Account | None = None

    @contextmanager
    def charged(self, budget: Budget, address: Hashable, abort: Callable[[], object]) -> Iterator[None]:
        """For the time of a `with`, charge what waits here: a client may send ahead of its turn, and wait for long.

        At the beginning, nothing may wait but what was given back. `abort` is to end the connection, at the limit.
        """

        def give_up(octets: int, least_octets: int) -> None:
            if account.octets >= max(1, least_octets) and self._account is not None:
                self._account = None
                account.change(-account.octets)
                # The connection ends a little later, and would hold what it has until then.
                self._returned = b""
                self._reader._buffer.clear()  # type: ignore[attr-defined]
                abort()

        def feed(data: bytes) -> None:
            if self._account is not None:
                feed_data(data)
                self._count(len(data))

        feed_data = self._reader.feed_data
        setattr(self._reader, "feed_data", feed)  # noqa: B010 - a method of this one reader
        account = self._account = budget.open_account(give_up)
        budget.join(account, address)
        self._count(len(self._returned))
        try:
            yield
        finally:
            self._account = None
            budget.close_account(account)

    def at_eof(self) -> bool:
        """Return True if there is nothing more to read."""
        return not self._returned and self._reader.at_eof()

    def give_back(self, data: bytes) -> None:
        """Return `data` again from the next read, before anything else."""
        self._returned = data + self._returned
        self._count(len(data))

    async def peek(self, n: int) -> bool:
        """Wait for something to read; return False at the end. Up to `n` octets are taken from the connection.

        The more is taken, the earlier an end is noticed that comes behind it.
        """
        if not self._returned:
            self._returned = await self._reader.read(n)
        return bool(self._returned)

    async def read(self, n: int) -> bytes:
        """Return up to `n` octets; b"" at the end."""
        if self._returned:
            data, self._returned = self._returned[:n], self._returned[n:]
        else:
            data = await self._reader.read(n)
        self._count(-len(data))
        return data

    def _count(self, octets: int) -> None:
        if self._account is not None:
            self._account.change(octets)
