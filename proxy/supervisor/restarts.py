"""When to start another worker in place of one that has exited. Pure: the time is an argument.

The first one is started at once. While workers exit soon after their start, each further start waits twice as long as
the one before: a cause that lasts, such as too little memory, must not keep the processors busy. Where no worker
serves, clients wait, too: then one of them is started as soon as a service manager restarts a single process.
"""

from __future__ import annotations

import math
from typing import Final

__all__ = ["Restarts"]

_SETTLED_SECONDS: Final = 10.0
"""A worker that has run for this long has not failed at its start."""
_FIRST_DELAY_SECONDS: Final = 0.5
_LONGEST_DELAY_SECONDS: Final = 30.0
_LONGEST_DELAY_UNSERVED_SECONDS: Final = 1.0
"""While no worker serves: RestartSec of config/systemd/cloudrun-sidecar.service."""


class Restarts:
    """The starts that are to come."""

    def __init__(self) -> None:
        self._due: list[float] = []
        self._failed_starts = 0

    @property
    def next(self) -> float:
        """The time of the next start; infinite if there is none."""
        return min(self._due, default=math.inf)

    def add(self, now: float, lived_seconds: float, *, served: bool) -> float:
        """Plan a start after a worker has exited that lived this long; return in how many seconds.

        `served`: another worker takes requests, or starts and is about to.
        """
        self._failed_starts = 0 if lived_seconds >= _SETTLED_SECONDS else self._failed_starts + 1
        delay = 0.0
        if self._failed_starts > 1:
            delay = min(_LONGEST_DELAY_SECONDS, _FIRST_DELAY_SECONDS * 2 ** min(self._failed_starts - 2, 16))
            if not served and self.next > now + _LONGEST_DELAY_UNSERVED_SECONDS:  # one of them is enough
                delay = min(delay, _LONGEST_DELAY_UNSERVED_SECONDS)
        self._due.append(now + delay)
        return delay

    def take_due(self, now: float) -> int:
        """Return how many starts are due, and forget them."""
        later = [due for due in self._due if due > now]
        count = len(self._due) - len(later)
        self._due = later
        return count

    def clear(self) -> None:
        """Forget all starts: the workers are ending."""
        self._due = []
