"""A supervisor's collecting in a thread, for workers of a test: the real thing on real channels."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from proxy.downstream.channel import Channel
from proxy.supervisor.channel import WorkerChannel
from proxy.supervisor.collecting import Collecting

__all__ = ["supervising"]

_PERIOD_SECONDS = 0.01


@dataclass
class _Worker:
    channel: WorkerChannel
    pid: int
    started_at: float = 0.0


@contextmanager
def supervising(count: int) -> Iterator[list[Channel]]:
    """Supervise so many workers, which report that they are ready themselves; return their channels."""
    pairs = [socket.socketpair() for _ in range(count)]
    workers = [_Worker(WorkerChannel(ours), pid) for pid, (ours, _) in enumerate(pairs, 1)]
    collecting = Collecting()
    over = threading.Event()

    def supervise() -> None:
        while not over.is_set():
            select.select([ours for ours, _ in pairs], [], [], _PERIOD_SECONDS)
            for worker in workers:
                while worker.channel.read_reports():
                    pass
                worker.channel.flush()
            collecting.check(workers)
            collecting.tell_readiness(workers, started=True)

    thread = threading.Thread(target=supervise)
    thread.start()
    try:
        yield [Channel(its, []) for _, its in pairs]
    finally:
        over.set()
        thread.join()
        for worker, (_, its) in zip(workers, pairs, strict=True):
            collecting.retire(worker.channel)
            worker.channel.close()
            its.close()
