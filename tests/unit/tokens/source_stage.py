"""A token source on fake time, with a mint that a test drives."""

from __future__ import annotations

import asyncio
from typing import Any

from proxy.tokens.model import TokenKey
from proxy.tokens.source import Slot, TokenSource
from tests.unit.tokens.fake_mint import Counted, FakeMint, FakeTime
from tests.unit.tokens.values import KEY, START

HOUR = 3600.0


class Bench:
    """A token source on fake time."""

    def __init__(self, **options: Any) -> None:
        self.time = FakeTime()
        self.mint = FakeMint(self.time)
        self.counted = Counted(self.time.clock)
        self.random_fraction = 0.5
        self.source = TokenSource(
            self.mint,
            clock=self.time.clock,
            random_fraction=lambda: self.random_fraction,
            later=self.time.later,
            observer=self.counted,
            **options,
        )

    @property
    def minted(self) -> int:
        return len(self.mint.calls)

    def has_time(self) -> None:
        """Let requests wait for a mint as long as it takes, from now on."""
        self.source.mint_timeout_seconds = 60.0

    def mint_times(self) -> list[float]:
        return [at - START for at, _ in self.mint.calls]

    async def stored_keys(self) -> set[TokenKey]:
        """Return the keys of which the cache holds a token."""
        return set(await self.source._cache._store.raw("keys"))

    async def traffic(self, slot: Slot, seconds: float, every: float) -> int:
        """Take a token every so often; return how many requests had to wait for one."""
        waited = 0
        for _ in range(int(seconds / every)):
            if slot.usable_token(self.time.now) is None:
                waited += 1
                await self.source.token(KEY)
            await self.time.advance(every)
        return waited


async def gather(*calls: Any) -> list[Any]:
    """Return the result or the exception of each call, in their order."""
    return await asyncio.gather(*calls, return_exceptions=True)
