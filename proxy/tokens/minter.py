"""Runs one mint: deadline, comparison of clocks, and the observer.

Cloud Run judges a token by its own clock. The answer that brings a token has Google's time in its `date` field, and
that decides:

* expired by Google's clock: no token (TokenExpired), whatever this machine's clock says;
* otherwise it is valid, even if our clock is hours ahead and says that it has expired. `clock_ahead_seconds` then
  translates its expiry to our clock, by which it is kept and refreshed as usual: otherwise every request would mint;
* a `date` within 30 s of our clock changes nothing: a token is not used in its last minute anyway;
* without a `date`, or with one from before the token was issued, a token that expired by our clock is used once, by the
  requests that wait for it, and not cached.

A `date` is only as good as the clock it comes from: GKE's metadata server has the node's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

import structlog

from proxy.clock_skew import NEGLIGIBLE_SKEW_SECONDS, direction
from proxy.errors import Failure, TokenExpired, TokenTimeout, TokenUnavailable
from proxy.observe.observer import MintObserver
from proxy.tokens.gate import mints_for_discovery
from proxy.tokens.model import Token, TokenKey

__all__ = ["Mint", "Minter"]

log: Final = structlog.get_logger("tokens")

_WARN_AGAIN_SECONDS: Final = 60.0
"""A wrong clock is warned of once, and again when the error has changed by so much."""

Mint = Callable[[TokenKey], Awaitable[Token]]
"""Mints a new token for a key, or raises a leaf of `proxy.errors.Failure`."""


class Minter:
    """Mints within a deadline, and tells the observer of the outcome. Any exception of `mint` becomes a Failure."""

    def __init__(self, mint: Mint, clock: Callable[[], float], timeout_seconds: float, observer: MintObserver) -> None:
        self._mint = mint
        self._clock = clock
        self._timeout_seconds = timeout_seconds
        self._observer = observer
        self._warned_skew_seconds = 0.0

    async def mint(self, key: TokenKey, *, uncached: bool) -> Token:
        """Return a new token that is not expired by Google's clock, or raise a leaf of Failure.

        Its `clock_ahead_seconds` is set. `uncached` mints are those of discoveries: they leave room to others (`gate`),
        and it is `fresh` in the log lines. To be called in a task of its own.
        """
        mints_for_discovery.set(uncached)
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            token = self._with_clock_skew(await self._mint_by_deadline(key))
        except Failure as failure:
            self._observer.mint_failed(key, failure, loop.time() - started, uncached)
            raise
        self._observer.minted(token, loop.time() - started, uncached)
        self._warn_of_clock(token)
        return token

    async def _mint_by_deadline(self, key: TokenKey) -> Token:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await self._mint(key)
        except TimeoutError:
            raise TokenTimeout(
                f"no ID token for {key.audience} within {self._timeout_seconds:g} s; it will be tried again"
            ) from None
        except Failure:
            raise
        except ImportError as exc:  # what a credential needs is imported at its first use
            raise TokenUnavailable(
                f"minting a token for {key.audience} failed: the module {exc.name} cannot be imported",
                remedy="restart the sidecar if it or a library of it was installed again since it started",
            ) from None
        except Exception as exc:  # noqa: BLE001 - any internal error must become a failure, so that nothing is sent without a token
            # Without its text, and without a chain to it: these could hold a secret.
            raise TokenUnavailable(
                f"minting a token for {key.audience} failed unexpectedly ({type(exc).__name__})"
            ) from None

    def _with_clock_skew(self, token: Token) -> Token:
        """Return the token with the skew of this machine's clock; TokenExpired if it has expired by Google's."""
        now = self._clock()
        if token.dated_at is not None:
            late = token.dated_at - token.expires_at
            if late >= 0:
                raise TokenExpired(
                    f"the token minted for {token.key.audience} had expired {late:.0f} s before it arrived, by the "
                    "clock of its issuer: the issuer is out of order, or its clock is wrong"
                )
            ahead = now - token.dated_at
        else:
            # It was issued in the past, so Google's clock shows at least that time.
            ahead = min(0.0, now - token.issued_at) if token.issued_at is not None else 0.0
        return replace(token, clock_ahead_seconds=ahead) if abs(ahead) > NEGLIGIBLE_SKEW_SECONDS else token

    def _warn_of_clock(self, token: Token) -> None:
        """Warn of a wrong clock, once."""
        ahead = token.clock_ahead_seconds
        if token.dated_at is None and ahead == 0.0:
            ahead = max(0.0, self._clock() - token.expires_at)  # At least.
            if ahead == 0.0:
                return  # Nothing is known.
        if (ahead == 0.0) == (self._warned_skew_seconds == 0.0) and abs(
            ahead - self._warned_skew_seconds
        ) < _WARN_AGAIN_SECONDS:
            return
        self._warned_skew_seconds = ahead
        if ahead == 0.0:
            log.info("the clock of this machine agrees with Google's again")
        else:
            what = "the clock of this machine is {} {}Google's; set it".format(
                direction(ahead), "of " if ahead > 0 else ""
            )
            log.warning(what, seconds=round(abs(ahead)))
