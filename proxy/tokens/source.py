"""ID tokens at hand: cached, minted once however many wait, refreshed before they expire.

The hot path reads a `Slot`, which its route holds: one comparison. Everything else goes through `TokenSource.token`:

* the token store is aiocache's memory cache, which drops a token a minute before it expires;
* a mint is one shared task per key. Who waits for it may be cancelled without harm to the others;
* a used token is minted anew ahead of its end, an unused one lapses;
* a failed mint is remembered for a while: its key then fails at once, unless a token is still valid.

Time is the wall clock, read whenever a token is used: the timers of an event loop stand still while a machine sleeps.
"""

from __future__ import annotations

import asyncio
import random
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final, Protocol

import structlog
from aiocache import SimpleMemoryCache

from proxy.errors import Failure, TokenUnavailable
from proxy.tokens.model import Token, TokenKey
from proxy.tokens.schedule import UNCHANGED_SECONDS, idle_in, refresh_in, retry_in, usable_seconds
from proxy.tokens.slot import Slot
from proxy.tokens.timed import Mint, MintObserver, TimedMint

__all__ = ["Mint", "MintObserver", "Slot", "Timer", "TokenSource"]

log: Final = structlog.get_logger("tokens")

_REJECT_SECONDS: Final = 10.0
_NEVER: Final = float("-inf")


class Timer(Protocol):
    """What a scheduled call can be told."""

    def cancel(self) -> None:
        """Do not make the call; without effect after it was made."""


