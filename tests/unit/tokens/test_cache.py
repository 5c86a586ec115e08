from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from proxy.tokens.cache import TokenCache
from proxy.tokens.model import TokenKey
from tests.unit.tokens.values import KEY, START, token_of


@pytest.mark.asyncio
async def test_what_aiocache_stores_is_the_slot_that_a_route_reads() -> None:
    cache = TokenCache(10, lambda key: False)
    entry = cache.entry(KEY)
    token = token_of(KEY, START + 3600)
    entry.fill(token)
    await cache.keep(entry, 60.0)
    stored = await cache._store.get(KEY)
    assert stored is entry
    assert stored.usable_token(START) is token
    entry.clear()
    assert (await cache.get(KEY)).usable_token(START) is None
    await cache.close()


@pytest.mark.asyncio
async def test_aiocache_drops_an_entry_that_no_route_refers_to_at_the_end_of_its_time() -> None:
    cache = TokenCache(10, lambda key: False)
    entry = cache.entry(KEY)
    ended = asyncio.Event()
    gone = weakref.ref(entry, lambda _: ended.set())
    await cache.keep(entry, 0.01)
    del entry
    assert gone() is not None
    async with asyncio.timeout(30):
        await ended.wait()
    assert gone() is None
    assert cache.entries() == []


@pytest.mark.asyncio
async def test_an_entry_that_a_route_refers_to_survives_its_removal_from_aiocache() -> None:
    cache = TokenCache(10, lambda key: False)
    entry = cache.entry(KEY)
    await cache.keep(entry, 60.0)
    await cache.drop(entry)
    assert await cache.get(KEY) is entry


@pytest.mark.asyncio
async def test_closing_leaves_no_timer_and_no_entry() -> None:
    cache = TokenCache(10, lambda key: False)
    for name in "abc":
        await cache.keep(cache.entry(TokenKey(None, (), f"https://{name}")), 3600.0)
    timers = list(cache._store._handlers.values())
    assert len(timers) == 3
    await cache.close()
    assert all(timer.cancelled() for timer in timers)
    gc.collect()
    assert cache.entries() == []
