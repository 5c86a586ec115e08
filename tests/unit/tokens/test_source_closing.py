"""A token source that is closed fails its waiting requests and mints nothing more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from proxy.errors import Failure, TokenUnavailable
from proxy.tokens.model import TokenKey
from tests.support.loops import loop_idle
from tests.unit.tokens.source_stage import Bench, gather
from tests.unit.tokens.values import KEY


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
