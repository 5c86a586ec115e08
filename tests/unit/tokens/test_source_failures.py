"""What a token source does when a mint fails, hangs, or is given up."""

from __future__ import annotations

import asyncio
import gc

import pytest

from proxy.errors import CredentialsNotFound, MintRefused, TokenTimeout, TokenUnavailable
from proxy.tokens.model import Token, TokenKey
from proxy.tokens.source import TokenSource
from proxy.tokens.uncached import _AbandonedMint
from tests.support.loops import loop_idle
from tests.unit.tokens.source_stage import HOUR, Bench, gather
from tests.unit.tokens.values import AUDIENCE, KEY, START


@pytest.mark.asyncio
async def test_requests_are_served_during_an_outage_while_the_token_is_valid_then_fail_fast_then_recover(
    bench: Bench,
) -> None:
    bench.random_fraction = 0.0
    slot = bench.source.slot(KEY)
    await bench.traffic(slot, 3370.0, every=5.0)
    bench.mint.failure = TokenUnavailable("IAM answered 503")
    assert await bench.traffic(slot, 170.0, every=1.0) == 0  # up to exp - 60
    assert bench.time.now == START + HOUR - 60
    attempts = bench.minted
    assert 8 <= attempts <= 12
    for _ in range(20):
        with pytest.raises(TokenUnavailable, match="IAM answered 503"):
            await bench.source.token(KEY)
    assert bench.minted - attempts <= 1
    bench.mint.failure = None
    await bench.time.advance(31)
    assert (await bench.source.token(KEY)).expires_at > bench.time.now


@pytest.mark.asyncio
async def test_attempts_during_an_outage_slow_down_to_one_in_30_seconds(bench: Bench) -> None:
    bench.random_fraction = 0.0
    bench.mint.failure = TokenUnavailable("down")
    for _ in range(200):
        await gather(bench.source.token(KEY))
        await bench.time.advance(1.0)
    assert bench.mint_times() == [0, 1, 3, 7, 15, 31, 61, 91, 121, 151, 181]


@pytest.mark.asyncio
async def test_the_back_off_starts_again_after_a_success(bench: Bench) -> None:
    bench.random_fraction = 0.0
    bench.mint.failure = TokenUnavailable("down")
    for _ in range(40):
        await gather(bench.source.token(KEY))
        await bench.time.advance(1.0)
    bench.mint.failure = None
    await bench.time.advance(30.0)
    await bench.source.token(KEY)
    bench.mint.failure = TokenUnavailable("down again")
    bench.time.now += 2 * HOUR
    await gather(bench.source.token(KEY))
    await bench.time.advance(1.0)
    bench.mint.failure = None
    assert (await bench.source.token(KEY)).expires_at > bench.time.now


@pytest.mark.asyncio
async def test_a_permanent_failure_is_remembered_for_30_seconds(bench: Bench) -> None:
    bench.mint.failure = MintRefused("no such account")
    await gather(bench.source.token(KEY))
    bench.mint.failure = None
    await bench.time.advance(29.9)
    with pytest.raises(MintRefused, match="no such account"):
        await bench.source.token(KEY)
    assert bench.minted == 1
    await bench.time.advance(0.2)
    assert (await bench.source.token(KEY)).expires_at > bench.time.now


@pytest.mark.asyncio
async def test_a_remembered_failure_keeps_its_remedy(bench: Bench) -> None:
    bench.mint.failure = CredentialsNotFound("nothing answers there", remedy="unset GCE_METADATA_HOST")
    for _ in range(2):
        with pytest.raises(CredentialsNotFound) as caught:
            await bench.source.token(KEY)
        assert (caught.value.problem, caught.value.remedy) == ("nothing answers there", "unset GCE_METADATA_HOST")
    assert bench.minted == 1


@pytest.mark.asyncio
async def test_a_remembered_failure_does_not_outlive_a_clock_that_is_set_back(bench: Bench) -> None:
    bench.mint.failure = MintRefused("no")
    await gather(bench.source.token(KEY))
    bench.mint.failure = None
    bench.time.now -= HOUR
    assert (await bench.source.token(KEY)).expires_at > bench.time.now


@pytest.mark.asyncio
async def test_one_key_failing_does_not_fail_another(bench: Bench) -> None:
    bench.mint.failure = MintRefused("no")
    await gather(bench.source.token(KEY))
    bench.mint.failure = None
    assert (await bench.source.token(TokenKey("a@b", (), AUDIENCE))).expires_at > bench.time.now


@pytest.mark.asyncio
async def test_a_mint_that_hangs_fails_all_its_waiters_at_the_deadline() -> None:
    bench = Bench(mint_timeout_seconds=0.02)
    bench.mint.gate = asyncio.Event()
    outcomes = await gather(*(bench.source.token(KEY) for _ in range(50)))
    assert [type(outcome) for outcome in outcomes] == [TokenTimeout] * 50
    assert "within 0.02 s (mint_timeout); the mint goes on" in str(outcomes[0])
    assert bench.minted == 1
    await bench.source.close()


