"""An event loop and sockets in a test's hands: time stands still unless moved, and octets stay until they are taken."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.support.loops import IdleLoop, loop_idle

__all__ = ["Transport", "Workshop"]


class Workshop(IdleLoop):
    """An event loop whose clock stands until it is moved, and which collects the exceptions that nothing caught."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__()
        self.uncaught: list[dict[str, Any]] = []
        self.set_exception_handler(lambda _, context: self.uncaught.append(context))

    def time(self) -> float:
        return self.now

    def turn(self) -> None:
        """Run what is ready now, and not what that makes ready."""
        self.call_soon(self.stop)
        self.run_forever()

    def run_ready(self) -> None:
        """Run until nothing is ready."""
        self.run_until_complete(loop_idle())

    def advance(self, seconds: float) -> None:
        """Move the clock, and run the timers that have become due."""
        self.now += seconds
        self.turn()


class Transport(asyncio.Transport):
    """A socket's write side in memory. What is written stays until the wire takes it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.protocol = protocol
        self.high: int | None = None
        self.paused = False
        self.written = 0
        """Octets written so far."""
        self.fills = False
        """Whether the next write is more than the socket takes: the protocol is told to pause from within."""
        self.aborted = False
        self.lost = False
        self._loop = loop
        self._buffer = bytearray()
        self._closing = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.high = high

    def get_write_buffer_size(self) -> int:
        return len(self._buffer)

    def is_closing(self) -> bool:
        return self._closing

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        assert not self._closing, "written to a transport that is closing"
        self._buffer += data
        self.written += len(data)
        if self.fills:
            self.fills = False
            self.pause()

    def pause(self) -> None:
        """Tell the protocol that there is no room; a real transport does it when its buffer is over `high`."""
        if not self.paused and not self._closing:
            self.paused = True
            self.protocol.pause_writing()

    def resume(self) -> None:
        """Tell the protocol that there is room again."""
        if self.paused:
            self.paused = False
            if not self.lost:
                self.protocol.resume_writing()

    def read(self) -> bytes:
        """Take what was written, as the peer's socket does."""
        data = bytes(self._buffer)
        self._buffer.clear()
        if self._closing:
            self.lose(None)
        return data

    def can_write_eof(self) -> bool:
        """Return False, as TLS does: closed is closed."""
        return False

    def close(self) -> None:
        self._closing = True
        if not self._buffer:
            self.lose(None)

    def abort(self) -> None:
        self.aborted = self._closing = True
        self._buffer.clear()
        self.lose(None)

    def lose(self, exc: Exception | None) -> None:
        """End the connection; the protocol hears of it in the next turn, once."""
        self._closing = True
        if not self.lost:
            self.lost = True
            self._loop.call_soon(self.protocol.connection_lost, exc)

    def fail(self, exc: Exception) -> None:
        """Report what the protocol raised and end the connection."""
        self._loop.call_exception_handler({"message": "the protocol failed", "exception": exc})
        self.lose(exc)
