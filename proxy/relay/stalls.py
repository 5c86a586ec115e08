"""Ends what stands still while memory is short, so that others have the room.

While more than half of `queued_octets` is used, an exchange of which octets wait, and none has moved for some time, is
ended; so is the connection of a client that reads nothing of what was written to it. While there is room, nothing is
ended, however long it stands still. A stream of which nothing waits may be silent at any time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Iterable
from typing import Final, TypeAlias

from proxy.connection.budget import Account, Budget
from proxy.downstream.connection import DownstreamConnection
from proxy.errors import Overloaded
from proxy.http2.engine import Stream
from proxy.http2.events import ErrorCode
from proxy.relay.exchange import Exchange

__all__ = ["Clients", "Connections", "Stalls"]

Clients: TypeAlias = Callable[[], Iterable[tuple[Account, Iterable[Stream]]]]
"""Returns the account and the live streams of every connection of a client."""
Connections: TypeAlias = Callable[[], Iterable[DownstreamConnection]]
"""Returns every connection of a client by HTTP/2."""

_STEP: Final = 256
"""How many streams are looked at in one turn of the loop."""
_LOOKS: Final = 4
"""How often everything is looked at in the time that is allowed."""


class Stalls:
    """Looks for what stands still. `seconds` is how long that is allowed."""

    def __init__(self, budget: Budget, clients: Clients, connections: Connections, seconds: float) -> None:
        self.seconds = seconds
        """It may be changed."""
        self._budget = budget
        self._clients = clients
        self._connections = connections
        self._seen: dict[Hashable, tuple[Hashable, float]] = {}
        """Of each stream and connection of which octets wait: what would change if any moved, and since when it has
        not."""
        self._task: asyncio.Task[None] | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to look."""
        self._task = loop.create_task(self._watch(loop))

    async def close(self) -> None:
        """End it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        while True:
            await asyncio.sleep(self.seconds / _LOOKS)
            try:
                await self._look(loop.time())
            except Exception as exc:  # noqa: BLE001 - it must go on
                loop.call_exception_handler(
                    {"message": "internal error while stalls were looked for", "exception": exc}
                )

    async def _look(self, now: float) -> None:
        before, self._seen = self._seen, {}
        if not self._budget.is_crowded():
            return
        for connection in list(self._connections()):
            octets = connection.unwritten_octets()
            if octets and self._stands_still(connection, octets, before, now):
                connection.cut_off(f"the client has read nothing for {self.seconds:g} s, and memory is short")
                connection.abort()
        count = 0
        for _, streams in list(self._clients()):
            for stream in streams:
                count += 1
                if count % _STEP == 0:
                    await asyncio.sleep(0)
                mark = _progress(stream)
                if mark is not None and self._stands_still(stream, mark, before, now):
                    self._end(stream)
                    await asyncio.sleep(0)  # what it has freed is counted in the next turn

    def _stands_still(
        self, what: Hashable, mark: Hashable, before: dict[Hashable, tuple[Hashable, float]], now: float
    ) -> bool:
        """Return True if this is to be ended; else remember how it is now."""
        if not self._budget.is_crowded():
            return False
        last = before.get(what)
        if last is None or last[0] != mark:
            last = (mark, now)
        self._seen[what] = last
        return now >= last[1] + self.seconds

    def _end(self, stream: Stream) -> None:
        if isinstance(stream.receiver, Exchange):
            text = f"nothing of this exchange has moved for {self.seconds:g} s (stall_timeout), and memory is short"
            stream.receiver.on_evicted(Overloaded(text))
        else:
            stream.reset_now(ErrorCode.ENHANCE_YOUR_CALM)


def _progress(stream: Stream) -> Hashable | None:
    """Return what changes when octets of the exchange on this stream move; None if none of them waits."""
    queued = stream.count_queued_octets()
    exchange = stream.receiver
    if not isinstance(exchange, Exchange):
        return queued or None
    upstream = exchange.upstream
    sending = upstream.count_queued_octets() if upstream is not None else 0
    if not queued and not sending:
        return None
    return queued, sending, exchange.request_octets, exchange.response_octets
