"""Worker processes: started by Hypercorn, ended by us.

Hypercorn's own parent sends SIGTERM to all workers as soon as one has ended, waits for none of them, and says 0 where
one has failed. So only its way of starting them is used (`hypercorn.run._populate`; a test holds its signature):

* the first SIGTERM or SIGINT to the parent has every worker drain, the second has them cut what is left;
* to a worker a signal means to drain, however often it comes: a terminal's Ctrl-C reaches parent and workers at once,
  and service managers signal whole groups;
* a worker that ends unasked ends the others, in order, and the exit code is not 0;
* a worker whose parent is gone drains and ends.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from multiprocessing.context import SpawnContext
from multiprocessing.process import BaseProcess
from typing import Any, Final, cast

import hypercorn.run
import structlog

from proxy.downstream.config import ListenerConfig

__all__ = ["Order", "Orders", "run_workers"]

_log: Final = structlog.get_logger("workers")


class Order(IntEnum):
    """What a worker has to do."""

    SERVE = 0
    DRAIN = 1
    CUT = 2


class Orders:
    """What the parent tells all workers. It is memory that they share, without a lock: a worker that is killed while it
    looked would leave that taken.
    """

    def __init__(self, context: SpawnContext) -> None:
        self._order: Any = context.RawValue("b", Order.SERVE)

    @property
    def latest(self) -> Order:
        """The last order; DRAIN at least where the process that gives them is gone."""
        order = Order(self._order.value)
        parent = parent_process()
        return max(order, Order.DRAIN) if parent is not None and os.getppid() != parent.pid else order

    def drain(self) -> None:
        """Order to drain, unless more was ordered."""
        self._order.value = max(self._order.value, Order.DRAIN)

    def end(self) -> None:
        """Order to drain, or to cut if the order to drain has been given."""
        self._order.value = Order.DRAIN if self._order.value == Order.SERVE else Order.CUT


def run_workers(config: ListenerConfig, worker: Callable[..., None]) -> int:
    """Run `config.workers` processes of `worker(config, sockets, shutdown_event)` until the last one has ended.

    `worker` is pickled by its name, and its `shutdown_event` is the `Orders`. Returns 0 after an orderly end, else the
    exit code of the first worker that failed, or 1 if it has none to show. Raises ListenFailed.
    """
    context = get_context("spawn")
    orders = Orders(context)
    sockets = config.create_sockets()
    workers: list[BaseProcess] = []
    failure = 0
    try:
        with _told_to_end() as told:
            # Workers inherit that SIGINT is ignored, until they know what to do about it.
            handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
            hypercorn.run._populate(workers, config, worker, sockets, cast(Any, orders), context)
            signal.signal(signal.SIGINT, handler)
            while workers:
                if told in wait([told, *(process.sentinel for process in workers)]):
                    for _ in told.recv(16):
                        orders.end()
                for process in [process for process in workers if process.exitcode is not None]:
                    workers.remove(process)
                    failure = failure or _failure(process, asked=orders.latest is not Order.SERVE)
                    orders.drain()
    finally:
        config.release(sockets)
    return failure


def _failure(process: BaseProcess, *, asked: bool) -> int:
    """Return the exit code that the end of this worker means; 0 if it was in order."""
    code = process.exitcode or 0
    # A worker may be told to end before it has learned how to.
    if asked and code in (0, -signal.SIGTERM):
        return 0
    _log.error("a worker has failed; the others drain and end", pid=process.pid, exit_code=code)
    return code if code > 0 else 1


@contextmanager
def _told_to_end() -> Iterator[socket.socket]:
    """Give a socket from which an octet can be read for each SIGTERM and SIGINT that comes."""
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    handlers = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    try:
        yield reading
    finally:
        signal.set_wakeup_fd(before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        reading.close()
        writing.close()
