"""One key in the token cache: its slot, and what decides when to mint again."""

from __future__ import annotations

import asyncio
import copy
from typing import Final, Protocol

from proxy.errors import Failure
from proxy.tokens.model import Token, TokenKey
from proxy.tokens.slot import Slot

__all__ = ["Timer", "TokenEntry"]

_NEVER: Final = float("-inf")


class Timer(Protocol):
    """A scheduled call."""

    def cancel(self) -> None:
        """Do not make the call; without effect after it was made."""


class TokenEntry(Slot):
    """The slot of one key, with the mint, the timer and the last failure of that key.

    A route reads it as a `Slot`. The subclass can be referenced weakly, which a compiled class cannot.
    """

    __slots__ = (
        "__weakref__",
        "asked_order",
        "dropped",
        "failed_at",
        "failure",
        "failures",
        "key",
        "mint",
        "rejected_at",
        "retry_seconds",
        "timer",
        "waiting",
    )

    def __init__(self, key: TokenKey) -> None:
        super().__init__()
        self.key: Final = key
        """What its tokens are minted for."""
        self.mint: asyncio.Task[Token] | None = None
        """The mint under way."""
        self.waiting = 0
        """How many callers wait for a mint."""
        self.dropped = False
        """True if no route uses the key any more: a new token goes to waiting requests, and is not kept."""
        self.timer: Timer | None = None
        """Runs at the next refresh, or the next check whether a refresh is needed."""
        self.asked_order = 0
        """Greater for an entry that was asked for later."""
        self.failure: Failure | None = None
        """The failure of the last mint; None after a success."""
        self.failures = 0
        """How many mints in a row have failed."""
        self.failed_at = _NEVER
        """When the last mint failed, in seconds of the wall clock."""
        self.retry_seconds = 0.0
        """How long that failure is answered without another mint."""
        self.rejected_at = _NEVER
        """When Cloud Run last rejected a token, in seconds of the wall clock."""

    def remember_failure(self, failure: Failure, now: float, retry_seconds: float) -> None:
        """Answer with this failure for `retry_seconds`, without another mint."""
        # A copy: a traceback would keep the frames of the mint, and this entry, in memory.
        self.failure = copy.copy(failure)
        self.failed_at = now
        self.retry_seconds = retry_seconds

    def recall_failure(self, now: float) -> Failure | None:
        """Return a copy of the last failure while it is remembered. Setting the clock back ends that."""
        if self.failure is None or not self.failed_at <= now < self.failed_at + self.retry_seconds:
            return None
        return copy.copy(self.failure)

    def forget_failure(self) -> None:
        """Let the next request mint."""
        self.failure = None
        self.failures = 0

    def stop_timer(self) -> None:
        """Cancel the timer, if one is set."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
