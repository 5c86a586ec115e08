"""The token cache: aiocache's memory cache, whose values are the slots that routes read.

A token is kept in one place, the entry of its key. aiocache keeps that entry for as long as its token may be used, or
its failure is worth remembering, and drops it then (TTL). A route has a reference to the same entry, so that it reads
the token without an `await`, and an entry that was cleared is empty for everyone at once.

An entry that aiocache has dropped lives on only while a route, a mint or a timer refers to it.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable

from aiocache import SimpleMemoryCache

from proxy.tokens.entry import TokenEntry
from proxy.tokens.model import TokenKey

__all__ = ["TokenCache"]


class TokenCache:
    """The entries of all keys. Those of keys that a route uses (`is_used`) are kept, and at most `max_keys` others."""

    def __init__(self, max_keys: int, is_used: Callable[[TokenKey], bool]) -> None:
        # Without `timeout=None` every call would cost a task (its default is 5 s).
        self._store = SimpleMemoryCache(timeout=None)
        self._max_keys = max_keys
        self._is_used = is_used
        self._live: weakref.WeakValueDictionary[TokenKey, TokenEntry] = weakref.WeakValueDictionary()
        self._order = itertools.count(1)

    def entry(self, key: TokenKey) -> TokenEntry:
        """Return the entry of `key`: the same one as long as anything refers to it, else a new, empty one."""
        entry = self._live.get(key)
        if entry is None:
            entry = self._live[key] = TokenEntry(key)
        return entry

    def entries(self) -> list[TokenEntry]:
        """Return all entries that there are, with a token or without."""
        return list(self._live.values())

    async def get(self, key: TokenKey) -> TokenEntry:
        """Return the entry of `key`, and count it as the one requested last."""
        stored: TokenEntry | None = await self._store.get(key)
        # Not stored: the entry is new, its token has expired, or the environment has AIOCACHE_DISABLE=1.
        entry = stored if stored is not None else self.entry(key)
        entry.asked_order = next(self._order)
        return entry

    async def keep(self, entry: TokenEntry, seconds: float) -> list[TokenEntry]:
        """Keep an entry for `seconds` (more than 0), and return the entries that were evicted for it.

        An entry that a route uses, or with a running mint, is never evicted. Unused tokens are evicted first, the one
        requested longest ago before the others.
        """
        evicted = []
        if not self._is_used(entry.key):
            stored: list[TokenEntry] = list(await self._store.raw("values") or ())
            others = [other for other in stored if other is not entry and not self._is_used(other.key)]
            idle = sorted(
                (other for other in others if other.mint is None), key=lambda other: (other.used, other.asked_order)
            )
            evicted = idle[: max(0, len(others) + 1 - self._max_keys)]
        for other in evicted:
            await self.drop(other)
        await self._store.set(entry.key, entry, ttl=seconds)
        return evicted

    async def drop(self, entry: TokenEntry) -> None:
        """Stop keeping an entry, and empty it."""
        entry.stop_timer()
        entry.clear()
        await self._store.delete(entry.key)

    async def close(self) -> None:
        """Drop everything."""
        # One by one: the store's `clear()` leaves its timers behind, and they would hold the event loop.
        for entry in self.entries():
            await self.drop(entry)
