"""What the token source knows of one key, besides the token."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from proxy.errors import Failure
from proxy.tokens.model import Token
from proxy.tokens.slot import Slot

__all__ = ["Entry", "Timer"]

_NEVER: Final = float("-inf")


class Timer(Protocol):
    """What a scheduled call can be told."""

    def cancel(self) -> None:
        """Do not make the call; without effect after it was made."""


class Entry:
    """What is known about one key."""

    __slots__ = (
        "failed_at",
        "failure",
        "failures",
        "flight",
        "rejected",
        "rejected_at",
        "retry_seconds",
        "slot",
        "timer",
    )

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        self.flight: asyncio.Task[Token] | None = None
        self.timer: Timer | None = None
        self.failure: Failure | None = None
        self.failures = 0
        self.failed_at = _NEVER
        self.retry_seconds = 0.0
        self.rejected: Token | None = None
        self.rejected_at = _NEVER

    def recall_failure(self, now: float) -> Failure | None:
        """Return the last failure, anew, while it stands; a clock that was set back ends it."""
        if self.failure is None or not self.failed_at <= now < self.failed_at + self.retry_seconds:
            return None
        return type(self.failure)(*self.failure.args)

    def forget_failure(self) -> None:
        """Let the next request mint."""
        self.failure = None
        self.failures = 0

    def disarm(self) -> None:
        """Stop the timer, if one runs."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
