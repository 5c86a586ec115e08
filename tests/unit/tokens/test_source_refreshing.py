"""When a token source mints again: ahead of the end of a token in use, and with every clock."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from proxy.errors import TokenExpired
from proxy.tokens.source import TokenSource
from tests.support.loops import loop_idle
from tests.unit.tokens.source_stage import HOUR, Bench, gather
from tests.unit.tokens.values import KEY, START


@pytest.mark.asyncio
async def test_a_used_token_is_refreshed_225_seconds_before_it_expires(bench: Bench) -> None:
    bench.random_fraction = 0.0
    slot = bench.source.slot(KEY)
    assert await bench.traffic(slot, 3 * HOUR, every=5.0) == 1
    assert bench.mint_times() == [0, 3375, 6750, 10125]


@pytest.mark.asyncio
async def test_refreshes_are_spread_by_up_to_30_seconds(bench: Bench) -> None:
    bench.random_fraction = 0.999
    assert await bench.traffic(bench.source.slot(KEY), HOUR, every=5.0) == 1
    assert bench.mint_times()[1] == pytest.approx(3375 + 30, abs=0.1)


@pytest.mark.asyncio
@pytest.mark.parametrize("life", [61.5, 62, 70, 120, 239, 240, 300, 900])
async def test_no_request_waits_for_the_refresh_of_a_short_lived_token(bench: Bench, life: float) -> None:
    bench.mint.life = life
    usable = life - 60
    assert await bench.traffic(bench.source.slot(KEY), 20 * usable, every=usable / 20) == 1
    assert bench.minted <= 42


@pytest.mark.asyncio
@pytest.mark.parametrize("random_fraction", [0.0, 0.999])
async def test_no_request_waits_in_five_minutes_of_constant_load_with_tokens_of_62_seconds(
    bench: Bench, random_fraction: float
) -> None:
    bench.random_fraction, bench.mint.life = random_fraction, 62.0
    slot = bench.source.slot(KEY)
    await bench.source.token(KEY)
    bench.mint.seconds = 0.7
    assert await bench.traffic(slot, 300.0, every=0.1) == 0
    assert 100 < bench.minted < 300


@pytest.mark.asyncio
async def test_an_unused_token_is_not_refreshed(bench: Bench) -> None:
    slot = bench.source.slot(KEY)
    await bench.source.token(KEY)
    await bench.time.advance(24 * HOUR)
    assert bench.minted == 1
    assert slot.usable_token(bench.time.now) is None
    assert bench.time.armed == 0


@pytest.mark.asyncio
async def test_a_token_that_is_first_used_late_is_still_refreshed_before_its_end(bench: Bench) -> None:
    slot = bench.source.slot(KEY)
    await bench.source.token(KEY)
    await bench.time.advance(HOUR - 90)
    assert bench.minted == 1
    assert await bench.traffic(slot, 100.0, every=1.0) == 0
    assert bench.minted == 2


@pytest.mark.asyncio
async def test_a_refresh_that_brings_the_same_token_is_repeated_every_10_seconds_at_most(bench: Bench) -> None:
    bench.random_fraction = 0.0
    bench.mint.expires_at = START + HOUR
    slot = bench.source.slot(KEY)
    assert await bench.traffic(slot, HOUR - 60, every=1.0) == 1
    times = bench.mint_times()
    assert times[1] == 3375
    assert all(later - earlier >= 10 for earlier, later in pairwise(times))
    assert len(times) <= 8, "half of what is left, while that is more"
    bench.mint.expires_at = None
    assert (await bench.source.token(KEY)).expires_at > bench.time.now


@pytest.mark.asyncio
async def test_a_refresh_that_brings_a_new_token_ends_the_repetition(bench: Bench) -> None:
    bench.mint.expires_at = START + HOUR
    slot = bench.source.slot(KEY)
    await bench.traffic(slot, HOUR - 180, every=5.0)
    bench.mint.expires_at = None
    assert await bench.traffic(slot, 1000.0, every=5.0) == 0
    assert len([at for at in bench.mint_times() if at > HOUR - 180]) == 1


@pytest.mark.asyncio
async def test_after_the_machine_slept_an_old_token_is_not_used(bench: Bench) -> None:
    slot = bench.source.slot(KEY)
    await bench.source.token(KEY)
    bench.time.now += 2 * HOUR  # and no timer ran
    assert slot.usable_token(bench.time.now) is None
    assert (await bench.source.token(KEY)).expires_at == bench.time.now + HOUR


@pytest.mark.asyncio
async def test_timers_are_those_of_the_loop_by_default(bench: Bench) -> None:
    source = TokenSource(bench.mint, clock=bench.time.clock)
    bench.mint.life = 60.5  # long enough to be used before its timer looks whether it was
    await source.token(KEY)
    assert source.slot(KEY).usable_token(bench.time.now)
    bench.mint.gate = asyncio.Event()
    bench.mint.gate.set()
    async with asyncio.timeout(60):
        while bench.minted < 2:
            await loop_idle()
    await source.close()


# Tokens with little or no life left


@pytest.mark.asyncio
async def test_a_token_in_its_last_minute_is_used_once_and_not_cached(bench: Bench) -> None:
    bench.mint.life = 60.0
    slot = bench.source.slot(KEY)
    assert (await bench.source.token(KEY)).expires_at == START + 60
    assert slot.usable_token(bench.time.now) is None
    await bench.source.token(KEY)
    assert bench.minted == 2


@pytest.mark.asyncio
@pytest.mark.parametrize("behind", [31.0, 3599.0, 3600.0, 86_400.0])
async def test_a_clock_that_is_ahead_by_any_time_changes_nothing_but_the_expiry(bench: Bench, behind: float) -> None:
    bench.mint.behind, bench.random_fraction = behind, 0.0
    slot = bench.source.slot(KEY)
    assert await bench.traffic(slot, 3 * HOUR, every=5.0) == 1
    assert bench.mint_times() == [0, 3375, 6750, 10125]


@pytest.mark.asyncio
async def test_a_clock_that_is_behind_does_not_keep_a_token_beyond_its_end(bench: Bench) -> None:
    bench.mint.behind = -1800.0
    slot = bench.source.slot(KEY)
    await bench.source.token(KEY)
    bench.time.now += HOUR - 61
    assert slot.usable_token(bench.time.now) is not None
    bench.time.now += 1
    assert slot.usable_token(bench.time.now) is None


@pytest.mark.asyncio
async def test_an_undated_token_that_expired_by_this_clock_is_used_once_by_waiting_requests(bench: Bench) -> None:
    bench.mint.life, bench.mint.dated = -7200.0, False
    slot = bench.source.slot(KEY)
    tokens = await gather(*(bench.source.token(KEY) for _ in range(100)))
    assert len({id(token) for token in tokens}) == 1
    assert slot.usable_token(bench.time.now) is None
    assert (await bench.source.token(KEY)) is not tokens[0]
    assert bench.minted == 2


@pytest.mark.asyncio
async def test_an_expired_token_is_never_used(bench: Bench) -> None:
    bench.mint.life = -1.0
    with pytest.raises(TokenExpired):
        await bench.source.token(KEY)
    with pytest.raises(TokenExpired):
        await bench.source.mint_uncached(KEY)
