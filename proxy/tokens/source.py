"""ID tokens for routes: cached, one mint at a time for a key, refreshed before they expire.

The data path reads a `Slot`, to which its route has a reference: one comparison. Everything else goes through
`TokenSource.token`:

* tokens are kept in `cache`, until a minute before they expire;
* a mint is one task, shared by all requests for the same key. A request that is cancelled, or has waited too long,
  does not end it: the mint goes on, and the next request gets its token;
* a token that was used is refreshed before it expires, an unused one lapses;
* a failed mint is remembered for a while: its key then fails at once, unless a token is still valid;
* when the credentials change, all tokens and failures from the old ones are dropped. The credentials are checked every
  few seconds while anything is cached (`polling`);
* when the routes change, `retain` drops the keys that no route has any more.

Time is the wall clock, read whenever a token is used: the timers of an event loop stand still while a machine sleeps.
"""

from __future__ import annotations

import asyncio
import random
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

import structlog

from proxy.clock_skew import NEGLIGIBLE_SKEW_SECONDS
from proxy.errors import Failure, TokenTimeout, TokenUnavailable
from proxy.observe.observer import MintObserver
from proxy.tokens.cache import TokenCache
from proxy.tokens.entry import Timer, TokenEntry
from proxy.tokens.minter import Mint, Minter
from proxy.tokens.model import Token, TokenKey
from proxy.tokens.polling import ChangingCredentials, CredentialPoller
from proxy.tokens.schedule import UNCHANGED_SECONDS, idle_check_in, refresh_in, retry_in, usable_seconds
from proxy.tokens.slot import Slot
from proxy.tokens.uncached import UncachedMints

__all__ = ["ChangingCredentials", "Mint", "Slot", "Timer", "TokenSource"]

log: Final = structlog.get_logger("tokens")

_REJECT_SECONDS: Final = 10.0

_LONGEST_MINT_SECONDS: Final = 300.0
"""More than all parts of a mint may take together (each has a deadline of its own): an executable two minutes."""

_FAILURE_KEPT_SECONDS: Final = 60.0
"""How long the number of failures in a row is known after the last one, where no route refers to the key."""


