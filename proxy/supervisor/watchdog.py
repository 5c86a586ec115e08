"""When to judge whether the event loops of workers run. Pure: the time is an argument.

Workers report that they live four times in the time that they may be silent (the service manager's WatchdogSec, or a
minute), and are judged twice in it. If the whole machine or container stands still for a while, no worker had a chance
to report. The supervisor notices that by its own lateness: it looks eight times, and if a look comes too late, it gives
the workers all their time again.
"""

from __future__ import annotations

import math
from typing import Final

__all__ = ["Watchdog"]

_LOOKS: Final = 8
"""Looks in the time that a worker may be silent."""


class Watchdog:
    """The looks that are to come."""

    def __init__(self) -> None:
        self.due = math.inf
        """When to call `look`; infinite before `start`."""
        self._period = math.inf
        self._looks = 0

    def start(self, now: float, seconds: float) -> None:
        """Begin; `seconds` is how long a worker may be silent."""
        self._period = seconds / _LOOKS
        self._looks = 0
        self.due = now + self._period

    def look(self, now: float) -> bool:
        """Return True if workers that have reported nothing since the last True are to be killed."""
        late = now - self.due
        self.due = now + self._period
        self._looks = 0 if late > self._period else self._looks + 1
        if self._looks < _LOOKS // 2:
            return False
        self._looks = 0
        return True