@pytest.mark.asyncio
async def test_a_mint_without_waiting_requests_goes_on_and_serves_the_next_request() -> None:
    bench = Bench(mint_timeout_seconds=0.02)
    bench.mint.gate = asyncio.Event()
    slot = bench.source.slot(KEY)
    for _ in range(3):
        with pytest.raises(TokenTimeout):
            await bench.source.token(KEY)
    assert bench.minted == 1
    bench.has_time()
    bench.mint.gate.set()
    await loop_idle()
    token = slot.usable_token(bench.time.now)
    assert token is not None
    assert await bench.source.token(KEY) is token
    assert bench.minted == 1
    await bench.source.close()


@pytest.mark.asyncio
async def test_the_failure_of_a_mint_without_waiting_requests_is_remembered() -> None:
    bench = Bench(mint_timeout_seconds=0.02)
    bench.mint.gate = asyncio.Event()
    with pytest.raises(TokenTimeout):
        await bench.source.token(KEY)
    bench.mint.failure = TokenUnavailable("down")
    bench.has_time()
    bench.mint.gate.set()
    await loop_idle()
    with pytest.raises(TokenUnavailable, match="down"):
        await bench.source.token(KEY)
    assert bench.minted == 1
    await bench.source.close()


@pytest.mark.asyncio
async def test_an_abandoned_discovery_mint_serves_the_next_discovery_once() -> None:
    bench = Bench(mint_timeout_seconds=0.02)
    bench.mint.gate = asyncio.Event()
    with pytest.raises(TokenTimeout):
        await bench.source.mint_uncached(KEY)
    bench.has_time()
    bench.mint.gate.set()
    await loop_idle()
    first = await bench.source.mint_uncached(KEY)
    assert bench.counted.minted_tokens == [first]
    assert await bench.source.mint_uncached(KEY) is not first
    assert bench.minted == 2
    await bench.source.close()


@pytest.mark.asyncio
async def test_a_discovery_takes_the_first_token_of_its_own_mint_and_an_abandoned_one() -> None:
    bench = Bench(mint_timeout_seconds=0.02)
    hangs = bench.mint.gate = asyncio.Event()
    for _ in range(5):  # no more than one of them is left
        with pytest.raises(TokenTimeout):
            await bench.source.mint_uncached(KEY)
    bench.has_time()
    bench.mint.gate = None
    second = await bench.source.mint_uncached(KEY)
    assert bench.counted.minted_tokens == [second]
    hangs.set()
    await loop_idle()
    assert bench.counted.minted_tokens == [second]
    assert len(bench.source._tasks) == 0
    await bench.source.close()


@pytest.mark.asyncio
async def test_what_a_mint_that_hangs_keeps_does_not_grow_with_the_discoveries_that_leave_it() -> None:
    bench = Bench(mint_timeout_seconds=0.01)
    bench.mint.gate = asyncio.Event()
    bench.source.slot(KEY)
    kept = []
    for _ in range(6):
        with pytest.raises(TokenTimeout):
            await bench.source.mint_uncached(KEY)
        gc.collect()
        kept.append(sum(type(one) is _AbandonedMint for one in gc.get_objects()))
    assert kept[-1] == kept[2]
    await bench.source.close()


@pytest.mark.asyncio
async def test_a_successful_discovery_serves_requests_that_wait_for_an_earlier_mint(bench: Bench) -> None:
    bench.mint.gate = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        waiters = [group.create_task(bench.source.token(KEY)) for _ in range(10)]
        await loop_idle()
        bench.mint.gate = None
        token = await bench.source.mint_uncached(KEY)
    assert {id(waiter.result()) for waiter in waiters} == {id(token)}
    assert bench.minted == 2


@pytest.mark.asyncio
async def test_a_mint_that_cancels_itself_fails_its_waiters_and_does_not_cancel_them(bench: Bench) -> None:
    async def gives_up(key: TokenKey) -> Token:
        raise asyncio.CancelledError

    source = TokenSource(gives_up)
    with pytest.raises(TokenUnavailable, match="given up"):
        await source.token(KEY)
    with pytest.raises(TokenUnavailable, match="given up"):
        await source.mint_uncached(KEY)
    await source.close()


@pytest.mark.asyncio
async def test_a_failure_is_remembered_where_no_route_refers_to_the_key(bench: Bench) -> None:
    bench.mint.failure = MintRefused("no")
    for _ in range(3):
        with pytest.raises(MintRefused):
            await bench.source.token(KEY)
        gc.collect()
    assert len(bench.mint.calls) == 1
    assert await bench.stored_keys() == {KEY}
