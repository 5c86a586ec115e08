"""ID tokens at hand: cached, minted once however many wait, refreshed before they expire.

The hot path reads a `Slot`, which its route holds: one comparison. Everything else goes through `TokenSource.token`:

* the token store is aiocache's memory cache, which drops a token a minute before it expires;
* a mint is one shared task per key. Who waits for it may be cancelled, or have waited long enough, without harm to the
  others: the mint goes on, and serves who asks next;
* a used token is minted anew ahead of its end, an unused one lapses;
* a failed mint is remembered for a while: its key then fails at once, unless a token is still valid;
* when the credentials change, everything that came of the old ones is dropped; while anything is kept, they are looked
  at every few seconds (`watching`).

Time is the wall clock, read whenever a token is used: the timers of an event loop stand still while a machine sleeps.
"""

from __future__ import annotations

import asyncio
import random
import time
import weakref
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

import structlog
from aiocache import SimpleMemoryCache

from proxy.errors import Failure, TokenTimeout, TokenUnavailable
from proxy.tokens.entry import Entry, Timer
from proxy.tokens.fresh import FreshMints
from proxy.tokens.model import Token, TokenKey
from proxy.tokens.schedule import UNCHANGED_SECONDS, idle_in, refresh_in, retry_in, usable_seconds
from proxy.tokens.slot import Slot
from proxy.tokens.timed import Mint, MintObserver, TimedMint
from proxy.tokens.watching import CredentialWatch, Watched

__all__ = ["Mint", "MintObserver", "Slot", "Timer", "TokenSource", "Watched"]

log: Final = structlog.get_logger("tokens")

_REJECT_SECONDS: Final = 10.0

_LONGEST_MINT_SECONDS: Final = 300.0
"""More than all parts of a mint may take together (each has a deadline of its own): an executable two minutes."""


class _Slot(Slot):
    """One that can be held weakly, which a compiled class cannot."""

    __slots__ = ("__weakref__",)


