"""A token source mints once for each key, fills its slots, and gives every discovery a token of its own."""

from __future__ import annotations

import asyncio
import gc

import pytest

from proxy.errors import MintRefused, TokenUnavailable
from proxy.tokens.model import TokenKey
from tests.support.loops import loop_idle
from tests.unit.tokens.source_stage import HOUR, Bench, gather
from tests.unit.tokens.values import AUDIENCE, KEY, START

# One mint however many wait


@pytest.mark.asyncio
async def test_many_waiters_share_one_mint(bench: Bench) -> None:
    bench.has_time()
    bench.mint.gate = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        waiters = [group.create_task(bench.source.token(KEY)) for _ in range(500)]
        await loop_idle()
        bench.mint.gate.set()
    assert len({id(waiter.result()) for waiter in waiters}) == 1
    assert bench.minted == 1


@pytest.mark.asyncio
async def test_one_mint_for_each_key(bench: Bench) -> None:
    bench.has_time()
    keys = [TokenKey(None, (), AUDIENCE), TokenKey("a@b", (), AUDIENCE), TokenKey("a@b", ("c@d",), AUDIENCE)]
    tokens = await gather(*(bench.source.token(key) for key in keys * 167))
    assert bench.minted == 3
    assert [token.key for token in tokens] == keys * 167


@pytest.mark.asyncio
async def test_a_cached_token_is_returned_again(bench: Bench) -> None:
    first = await bench.source.token(KEY)
    assert await bench.source.token(KEY) is first
    assert bench.minted == 1


@pytest.mark.asyncio
async def test_a_cancelled_first_caller_leaves_the_mint_to_the_others(bench: Bench) -> None:
    bench.mint.gate = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        first = group.create_task(bench.source.token(KEY))
        await loop_idle()
        second = group.create_task(bench.source.token(KEY))
        await loop_idle()
        first.cancel()
        await loop_idle()
        bench.mint.gate.set()
    assert first.cancelled()
    assert second.result().expires_at == START + HOUR
    assert bench.minted == 1


@pytest.mark.asyncio
async def test_a_mint_without_callers_still_fills_the_slot(bench: Bench) -> None:
    slot = bench.source.slot(KEY)
    bench.mint.gate = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        only = group.create_task(bench.source.token(KEY))
        await loop_idle()
        only.cancel()
    bench.mint.gate.set()
    await loop_idle()
    assert slot.usable_token(bench.time.now) is not None


@pytest.mark.asyncio
async def test_a_failed_mint_is_not_repeated_by_each_waiting_request(bench: Bench) -> None:
    bench.mint.gate = asyncio.Event()
    bench.mint.failure = TokenUnavailable("metadata server answered 503")
    async with asyncio.TaskGroup() as group:
        waiters = [group.create_task(gather(bench.source.token(KEY))) for _ in range(100)]
        await loop_idle()
        bench.mint.gate.set()
    for waiter in waiters:
        [failure] = waiter.result()
        assert isinstance(failure, TokenUnavailable)
    assert bench.minted == 1


# Slots


def test_a_key_has_one_slot_while_a_route_refers_to_it() -> None:
    source = Bench().source
    slot = source.slot(KEY)
    assert source.slot(KEY) is slot
    assert source.slot(TokenKey("a@b", (), AUDIENCE)) is not slot


@pytest.mark.asyncio
async def test_a_mint_fills_the_slot_that_was_there_before(bench: Bench) -> None:
    slot = bench.source.slot(KEY)
    assert slot.usable_token(bench.time.now) is None
    token = await bench.source.token(KEY)
    assert slot.usable_token(bench.time.now) is token


@pytest.mark.asyncio
async def test_a_slot_taken_after_the_mint_is_full(bench: Bench) -> None:
    token = await bench.source.token(KEY)
    gc.collect()
    assert bench.source.slot(KEY).usable_token(bench.time.now) is token


# Discovery


