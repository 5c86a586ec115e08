"""A clock with timers, a mint and an observer of mints that a test drives."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from dataclasses import replace

from proxy.errors import Failure
from proxy.observe.observer import ObservedKey, ObservedToken
from proxy.observe.warnings import Warnings
from proxy.tokens.model import Token, TokenKey
from tests.support.loops import loop_idle
from tests.unit.tokens.values import START, token_of


class FakeTimer:
    def __init__(self, call: Callable[[], None]) -> None:
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None


class FakeTime:
    """A clock that stands until it is told, and the timers that go by it."""

    def __init__(self) -> None:
        self.now = START
        self._timers: list[tuple[float, int, FakeTimer]] = []
        self._serial = itertools.count()

    def clock(self) -> float:
        return self.now

    def later(self, seconds: float, call: Callable[[], None]) -> FakeTimer:
        assert seconds >= 0
        timer = FakeTimer(call)
        heapq.heappush(self._timers, (self.now + seconds, next(self._serial), timer))
        return timer

    @property
    def armed(self) -> int:
        return sum(timer.call is not None for _, _, timer in self._timers)

    async def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while self._timers and self._timers[0][0] <= end:
            due, _, timer = heapq.heappop(self._timers)
            if timer.call is not None:
                self.now = max(self.now, due)
                timer.call()
                await loop_idle()
        self.now = end


class FakeMint:
    """Mints tokens that live `life` seconds, or fails; at once, after `seconds`, or when `gate` opens.

    Google's clock is `behind` ours; unless `dated`, its answers do not say what it shows.
    """

    def __init__(self, time: FakeTime, life: float = 3600.0) -> None:
        self._time = time
        self.life = life
        self.expires_at: float | None = None
        self.failure: Exception | None = None
        self.gate: asyncio.Event | None = None
        self.seconds = 0.0
        self.behind = 0.0
        self.dated = True
        self.generation = 0
        self.calls: list[tuple[float, TokenKey]] = []

    async def __call__(self, key: TokenKey) -> Token:
        self.calls.append((self._time.now, key))
        serial = len(self.calls)
        if self.gate is not None:
            await self.gate.wait()
        if self.seconds:
            over = asyncio.Event()
            self._time.later(self.seconds, over.set)
            await over.wait()
        if self.failure is not None:
            raise self.failure
        google_now = self._time.now - self.behind
        expires_at = self.expires_at if self.expires_at is not None else google_now + self.life
        token = token_of(key, expires_at, serial)
        return replace(token, dated_at=google_now if self.dated else None, generation=self.generation)


class Counted(Warnings):
    """An observer of mints that keeps them beside writing the log lines."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock=clock)
        self.minted_tokens: list[ObservedToken] = []
        self.failures: list[Failure] = []

    def minted(self, token: ObservedToken, seconds: float, uncached: bool) -> None:
        super().minted(token, seconds, uncached)
        assert seconds >= 0
        self.minted_tokens.append(token)

    def mint_failed(self, key: ObservedKey, failure: Failure, seconds: float, uncached: bool) -> None:
        super().mint_failed(key, failure, seconds, uncached)
        assert key.audience
        assert seconds >= 0
        self.failures.append(failure)