class _Entry:
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
        self.failure = None
        self.failures = 0

    def disarm(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class _Slot(Slot):
    """One that can be held weakly, which a compiled class cannot."""

    __slots__ = ("__weakref__",)


class TokenSource:
    """Keeps tokens for keys. One for the whole process; used on one event loop only.

    `clock` gives wall-clock seconds, `chance` numbers in [0, 1), `later` calls something back after so many seconds
    (the event loop's `call_later` unless given). A key over `max_keys` pushes out the one that was unused longest.
    """

    def __init__(
        self,
        mint: Mint,
        *,
        clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
        later: Callable[[float, Callable[[], None]], Timer] | None = None,
        observer: MintObserver | None = None,
        mint_timeout_seconds: float = 5.0,
        max_keys: int = 1000,
    ) -> None:
        self._mint = TimedMint(mint, clock, mint_timeout_seconds, observer)
        self._clock = clock
        self._chance = chance
        self._later = later
        self._max_keys = max_keys
        # Without `timeout=None` every call would cost a task (its default is 5 s).
        self._store = SimpleMemoryCache(timeout=None)
        self._slots: weakref.WeakValueDictionary[TokenKey, _Slot] = weakref.WeakValueDictionary()
        self._entries: OrderedDict[TokenKey, _Entry] = OrderedDict()
        self._tasks: set[asyncio.Task[Token]] = set()
        self._closed = False

    def slot(self, key: TokenKey) -> Slot:
        """Return the slot of `key`, the same as long as anybody holds it. Asks for no token."""
        slot = self._slots.get(key)
        if slot is None:
            slot = self._slots[key] = _Slot()
        return slot

    async def token(self, key: TokenKey) -> Token:
        """Return a valid token: the cached one, or one from a mint that all who wait share.

        Raises a leaf of Failure: what the mint raised, TokenTimeout after the deadline, TokenExpired, or, soon after a
        failed mint, the same failure again without another mint. TokenUnavailable once closed.
        """
        self._refuse_if_closed()
        entry = self._entries.get(key) or await self._admit(key)
        self._entries.move_to_end(key)
        cached = await self._recall(key, entry)
        if cached is not None:
            return cached
        flight = entry.flight
        if flight is None:
            failure = entry.recall_failure(self._clock())
            if failure is not None:
                raise failure
            self._refuse_if_closed()
            flight = self._fly(key, entry)
        return await self._outcome(flight, shared=True)

    async def fresh(self, key: TokenKey) -> Token:
        """Return a token minted for this call alone, for a discovery: it must show whether minting works now.

        Neither cache nor remembered failures are asked, and the cache is not filled; but a success ends the remembered
        failure of its key. Raises as `token` does.
        """
        self._refuse_if_closed()
        token = await self._outcome(self._start(self._mint.mint(key, fresh=True)), shared=False)
        entry = self._entries.get(key)
        if entry is not None:
            entry.forget_failure()
        return token

    def reject(self, token: Token) -> None:
        """Drop `token`, which Cloud Run answered with 401, so that the next request mints another.

        Only if it is still the cached one, and once in 10 s a key: a service that refuses every token must not turn
        every request into a mint.
        """
        entry = self._entries.get(token.key)
        if entry is None or entry.slot.token is None or entry.slot.token.authorization != token.authorization:
            return
        now = self._clock()
        if 0 <= now - entry.rejected_at < _REJECT_SECONDS:
            return
        entry.rejected_at = now
        entry.rejected = entry.slot.token
        entry.slot.clear()
        entry.disarm()
        log.info("token rejected by the service", audience=token.key.audience, principal=token.principal)

    async def close(self) -> None:
        """Stop all mints and refreshes and wait for them; who waits for a token gets TokenUnavailable."""
        self._closed = True
        for entry in self._entries.values():
            entry.disarm()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # One by one: the store's `clear()` leaves its timers behind, and they would hold the event loop.
        for key, entry in self._entries.items():
            entry.slot.clear()
            await self._store.delete(key)
        self._entries.clear()

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise TokenUnavailable("the sidecar is shutting down and mints no more tokens")

    async def _admit(self, key: TokenKey) -> _Entry:
        while len(self._entries) >= self._max_keys:
            idle = [known for known, entry in self._entries.items() if entry.flight is None]
            if not idle:  # Every key is being minted: let one in over the bound, for as long as that takes.
                break
            evicted = next((known for known in idle if not self._entries[known].slot.used), idle[0])
            entry = self._entries.pop(evicted)
            entry.disarm()
            entry.slot.clear()
            await self._store.delete(evicted)
        return self._entries.setdefault(key, _Entry(self.slot(key)))

    async def _recall(self, key: TokenKey, entry: _Entry) -> Token | None:
        stored: Token | None = await self._store.get(key)
        now = self._clock()
        if stored is not None and stored is not entry.rejected and usable_seconds(stored.expires_at, now) > 0:
            entry.slot.used = True
            return stored
        # AIOCACHE_DISABLE=1 makes the store forget everything; that must not mean a mint a request.
        return entry.slot.current(now)

    def _fly(self, key: TokenKey, entry: _Entry) -> asyncio.Task[Token]:
        entry.disarm()
        entry.flight = self._start(self._renew(key, entry))
        return entry.flight

    def _start(self, mint: Coroutine[Any, Any, Token]) -> asyncio.Task[Token]:
        task = asyncio.get_running_loop().create_task(mint)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Token]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # Seen: a refresh in the background has nobody who waits for it.

    async def _outcome(self, task: asyncio.Task[Token], *, shared: bool) -> Token:
        try:
            return await (asyncio.shield(task) if shared else task)
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if not task.cancelled() or (caller is not None and caller.cancelling()):
                raise
            # Not the caller was cancelled but the mint.
            self._refuse_if_closed()
            raise TokenUnavailable("the mint was given up before it ended") from None

    async def _renew(self, key: TokenKey, entry: _Entry) -> Token:
        try:
            token = await self._mint.mint(key, fresh=False)
            await self._keep(key, entry, token)
        except Failure as failure:
            entry.failures += 1
            entry.failure = failure
            entry.failed_at = self._clock()
            entry.retry_seconds = retry_in(entry.failures, passes=failure.passes, chance=self._chance())
            self._arm(key, entry, entry.retry_seconds)
            raise
        finally:
            entry.flight = None
        return token

    async def _keep(self, key: TokenKey, entry: _Entry, token: Token) -> None:
        entry.forget_failure()
        now = self._clock()
        usable = usable_seconds(token.expires_at, now)
        previous = entry.slot.token
        unchanged = previous is not None and token.expires_at <= previous.expires_at
        if unchanged and entry.slot.usable_seconds(now) > 0:
            refresh = refresh_in(entry.slot.usable_seconds(now), self._chance())
            self._arm(key, entry, max(UNCHANGED_SECONDS * (1 + self._chance() / 5), refresh))
        elif usable > 0:
            # The store takes a TTL of 0 or less for "for ever"; this one is above.
            await self._store.set(key, token, ttl=usable)
            entry.slot.fill(token)
            entry.rejected = None
            self._arm(key, entry, refresh_in(usable, self._chance()))

    def _arm(self, key: TokenKey, entry: _Entry, seconds: float) -> None:
        """Look at the key again in so many seconds, if its token lives so long."""
        entry.disarm()
        if not self._closed and entry.slot.usable_seconds(self._clock()) > seconds:
            later = self._later or asyncio.get_running_loop().call_later
            entry.timer = later(seconds, partial(self._due, key, entry))

    def _due(self, key: TokenKey, entry: _Entry) -> None:
        entry.timer = None
        if self._closed or entry.flight is not None:
            return
        if entry.slot.used:
            self._fly(key, entry)
        else:
            self._arm(key, entry, idle_in(entry.slot.usable_seconds(self._clock())))