class TokenSource:
    """Keeps tokens for keys. One for the whole process; used on one event loop only.

    `clock` gives wall-clock seconds, `random_fraction` numbers in [0, 1), `later` calls something back after so many
    seconds (the event loop's `call_later` unless given). A key over `max_keys` pushes out the one that was unused
    longest. `mint_timeout_seconds` is how long who asks waits; a mint has its own, longer time.
    """

    def __init__(
        self,
        mint: Mint,
        *,
        clock: Callable[[], float] = time.time,
        random_fraction: Callable[[], float] = random.random,
        later: Callable[[float, Callable[[], None]], Timer] | None = None,
        observer: MintObserver | None = None,
        watched: Watched | None = None,
        mint_timeout_seconds: float = 5.0,
        max_keys: int = 1000,
    ) -> None:
        self._mint = TimedMint(mint, clock, _LONGEST_MINT_SECONDS, observer)
        self._wait_seconds = mint_timeout_seconds
        self._clock = clock
        self._random_fraction = random_fraction
        self._later = later
        self._max_keys = max_keys
        # Without `timeout=None` every call would cost a task (its default is 5 s).
        self._store = SimpleMemoryCache(timeout=None)
        self._slots: weakref.WeakValueDictionary[TokenKey, _Slot] = weakref.WeakValueDictionary()
        self._entries: OrderedDict[TokenKey, Entry] = OrderedDict()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._superseded: weakref.WeakSet[asyncio.Task[Token]] = weakref.WeakSet()
        self._fresh = FreshMints(lambda key: self._start(self._mint_anew(key, fresh=True)))
        self._generation = 0
        self._watch: CredentialWatch | None = None
        if watched is not None:
            watched.on_change = self.credentials_changed
            self._watch = CredentialWatch(
                watched,
                needed=self._has_anything,
                tokens_kept=self._has_tokens,
                clock=clock,
                clock_was_set=self._drop_tokens,
            )
        self._closed = False

    def slot(self, key: TokenKey) -> Slot:
        """Return the slot of `key`, the same as long as anybody holds it. Asks for no token."""
        slot = self._slots.get(key)
        if slot is None:
            slot = self._slots[key] = _Slot()
        return slot

    async def token(self, key: TokenKey) -> Token:
        """Return a valid token: the cached one, or one from a mint that all who wait share.

        Raises a leaf of Failure: what the mint raised, TokenTimeout for who waited too long, or, soon after a failed
        mint, the same failure again without another mint. TokenUnavailable once closed.
        """
        async with self._not_too_long(key):
            while True:
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
                try:
                    return await self._outcome(asyncio.shield(flight))
                except TokenUnavailable:
                    if flight not in self._superseded:
                        raise

    async def mint_uncached(self, key: TokenKey) -> Token:
        """Return a token minted for this call alone, for a discovery: it must show whether minting works now.

        Neither cache nor remembered failures are asked, and the cache is not filled; but a success ends the remembered
        failure of its key, and serves those who wait for an earlier mint. Raises as `token` does.
        """
        self._refuse_if_closed()
        entry = self._entries.get(key)
        earlier = entry.flight if entry is not None else None
        async with self._not_too_long(key):
            token = await self._outcome(self._fresh.token(key))
        entry = self._entries.get(key)
        if entry is not None:
            entry.forget_failure()
            if earlier is not None and entry.flight is earlier and not earlier.done():
                await self._keep(key, entry, token)
                self._supersede(entry, earlier)
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

    def is_current(self, token: Token) -> bool:
        """Return whether the token was minted from the credentials that there are now."""
        return token.generation >= self._generation

    def credentials_changed(self, generation: int, now_in_words: str) -> None:
        """Drop all tokens and remembered failures of earlier generations, mints that were left included.

        Mints under way are those of `Mint`, which begins them again with the new credentials.
        """
        log.warning("the credentials have changed: tokens from the old ones are dropped", now=now_in_words)
        self._generation = generation
        self._fresh.forget()
        self._drop_tokens()
        for entry in self._entries.values():
            entry.forget_failure()

    async def close(self) -> None:
        """Stop all mints and refreshes and wait for them; who waits for a token gets TokenUnavailable."""
        self._closed = True
        for entry in self._entries.values():
            entry.disarm()
        if self._watch is not None:
            await self._watch.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # One by one: the store's `clear()` leaves its timers behind, and they would hold the event loop.
        for key, entry in self._entries.items():
            entry.slot.clear()
            await self._store.delete(key)
        self._entries.clear()

    def _drop_tokens(self) -> None:
        """Take every token out of its slot, and out of the store as soon as may be."""
        dropped: dict[TokenKey, Token] = {}
        for key, entry in self._entries.items():
            if entry.slot.token is not None:
                dropped[key] = entry.rejected = entry.slot.token
            entry.disarm()
            entry.slot.clear()
        if dropped:
            task = asyncio.get_running_loop().create_task(self._delete(dropped))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _delete(self, dropped: dict[TokenKey, Token]) -> None:
        for key, token in dropped.items():
            if await self._store.get(key) is token:
                await self._store.delete(key)

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise TokenUnavailable("the sidecar is shutting down and mints no more tokens")

    async def _admit(self, key: TokenKey) -> Entry:
        while len(self._entries) >= self._max_keys:
            idle = [known for known, entry in self._entries.items() if entry.flight is None]
            if not idle:  # Every key is being minted: let one in over the bound, for as long as that takes.
                break
            evicted = next((known for known in idle if not self._entries[known].slot.used), idle[0])
            entry = self._entries.pop(evicted)
            entry.disarm()
            entry.slot.clear()
            await self._store.delete(evicted)
        return self._entries.setdefault(key, Entry(self.slot(key)))

    async def _recall(self, key: TokenKey, entry: Entry) -> Token | None:
        stored: Token | None = await self._store.get(key)
        now = self._clock()
        if (
            stored is not None
            and stored is not entry.rejected
            and self.is_current(stored)
            and usable_seconds(stored.local_expiry, now) > 0
        ):
            entry.slot.used = True
            return stored
        # AIOCACHE_DISABLE=1 makes the store forget everything; that must not mean a mint a request.
        return entry.slot.usable_token(now)

    def _fly(self, key: TokenKey, entry: Entry) -> asyncio.Task[Token]:
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

    @asynccontextmanager
    async def _not_too_long(self, key: TokenKey) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._wait_seconds):
                yield
        except TimeoutError:
            raise TokenTimeout(
                f"no ID token for {key.audience} within {self._wait_seconds:g} s (mint_timeout); its mint goes on, and "
                "who comes back may find it done"
            ) from None

    async def _outcome(self, minted: Awaitable[Token]) -> Token:
        try:
            return await minted
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if caller is not None and caller.cancelling():
                raise
            # Not the caller was cancelled but the mint.
            self._refuse_if_closed()
            raise TokenUnavailable("the mint was given up before it ended") from None

    async def _mint_anew(self, key: TokenKey, *, fresh: bool) -> Token:
        """Return a token of the credentials that there are now."""
        while True:
            token = await self._mint.mint(key, fresh=fresh)
            if self.is_current(token):
                return token

    def _supersede(self, entry: Entry, flight: asyncio.Task[Token]) -> None:
        """Stop a mint; who waits for it asks again."""
        self._superseded.add(flight)
        entry.flight = None
        flight.cancel()

    async def _renew(self, key: TokenKey, entry: Entry) -> Token:
        try:
            token = await self._mint_anew(key, fresh=False)
            await self._keep(key, entry, token)
        except Failure as failure:
            entry.failures += 1
            entry.failure = failure
            entry.failed_at = self._clock()
            entry.retry_seconds = retry_in(
                entry.failures, transient=failure.transient, random_fraction=self._random_fraction()
            )
            self._arm(key, entry, entry.retry_seconds)
            self._keep_watch()
            raise
        finally:
            if entry.flight is asyncio.current_task():
                entry.flight = None
        return token

    async def _keep(self, key: TokenKey, entry: Entry, token: Token) -> None:
        entry.forget_failure()
        now = self._clock()
        usable = usable_seconds(token.local_expiry, now)
        previous = entry.slot.token
        unchanged = previous is not None and token.expires_at <= previous.expires_at
        if unchanged and entry.slot.usable_seconds(now) > 0:
            refresh = refresh_in(entry.slot.usable_seconds(now), self._random_fraction())
            self._arm(key, entry, max(UNCHANGED_SECONDS * (1 + self._random_fraction() / 5), refresh))
        elif usable > 0:
            # The store takes a TTL of 0 or less for "for ever"; this one is above.
            await self._store.set(key, token, ttl=usable)
            if not self.is_current(token):  # Since a moment ago.
                return
            entry.slot.fill(token)
            entry.rejected = None
            self._arm(key, entry, refresh_in(usable, self._random_fraction()))
            self._keep_watch()

    def _arm(self, key: TokenKey, entry: Entry, seconds: float) -> None:
        """Look at the key again in so many seconds, if its token lives so long."""
        entry.disarm()
        if not self._closed and entry.slot.usable_seconds(self._clock()) > seconds:
            later = self._later or asyncio.get_running_loop().call_later
            entry.timer = later(seconds, partial(self._due, key, entry))

    def _due(self, key: TokenKey, entry: Entry) -> None:
        entry.timer = None
        if self._closed or entry.flight is not None:
            return
        if entry.slot.used:
            self._fly(key, entry)
        else:
            self._arm(key, entry, idle_in(entry.slot.usable_seconds(self._clock())))

    def _has_anything(self) -> bool:
        """Return whether anything is kept that came of the credentials: a token, or a failure."""
        now = self._clock()
        return self._has_tokens() or any(entry.recall_failure(now) is not None for entry in self._entries.values())

    def _has_tokens(self) -> bool:
        now = self._clock()
        return any(entry.slot.usable_seconds(now) > 0 for entry in self._entries.values())

    def _keep_watch(self) -> None:
        if self._watch is not None and not self._closed:
            self._watch.start()
