"""Where a worker gets new settings from."""

from __future__ import annotations

import asyncio
import socket

import pytest

from proxy.downstream.channel import SETTINGS_KEPT, SETTINGS_TAKEN, Channel
from proxy.reloads import Reloads
from proxy.settings.changes import Changes
from proxy.settings.plain import PlainSettings
from tests.support.settings import plain_settings


class Settled:
    """What new settings are put in force in."""

    def __init__(self) -> None:
        self.settings = plain_settings()
        self.drain_timeouts: list[float] = []
        self.refused: list[str] = []

    def apply(self, read: PlainSettings) -> Changes:
        self.drain_timeouts.append(read.drain_timeout)
        return Changes.between(self.settings, read)

    def refuse(self, problems: tuple[str, ...]) -> None:
        self.refused += problems


def take_three(reloads: Reloads, its: socket.socket) -> None:
    """Give it settings of the supervisor three times, with a drain timeout of 1, 2 and 3 s."""
    for seconds in (1.0, 2.0, 3.0):
        reloads.take_settings(Channel(its, []), plain_settings(drain_timeout=seconds).to_json().encode())


@pytest.mark.asyncio
async def test_settings_of_the_supervisor_are_taken_in_their_order() -> None:
    worker = Settled()
    reloads = Reloads(worker, asyncio.get_running_loop(), None)
    ours, its = socket.socketpair()
    with ours, its:
        take_three(reloads, its)
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}))
        assert worker.drain_timeouts == [1.0, 2.0, 3.0]
        assert ours.recv(10) == SETTINGS_TAKEN * 3


@pytest.mark.asyncio
async def test_after_the_end_no_settings_are_put_in_force() -> None:
    worker = Settled()
    reloads = Reloads(worker, asyncio.get_running_loop(), None)
    ours, its = socket.socketpair()
    with ours, its:
        take_three(reloads, its)
        await asyncio.sleep(0)  # the first ones are being read in a thread, and the others wait
        await reloads.close()
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}))
        assert worker.drain_timeouts == []


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("content", "why"), [(b"", "the settings were lost on their way"), (b"{}", "internal error: see the log")]
)
async def test_settings_that_cannot_be_taken_are_refused_and_later_ones_are_taken(content: bytes, why: str) -> None:
    worker = Settled()
    reloads = Reloads(worker, asyncio.get_running_loop(), None)
    ours, its = socket.socketpair()
    with ours, its:
        for sent in (content, plain_settings().to_json().encode()):
            reloads.take_settings(Channel(its, []), sent)
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}))
        assert ours.recv(10) == SETTINGS_KEPT + SETTINGS_TAKEN
    (refused,) = worker.refused
    assert refused.startswith(why)


@pytest.mark.asyncio
async def test_problems_of_the_supervisor_are_noted_even_if_their_file_was_lost() -> None:
    worker = Settled()
    reloads = Reloads(worker, asyncio.get_running_loop(), None)
    reloads.take_problems(b'["routes.a: wrong", "routes.b: wrong"]')
    reloads.take_problems(b"")
    assert worker.refused == ["routes.a: wrong", "routes.b: wrong"]
