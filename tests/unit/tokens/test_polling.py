"""How credentials and the clock are polled."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from proxy.tokens.polling import CredentialPoller
from tests.support.loops import loop_idle, skip, with_manual_clock


class Credentials:
    """Credentials that count how often they are checked."""

    def __init__(self) -> None:
        self.on_change: Callable[[int, str], None] | None = None
        self.checks: list[bool] = []

    async def check_for_change(self, *, tokens_kept: bool) -> None:
        self.checks.append(tokens_kept)


class Bench:
    """A poller, and what it asks."""

    def __init__(self) -> None:
        self.credentials = Credentials()
        self.needed = True
        self.now = 1_000_000.0
        self.steps: list[float] = []
        self.poller = CredentialPoller(
            self.credentials,
            needed=lambda: self.needed,
            tokens_kept=lambda: False,
            clock=lambda: self.now,
            clock_was_set=self.steps.append,
        )
        self.poller.start()


@with_manual_clock
async def test_credentials_are_checked_every_three_seconds_while_that_is_needed() -> None:
    bench = Bench()
    await loop_idle()
    assert bench.credentials.checks == [False]
    bench.poller.start()
    await skip(2.9)
    assert bench.credentials.checks == [False]
    await skip(0.2)
    assert bench.credentials.checks == [False] * 2
    bench.needed = False
    await skip(3.0)
    assert bench.credentials.checks == [False] * 2
    bench.needed = True
    bench.poller.start()
    await loop_idle()
    assert bench.credentials.checks == [False] * 3
    await bench.poller.close()
    await skip(3.0)
    assert bench.credentials.checks == [False] * 3


@with_manual_clock
async def test_each_step_of_the_clock_is_told_once_and_a_steady_clock_is_none() -> None:
    bench = Bench()
    await loop_idle()
    for _ in range(3):
        await skip(3.0)
    assert bench.steps == []
    for step in (100.0, -100.0):
        bench.now += step
        await skip(3.0)
        await skip(3.0)
        assert bench.steps == [pytest.approx(step, abs=2.0)]
        bench.steps.clear()
    bench.now += 3.0
    await skip(3.0)
    assert bench.steps == []
    await bench.poller.close()
