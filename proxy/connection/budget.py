"""How many octets a worker may queue."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Budget"]


class Budget:
    """How many octets all connections of a worker hold queued, against a cap.

    Connections report changes. A connection that finds the budget used up withholds its connection window until there
    is room.
    """

    __slots__ = ("_waiting", "limit_octets", "queued_octets")

    def __init__(self, limit_octets: int) -> None:
        self.limit_octets = limit_octets
        self.queued_octets = 0
        self._waiting: set[Callable[[], None]] = set()

    def is_used_up(self) -> bool:
        """Return True if no more content should be accepted."""
        return self.queued_octets >= self.limit_octets

    def is_crowded(self) -> bool:
        """Return True if more than half is used: only what must be queued should be."""
        return self.queued_octets > self.limit_octets // 2

    def change(self, octets: int) -> None:
        """Note that so many more (or fewer) octets are queued; wake the waiting once a quarter is free again."""
        self.queued_octets += octets
        if self._waiting and self.queued_octets <= self.limit_octets - self.limit_octets // 4:
            waiting, self._waiting = self._waiting, set()
            for wake in waiting:
                wake()

    def wait(self, wake: Callable[[], None]) -> None:
        """Call `wake` as soon as there is room."""
        self._waiting.add(wake)

    def leave(self, wake: Callable[[], None]) -> None:
        """Do not call `wake` any more."""
        self._waiting.discard(wake)