@pytest.mark.asyncio
async def test_two_discoveries_are_two_mints_and_fill_no_cache(bench: Bench) -> None:
    slot = bench.source.slot(KEY)
    first, second = await bench.source.mint_uncached(KEY), await bench.source.mint_uncached(KEY)
    assert first is not second
    assert bench.minted == 2
    assert slot.usable_token(bench.time.now) is None
    await bench.source.token(KEY)
    assert bench.minted == 3


@pytest.mark.asyncio
async def test_a_discovery_mints_although_a_token_is_cached(bench: Bench) -> None:
    cached = await bench.source.token(KEY)
    assert await bench.source.mint_uncached(KEY) is not cached
    assert await bench.source.token(KEY) is cached
    assert bench.minted == 2


@pytest.mark.asyncio
async def test_a_discovery_mints_although_a_failure_is_remembered(bench: Bench) -> None:
    bench.mint.failure = MintRefused("no")
    await gather(bench.source.token(KEY))
    with pytest.raises(MintRefused):
        await bench.source.mint_uncached(KEY)
    assert bench.minted == 2


@pytest.mark.asyncio
async def test_a_discovery_that_succeeds_ends_the_remembered_failure(bench: Bench) -> None:
    bench.mint.failure = MintRefused("no")
    await gather(bench.source.token(KEY))
    bench.mint.failure = None
    await bench.source.mint_uncached(KEY)
    assert (await bench.source.token(KEY)).expires_at > bench.time.now


@pytest.mark.asyncio
async def test_a_cancelled_discovery_leaves_its_mint_to_the_next(bench: Bench) -> None:
    bench.mint.gate = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        discovery = group.create_task(bench.source.mint_uncached(KEY))
        await loop_idle()
        discovery.cancel()
        await loop_idle()
        bench.mint.gate.set()
    assert discovery.cancelled()
    await loop_idle()
    assert bench.counted.minted_tokens == [await bench.source.mint_uncached(KEY)]


@pytest.mark.asyncio
async def test_discoveries_that_come_while_a_mint_runs_share_the_next_one(bench: Bench) -> None:
    bench.mint.gate = first_gate = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        first = group.create_task(bench.source.mint_uncached(KEY))
        await loop_idle()
        others = [group.create_task(bench.source.mint_uncached(KEY)) for _ in range(9)]
        await loop_idle()
        assert bench.minted == 1, "the others came after it had started"
        bench.mint.gate = asyncio.Event()
        first_gate.set()
        await loop_idle()
        assert first.done()
        assert bench.minted == 2
        late = group.create_task(bench.source.mint_uncached(KEY))
        await loop_idle()
        assert bench.minted == 2
        bench.mint.gate.set()
    assert bench.minted == 3
    tokens = [task.result() for task in (first, *others, late)]
    assert [tokens.index(token) for token in tokens] == [0, *[1] * 9, 10]


@pytest.mark.asyncio
async def test_discoveries_of_different_keys_do_not_wait_for_each_other(bench: Bench) -> None:
    bench.mint.gate = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for key in (KEY, KEY._replace(audience="https://other.example")):
            group.create_task(bench.source.mint_uncached(key))
        await loop_idle()
        assert bench.minted == 2
        bench.mint.gate.set()


@pytest.mark.asyncio
async def test_a_failed_discovery_fails_those_that_shared_its_mint_and_the_next_is_tried(bench: Bench) -> None:
    bench.mint.gate, bench.mint.failure = first_gate, _ = asyncio.Event(), MintRefused("no")
    async with asyncio.TaskGroup() as group:
        first = group.create_task(gather(bench.source.mint_uncached(KEY)))
        await loop_idle()
        second = group.create_task(gather(bench.source.mint_uncached(KEY)))
        await loop_idle()
        bench.mint.gate = asyncio.Event()
        first_gate.set()
        await loop_idle()
        assert first.done()
        bench.mint.failure = None
        bench.mint.gate.set()
    assert isinstance(first.result()[0], MintRefused)
    assert second.result()[0] in bench.counted.minted_tokens


