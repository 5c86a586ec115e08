from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from typing import Any

import pytest
import pytest_asyncio

from proxy.errors import Failure, MintRefused, TokenExpired, TokenTimeout, TokenUnavailable
from proxy.tokens import polling
from proxy.tokens.model import Token, TokenKey
from proxy.tokens.source import Slot, TokenSource
from tests.support.loops import loop_idle
from tests.unit.tokens.fakes import (
    AUDIENCE,
    KEY,
    START,
    Counted,
    FakeMint,
    FakeTime,
)

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
        """Let who asks wait for as long as it takes from now on."""
        self.source.mint_timeout_seconds = 60.0

    def mint_times(self) -> list[float]:
        return [at - START for at, _ in self.mint.calls]

    async def traffic(self, slot: Slot, seconds: float, every: float) -> int:
        """Take a token every so often; return how many requests had to wait for one."""
        waited = 0
        for _ in range(int(seconds / every)):
            if slot.usable_token(self.time.now) is None:
                waited += 1
                await self.source.token(KEY)
            await self.time.advance(every)
        return waited


@pytest_asyncio.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    yield made
    await made.source.close()


async def gather(*calls: Any) -> list[Any]:
    return await asyncio.gather(*calls, return_exceptions=True)


# One mint however many wait


@pytest.mark.asyncio
async def test_one_mint_however_many_wait(bench: Bench) -> None:
    bench.mint.gate = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        waiters = [group.create_task(bench.source.token(KEY)) for _ in range(500)]
        await loop_idle()
        bench.mint.gate.set()
    assert len({id(waiter.result()) for waiter in waiters}) == 1
    assert bench.minted == 1


@pytest.mark.asyncio
async def test_one_mint_for_each_key(bench: Bench) -> None:
    keys = [TokenKey(None, (), AUDIENCE), TokenKey("a@b", (), AUDIENCE), TokenKey("a@b", ("c@d",), AUDIENCE)]
    tokens = await gather(*(bench.source.token(key) for key in keys * 167))
    assert bench.minted == 3
    assert [token.key for token in tokens] == keys * 167


@pytest.mark.asyncio
async def test_a_cached_token_is_given_again(bench: Bench) -> None:
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


def test_a_slot_is_the_same_while_it_is_referred_to() -> None:
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
async def test_a_discovery_asks_although_a_failure_is_remembered(bench: Bench) -> None:
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


# Refreshing ahead


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
async def test_no_request_waits_at_the_end_of_a_short_token(bench: Bench, life: float) -> None:
    bench.mint.life = life
    usable = life - 60
    assert await bench.traffic(bench.source.slot(KEY), 20 * usable, every=usable / 20) == 1
    assert bench.minted <= 42


@pytest.mark.asyncio
@pytest.mark.parametrize("random_fraction", [0.0, 0.999])
async def test_five_minutes_of_constant_load_on_tokens_of_62_seconds_and_slow_mints(
    bench: Bench, random_fraction: float
) -> None:
    bench.random_fraction, bench.mint.life = random_fraction, 62.0
    slot = bench.source.slot(KEY)
    await bench.source.token(KEY)
    bench.mint.seconds = 0.7
    assert await bench.traffic(slot, 300.0, every=0.1) == 0
    assert 100 < bench.minted < 300


@pytest.mark.asyncio
async def test_an_unused_token_lapses(bench: Bench) -> None:
    slot = bench.source.slot(KEY)
    await bench.source.token(KEY)
    await bench.time.advance(24 * HOUR)
    assert bench.minted == 1
    assert slot.usable_token(bench.time.now) is None
    assert bench.time.armed == 0


@pytest.mark.asyncio
async def test_a_token_that_comes_into_use_late_is_still_refreshed_before_its_end(bench: Bench) -> None:
    slot = bench.source.slot(KEY)
    await bench.source.token(KEY)
    await bench.time.advance(HOUR - 90)
    assert bench.minted == 1
    assert await bench.traffic(slot, 100.0, every=1.0) == 0
    assert bench.minted == 2


@pytest.mark.asyncio
async def test_the_same_token_again_is_no_progress_and_asked_for_each_10_seconds_only(bench: Bench) -> None:
    bench.random_fraction = 0.0
    bench.mint.expires_at = START + HOUR
    slot = bench.source.slot(KEY)
    assert await bench.traffic(slot, HOUR - 60, every=1.0) == 1
    times = bench.mint_times()
    assert times[1] == 3375
    assert all(later - earlier >= 10 for earlier, later in pairwise(times))
    assert len(times) <= 20
    bench.mint.expires_at = None
    assert (await bench.source.token(KEY)).expires_at > bench.time.now


@pytest.mark.asyncio
async def test_progress_after_the_same_token_again_ends_the_asking(bench: Bench) -> None:
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
async def test_without_a_fake_the_timers_are_the_loops(bench: Bench) -> None:
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


# Failures


