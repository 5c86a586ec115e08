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

from proxy.downstream.channel import CONNECTION, TLS_CONNECTION, Channel
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


def test_a_worker_that_leaves_one_connection_unread_gets_no_other_while_one_reads(crew: Crew) -> None:
    first, second = (worker.channel for worker in crew.workers)

    def hand_over(connections: int) -> tuple[int, int]:
        for _ in range(connections):
            ours, peer = socket.socketpair()
            peer.close()
            crew.accepting.hand_over(ours, tls=False)
            crew.read(0)
        return first.connections, second.connections

    assert hand_over(2) == (1, 1)
    second.unread_since -= 3600.0
    assert hand_over(3) == (4, 1)
    crew.read(1)
    assert hand_over(1) == (4, 2)


def test_connections_wait_in_order_while_no_worker_can_take_them(crew: Crew) -> None:
    first, second = (worker.channel for worker in crew.workers)
    first.ready, second.draining = False, True
    with ExitStack() as stack:
        pairs = [socket.socketpair() for _ in range(3)]
        for connection, peer in pairs:
            stack.enter_context(peer)
            crew.accepting.hand_over(connection, tls=False)
        crew.accepting.hand_over_waiting()
        assert (first.connections, second.connections) == (0, 0)
        first.ready = True
        crew.accepting.hand_over_waiting()
        assert (first.connections, second.connections) == (3, 0)
        for number, (_, peer) in enumerate(pairs):
            peer.send(bytes([number]))
        for number in range(3):
            descriptor = crew.ends[0].receive()[1]
            assert descriptor is not None
            with socket.socket(fileno=descriptor) as received:
                assert received.recv(1) == bytes([number])


@pytest.mark.parametrize("state", ["gone", "leaving", "draining"])
def test_a_worker_that_leaves_gets_no_connection_and_one_that_drains_only_with_all_others(
    crew: Crew, state: str
) -> None:
    setattr(crew.workers[0].channel, state, True)
    assert crew.accepting._least_loaded() is crew.workers[1]
    setattr(crew.workers[1].channel, state, True)
    assert crew.accepting._least_loaded() is None
    crew.accepting.draining = True
    assert crew.accepting._least_loaded() is (crew.workers[0] if state == "draining" else None)


def test_the_last_worker_gets_what_waits_and_what_the_kernel_has(crew: Crew, tmp_path: Path) -> None:
    first, second = (worker.channel for worker in crew.workers)
    crew.accepting.update(time.monotonic())
    first.ready = second.ready = False
    ours, peer = socket.socketpair()
    with peer:
        crew.accepting.hand_over(ours, tls=False)
        crew.accepting.stop(crew.workers[1])
        assert (first.connections, second.connections) == (0, CONNECTIONS + 1)
        assert not crew.selector.get_map()
        first.ready = True
        crew.accepting.update(time.monotonic())  # there is no socket to watch any more
        assert not crew.selector.get_map()
    with socket.socket(socket.AF_UNIX) as late, pytest.raises(ConnectionRefusedError):
        late.connect(str(tmp_path / "listening"))


def test_connections_that_no_worker_has_taken_are_closed_at_the_end(crew: Crew) -> None:
    for worker in crew.workers:
        worker.channel.ready = False
    ours, peer = socket.socketpair()
    with peer:
        crew.accepting.hand_over(ours, tls=False)
        crew.accepting.close()
        assert peer.recv(1) == b""


def test_a_connection_for_tls_is_handed_over_as_such_at_once_or_later(crew: Crew) -> None:
    first, second = (worker.channel for worker in crew.workers)
    first.ready, second.draining = False, True
    with ExitStack() as stack:
        for tls in (True, False):
            accepted, peer = socket.socketpair()
            stack.enter_context(peer)
            crew.accepting.hand_over(accepted, tls=tls)
        first.ready = True
        crew.accepting.hand_over_waiting()
        accepted, peer = socket.socketpair()
        stack.enter_context(peer)
        crew.accepting.hand_over(accepted, tls=True)
        for expected in (TLS_CONNECTION, CONNECTION, TLS_CONNECTION):
            kind, descriptor = crew.ends[0].receive()
            assert kind == expected
            assert descriptor is not None
            os.close(descriptor)


def test_workers_with_as_many_connections_have_their_turns(crew: Crew) -> None:
    served = []
    for _ in range(4):
        accepted, peer = socket.socketpair()
        peer.close()
        crew.accepting.hand_over(accepted, tls=False)
        served.append([worker.channel.connections for worker in crew.workers].index(1))
        crew.read(served[-1])
        crew.ends[served[-1]].connection_closed()
        crew.workers[served[-1]].channel.read_reports()
    assert served == [0, 1, 0, 1]
