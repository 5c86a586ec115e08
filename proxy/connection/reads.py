"""What was read from a connection, handed to its engine in slices, so that no connection keeps the loop for long.

A read of tiny frames, or of heads that repeat a large field of HPACK's table, can take a thousand times as long as a
read of content. So a large read is served in slices whose size adapts to the time they take, and only for some time in
a turn of the loop; other connections have their turn meanwhile, and this one reads nothing more.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Final

from proxy.http2.engine import Engine

__all__ = ["Reads", "Slices"]

_TURN_SECONDS: Final = 0.002
_FIRST_SLICE_OCTETS: Final = 1 << 10
_LEAST_SLICE_OCTETS: Final = 64
_MOST_SLICE_OCTETS: Final = 64 << 10
_QUICK_OCTETS: Final = 1 << 10
"""So few octets are served at once, and not timed."""


class Slices:
    """How much of what was read is served at a time, by the time that the last slices took."""

    __slots__ = ("octets",)

    def __init__(self) -> None:
        self.octets = _FIRST_SLICE_OCTETS
        """Size of the next slice."""

    def adapt(self, octets: int, seconds: float) -> bool:
        """Note how long a slice took; return True if that was long enough for others to have their turn now."""
        if seconds > _TURN_SECONDS:
            self.octets = max(_LEAST_SLICE_OCTETS, octets // 4)
            return True
        if seconds < _TURN_SECONDS / 4:
            if octets >= self.octets // 2:
                self.octets = min(_MOST_SLICE_OCTETS, self.octets * 2)
            return False
        return True


class Reads:
    """The reads of one connection that were not served yet. `clock` is in seconds."""

    __slots__ = ("_clock", "_engine", "_slices", "left")

    def __init__(self, engine: Engine, clock: Callable[[], float] = perf_counter) -> None:
        self._engine = engine
        self._clock = clock
        self._slices = Slices()
        self.left = bytearray()
        """What was read and not served."""

    def take(self, buffer: bytearray, octets: int) -> None:
        """Serve the first octets of a buffer, or as much as a turn permits behind what is left.

        Raises ValueError where the buffer does not have so many.
        """
        if self.left or octets > self._slices.octets:
            if not 0 <= octets <= len(buffer):
                raise ValueError("no buffer has more octets than it can hold")
            waits = bool(self.left)
            self.left += memoryview(buffer)[:octets]
            if not waits:
                self.serve()
        elif octets <= _QUICK_OCTETS:
            self._engine.receive_from(buffer, octets)
        else:
            began = self._clock()
            self._engine.receive_from(buffer, octets)
            self._slices.adapt(octets, self._clock() - began)

    def serve(self) -> None:
        """Serve slices of what is left, for as long as a turn permits."""
        left = self.left
        began = self._clock()
        until = began + _TURN_SECONDS
        while left and began < until:
            data = bytes(memoryview(left)[: self._slices.octets])
            del left[: len(data)]
            self._engine.receive(data)
            now = self._clock()
            self._slices.adapt(len(data), now - began)
            began = now
