"""Warnings that repeat: one a second of each kind is written, and the next one says how many were not."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Final

__all__ = ["Repeats"]

_INTERVAL_SECONDS: Final = 1.0


class Repeats:
    """Decides for each kind of line whether it may be written now. Kinds must be few: they are kept."""

    def __init__(self) -> None:
        self._quiet_until: dict[Hashable, float] = {}
        self._dropped: dict[Hashable, int] = {}

    def fields(self, kind: Hashable, now: float) -> dict[str, Any] | None:
        """Return what to add to the line, or None if it must not be written; it is counted then.

        Added is `repeats_dropped`, where such lines were dropped since the last one. `now` is in seconds, of any clock.
        """
        if now < self._quiet_until.get(kind, now):
            self._dropped[kind] = self._dropped.get(kind, 0) + 1
            return None
        self._quiet_until[kind] = now + _INTERVAL_SECONDS
        dropped = self._dropped.pop(kind, 0)
        return {"repeats_dropped": dropped} if dropped else {}
