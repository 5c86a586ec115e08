"""Mints for one request alone: a discovery must show whether minting works now.

A request that has waited too long leaves its mint, which goes on. The next discovery of the key takes the result of
that mint, or of its own if that is earlier. Without this, a slow credential (an executable has up to two minutes) would
never pass a discovery.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from proxy.tokens.model import Token, TokenKey

__all__ = ["UncachedMints"]

_KEPT_SECONDS: Final = 60.0
"""How long a token that no request waited for is kept for the next discovery."""


class _AbandonedMint:
    """A mint that its request has left."""

    __slots__ = ("ended_at", "task")

    def __init__(self, task: asyncio.Task[Token], now: Callable[[], float]) -> None:
        self.task = task
        self.ended_at: float | None = None

        def note_end(_: asyncio.Task[Token]) -> None:
            self.ended_at = now()

        task.add_done_callback(note_end)

    def usable(self, now: float) -> bool:
        """Return whether it runs, or has returned a token lately."""
        if not self.task.done():
            return True
        return _succeeded(self.task) and (self.ended_at is None or now - self.ended_at < _KEPT_SECONDS)


class UncachedMints:
    """Keeps at most one abandoned mint for each key.

    `start` starts a mint in a task, which its owner ends. A mint is abandoned only for a key that `is_wanted`.
    """

    def __init__(self, start: Callable[[TokenKey], asyncio.Task[Token]], is_wanted: Callable[[TokenKey], bool]) -> None:
        self._start = start
        self._is_wanted = is_wanted
        self._abandoned: dict[TokenKey, _AbandonedMint] = {}

    async def token(self, key: TokenKey) -> Token:
        """Return a token that no other request has received. Raises the failure of its mint, or CancelledError."""
        now = asyncio.get_running_loop().time
        abandoned = self._abandoned.pop(key, None)
        mints = [abandoned.task] if abandoned is not None and abandoned.usable(now()) else []
        if not mints or not mints[0].done():
            mints.append(self._start(key))
        try:
            return await _first_token(mints)
        finally:
            running = [mint for mint in mints if not mint.done()]
            if running and self._is_wanted(key) and not any(map(_succeeded, mints)):
                other = self._abandoned.get(key)
                if other is not None:
                    other.task.cancel()
                self._abandoned[key] = _AbandonedMint(running.pop(0), now)
            for mint in running:
                mint.cancel()

    def drop_all(self) -> None:
        """Cancel and drop all abandoned mints."""
        for abandoned in self._abandoned.values():
            abandoned.task.cancel()
        self._abandoned.clear()

    def drop_unwanted(self) -> None:
        """Cancel and drop the abandoned mints of keys that are not wanted any more."""
        for key in [key for key in self._abandoned if not self._is_wanted(key)]:
            self._abandoned.pop(key).task.cancel()


async def _first_token(mints: list[asyncio.Task[Token]]) -> Token:
    """Return the first token, or raise the failure of the last mint; when cancelled, let the mints go on."""
    pending = set(mints)
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for mint in done:
            if _succeeded(mint):
                return mint.result()
    return mints[-1].result()


def _succeeded(mint: asyncio.Task[Token]) -> bool:
    return mint.done() and not mint.cancelled() and mint.exception() is None
