"""The token source under any sequence of traffic, time, outages and rejections."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from proxy.errors import CredentialsRejected, Failure, TokenUnavailable
from proxy.tokens.model import Token
from proxy.tokens.source import TokenSource
from tests.support.loops import asyncio_loop, loop_idle
from tests.unit.tokens.fake_mint import FakeMint, FakeTime
from tests.unit.tokens.values import KEY

T = TypeVar("T")


class Traffic(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio_loop()
        self.time = FakeTime()
        self.mint = FakeMint(self.time)
        self.random_fraction = 0.0
        self.source = TokenSource(
            self.mint,
            clock=self.time.clock,
            random_fraction=lambda: self.random_fraction,
            later=self.time.later,
            max_keys=1,
        )
        self.slot = self.source.slot(KEY)
        self.taken: list[Token] = []
        self.rejected_at: float | None = None
        self.waiting: list[asyncio.Task[list[Token | BaseException]]] = []

    def run_loop(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def teardown(self) -> None:
        self.run_loop(self.source.close())
        self.run_loop(loop_idle())
        self.all_who_waited_are_served()
        assert self.time.armed == 0
        self.loop.close()

    def all_who_waited_are_served(self) -> None:
        waited, self.waiting = self.waiting, []
        for task in waited:
            assert task.done()
            if not task.cancelled():
                assert isinstance(task.result()[0], Token | Failure)

    @rule(random_fraction=st.floats(0, 1, exclude_max=True))
    def chance_changes(self, random_fraction: float) -> None:
        self.random_fraction = random_fraction

    @rule(life=st.sampled_from([-5.0, 30.0, 61.0, 90.0, 250.0, 3600.0]))
    def google_gives_tokens_of_another_life(self, life: float) -> None:
        self.mint.life, self.mint.expires_at = life, None

    @precondition(lambda self: self.taken)
    @rule()
    def google_gives_the_same_token_again(self) -> None:
        self.mint.expires_at = self.taken[-1].expires_at

    @rule(failure=st.sampled_from([None, TokenUnavailable("503"), CredentialsRejected("revoked")]))
    def google_fails_or_recovers(self, failure: Failure | None) -> None:
        self.mint.failure = failure

    @rule(seconds=st.sampled_from([0.0, 0.3, 1.0, 5.0, 29.0, 31.0, 100.0, 1000.0, 3300.0]))
    def time_passes(self, seconds: float) -> None:
        self.run_loop(self.time.advance(seconds))

    @rule(seconds=st.sampled_from([-100.0, 50.0, 4000.0]))
    def the_clock_is_set(self, seconds: float) -> None:
        self.time.now += seconds

    @precondition(lambda self: self.mint.gate is None)
    @rule()
    def google_says_nothing_for_now(self) -> None:
        self.mint.gate = asyncio.Event()

    @precondition(lambda self: self.mint.gate is not None)
    @rule()
    def a_request_begins_to_wait(self) -> None:
        async def settled() -> list[Token | BaseException]:
            return list(await asyncio.gather(self.source.token(KEY), return_exceptions=True))

        before, first = len(self.mint.calls), all(task.done() for task in self.waiting)
        self.waiting.append(self.loop.create_task(settled()))
        self.run_loop(loop_idle())
        assert len(self.mint.calls) - before <= first

    @precondition(lambda self: self.waiting)
    @rule()
    def the_first_who_waits_leaves(self) -> None:
        gone, before = self.waiting.pop(0), len(self.mint.calls)
        others = [task for task in self.waiting if not task.done()]
        gone.cancel()
        self.run_loop(loop_idle())
        assert gone.done()
        assert not any(task.done() for task in others)
        assert len(self.mint.calls) == before

    @precondition(lambda self: self.mint.gate is not None)
    @rule()
    def google_speaks_again(self) -> None:
        assert self.mint.gate is not None
        self.mint.gate.set()
        self.run_loop(loop_idle())
        self.mint.gate = None
        self.all_who_waited_are_served()

    @precondition(lambda self: self.mint.gate is None)
    @rule()
    def a_request_takes_the_slot_or_waits(self) -> None:
        token = self.slot.usable_token(self.time.now)
        if token is None:
            token = self.ask()
        else:
            assert self.time.now + 60 < token.expires_at
        if token is not None:
            self.taken.append(token)

    @precondition(lambda self: self.mint.gate is None)
    @rule(waiters=st.integers(1, 5))
    def requests_wait_together(self, waiters: int) -> None:
        async def together() -> list[Any]:
            return await asyncio.gather(*(self.source.token(KEY) for _ in range(waiters)), return_exceptions=True)

        before = len(self.mint.calls)
        outcomes = self.run_loop(together())
        assert len(self.mint.calls) - before <= 1
        assert len({type(outcome) for outcome in outcomes}) == 1
        for outcome in outcomes:
            assert isinstance(outcome, Token | Failure)

    def ask(self) -> Token | None:
        before = len(self.mint.calls)
        try:
            token = self.run_loop(self.source.token(KEY))
        except Failure:
            assert self.slot.usable_token(self.time.now) is None
            return None
        assert len(self.mint.calls) - before <= 1
        assert token.expires_at > self.time.now
        return token

    @precondition(lambda self: self.mint.gate is None)
    @rule()
    def a_discovery_mints_for_itself(self) -> None:
        before, slot_before = len(self.mint.calls), self.slot.token
        try:
            token = self.run_loop(self.source.mint_uncached(KEY))
        except Failure:
            pass
        else:
            assert token.expires_at > self.time.now
        assert len(self.mint.calls) == before + 1
        assert self.slot.token is slot_before

    @precondition(lambda self: self.taken)
    @rule()
    def cloud_run_rejects_the_last_token(self) -> None:
        had = self.slot.token
        self.source.reject(self.taken[-1])
        if had is not None and self.slot.token is None:
            assert had.authorization == self.taken[-1].authorization
            # The last one counts: a clock that is set back may show the time of any earlier one again.
            assert self.rejected_at is None or not 0 <= self.time.now - self.rejected_at < 10
            self.rejected_at = self.time.now

    @rule()
    def the_loop_turns(self) -> None:
        self.run_loop(loop_idle())

    @invariant()
    def what_the_slot_gives_is_valid_for_a_minute(self) -> None:
        used = self.slot.used
        token = self.slot.usable_token(self.time.now)
        self.slot.used = used
        assert token is None or self.time.now + 60 < token.expires_at

    @invariant()
    def at_most_one_timer_is_armed(self) -> None:
        assert self.time.armed <= 1


Traffic.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
TestTraffic = Traffic.TestCase
