"""What is left of a key that no route uses any more."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from proxy.errors import MintRefused, TokenTimeout
from proxy.tokens.model import TokenKey
from tests.support.loops import loop_idle
from tests.unit.tokens.source_stage import Bench
from tests.unit.tokens.values import KEY

OTHER = TokenKey("a@b", (), "https://other")


@pytest.mark.asyncio
async def test_a_dropped_key_loses_its_token_and_its_timer_and_the_others_keep_theirs(bench: Bench) -> None:
    dropped, kept = bench.source.slot(KEY), bench.source.slot(OTHER)
    await bench.source.token(KEY)
    token = await bench.source.token(OTHER)
    assert bench.time.armed == 2
    await bench.source.retain([OTHER])
    assert dropped.usable_token(bench.time.now) is None
    assert dropped.token is None
    assert kept.usable_token(bench.time.now) is token
    assert bench.time.armed == 1
    assert await bench.stored_keys() == {OTHER}


@pytest.mark.asyncio
async def test_the_slot_of_a_dropped_key_is_freed_with_its_last_route(bench: Bench) -> None:
    slot = bench.source.slot(KEY)
    await bench.source.token(KEY)
    gone = weakref.ref(slot)
    await bench.source.retain([])
    del slot
    gc.collect()
    assert gone() is None


@pytest.mark.asyncio
async def test_a_mint_that_no_request_waits_for_ends_with_its_key(bench: Bench) -> None:
    slot = bench.source.slot(KEY)
    await bench.source.token(KEY)
    assert slot.usable_token(bench.time.now)
    bench.mint.gate = asyncio.Event()
    await bench.time.advance(3400)  # a refresh in the background
    assert len(bench.mint.calls) == 2
    await bench.source.retain([])
    await loop_idle()
    assert not bench.source._tasks


@pytest.mark.asyncio
async def test_a_request_that_waits_gets_its_token_which_is_not_kept(bench: Bench) -> None:
    slot = bench.source.slot(KEY)
    bench.mint.gate = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        waiters = [group.create_task(bench.source.token(KEY)) for _ in range(2)]
        await loop_idle()
        await bench.source.retain([OTHER])
        await loop_idle()
        bench.mint.gate.set()
    assert waiters[0].result() is waiters[1].result()
    assert len(bench.mint.calls) == 1
    assert slot.token is None
    assert bench.time.armed == 0
    assert await bench.stored_keys() == set()


@pytest.mark.asyncio
async def test_the_mint_of_a_dropped_key_ends_with_the_last_request_that_waits(bench: Bench) -> None:
    bench.mint.gate = asyncio.Event()
    waiters = [asyncio.get_running_loop().create_task(bench.source.token(KEY)) for _ in range(2)]
    await loop_idle()
    await bench.source.retain([])
    waiters[0].cancel()
    await loop_idle()
    assert len(bench.source._tasks) == 1
    waiters[1].cancel()
    await loop_idle()
    assert not bench.source._tasks
    await asyncio.gather(*waiters, return_exceptions=True)


@pytest.mark.asyncio
async def test_a_late_request_of_an_old_route_gets_a_token_which_is_not_kept(bench: Bench) -> None:
    await bench.source.retain([OTHER])
    assert (await bench.source.token(KEY)).key == KEY
    assert (await bench.source.mint_uncached(KEY)).key == KEY
    assert bench.time.armed == 0
    assert await bench.stored_keys() == set()


@pytest.mark.asyncio
async def test_a_failure_of_a_dropped_key_is_forgotten(bench: Bench) -> None:
    slot = bench.source.slot(KEY)
    bench.mint.failure = MintRefused("no")
    for _ in range(2):
        with pytest.raises(MintRefused):
            await bench.source.token(KEY)
    assert len(bench.mint.calls) == 1
    await bench.source.retain([])
    with pytest.raises(MintRefused):
        await bench.source.token(KEY)
    assert len(bench.mint.calls) == 2
    assert await bench.stored_keys() == set()
    assert slot.token is None


@pytest.mark.asyncio
async def test_a_dropped_key_that_is_used_again_is_kept(bench: Bench) -> None:
    old = bench.source.slot(KEY)
    await bench.source.retain([OTHER])
    new = bench.source.slot(KEY)
    assert new is old
    token = await bench.source.token(KEY)
    assert new.usable_token(bench.time.now) is token
    assert await bench.stored_keys() == {KEY}


@pytest.mark.asyncio
async def test_a_slot_that_is_asked_for_before_the_others_are_dropped_is_kept(bench: Bench) -> None:
    bench.source.slot(OTHER)
    dropping = bench.source.retain([OTHER])
    slot = bench.source.slot(KEY)
    await dropping
    token = await bench.source.token(KEY)
    assert slot.usable_token(bench.time.now) is token
    assert await bench.stored_keys() == {KEY}


@pytest.mark.asyncio
async def test_a_key_that_comes_back_while_it_is_minted_keeps_that_token(bench: Bench) -> None:
    slot = bench.source.slot(KEY)
    bench.mint.gate = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        waiter = group.create_task(bench.source.token(KEY))
        await loop_idle()
        await bench.source.retain([])
        assert bench.source.slot(KEY) is slot
        bench.mint.gate.set()
    assert slot.usable_token(bench.time.now) is waiter.result()


@pytest.mark.asyncio
async def test_a_key_that_comes_back_at_once_does_not_wait_for_its_cancelled_mint(bench: Bench) -> None:
    slot = bench.source.slot(KEY)
    await bench.source.token(KEY)
    assert slot.usable_token(bench.time.now)
    bench.mint.gate = asyncio.Event()
    await bench.time.advance(3400)
    await bench.source.retain([])
    assert bench.source.slot(KEY) is slot
    bench.mint.gate.set()
    token = await bench.source.token(KEY)
    assert slot.usable_token(bench.time.now) is token
    assert len(bench.mint.calls) == 3


@pytest.mark.asyncio
async def test_an_abandoned_discovery_ends_with_its_key() -> None:
    bench = Bench(mint_timeout_seconds=0.01)
    bench.mint.gate = asyncio.Event()
    for key in (KEY, OTHER):
        with pytest.raises(TokenTimeout):
            await bench.source.mint_uncached(key)
    await bench.source.retain([OTHER])
    await loop_idle()
    assert len(bench.source._tasks) == 1
    with pytest.raises(TokenTimeout):
        await bench.source.mint_uncached(KEY)  # of a key that no route has: not kept for the next
    await loop_idle()
    assert len(bench.source._tasks) == 1
    await bench.source.close()
