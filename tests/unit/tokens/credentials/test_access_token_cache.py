from __future__ import annotations

import asyncio

import pytest

from proxy.errors import Failure, TokenUnavailable
from proxy.tokens.calls import Bearer, bearer
from proxy.tokens.credentials.source import AccessTokenCache
from tests.support.loops import loop_idle
from tests.unit.tokens.fake_mint import FakeTime


class Fetch:
    def __init__(self, time: FakeTime) -> None:
        self.time = time
        self.count = 0
        self.failure: Failure | None = None
        self.gate: asyncio.Event | None = None

    async def __call__(self) -> Bearer:
        self.count += 1
        if self.gate is not None:
            await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        return bearer(f"ya29.{self.count}", self.time.now + 3600)


@pytest.mark.asyncio
async def test_an_access_token_is_kept_until_225_seconds_before_it_expires() -> None:
    time = FakeTime()
    fetch = Fetch(time)
    cache = AccessTokenCache(fetch, time.clock)
    first = await cache.get()
    time.now += 3600 - 226
    assert await cache.get() is first
    time.now += 2
    assert await cache.get() is not first
    assert fetch.count == 2


@pytest.mark.asyncio
async def test_many_waiters_share_one_fetch() -> None:
    time = FakeTime()
    fetch = Fetch(time)
    cache = AccessTokenCache(fetch, time.clock)
    await asyncio.gather(*(cache.get() for _ in range(50)))
    assert fetch.count == 1


@pytest.mark.asyncio
async def test_a_stale_access_token_is_replaced_once() -> None:
    time = FakeTime()
    fetch = Fetch(time)
    cache = AccessTokenCache(fetch, time.clock)
    stale = await cache.get()
    renewed = await asyncio.gather(*(cache.get(stale) for _ in range(10)))
    assert fetch.count == 2
    assert set(map(id, renewed)) == {id(renewed[0])}
    assert renewed[0] is not stale


@pytest.mark.asyncio
async def test_a_failed_fetch_is_repeated_by_later_callers_only() -> None:
    time = FakeTime()
    fetch = Fetch(time)
    fetch.failure = TokenUnavailable("down")
    fetch.gate = asyncio.Event()
    cache = AccessTokenCache(fetch, time.clock)
    async with asyncio.TaskGroup() as group:
        waiters = [
            group.create_task(asyncio.wait_for(asyncio.gather(cache.get(), return_exceptions=True), 30))
            for _ in range(9)
        ]
        await loop_idle()
        fetch.gate.set()
    assert [type(waiter.result()[0]) for waiter in waiters] == [TokenUnavailable] * 9
    assert fetch.count == 1
    fetch.failure = None
    await cache.get()
    assert fetch.count == 2


@pytest.mark.asyncio
async def test_a_fetch_whose_caller_was_cancelled_is_made_by_the_next_caller() -> None:
    time = FakeTime()
    fetch = Fetch(time)
    fetch.gate = asyncio.Event()
    cache = AccessTokenCache(fetch, time.clock)
    async with asyncio.TaskGroup() as group:
        first = group.create_task(cache.get())
        await loop_idle()
        second = group.create_task(cache.get())
        await loop_idle()
        first.cancel()
        await loop_idle()
        fetch.gate.set()
    assert first.cancelled()
    assert second.result().expires_at == time.now + 3600
