"""One mint with everything around it: deadline, a look at the clock, log lines, and who counts.

Cloud Run judges a token by its own clock, and so must we. The answer that brings a token also has Google's time, in its
`date`, and that decides:

* expired by Google's clock: no token (TokenExpired), whatever our clock says;
* otherwise it is good, also where our clock is hours ahead and says that it expired. `clock_ahead_seconds` then makes
  its expiry one of our clock, by which it is kept and refreshed as usual: without that every request would mint;
* a `date` within 30 s of our clock changes nothing: a token is not used in its last minute anyway;
* without a `date`, a token that expired by our clock is used once, by those who wait for it, and not kept.

A `date` is only as good as the clock it comes from: GKE's metadata server has the node's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final, Protocol

import structlog

from proxy.errors import Failure, TokenExpired, TokenTimeout, TokenUnavailable
from proxy.tokens.model import Token, TokenKey

__all__ = ["Mint", "MintObserver", "TimedMint"]

log: Final = structlog.get_logger("tokens")

_SKEW_SECONDS: Final = 30.0

_NEWS_SECONDS: Final = 60.0
"""A wrong clock is warned of once, and again when the error has changed by so much."""

Mint = Callable[[TokenKey], Awaitable[Token]]
"""Makes a new token for a key, or raises a leaf of `proxy.errors.Failure`."""


class MintObserver(Protocol):
    """Who counts mints."""

    def minted(self, token: Token, seconds: float) -> None:
        """A token was minted in so many seconds."""

    def mint_failed(self, key: TokenKey, failure: Failure, seconds: float) -> None:
        """A mint failed after so many seconds."""


class TimedMint:
    """Mints in time, and says what came of it. Whatever the mint raises comes out as a leaf of Failure."""

    def __init__(
        self, mint: Mint, clock: Callable[[], float], timeout_seconds: float, observer: MintObserver | None
    ) -> None:
        self._mint = mint
        self._clock = clock
        self._timeout_seconds = timeout_seconds
        self._observer = observer
        self._warned_of_seconds = 0.0

    async def mint(self, key: TokenKey, *, fresh: bool) -> Token:
        """Return a new token that is not expired by Google's clock, or raise a leaf of Failure; `fresh` is for the log.

        Its `clock_ahead_seconds` is set.
        """
        loop = asyncio.get_running_loop()
        started = loop.time()
        about = {"audience": key.audience, "impersonate": key.impersonate, "fresh": fresh}
        try:
            token = self._by_our_clock(await self._in_time(key))
        except Failure as failure:
            write = log.error if failure.severity == "error" else log.warning
            write("token mint failed", code=failure.code, error=str(failure), **about)
            if self._observer is not None:
                self._observer.mint_failed(key, failure, loop.time() - started)
            raise
        log.info(
            "token minted",
            principal=token.principal,
            expires_at=datetime.fromtimestamp(token.expires_at, UTC).isoformat(timespec="seconds"),
            remaining_seconds=round(token.local_expiry - self._clock()),
            **about,
        )
        self._judge_clock(token)
        if self._observer is not None:
            self._observer.minted(token, loop.time() - started)
        return token

    async def _in_time(self, key: TokenKey) -> Token:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await self._mint(key)
        except TimeoutError:
            raise TokenTimeout(
                f"no ID token for {key.audience} within {self._timeout_seconds:g} s; it will be tried again"
            ) from None
        except Failure:
            raise
        except Exception as exc:  # noqa: BLE001 - whatever it is, nothing may be sent without a token
            # Without its text, and without a chain to it: nobody knows what is in there.
            raise TokenUnavailable(f"minting a token for {key.audience} broke off ({type(exc).__name__})") from None

    def _by_our_clock(self, token: Token) -> Token:
        """Return the token with the error of our clock; TokenExpired if it is no good by Google's."""
        now = self._clock()
        if token.dated_at is not None:
            late = token.dated_at - token.expires_at
            if late >= 0:
                raise TokenExpired(
                    f"the token minted for {token.key.audience} had expired {late:.0f} s before it came, by the clock "
                    "of who minted it: that one is out of order, or its clock is wrong"
                )
            ahead = now - token.dated_at
        else:
            # It was issued in the past, so by Google's clock it is at least that late.
            ahead = min(0.0, now - token.issued_at) if token.issued_at is not None else 0.0
        return replace(token, clock_ahead_seconds=ahead) if abs(ahead) > _SKEW_SECONDS else token

    def _judge_clock(self, token: Token) -> None:
        """Warn of a wrong clock, once."""
        ahead = token.clock_ahead_seconds
        if token.dated_at is None and ahead == 0.0:
            ahead = max(0.0, self._clock() - token.expires_at)  # At least.
            if ahead == 0.0:
                return  # Nothing is known.
        if (ahead == 0.0) == (self._warned_of_seconds == 0.0) and abs(ahead - self._warned_of_seconds) < _NEWS_SECONDS:
            return
        self._warned_of_seconds = ahead
        if ahead == 0.0:
            log.info("the clock of this machine agrees with Google's again")
        else:
            what = "the clock of this machine is {} Google's; set it".format("ahead of" if ahead > 0 else "behind")
            log.warning(what, seconds=round(abs(ahead)))
