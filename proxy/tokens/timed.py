"""One mint with everything around it: deadline, a check of the clock, log lines, and who counts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Final, Protocol

import structlog

from proxy.errors import Failure, TokenExpired, TokenTimeout, TokenUnavailable
from proxy.tokens.model import Token, TokenKey

__all__ = ["Mint", "MintObserver", "TimedMint"]

log: Final = structlog.get_logger("tokens")

_SKEW_SECONDS: Final = 30.0

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

    async def mint(self, key: TokenKey, *, fresh: bool) -> Token:
        """Return a new token that is not expired, or raise a leaf of Failure; `fresh` is for the log."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        about = {"audience": key.audience, "impersonate": key.impersonate, "fresh": fresh}
        try:
            token = await self._in_time(key)
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
            remaining_seconds=round(token.expires_at - self._clock()),
            **about,
        )
        behind = (token.issued_at or 0.0) - self._clock()
        if behind > _SKEW_SECONDS:
            # Such a token is thought to live longer than it does, and Cloud Run answers 401 in its last minutes.
            log.warning("the clock of this machine is behind Google's; set it", seconds=round(behind))
        if self._observer is not None:
            self._observer.minted(token, loop.time() - started)
        return token

    async def _in_time(self, key: TokenKey) -> Token:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                token = await self._mint(key)
        except TimeoutError:
            raise TokenTimeout(
                f"no ID token for {key.audience} within {self._timeout_seconds:g} s; it will be tried again"
            ) from None
        except Failure:
            raise
        except Exception as exc:  # noqa: BLE001 - whatever it is, nothing may be sent without a token
            # Without its text, and without a chain to it: nobody knows what is in there.
            raise TokenUnavailable(f"minting a token for {key.audience} broke off ({type(exc).__name__})") from None
        late = self._clock() - token.expires_at
        if late >= 0:
            raise TokenExpired(
                f"the token minted for {key.audience} expired {late:.0f} s ago: is the clock of this machine ahead?"
            )
        return token
