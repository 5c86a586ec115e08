"""Log lines that repeat: one of each kind in an interval, and the next one says how many were not written."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Final

__all__ = ["Throttle"]


_OTHERS: Final = object()
"""The kind of all lines beyond `most_kinds`."""


class Throttle:
    """Decides for each kind of line whether it may be written now.

    Of a kind one line is written in `interval_seconds`. Callers may make up any number of kinds: beyond `most_kinds`
    in an interval they count as one.
    """

    def __init__(self, interval_seconds: float = 1.0, most_kinds: int = 50) -> None:
        self._interval_seconds = interval_seconds
        self._most_kinds = most_kinds
        self._quiet_until: dict[Hashable, float] = {}
        self._dropped: dict[Hashable, int] = {}

    def fields(self, kind: Hashable, now: float) -> dict[str, Any] | None:
        """Return the fields to add to the line, or None if it must not be written; it is counted then.

        `repeats_dropped` is added where such lines were dropped since the last one. `now` is in seconds, of any clock.
        """
        kind = self._counted_as(kind, now)
        if now < self._quiet_until.get(kind, now):
            self._dropped[kind] = self._dropped.get(kind, 0) + 1
            return None
        self._quiet_until[kind] = now + self._interval_seconds
        dropped = self._dropped.pop(kind, 0)
        return {"repeats_dropped": dropped} if dropped else {}

    def _counted_as(self, kind: Hashable, now: float) -> Hashable:
        """Return `kind`, or `_OTHERS` if there are too many; forget those whose interval is over first."""
        if kind in self._quiet_until or len(self._quiet_until) < self._most_kinds:
            return kind
        for over in [known for known, until in self._quiet_until.items() if until <= now]:
            del self._quiet_until[over]
            if dropped := self._dropped.pop(over, 0):
                self._dropped[_OTHERS] = self._dropped.get(_OTHERS, 0) + dropped
        return kind if len(self._quiet_until) < self._most_kinds else _OTHERS
