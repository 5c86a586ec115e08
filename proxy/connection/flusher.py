"""When connections write what they have queued."""

from __future__ import annotations

import asyncio
from typing import Final

from proxy.http2.engine import ConnectionHandler

__all__ = ["Flushable", "Flusher"]

# After more than so many turns in a row with one read at most, a flush does not wait for the end of its turn.
_TURNS_TO_BE_SURE: Final = 16

# A larger read is one of many messages, so that others are likely to follow.
_SMALL_READ_OCTETS: Final = 2 << 10


class Flushable(ConnectionHandler):
    """A connection as the flusher sees it."""

    __slots__ = ("due_before",)

    due_before: Flushable | None
    """The one that was added before it; for the flusher alone."""

    def flush(self) -> None:
        """Write what is queued."""
        raise NotImplementedError

    def report_error(self, exc: Exception) -> None:
        """Report an internal error to the loop's exception handler."""
        raise NotImplementedError

    def abort(self) -> None:
        """Close the transport at once; what it has not sent is lost."""
        raise NotImplementedError


class Flusher:
    """Flushes all connections of a worker that have something to write, once a loop turn.

    The loop does not tell where a turn ends, so the flush is one more call of it, which costs as much as a small
    message. If in turn after turn only one connection has read, the flush follows its read at once; now and then it is
    a call again, to see whether others read meanwhile.
    """

    __slots__ = ("_last_due", "_now", "_reading", "_reads", "_scheduled", "_single_reads", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        # Linked, because a list made for one connection, which is the common case, costs more than the rest of a flush.
        self._last_due: Flushable | None = None
        self._scheduled = False
        self._now = -1.0  # not asked in this turn
        self._reading = False
        self._reads = 0  # in this turn
        self._single_reads = 0  # turns in a row, so far, with one read at most

    def add(self, connection: Flushable) -> None:
        """Flush this connection at the end of the loop turn, or of the read that is being served."""
        connection.due_before, self._last_due = self._last_due, connection
        if not self._scheduled and not self._reading:
            self._schedule()

    def now(self) -> float:
        """Return the time on the loop's clock, in seconds, as it was when this was first called in this turn."""
        if self._now < 0:
            self._now = self.loop.time()
            if not self._scheduled and not self._reading:
                self._schedule()
        return self._now

    def begin_read(self) -> None:
        """A connection serves what it has read, until `end_read`."""
        self._reading = True
        self._reads += 1

    def end_read(self, octets: int) -> None:
        """A read of so many octets was served: flush what it has made due, now or at the end of the loop turn."""
        self._reading = False
        if self._scheduled:
            return
        turns = self._single_reads
        if octets <= _SMALL_READ_OCTETS and turns > _TURNS_TO_BE_SURE and turns % _TURNS_TO_BE_SURE:
            self.flush()
        else:
            self._schedule()

    def _schedule(self) -> None:
        self._scheduled = True
        self.loop.call_soon(self.flush)

    def flush(self) -> None:
        """Flush every connection that was added."""
        self._single_reads = self._single_reads + 1 if self._reads <= 1 else 0
        self._reads = 0
        self._scheduled = False
        self._now = -1.0
        connection, self._last_due = self._last_due, None
        while connection is not None:
            before, connection.due_before = connection.due_before, None
            try:
                connection.flush()
            except Exception as exc:  # noqa: BLE001 - the other connections must be flushed, too
                connection.report_error(exc)
                # Octets that the engine gave out may be lost, so the peer could not find the next frame.
                connection.abort()
            connection = before
