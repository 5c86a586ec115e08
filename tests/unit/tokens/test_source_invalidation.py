"""Tokens that may not be used any longer: Cloud Run rejected them, or the credentials or the clock changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from proxy.errors import MintRefused, TokenTimeout, TokenUnavailable
from proxy.tokens import polling
from proxy.tokens.model import Token, TokenKey
from proxy.tokens.slot import Slot
from tests.support.loops import loop_idle
from tests.unit.tokens.source_stage import HOUR, Bench, gather
from tests.unit.tokens.values import AUDIENCE, KEY, START


@pytest.mark.asyncio
async def test_a_rejected_token_is_dropped_and_another_minted(bench: Bench) -> None:
    slot = bench.source.slot(KEY)
    first = await bench.source.token(KEY)
    bench.source.reject(first)
    assert slot.usable_token(bench.time.now) is None
    assert bench.time.armed == 0, "it is not refreshed: no request may come"
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


@pytest.mark.asyncio
async def test_a_discovery_whose_token_is_old_when_it_arrives_mints_again_and_keeps_only_the_new_one(
    bench: Bench,
) -> None:
    slot = bench.source.slot(KEY)
    discovered, requested = asyncio.Event(), asyncio.Event()

    def change(_: object) -> None:
        """Run in the turn after the end of the mint, before the discovery goes on."""
        bench.source.credentials_changed(1, "/key.json")
        bench.mint.generation, bench.mint.gate = 1, None

    async with asyncio.TaskGroup() as group:
        bench.mint.gate = requested
        waiter = group.create_task(bench.source.token(KEY))
        await loop_idle()
        before = set(bench.source._tasks)
        bench.mint.gate = discovered
        discovery = group.create_task(bench.source.mint_uncached(KEY))
        await loop_idle()
        (mint,) = bench.source._tasks - before
        mint.add_done_callback(change)
        discovered.set()
    assert discovery.result().generation == 1
    assert waiter.result() is discovery.result() is slot.usable_token(bench.time.now)
    assert bench.minted == 3


@pytest.mark.asyncio
async def test_a_discovery_whose_token_is_old_when_it_arrives_leaves_the_failure_that_came_with_the_change(
    bench: Bench,
) -> None:
    bench.mint.gate = asyncio.Event()
    failed = bench.source._cache.entry(KEY)

    def change(_: object) -> None:
        bench.source.credentials_changed(1, "/key.json")
        bench.mint.gate, bench.mint.failure = None, MintRefused("no")
        failed.remember_failure(MintRefused("no"), bench.time.now, 60.0)

    discovery = asyncio.get_running_loop().create_task(bench.source.mint_uncached(KEY))
    await loop_idle()
    (mint,) = bench.source._tasks
    mint.add_done_callback(change)
    bench.mint.gate.set()
    with pytest.raises(MintRefused):
        await discovery
    assert failed.recall_failure(bench.time.now) is not None


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
async def test_credentials_are_checked_only_while_one_of_their_tokens_is_cached(
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


async def polled() -> tuple[Bench, PolledCredentials, Slot]:
    """Return a token source that polls all the time, its credentials, and its slot, with a token that was used."""
    credentials = PolledCredentials()
    bench = Bench(credentials=credentials)
    slot = bench.source.slot(KEY)
    await bench.source.token(KEY)
    await credentials.next_checks(2)
    assert slot.usable_token(bench.time.now) is not None
    return bench, credentials, slot


@pytest.mark.asyncio
@pytest.mark.parametrize("seconds", [-2 * HOUR, 1200.0])
async def test_a_token_is_replaced_after_the_clock_was_set_and_used_until_then(
    monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    monkeypatch.setattr(polling, "_POLL_SECONDS", 0.0)
    bench, credentials, slot = await polled()
    first = slot.token
    bench.mint.failure = TokenUnavailable("Google does not answer")
    bench.time.now += seconds
    await credentials.next_checks(3)
    assert len(bench.counted.failures) == 1
    kept = slot.usable_token(bench.time.now)
    assert kept is not None
    assert first is not None
    assert kept.authorization == first.authorization
    assert slot.usable_seconds(bench.time.now) == pytest.approx(HOUR - 60.0 - max(0.0, seconds), abs=30.0)
    bench.mint.failure = None
    bench.time.now += 10.0
    await credentials.next_checks(3)
    assert bench.minted == 3
    replaced = slot.usable_token(bench.time.now)
    assert replaced is not None
    assert replaced.authorization != first.authorization
    await bench.source.close()


@pytest.mark.asyncio
async def test_a_token_that_may_have_expired_is_not_used_after_the_clock_was_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(polling, "_POLL_SECONDS", 0.0)
    bench, _, slot = await polled()
    bench.time.now += HOUR
    await loop_idle()  # no token, no checks
    assert slot.usable_token(bench.time.now) is None
    assert bench.minted == 1
    await bench.source.token(KEY)
    assert bench.minted == 2
    await bench.source.close()


@pytest.mark.asyncio
async def test_the_same_token_brings_the_right_expiry_after_the_clock_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """A metadata server returns the same token until 4 to 5 minutes before it expires."""
    monkeypatch.setattr(polling, "_POLL_SECONDS", 0.0)
    bench, credentials, slot = await polled()
    bench.mint.expires_at = START + HOUR
    bench.mint.behind = 1200.0
    bench.time.now += 1200.0
    await credentials.next_checks(3)
    assert bench.minted == 2
    assert slot.usable_seconds(bench.time.now) == HOUR - 60.0
    await bench.source.close()


@pytest.mark.asyncio
async def test_the_same_token_without_a_date_does_not_live_longer_after_the_clock_was_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(polling, "_POLL_SECONDS", 0.0)
    bench, credentials, slot = await polled()
    bench.mint.expires_at = START + HOUR
    bench.mint.dated = False
    bench.time.now -= 2 * HOUR
    await credentials.next_checks(3)
    assert bench.minted == 2
    assert slot.usable_seconds(bench.time.now) == pytest.approx(HOUR - 60.0, abs=30.0)
    await bench.source.close()
