"""Log lines that repeat: one of each kind in an interval, and the next one says how many were not written."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

__all__ = ["Throttle"]


class Throttle:
    """Decides for each kind of line whether it may be written now. There must be few kinds: they are kept.

    Of a kind one line is written in `interval_seconds`.
    """

    def __init__(self, interval_seconds: float = 1.0) -> None:
        self._interval_seconds = interval_seconds
        self._quiet_until: dict[Hashable, float] = {}
        self._dropped: dict[Hashable, int] = {}

    def fields(self, kind: Hashable, now: float) -> dict[str, Any] | None:
        """Return the fields to add to the line, or None if it must not be written; it is counted then.

        `repeats_dropped` is added where such lines were dropped since the last one. `now` is in seconds, of any clock.
        """
        if now < self._quiet_until.get(kind, now):
            self._dropped[kind] = self._dropped.get(kind, 0) + 1
            return None
        self._quiet_until[kind] = now + self._interval_seconds
        dropped = self._dropped.pop(kind, 0)
        return {"repeats_dropped": dropped} if dropped else {}
