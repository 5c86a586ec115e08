"""Mints for one request alone: a discovery has to show whether minting works now.

Who waited too long leaves, and the mint goes on. The next discovery of its key takes what comes of it, or what its own
mint brings if that is earlier: a slow credential (an executable has up to two minutes) would never be discovered else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from proxy.tokens.model import Token, TokenKey

__all__ = ["FreshMints"]

_KEPT_SECONDS: Final = 60.0
"""How long a token that nobody waited for is kept for the next discovery."""


class _Left:
    """A mint that its request has left."""

    __slots__ = ("ended_at", "task")

    def __init__(self, task: asyncio.Task[Token], now: Callable[[], float]) -> None:
        self.task = task
        self.ended_at: float | None = None

        def note_end(_: asyncio.Task[Token]) -> None:
            self.ended_at = now()

        task.add_done_callback(note_end)

    def usable(self, now: float) -> bool:
        """Return whether it can still bring something."""
        if not self.task.done():
            return True
        return _succeeded(self.task) and (self.ended_at is None or now - self.ended_at < _KEPT_SECONDS)


class FreshMints:
    """Keeps at most one mint a key that its request has left. `start` starts one in a task that its owner ends."""

    def __init__(self, start: Callable[[TokenKey], asyncio.Task[Token]]) -> None:
        self._start = start
        self._left: dict[TokenKey, _Left] = {}

    async def token(self, key: TokenKey) -> Token:
        """Return a token that nobody had before. Raises what its mint raises, CancelledError if that was cancelled."""
        now = asyncio.get_running_loop().time
        left = self._left.pop(key, None)
        mints = [left.task] if left is not None and left.usable(now()) else []
        if not mints or not mints[0].done():
            mints.append(self._start(key))
        try:
            return await _first_token(mints)
        finally:
            going_on = [mint for mint in mints if not mint.done()]
            if going_on and not any(map(_succeeded, mints)):
                self._leave(key, going_on.pop(0), now)
            for mint in going_on:
                mint.cancel()

    def forget(self) -> None:
        """Stop and drop all mints that were left."""
        for left in self._left.values():
            left.task.cancel()
        self._left.clear()

    def _leave(self, key: TokenKey, mint: asyncio.Task[Token], now: Callable[[], float]) -> None:
        other = self._left.get(key)
        if other is not None:
            other.task.cancel()
        self._left[key] = _Left(mint, now)


async def _first_token(mints: list[asyncio.Task[Token]]) -> Token:
    """Return the token that comes first, or raise what the last mint raised; cancelled, leave the mints alone."""
    pending = set(mints)
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for mint in done:
            if _succeeded(mint):
                return mint.result()
    return mints[-1].result()


def _succeeded(mint: asyncio.Task[Token]) -> bool:
    return mint.done() and not mint.cancelled() and mint.exception() is None
