"""Mints for discoveries: a discovery must show whether minting works now, so its token is minted after it has come.

All discoveries of a key that come while a mint runs share the next one, which starts when that has ended: however many
there are, they cost one mint at a time.

A request that has waited too long leaves its mint, which goes on if it was the last one. The next discovery of the key
that starts a mint takes the result of the abandoned one, or of its own if that is earlier. Without this, a slow
credential (an executable has up to two minutes) would never pass a discovery.
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
    """A mint that its requests have left."""

    __slots__ = ("_now", "ended_at", "task")

    def __init__(self, task: asyncio.Task[Token], now: Callable[[], float]) -> None:
        self.task = task
        self.ended_at: float | None = None
        self._now = now
        task.add_done_callback(self._note_end)

    def adopt(self) -> asyncio.Task[Token]:
        """Return the mint for a request that waits for it again. A mint that hangs may be adopted very often."""
        self.task.remove_done_callback(self._note_end)
        return self.task

    def usable(self, now: float) -> bool:
        """Return whether it runs, or has returned a token lately."""
        if not self.task.done():
            return True
        return _succeeded(self.task) and (self.ended_at is None or now - self.ended_at < _KEPT_SECONDS)

    def _note_end(self, _: asyncio.Task[Token]) -> None:
        self.ended_at = self._now()


class _SharedMint:
    """A mint and the number of requests that wait for it; `started` has its task once it has started."""

    __slots__ = ("started", "waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.started: asyncio.Future[asyncio.Task[Token]] = loop.create_future()
        self.waiting = 0


class _Key:
    """The mints of one key that requests wait for."""

    __slots__ = ("following", "running")

    def __init__(self) -> None:
        self.running: _SharedMint | None = None
        self.following: _SharedMint | None = None
        """Starts when `running` has ended."""


class UncachedMints:
    """The mints of discoveries, of all keys; at most one abandoned mint is kept for each.

    `start` starts a mint in a task, which its owner ends. A mint is abandoned only for a key that `is_wanted`.
    """

    def __init__(self, start: Callable[[TokenKey], asyncio.Task[Token]], is_wanted: Callable[[TokenKey], bool]) -> None:
        self._start = start
        self._is_wanted = is_wanted
        self._abandoned: dict[TokenKey, _AbandonedMint] = {}
        self._keys: dict[TokenKey, _Key] = {}

    async def token(self, key: TokenKey) -> Token:
        """Return a token whose mint started after this call. Raises the failure of that mint, or CancelledError.

        An exception is the token of an abandoned mint, which no other request has received.
        """
        loop = asyncio.get_running_loop()
        mints: list[asyncio.Task[Token]] = []
        if key not in self._keys:
            abandoned = self._abandoned.pop(key, None)
            if abandoned is not None and abandoned.usable(loop.time()):
                if abandoned.task.done():
                    return abandoned.task.result()
                mints.append(abandoned.adopt())
        state = self._keys.setdefault(key, _Key())
        shared = state.following
        if shared is None:
            shared = state.following = _SharedMint(loop)
            self._start_following(key, state)
        shared.waiting += 1
        try:
            mints.append(await asyncio.shield(shared.started))
            return await _first_token(mints)
        finally:
            shared.waiting -= 1
            self._leave(key, state, shared, mints)

    def close(self) -> None:
        """Start no mint any more; `token` raises CancelledError to those who wait for one."""
        for state in self._keys.values():
            if state.following is not None:
                state.following.started.cancel()
                state.following = None

    def drop_all(self) -> None:
        """Cancel and drop all abandoned mints."""
        for abandoned in self._abandoned.values():
            abandoned.task.cancel()
        self._abandoned.clear()

    def drop_unwanted(self) -> None:
        """Cancel and drop the abandoned mints of keys that are not wanted any more."""
        for key in [key for key in self._abandoned if not self._is_wanted(key)]:
            self._abandoned.pop(key).task.cancel()

    def _start_following(self, key: TokenKey, state: _Key) -> None:
        """Start the following mint of the key, if there is one and none runs."""
        shared = state.following
        if state.running is not None or shared is None:
            return
        state.running, state.following = shared, None
        task = self._start(key)
        shared.started.set_result(task)
        task.add_done_callback(lambda _: self._ended(key, state, shared))

    def _ended(self, key: TokenKey, state: _Key, shared: _SharedMint) -> None:
        """The mint does not run any more, or is abandoned: the following one may start."""
        if state.running is shared:
            state.running = None
            self._start_following(key, state)

    def _leave(self, key: TokenKey, state: _Key, shared: _SharedMint, mints: list[asyncio.Task[Token]]) -> None:
        """Abandon the first mint that runs and that no request waits for, and cancel other ones."""
        left = mints
        if shared.waiting:
            left = mints[:-1] if shared.started.done() else mints
        elif state.following is shared:
            state.following = None
        running = [mint for mint in left if not mint.done()]
        if running and self._is_wanted(key) and not any(map(_succeeded, mints)):
            other = self._abandoned.get(key)
            if other is not None:
                other.task.cancel()
            self._abandoned[key] = _AbandonedMint(running.pop(0), asyncio.get_running_loop().time)
        for mint in running:
            mint.cancel()
        if not shared.waiting and shared.started.done():
            self._ended(key, state, shared)
        if state.running is None and state.following is None and self._keys.get(key) is state:
            del self._keys[key]


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
