"""How often something may happen. Pure: the caller has the clock."""

from __future__ import annotations

__all__ = ["RateLimit"]

_MINUTE: float = 60.0


class RateLimit:
    """So many events a minute: all of them at once, if there were none for a minute, and evenly after that.

    `most_debt_seconds` bounds how long a limit that is overdrawn takes to be paid back.
    """

    __slots__ = ("_at", "_left", "most_debt_seconds", "per_minute")

    def __init__(self, per_minute: int, now: float, *, most_debt_seconds: float = 0.0) -> None:
        self.per_minute = per_minute
        """The limit. It may be changed."""
        self.most_debt_seconds = most_debt_seconds
        self._left = float(per_minute)
        self._at = now

    def left(self, now: float) -> float:
        """Return how many events may happen now; below 0 if there were too many."""
        self._left = min(float(self.per_minute), self._left + (now - self._at) * self.per_minute / _MINUTE)
        self._at = now
        return self._left

    def charge(self, now: float) -> None:
        """Note that one has happened, whether there was one left or not."""
        most_debt = self.most_debt_seconds * self.per_minute / _MINUTE
        self._left = max(-most_debt, self.left(now) - 1.0)

    def take(self, now: float) -> bool:
        """Note that one happens now, and return True; False if none is left."""
        if self.left(now) < 1.0:
            return False
        self._left -= 1.0
        return True

    def seconds_until(self, left: float, now: float) -> float:
        """Return the time until so many may happen; 0 if they may now."""
        return max(0.0, (left - self.left(now)) * _MINUTE / self.per_minute)
