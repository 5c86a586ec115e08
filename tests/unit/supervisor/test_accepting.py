"""Connections that come at once, and a worker that does not read."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import selectors
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from proxy.downstream.channel import Channel
from proxy.supervisor import accepting
from proxy.supervisor.accepting import Accepting
from proxy.supervisor.channel import WorkerChannel
from proxy.supervisor.process import _UNREAD_OCTETS, WorkerProcess

CONNECTIONS = 60


class Crew:
    """Two workers that are ready: the first one reads its channel at once, the second one when told to."""

    def __init__(self, stack: ExitStack, path: Path) -> None:
        listening = stack.enter_context(socket.socket(socket.AF_UNIX))
        listening.bind(str(path))
        listening.listen(CONNECTIONS)
        listening.setblocking(False)
        self.selector = stack.enter_context(selectors.DefaultSelector())
        self.workers, self.ends = [], []
        for _ in range(2):
            ours, its = socket.socketpair()
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UNREAD_OCTETS)
            its.setblocking(False)
            self.ends.append(Channel(stack.enter_context(its), []))
            channel = WorkerChannel(ours)
            stack.callback(self.close, channel)
            channel.ready = True
            self.workers.append(WorkerProcess(multiprocessing.Process(), channel))
        self.accepting = Accepting([listening], [], self.selector, self.workers, lambda: True, lambda: self.read(0))
        for _ in range(CONNECTIONS):
            stack.enter_context(socket.socket(socket.AF_UNIX)).connect(str(path))

    def close(self, channel: WorkerChannel) -> None:
        """Close a channel, and what it has not sent."""
        for connection, _ in channel.close():
            connection.close()

    def read(self, number: int) -> None:
        """Have a worker read all that it was sent, and close it."""
        with contextlib.suppress(BlockingIOError):
            while (descriptor := self.ends[number].receive()[1]) is not None:
                os.close(descriptor)
        self.workers[number].channel.flush()

    def accept(self) -> list[int]:
        """Accept until there is nothing to accept, or no worker takes it; return how many connections each was sent."""
        self.accepting.update(time.monotonic())
        while events := self.selector.select(0):
            for key, _ in events:
                key.data()
            self.accepting.update(time.monotonic())
        return [worker.channel.connections for worker in self.workers]


@pytest.fixture
def crew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Crew]:
    monkeypatch.setattr(accepting, "_PATIENCE_SECONDS", 3600.0)  # the machine may be slow
    with ExitStack() as stack:
        yield Crew(stack, tmp_path / "listening")


def test_a_worker_that_was_busy_for_a_moment_gets_its_share(crew: Crew) -> None:
    before = crew.accept()
    assert sum(before) < CONNECTIONS, "nobody waited for the worker"
    assert before[0] - before[1] in (0, 1)
    assert time.monotonic() < crew.accepting.due(time.monotonic()) < math.inf
    while sum(before) < CONNECTIONS:
        crew.read(1)
        before = crew.accept()
    assert before == [CONNECTIONS // 2, CONNECTIONS // 2]


def test_a_worker_that_stands_still_holds_up_connections_for_a_moment_only(crew: Crew) -> None:
    _, sent = crew.accept()
    crew.workers[1].channel.full_since -= 3600.0
    assert crew.accepting.due(time.monotonic()) == math.inf
    assert crew.accept() == [CONNECTIONS - sent, sent]
