"""How much a worker may hold for others."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Budget"]


class Budget:
    """How many octets all connections of a worker hold queued, against a cap.

    Connections report changes; one that finds the budget used up keeps its connection credit back until there is room.
    """

    __slots__ = ("_waiting", "limit_octets", "queued_octets")

    def __init__(self, limit_octets: int) -> None:
        self.limit_octets = limit_octets
        self.queued_octets = 0
        self._waiting: set[Callable[[], None]] = set()

    def is_used_up(self) -> bool:
        """Return whether no more should be invited."""
        return self.queued_octets >= self.limit_octets

    def is_crowded(self) -> bool:
        """Return whether more than half is used: nothing should be held that need not be."""
        return self.queued_octets > self.limit_octets // 2

    def change(self, octets: int) -> None:
        """Note that so many more (or fewer) octets are queued; wake who waits once a quarter is free again."""
        self.queued_octets += octets
        if self._waiting and self.queued_octets <= self.limit_octets - self.limit_octets // 4:
            waiting, self._waiting = self._waiting, set()
            for wake in waiting:
                wake()

    def wait(self, wake: Callable[[], None]) -> None:
        """Have `wake` called once there is room."""
        self._waiting.add(wake)

    def leave(self, wake: Callable[[], None]) -> None:
        """Forget `wake`."""
        self._waiting.discard(wake)
