"""What a credential source can do, and the cache of its access token."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable
from typing import Protocol

from proxy.errors import Failure
from proxy.tokens.calls import Bearer
from proxy.tokens.model import Token, TokenKey

__all__ = ["AccessTokenCache", "CredentialSource"]

# As in google-auth: a metadata server returns the same token until 4 or 5 minutes before it expires.
_MARGIN_SECONDS = 225.0


class CredentialSource(Protocol):
    """A credential source."""

    async def identity(self, key: TokenKey) -> Token:
        """Return a newly minted token with the audience of `key` for its own identity.

        Raises a leaf of Failure; AmbientUnsupported from a source that cannot do that for any audience.
        """

    async def bearer(self, stale: Bearer | None = None) -> Bearer:
        """Return the authorisation of calls to Google APIs (scope cloud-platform); another one than `stale`."""

    async def principal(self) -> str:
        """Return the name of its identity, for a sentence: an e-mail where it is known. Raises nothing."""


class AccessTokenCache:
    """Keeps an access token until shortly before it expires. Concurrent callers share one fetch, also a failed one."""

    def __init__(self, fetch: Callable[[], Awaitable[Bearer]], clock: Callable[[], float]) -> None:
        self._fetch = fetch
        self._clock = clock
        self._lock = asyncio.Lock()
        self._bearer: Bearer | None = None
        self._failure: Failure | None = None
        self._attempts = 0

    async def get(self, stale: Bearer | None = None) -> Bearer:
        """Return the cached access token, or a new one if that is `stale`; raises what the fetch raises."""
        attempts = self._attempts
        async with self._lock:
            kept = self._bearer
            if kept is not None and kept is not stale and self._clock() + _MARGIN_SECONDS < kept.expires_at:
                return kept
            if self._attempts != attempts and self._failure is not None:
                # It failed while this call waited for the lock: do not repeat it at once.
                raise copy.copy(self._failure)
            self._failure = None
            try:
                self._bearer = await self._fetch()
            except Failure as failure:
                self._failure = failure
                self._attempts += 1
                raise
            return self._bearer
