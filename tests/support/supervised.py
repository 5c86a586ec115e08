"""A supervisor's collecting in a thread, for workers of a test: the real thing on real channels."""

from __future__ import annotations

import asyncio
import select
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

from proxy.admin import AdminPlane
from proxy.downstream.channel import READY, Channel
from proxy.downstream.handover import HandoverServer
from proxy.supervisor.channel import WorkerChannel
from proxy.supervisor.collecting import Collecting

__all__ = ["supervised"]

_PERIOD_SECONDS = 0.01


@dataclass
class _Worker:
    channel: WorkerChannel
    pid: int
    started_at: float = 0.0


@asynccontextmanager
async def supervised(*planes: AdminPlane) -> AsyncIterator[None]:
    """Make workers of one supervisor of these planes, which have been started; close them at the end."""
    loop = asyncio.get_running_loop()
    with _supervising(len(planes)) as channels:
        servers = []
        for plane, channel in zip(planes, channels, strict=True):
            peers = plane.join(channel)
            messages: dict[str, Any] = {"commands": peers.commands, "documents": {}, "files": peers.files}
            ends: dict[str, Any] = {"orphan": channel.socket.close, "lost": channel.socket.close}
            servers.append(HandoverServer(loop, channel, asyncio.Protocol, **messages, **ends))
            channel.report(READY)
        try:
            yield
        finally:
            for plane, server in zip(planes, servers, strict=True):
                await plane.close()
                server.close()


@contextmanager
def _supervising(count: int) -> Iterator[list[Channel]]:
    """Supervise so many workers, which have to report that they are ready; return their channels."""
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
