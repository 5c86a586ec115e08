"""The token of one key, where the data path reads it. Pure."""

from __future__ import annotations

from typing import Final

from proxy.tokens.model import Token
from proxy.tokens.schedule import usable_seconds

__all__ = ["Slot"]

_NEVER: Final = float("-inf")


class Slot:
    """The token of one key. A route has a reference to it and reads it; the token source writes it."""

    __slots__ = ("_until", "token", "used")

    def __init__(self) -> None:
        self.token: Token | None = None
        """The token, valid or not."""
        self.used = False
        """Whether the token was used since it was minted."""
        self._until = _NEVER

    def usable_token(self, now: float) -> Token | None:
        """Return the token and mark it used; None without a token that is valid for 60 s from `now` on.

        `now` is wall-clock time in seconds since the epoch.
        """
        if now < self._until:
            self.used = True
            return self.token
        return None

    def fill(self, token: Token) -> None:
        """Store a newly minted token."""
        self.token = token
        self.used = False
        self._until = usable_seconds(token.local_expiry, 0.0)

    def clear(self) -> None:
        """Remove the token."""
        self.token = None
        self._until = _NEVER

    def usable_seconds(self, now: float) -> float:
        """Return for how many seconds more the token may be used; 0 or less without a token."""
        return self._until - now
