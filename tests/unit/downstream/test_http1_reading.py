from __future__ import annotations

import asyncio

import pytest

from proxy.connection.budget import Budget
from proxy.downstream.http1_reading import Pushback

LARGE = 16 << 10
"""What an account must hold at least to be asked first."""


class Stage:
    """A reader that is charged, and the budget."""

    def __init__(self, limit_octets: int = 1 << 20) -> None:
        self.stream = asyncio.StreamReader()
        self.calls: list[str] = []
        self.budget = Budget(limit_octets, lambda relieve: relieve())
        self.reader = Pushback(self.stream)

    def abort(self) -> None:
        """Note it, and end the connection as a transport does."""
        self.calls.append("abort")
        self.stream.feed_eof()

    @property
    def charged(self) -> int:
        return self.budget.queued_octets


@pytest.mark.asyncio
async def test_what_waits_is_charged_until_it_is_read() -> None:
    stage = Stage()
    stage.reader.give_back(b"first")
    with stage.reader.charged(stage.budget, "address", stage.abort):
        assert stage.charged == 5
        stage.stream.feed_data(b"second")
        assert stage.charged == 11
        assert await stage.reader.read(3) == b"fir"
        assert await stage.reader.read(100) == b"st"
        assert stage.charged == 6
        assert await stage.reader.peek(1)
        assert await stage.reader.peek(1)
        assert stage.charged == 6
        assert await stage.reader.read(100) == b"s"
        assert await stage.reader.read(100) == b"econd"
        assert stage.charged == 0
        stage.stream.feed_data(b"left")
    assert stage.charged == 0
    stage.stream.feed_data(b"late")
    assert stage.charged == 0
    assert "abort" not in stage.calls


@pytest.mark.asyncio
async def test_at_the_limit_the_connection_ends_and_holds_nothing() -> None:
    stage = Stage(limit_octets=100_000)
    with stage.reader.charged(stage.budget, "address", stage.abort):
        stage.stream.feed_data(bytes(99_999))
        assert "abort" not in stage.calls
        stage.stream.feed_data(b"1")
        assert stage.calls.count("abort") == 1
        assert stage.charged == 0
        stage.stream.feed_data(b"more")
        assert stage.charged == 0
        assert await stage.reader.read(1) == b""
        assert stage.reader.at_eof()


@pytest.mark.asyncio
@pytest.mark.parametrize(("octets", "aborts"), [(0, False), (LARGE - 1, True), (LARGE, True)])
async def test_a_connection_without_anything_unread_is_left_alone_at_the_limit(octets: int, aborts: bool) -> None:
    stage = Stage(limit_octets=100_000)
    other = stage.budget.open_account(lambda *_: None)
    with stage.reader.charged(stage.budget, "address", stage.abort):
        stage.stream.feed_data(bytes(octets))
        other.change(100_000)
        assert ("abort" in stage.calls) == aborts
