"""The write side of a connection in memory."""

from __future__ import annotations

import asyncio
from typing import Any

__all__ = ["MemoryTransport"]


class MemoryTransport(asyncio.Transport):
    """A socket's write side: what the protocol writes stays until the peer reads it.

    As with a socket, the protocol is told to pause while more than the high-water mark is buffered; and it is told so
    from `stall` to `resume`, whatever is buffered. The end of the connection is reported in the next turn, once.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, protocol: asyncio.Protocol, *, reading: bool = False) -> None:
        super().__init__()
        self.protocol = protocol
        self.reading = reading
        """Whether the peer takes what is written at once: nothing counts as buffered then."""
        self.high: int | None = None
        """The high-water mark in octets, once the protocol has set it."""
        self.written = 0
        """Octets written so far."""
        self.stalls_at_next_write = False
        """Whether the next write is more than the socket takes: the protocol is told to pause from within."""
        self.stalled = False
        self.aborted = False
        self.lost = False
        self.reading_paused = False
        """Whether the protocol wants to read nothing now."""
        self._loop = loop
        self._buffer = bytearray()
        self._paused = False
        self._closing = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.high = high

    def get_write_buffer_size(self) -> int:
        return 0 if self.reading else len(self._buffer)

    def is_closing(self) -> bool:
        return self._closing

    def can_write_eof(self) -> bool:
        """Return False, as the TLS transports of event loops do: closed is closed."""
        return False

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        assert not self._closing, "written to a transport that is closing"
        self._buffer += data
        self.written += len(data)
        self.stalled |= self.stalls_at_next_write
        self.stalls_at_next_write = False
        self._update()

    def stall(self) -> None:
        """Have the socket take nothing more until `resume`."""
        self.stalled = True
        self._update()

    def resume(self) -> None:
        """Have the socket take octets again."""
        self.stalled = False
        self._update()

    def read(self, octets: int | None = None) -> bytes:
        """Return what was written, or so much of it, as the peer's socket gets it."""
        taken = bytes(self._buffer[:octets])
        del self._buffer[:octets]
        self._update()
        if self._closing and not self._buffer:
            self.lose(None)
        return taken

    def pause_reading(self) -> None:
        self.reading_paused = True

    def resume_reading(self) -> None:
        self.reading_paused = False

    def close(self) -> None:
        self._closing = True
        if not self.get_write_buffer_size():
            self.lose(None)

    def abort(self) -> None:
        self.aborted = self._closing = True
        if not self.reading:
            self._buffer.clear()
        self.lose(None)

    def lose(self, exc: Exception | None) -> None:
        """End the connection from the peer's side."""
        self._closing = True
        if not self.lost:
            self.lost = True
            self._loop.call_soon(self.protocol.connection_lost, exc)

    def fail(self, exc: Exception) -> None:
        """Report what the protocol raised, and end the connection."""
        self._loop.call_exception_handler({"message": "the protocol failed", "exception": exc})
        self.lose(exc)

    def _update(self) -> None:
        """Tell the protocol to pause, or to go on, where that has changed."""
        most = self.high if self.high is not None else 64 << 10
        if self._paused:
            most //= 4
        paused = self.stalled or self.get_write_buffer_size() > most
        if paused != self._paused and not self.lost and not (paused and self._closing):
            self._paused = paused
            if paused:
                self.protocol.pause_writing()
            else:
                self.protocol.resume_writing()