@pytest.mark.asyncio
async def test_an_outage_is_bridged_while_the_token_is_valid_then_fails_fast_then_recovers(bench: Bench) -> None:
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
async def test_attempts_during_an_outage_thin_out_to_one_in_30_seconds(bench: Bench) -> None:
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
async def test_a_discovery_takes_the_first_token_of_its_mint_and_an_abandoned_one() -> None:
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


# Rejected by Cloud Run


@pytest.mark.asyncio
async def test_a_rejected_token_is_dropped_and_another_minted(bench: Bench) -> None:
    slot = bench.source.slot(KEY)
    first = await bench.source.token(KEY)
    bench.source.reject(first)
    assert slot.usable_token(bench.time.now) is None
    second = await bench.source.token(KEY)
    assert second is not first
    assert slot.usable_token(bench.time.now) is second
    assert bench.minted == 2


@pytest.mark.asyncio
async def test_a_rejection_of_every_token_is_one_mint_in_10_seconds(bench: Bench) -> None:
    for _ in range(100):
        bench.source.reject(await bench.source.token(KEY))
        await bench.time.advance(1.0)
    assert bench.minted <= 11


@pytest.mark.asyncio
async def test_a_rejection_of_a_token_that_is_not_the_cached_one_changes_nothing(bench: Bench) -> None:
    old = await bench.source.token(KEY)
    discovered = await bench.source.mint_uncached(KEY)
    bench.source.reject(discovered)
    assert await bench.source.token(KEY) is old
    bench.source.reject(old)
    new = await bench.source.token(KEY)
    await bench.time.advance(11)
    bench.source.reject(old)
    assert await bench.source.token(KEY) is new


@pytest.mark.asyncio
async def test_the_same_token_is_taken_again_after_it_was_rejected(bench: Bench) -> None:
    """A metadata server may have no other; without it there would be none at all."""
    bench.mint.expires_at = START + HOUR
    bench.source.reject(await bench.source.token(KEY))
    assert (await bench.source.token(KEY)).expires_at == START + HOUR
    await bench.source.token(KEY)
    assert bench.minted == 2


def test_a_rejection_of_an_unknown_token_changes_nothing() -> None:
    bench = Bench()
    bench.source.reject(Token(key=KEY, authorization=b"Bearer x", expires_at=START, principal=None))


@pytest.mark.asyncio
async def test_a_rejection_is_logged_without_the_token(bench: Bench, log_lines: list[Any]) -> None:
    token = await bench.source.token(KEY)
    bench.source.reject(token)
    assert log_lines[-1]["event"] == "token rejected by the service"
    assert token.authorization.decode() not in repr(log_lines)


# When the credentials change


@pytest.mark.asyncio
async def test_a_change_drops_tokens_failures_and_discoveries_of_the_old_ones(bench: Bench) -> None:
    other = TokenKey("a@b", (), AUDIENCE)
    slot = bench.source.slot(KEY)
    old = await bench.source.token(KEY)
    bench.mint.failure = MintRefused("no")
    await gather(bench.source.token(other))
    bench.mint.failure, bench.mint.generation = None, 1
    assert bench.source.is_current(old)
    bench.source.credentials_changed(1, "/key.json")
    assert not bench.source.is_current(old)
    assert slot.usable_token(bench.time.now) is None
    assert bench.time.armed == 0
    new = await bench.source.token(KEY)
    assert new is not old
    assert bench.source.is_current(new)
    assert bench.source.is_current(await bench.source.token(other))
    assert bench.minted == 4
    assert slot.usable_token(bench.time.now) is new


@pytest.mark.asyncio
@pytest.mark.parametrize("way", ["token", "mint_uncached"])
async def test_a_token_of_credentials_that_changed_during_its_mint_is_never_used(bench: Bench, way: str) -> None:
    bench.mint.gate = asyncio.Event()
    call: Callable[[TokenKey], Any] = getattr(bench.source, way)

    async with asyncio.TaskGroup() as group:
        waiter = group.create_task(call(KEY))
        await loop_idle()
        bench.source.credentials_changed(1, "/key.json")
        gate, bench.mint.gate = bench.mint.gate, asyncio.Event()
        gate.set()
        await loop_idle()
        assert bench.minted == 2
        bench.mint.generation = 1
        bench.mint.gate.set()
    assert waiter.result().generation == 1


@pytest.mark.asyncio
async def test_an_abandoned_discovery_mint_is_not_used_after_a_change() -> None:
    bench = Bench(mint_timeout_seconds=0.02)
    bench.mint.gate = asyncio.Event()
    with pytest.raises(TokenTimeout):
        await bench.source.mint_uncached(KEY)
    bench.source.credentials_changed(1, "/key.json")
    bench.has_time()
    bench.mint.generation, bench.mint.gate = 1, None
    assert (await bench.source.mint_uncached(KEY)).generation == 1
    await bench.source.close()