class TokenSource:
    """The tokens of all keys. One for the whole process; used on one event loop only.

    `clock` gives wall-clock seconds, `random_fraction` numbers in [0, 1), `later` schedules a call in so many seconds
    (the event loop's `call_later` unless given). The keys of routes are cached, however many, and at most `max_keys`
    others; of these the one that was unused longest gives way. `mint_timeout_seconds` is how long a request waits for a
    mint; the mint has its own, longer deadline. `credentials` are the ones that `mint` uses, to be polled for changes.
    """

    def __init__(
        self,
        mint: Mint,
        *,
        clock: Callable[[], float] = time.time,
        random_fraction: Callable[[], float] = random.random,
        later: Callable[[float, Callable[[], None]], Timer] | None = None,
        observer: MintObserver | None = None,
        credentials: ChangingCredentials | None = None,
        mint_timeout_seconds: float = 5.0,
        max_keys: int = 1000,
    ) -> None:
        self._minter = Minter(mint, clock, _LONGEST_MINT_SECONDS, observer or MintObserver())
        self.mint_timeout_seconds = mint_timeout_seconds
        """How long a request waits for a mint. It may be changed."""
        self._clock = clock
        self._random_fraction = random_fraction
        self._later = later
        self._retained: set[TokenKey] = set()
        """The keys that routes use: settings, and the limit on open routes, bound their number."""
        self._others_kept = True
        """Whether tokens of other keys are cached, too: until the first `retain`."""
        self._cache = TokenCache(max_keys, lambda key: key in self._retained)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._superseded: weakref.WeakSet[asyncio.Task[Token]] = weakref.WeakSet()
        self._uncached = UncachedMints(lambda key: self._start(self._mint(key, uncached=True)), self._is_retained)
        self._generation = 0
        self._poller: CredentialPoller | None = None
        if credentials is not None:
            credentials.on_change = self.credentials_changed
            self._poller = CredentialPoller(
                credentials,
                needed=self._has_anything,
                tokens_kept=self._has_tokens,
                clock=clock,
                clock_was_set=self._clock_was_set,
            )
        self._closed = False

    def slot(self, key: TokenKey) -> Slot:
        """Return the slot of `key`, the same one as long as anything refers to it. Mints nothing.

        The key is retained until a `retain` without it.
        """
        entry = self._cache.entry(key)
        self._retained.add(key)
        entry.dropped = False
        return entry

    async def token(self, key: TokenKey) -> Token:
        """Return a valid token: the cached one, or one from a mint that all requests for the key share.

        Raises a leaf of Failure: that of the mint; TokenTimeout after too long a wait; soon after a failed mint, the
        same failure again without another mint. TokenUnavailable once closed.
        """
        async with self._deadline(key):
            while True:
                self._refuse_if_closed()
                entry = await self._cache.get(key)
                entry.dropped = not self._is_retained(key)
                token = entry.usable_token(self._clock())
                if token is not None:
                    return token
                mint = entry.mint
                if mint is None:
                    failure = entry.recall_failure(self._clock())
                    if failure is not None:
                        raise failure
                    self._refuse_if_closed()
                    mint = self._start_mint(entry)
                entry.waiting += 1
                try:
                    return await self._outcome(asyncio.shield(mint))
                except TokenUnavailable:
                    if mint not in self._superseded:
                        raise
                finally:
                    entry.waiting -= 1
                    self._end_unwanted_mint(entry)

    async def mint_uncached(self, key: TokenKey) -> Token:
        """Return a token whose mint starts after this call, for a discovery: it must show whether minting works now.

        Discoveries that come while a mint runs share the next one. Neither cached tokens nor remembered failures are
        used, and the token is not cached; but a success ends the remembered failure of its key, and serves the requests
        that wait for an earlier mint. Raises as `token` does.
        """
        self._refuse_if_closed()
        entry = self._cache.entry(key)
        earlier = entry.mint
        async with self._deadline(key):
            token = await self._outcome(self._uncached.token(key))
            while not self.is_current(token):  # The credentials changed between the end of the mint and now.
                token = await self._outcome(self._uncached.token(key))
        entry.forget_failure()
        if earlier is not None and entry.mint is earlier:
            await self._keep(entry, token)
            self._supersede(entry, earlier)
        return token

    def reject(self, token: Token) -> None:
        """Drop `token`, which Cloud Run answered with 401, so that the next request mints another.

        Only if it is still the cached one, and once in 10 s for a key: a service that refuses every token must not
        turn every request into a mint.
        """
        entry = self._cache.entry(token.key)
        if entry.token is None or entry.token.authorization != token.authorization:
            return
        now = self._clock()
        if 0 <= now - entry.rejected_at < _REJECT_SECONDS:
            return
        entry.rejected_at = now
        entry.clear()
        entry.stop_timer()
        log.info("token rejected by the service", audience=token.key.audience, principal=token.principal)

    def is_current(self, token: Token) -> bool:
        """Return whether the token was minted from the current credentials."""
        return token.generation >= self._generation

    def credentials_changed(self, generation: int, now_in_words: str) -> None:
        """Drop all tokens and remembered failures of earlier generations, finished uncached mints included.

        Mints under way are those of `Mint`, which begins them again with the new credentials.
        """
        log.warning("the credentials have changed: tokens from the old ones are dropped", now=now_in_words)
        self._generation = generation
        self._uncached.drop_all()
        for entry in self._cache.entries():
            entry.stop_timer()
            entry.clear()
            entry.forget_failure()

    def retain(self, keys: Collection[TokenKey]) -> Coroutine[Any, Any, None]:
        """Retain these keys, and those whose `slot` is asked for from now on; return what drops all others.

        To be called after a reload, with the keys of all routes. What is returned has to be awaited, at once or later.
        Tokens, failures and timers of the other keys are dropped, and their mints cancelled. A request that waits for
        such a mint still gets its token, and so does a later request of an old route; that token is not kept.
        """
        # Not later: a slot may be asked for in between.
        self._retained = set(keys)
        self._others_kept = False
        return self._drop_others()

    async def close(self) -> None:
        """Stop all mints and refreshes and wait for them; requests that wait for a token get TokenUnavailable."""
        self._closed = True
        for entry in self._cache.entries():
            entry.stop_timer()
        if self._poller is not None:
            await self._poller.close()
        self._uncached.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._cache.close()

    def _is_retained(self, key: TokenKey) -> bool:
        return self._others_kept or key in self._retained

    async def _drop_others(self) -> None:
        """Drop the keys that are not retained."""
        self._uncached.drop_unwanted()
        for entry in self._cache.entries():
            if not self._is_retained(entry.key):
                entry.dropped = True
                entry.forget_failure()
                self._end_unwanted_mint(entry)
                await self._cache.drop(entry)

    def _end_unwanted_mint(self, entry: TokenEntry) -> None:
        """Cancel the mint of a dropped key for which no request waits."""
        if entry.dropped and not entry.waiting and entry.mint is not None:
            self._supersede(entry, entry.mint)

    def _supersede(self, entry: TokenEntry, mint: asyncio.Task[Token]) -> None:
        """Cancel a mint; requests that wait for it ask again, and find a token, or start another mint."""
        self._superseded.add(mint)
        entry.mint = None
        mint.cancel()

    def _clock_was_set(self, seconds: float) -> None:
        """Mint again, in the background, what is used; until then, a token is used if it cannot have expired."""
        for entry in self._cache.entries():
            if entry.token is not None:
                entry.stop_timer()
                used = entry.used
                entry.fill(entry.token.after_clock_step(seconds))
                entry.used = used
                if entry.usable_seconds(self._clock()) > 0:
                    self._refresh_if_used(entry)

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise TokenUnavailable("the sidecar is shutting down and mints no more tokens")

    def _start_mint(self, entry: TokenEntry) -> asyncio.Task[Token]:
        entry.stop_timer()
        entry.mint = self._start(self._refresh(entry))
        return entry.mint

    def _start(self, mint: Coroutine[Any, Any, Token]) -> asyncio.Task[Token]:
        task = asyncio.get_running_loop().create_task(mint)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Token]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # Retrieved: no request may have waited for a refresh in the background.

    @asynccontextmanager
    async def _deadline(self, key: TokenKey) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self.mint_timeout_seconds):
                yield
        except TimeoutError:
            raise TokenTimeout(
                f"no ID token for {key.audience} within {self.mint_timeout_seconds:g} s (mint_timeout); "
                "the mint goes on, and a later request may find it done"
            ) from None

    async def _outcome(self, minted: Awaitable[Token]) -> Token:
        try:
            return await minted
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if caller is not None and caller.cancelling():
                raise
            # The mint was cancelled, not the caller.
            self._refuse_if_closed()
            raise TokenUnavailable("the mint was given up before it ended") from None

    async def _mint(self, key: TokenKey, *, uncached: bool) -> Token:
        """Return a token of the current credentials."""
        while True:
            token = await self._minter.mint(key, uncached=uncached)
            if self.is_current(token):
                return token

    async def _refresh(self, entry: TokenEntry) -> Token:
        try:
            token = await self._mint(entry.key, uncached=False)
            await self._keep(entry, token)
        except Failure as failure:
            if not entry.dropped:
                await self._keep_failure(entry, failure)
            raise
        finally:
            if entry.mint is asyncio.current_task():
                entry.mint = None
        return token

    async def _keep(self, entry: TokenEntry, token: Token) -> None:
        """Cache a token, unless its key was dropped, or it is of old credentials."""
        if entry.dropped or not self.is_current(token):
            return
        entry.forget_failure()
        now = self._clock()
        usable = usable_seconds(token.local_expiry, now)
        previous = entry.token
        unchanged = (
            previous is not None
            and token.expires_at <= previous.expires_at
            # Without a date, nothing new is known of a clock that was set.
            and (
                token.dated_at is None
                or abs(token.clock_ahead_seconds - previous.clock_ahead_seconds) <= NEGLIGIBLE_SKEW_SECONDS
            )
        )
        if unchanged and entry.usable_seconds(now) > 0:
            refresh = refresh_in(entry.usable_seconds(now), self._random_fraction())
            self._set_timer(entry, max(UNCHANGED_SECONDS * (1 + self._random_fraction() / 5), refresh))
        elif usable > 0:
            entry.fill(token)
            self._set_timer(entry, refresh_in(usable, self._random_fraction()))
            await self._cache.keep(entry, usable)
            self._poll()

    async def _keep_failure(self, entry: TokenEntry, failure: Failure) -> None:
        entry.failures += 1
        now = self._clock()
        retry = retry_in(entry.failures, transient=failure.transient, random_fraction=self._random_fraction())
        entry.remember_failure(failure, now, retry)
        self._set_timer(entry, retry)
        await self._cache.keep(entry, max(_FAILURE_KEPT_SECONDS, entry.usable_seconds(now)))
        self._poll()

    def _set_timer(self, entry: TokenEntry, seconds: float) -> None:
        """Check in so many seconds whether to refresh, if the token lives so long."""
        entry.stop_timer()
        if not self._closed and entry.usable_seconds(self._clock()) > seconds:
            later = self._later or asyncio.get_running_loop().call_later
            entry.timer = later(seconds, partial(self._refresh_if_used, entry))

    def _refresh_if_used(self, entry: TokenEntry) -> None:
        entry.timer = None
        if self._closed or entry.mint is not None:
            return
        if entry.used:
            self._start_mint(entry)
        else:
            self._set_timer(entry, idle_check_in(entry.usable_seconds(self._clock())))

    def _has_anything(self) -> bool:
        """Return whether a token or a failure of the current credentials is cached."""
        now = self._clock()
        return self._has_tokens() or any(entry.recall_failure(now) is not None for entry in self._cache.entries())

    def _has_tokens(self) -> bool:
        now = self._clock()
        return any(entry.usable_seconds(now) > 0 for entry in self._cache.entries())

    def _poll(self) -> None:
        if self._poller is not None and not self._closed:
            self._poller.start()
