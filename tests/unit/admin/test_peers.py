"""One of several workers before its supervisor: collections that are lost, late or incomplete."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
from collections.abc import Iterator
from contextlib import AsyncExitStack
from io import FileIO
from typing import cast

import pytest
from structlog.testing import capture_logs

from proxy.admin import peers as peers_module
from proxy.admin.peers import Peers
from proxy.downstream.channel import COLLECT, COLLECTED, STATE, Channel, file_in_memory
from proxy.observe.live import Live
from proxy.observe.totals import state_line
from proxy.observe.worker_state import WorkerState
from tests.support.live import StillState

pytestmark = pytest.mark.asyncio


class Supervisor:
    """The channel of a worker, and what is at its other end: it answers each `COLLECT` with the same collection."""

    replacing = False

    def __init__(self) -> None:
        self.peers = peers_of(self)
        self.lost: bytes | None = None
        """The message whose file is lost; `COLLECT` loses the whole collection."""
        self.asked = asyncio.Event()

    def report(self, message: bytes) -> None:
        if message == COLLECT:
            self.asked.set()
        if message == COLLECT and self.lost != COLLECT:
            asyncio.get_running_loop().call_soon(self.answer)

    def answer(self) -> None:
        """Send what two workers have opened, and what the supervisor knows."""
        mine = state_line("origin", "https://a", {"opened": 1}, None).encode()
        for message, content in ((STATE, mine), (STATE, mine), (COLLECTED, known())):
            self.peers.files[message](None if message == self.lost else file_of(content))

    async def opened(self) -> int:
        """Return how many connections a collection has."""
        async with self.peers.collected() as combined:
            return combined.metrics.upstream_connections["https://a"].ever


def peers_of(channel: object, state: object = None) -> Peers:
    async def no_metrics() -> dict[str, float]:
        return {}

    return Peers(cast(Channel, channel), cast(WorkerState, state), cast(Live, StillState(())), no_metrics)


def known() -> bytes:
    return state_line("supervisor", "", None, {"pid": 1}).encode()


def file_of(content: bytes) -> FileIO:
    file = file_in_memory()
    file.write(content)
    return file


@pytest.mark.parametrize("lost", [STATE, COLLECTED, COLLECT])
async def test_a_collection_that_was_lost_once_does_not_end_all_later_ones(
    lost: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel = Supervisor()
    assert await channel.opened() == 2
    channel.lost = lost
    before = len(os.listdir("/dev/fd"))
    with monkeypatch.context() as impatient:
        impatient.setattr("proxy.admin.peers._COLLECT_SECONDS", 0.05)
        with pytest.raises(TimeoutError):
            await channel.opened()
    channel.lost = None
    for _ in range(3):
        assert await channel.opened() == 2
    assert len(os.listdir("/dev/fd")) <= before


async def test_a_collection_that_comes_after_its_time_is_not_added_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    channel = Supervisor()
    channel.lost = COLLECT
    with monkeypatch.context() as impatient:
        impatient.setattr("proxy.admin.peers._COLLECT_SECONDS", 0.05)
        with pytest.raises(TimeoutError):
            await channel.opened()
    channel.lost = None
    channel.answer()
    assert await channel.opened() == 2


async def test_the_collector_runs_while_an_answer_is_read() -> None:
    async with Supervisor().peers.collected():
        assert gc.isenabled()


async def test_few_collections_are_in_memory_however_many_clients_read_slowly() -> None:
    peers = Supervisor().peers
    async with AsyncExitStack() as clients:
        first = await clients.enter_async_context(peers.collected())
        others = [await clients.enter_async_context(peers.collected()) for _ in range(20)]
        assert len({id(one) for one in (first, *others)}) == peers_module._MOST_COLLECTIONS
        assert first not in others
        assert {one.metrics.upstream_connections["https://a"].ever for one in (first, *others)} == {2}


async def test_a_new_collection_is_made_once_one_is_read() -> None:
    peers = Supervisor().peers
    async with AsyncExitStack() as clients:
        async with peers.collected():
            slow = [await clients.enter_async_context(peers.collected()) for _ in range(20)]
        later = await clients.enter_async_context(peers.collected())
        assert later not in slow
        assert await clients.enter_async_context(peers.collected()) is later


async def test_those_who_share_a_collection_that_does_not_come_are_all_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.admin.peers._COLLECT_SECONDS", 0.05)
    channel = Supervisor()
    channel.lost = COLLECT
    told = await asyncio.gather(*(channel.opened() for _ in range(10)), return_exceptions=True)
    assert [type(one) for one in told] == [TimeoutError] * 10
    channel.lost = None
    monkeypatch.undo()
    assert await channel.opened() == 2


async def test_a_client_that_leaves_early_takes_the_collection_from_no_other() -> None:
    channel = Supervisor()
    async with asyncio.TaskGroup() as clients:
        asking = [clients.create_task(channel.opened()) for _ in range(10)]
        await channel.asked.wait()
        for impatient in asking[::2]:
            impatient.cancel()
    assert [one.result() for one in asking[1::2]] == [2] * 5


# ---- reports


class Full(FileIO):
    """A file in memory, of which there is none left."""

    def write(self, _: object, /) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Short(FileIO):
    """A file in memory, of which there is but an octet left."""

    def write(self, _: object, /) -> int:
        return 1


class Listener:
    """The channel of a worker whose reports are kept."""

    replacing = False

    def __init__(self) -> None:
        self.reports: asyncio.Queue[bytes] = asyncio.Queue()

    def send_file(self, _: bytes, file: FileIO) -> None:
        with file:
            self.reports.put_nowait(os.pread(file.fileno(), 1_000, 0))


class Counted:
    """What this worker has counted: another count in each report."""

    def __init__(self) -> None:
        self.reports = 0

    def lines(self) -> Iterator[str]:
        self.reports += 1
        yield f"{self.reports}\n"


@pytest.mark.parametrize("kind", [None, Full, Short])
async def test_a_report_that_cannot_be_made_does_not_end_all_later_ones(
    kind: type[FileIO] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = 3

    def scarce() -> FileIO:
        nonlocal failures
        if not failures:
            return file_in_memory()
        failures -= 1
        if kind is None:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        with file_in_memory() as file:
            return kind(os.dup(file.fileno()), "r+b")

    monkeypatch.setattr(peers_module, "file_in_memory", scarce)
    monkeypatch.setattr(peers_module, "_REPORT_SECONDS", 0.0)
    channel = Listener()
    peers = peers_of(channel, Counted())
    with capture_logs() as lines:
        peers.start()
        first = await asyncio.wait_for(channel.reports.get(), 20)
        await peers.close()
    assert first == (b"1\n" if kind is None else b"4\n")
    assert [line["reason"] for line in lines] == [os.strerror(errno.ENOSPC if kind else errno.EMFILE)]