class PolledCredentials:
    """Credentials that count the checks."""

    def __init__(self) -> None:
        self.on_change: Callable[[int, str], None] | None = None
        self.checks = 0
        self.checked = asyncio.Event()

    async def check_for_change(self, *, tokens_kept: bool) -> None:
        assert tokens_kept
        self.checks += 1
        self.checked.set()

    async def next_checks(self, count: int) -> None:
        """Return after so many more checks."""
        wanted = self.checks + count
        async with asyncio.timeout(30):
            while self.checks < wanted:
                self.checked.clear()
                await self.checked.wait()


@pytest.mark.asyncio
async def test_credentials_are_checked_while_a_token_of_theirs_is_cached_and_not_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(polling, "_POLL_SECONDS", 0.0)
    credentials = PolledCredentials()
    bench = Bench(credentials=credentials)
    await bench.source.mint_uncached(KEY)
    await loop_idle()
    assert credentials.checks == 0
    await bench.source.token(KEY)
    await credentials.next_checks(3)
    monkeypatch.setattr(polling, "_STEP_SECONDS", 1e9)
    bench.time.now += 2 * HOUR
    await loop_idle()  # without an end of the checks it would never be
    checks = credentials.checks
    await bench.source.token(KEY)
    await credentials.next_checks(1)
    assert credentials.checks > checks
    await bench.source.close()


@pytest.mark.asyncio
@pytest.mark.parametrize("seconds", [-7200.0, 60.0])
async def test_new_tokens_are_minted_after_the_clock_was_set(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr(polling, "_POLL_SECONDS", 0.0)
    credentials = PolledCredentials()
    bench = Bench(credentials=credentials)
    slot = bench.source.slot(KEY)
    await bench.source.token(KEY)
    await credentials.next_checks(2)
    assert slot.usable_token(bench.time.now) is not None
    bench.time.now += seconds
    await loop_idle()  # no token, no checks
    assert slot.usable_token(bench.time.now) is None
    assert slot.usable_token(bench.time.now + seconds) is None
    await bench.source.token(KEY)
    assert bench.minted == 2
    await bench.source.close()


# The end


@pytest.mark.asyncio
@pytest.mark.parametrize("way", ["token", "mint_uncached"])
async def test_closing_fails_waiting_requests_and_does_not_cancel_them(way: str) -> None:
    bench = Bench()
    bench.mint.gate = asyncio.Event()
    call: Callable[[TokenKey], Any] = getattr(bench.source, way)
    async with asyncio.TaskGroup() as group:
        waiters = [group.create_task(gather(call(KEY))) for _ in range(10)]
        await loop_idle()
        await bench.source.close()
    for waiter in waiters:
        [failure] = waiter.result()
        assert isinstance(failure, TokenUnavailable)
        assert "shutting down" in str(failure)


@pytest.mark.asyncio
async def test_closing_at_once_after_the_start_of_a_mint_fails_its_requests() -> None:
    bench = Bench()
    async with asyncio.TaskGroup() as group:
        waiter = group.create_task(gather(bench.source.token(KEY)))
        group.create_task(bench.source.close())
    assert isinstance(waiter.result()[0], Failure)


@pytest.mark.asyncio
async def test_a_waiter_that_is_cancelled_while_closing_is_cancelled() -> None:
    bench = Bench()
    bench.mint.gate = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        waiter = group.create_task(bench.source.token(KEY))
        await loop_idle()
        waiter.cancel()
        await bench.source.close()
    assert waiter.cancelled()


@pytest.mark.asyncio
async def test_nothing_is_minted_or_kept_after_closing() -> None:
    bench = Bench()
    slot = bench.source.slot(KEY)
    await bench.source.token(KEY)
    await bench.source.close()
    assert bench.time.armed == 0
    assert slot.usable_token(bench.time.now) is None
    for call in (bench.source.token, bench.source.mint_uncached):
        with pytest.raises(TokenUnavailable, match="shutting down"):
            await call(KEY)
    await bench.source.close()
    assert bench.minted == 1


@pytest.mark.asyncio
async def test_closing_stops_a_refresh_in_the_background() -> None:
    bench = Bench()
    slot = bench.source.slot(KEY)
    await bench.source.token(KEY)
    assert slot.usable_token(bench.time.now)
    bench.mint.gate = asyncio.Event()
    await bench.time.advance(3400)
    assert bench.minted == 2
    await bench.source.close()
    assert bench.time.armed == 0


# Bounds and traps


@pytest.mark.asyncio
async def test_keys_over_the_bound_push_out_unused_ones_first() -> None:
    bench = Bench(max_keys=3)
    keys = [TokenKey(None, (), f"https://{name}") for name in "abcd"]
    slots = [bench.source.slot(key) for key in keys]
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
async def test_a_thousand_keys_are_kept_and_no_more(bench: Bench) -> None:
    for number in range(1100):
        await bench.source.token(TokenKey(None, (), f"https://{number}"))
    assert bench.time.armed == 1000


@pytest.mark.asyncio
async def test_keys_under_way_are_not_pushed_out() -> None:
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
async def test_aiocache_switched_off_by_the_environment_is_not_a_mint_a_request(
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