@pytest.mark.asyncio
async def test_no_mint_starts_for_discoveries_that_have_left(bench: Bench) -> None:
    bench.mint.gate = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(bench.source.mint_uncached(KEY))
        await loop_idle()
        leaves = group.create_task(bench.source.mint_uncached(KEY))
        await loop_idle()
        leaves.cancel()
        await loop_idle()
        bench.mint.gate.set()
    assert bench.minted == 1
    assert not bench.source._uncached._keys


# Bounds and traps


@pytest.mark.asyncio
async def test_keys_over_the_limit_evict_unused_ones_first() -> None:
    bench = Bench(max_keys=3)
    keys = [TokenKey(None, (), f"https://{name}") for name in "abcd"]
    slots = [bench.source._cache.entry(key) for key in keys]  # `slot` is for routes, whose keys are not evicted
    for key in keys[:3]:
        await bench.source.token(key)
    assert slots[0].usable_token(bench.time.now)
    await bench.source.token(keys[3])
    assert [slot.usable_token(bench.time.now) is not None for slot in slots] == [True, False, True, True]
    assert bench.time.armed == 3
    await bench.source.token(keys[1])
    assert slots[1].usable_token(bench.time.now)
    assert bench.minted == 5
    await bench.source.close()


@pytest.mark.asyncio
async def test_at_most_a_thousand_keys_are_kept(bench: Bench) -> None:
    for number in range(1100):
        await bench.source.token(TokenKey(None, (), f"https://{number}"))
    assert bench.time.armed == 1000


@pytest.mark.parametrize("reloaded", [False, True])
@pytest.mark.asyncio
async def test_keys_of_routes_are_not_evicted_however_many_there_are(bench: Bench, reloaded: bool) -> None:
    keys = [TokenKey(None, (), f"https://{number}") for number in range(1100)]
    slots = [bench.source.slot(key) for key in keys]
    if reloaded:
        await bench.source.retain(keys)
    for _ in range(3):
        for key, slot in zip(keys, slots, strict=True):
            if slot.usable_token(bench.time.now) is None:
                await bench.source.token(key)
    assert bench.minted == 1100


@pytest.mark.asyncio
async def test_other_keys_give_way_and_take_no_place_from_those_of_routes() -> None:
    bench = Bench(max_keys=2)
    keys = [TokenKey(None, (), f"https://{name}") for name in "abc"]
    busy = bench.source.slot(keys[0])
    for key in keys:
        await bench.source.token(key)
        assert busy.usable_token(bench.time.now)
    assert await bench.stored_keys() == set(keys)
    other = TokenKey(None, (), "https://d")
    await bench.source.token(other)
    assert busy.usable_token(bench.time.now)
    assert await bench.stored_keys() == {keys[0], keys[2], other}
    await bench.source.close()


@pytest.mark.asyncio
async def test_keys_that_are_being_minted_are_not_evicted() -> None:
    bench = Bench(max_keys=1)
    bench.mint.gate = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for name in "abc":
            group.create_task(bench.source.token(TokenKey(None, (), f"https://{name}")))
        await loop_idle()
        bench.mint.gate.set()
    assert bench.minted == 3
    await bench.source.close()


@pytest.mark.asyncio
async def test_tokens_are_cached_even_if_the_environment_disables_aiocache(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIOCACHE_DISABLE", "1")
    for _ in range(10):
        await bench.source.token(KEY)
    assert bench.minted == 1


@pytest.mark.asyncio
async def test_a_token_that_aiocache_kept_too_long_is_not_used(bench: Bench) -> None:
    await bench.source.token(KEY)  # aiocache's timers go by the loop's clock, which stands still here
    bench.time.now += HOUR - 60
    assert (await bench.source.token(KEY)).expires_at == bench.time.now + HOUR


@pytest.mark.asyncio
async def test_no_token_reaches_aiocaches_debug_log(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    token = await bench.source.token(KEY)
    await bench.source.token(KEY)
    assert "GET" in caplog.text
    assert token.authorization.decode() not in caplog.text
