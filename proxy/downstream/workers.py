"""Worker processes: started by Hypercorn, ended by us.

Hypercorn's own parent sends SIGTERM to all workers as soon as one has ended, waits for none of them, and says 0 where
one has failed. So only its way of starting them is used (`hypercorn.run._populate`; a test holds its signature):

* the first SIGTERM or SIGINT to the parent has every worker drain, the second has them cut what is left;
* to a worker a signal means to drain, however often it comes: a terminal's Ctrl-C reaches parent and workers at once,
  and service managers signal whole groups;
* a worker that ends unasked ends the others, in order, and the exit code is not 0;
* a worker that does not end although its time is over is killed, and the exit code is not 0;
* a worker whose parent is gone drains and ends.
"""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any, Final, cast

import hypercorn.run
import structlog

from proxy.downstream.config import ListenerConfig
from proxy.downstream.orders import ENDING_SIGNALS, Order, Orders

__all__ = ["run_workers"]

_log: Final = structlog.get_logger("workers")

_CUT_SECONDS: Final = 5.0
"""How long workers may take to end once all that is live has to be cut."""


def run_workers(config: ListenerConfig, worker: Callable[..., None], *, drain_seconds: float) -> int:
    """Run `config.workers` processes of `worker(config, sockets, shutdown_event)` until the last one has ended.

    `worker` is pickled by its name, and its `shutdown_event` is the `Orders`; it begins with `ENDING_SIGNALS` blocked.
    One that has not ended some seconds after `drain_seconds` is killed. Returns 0 after an orderly end, else the exit
    code of the first worker that failed, or 1 if it has none to show. Raises ListenFailed.
    """
    context = get_context("spawn")
    orders = Orders(context)
    with _told_to_end() as told:
        sockets = config.create_sockets()
        try:
            workers: list[BaseProcess] = []
            with _born_deaf():
                hypercorn.run._populate(workers, config, worker, sockets, cast(Any, orders), context)
            return _await_end(workers, orders, told, drain_seconds)
        finally:
            config.release(sockets)


def _await_end(workers: list[BaseProcess], orders: Orders, told: socket.socket, drain_seconds: float) -> int:
    """Pass orders on until no worker is left; return the exit code."""
    failure = 0
    deadline: float | None = None
    while workers:
        wait(
            [told, *(process.sentinel for process in workers)],
            timeout=None if deadline is None else max(0.0, deadline - time.monotonic()),
        )
        ended = [process for process in workers if process.exitcode is not None]
        # Only now: where a whole group was signalled, a worker may be the first to wake us, but not the first told.
        for _ in _signals(told):
            orders.end()
            seconds = _CUT_SECONDS + (drain_seconds if orders.latest is Order.DRAIN else 0.0)
            deadline = min(deadline or float("inf"), time.monotonic() + seconds)
        for process in ended:
            workers.remove(process)
            failure = failure or _failure(process, asked=orders.latest is not Order.SERVE)
            orders.drain()
            deadline = deadline or time.monotonic() + drain_seconds + _CUT_SECONDS
        if deadline is not None and time.monotonic() >= deadline:
            for process in workers:
                _log.error("a worker does not end: killing it", pid=process.pid)
                process.kill()
            deadline = None
    return failure


def _failure(process: BaseProcess, *, asked: bool) -> int:
    """Return the exit code that the end of this worker means; 0 if it was in order."""
    code = process.exitcode or 0
    if asked and code == 0:
        return 0
    _log.error("a worker has failed; the others drain and end", pid=process.pid, exit_code=code)
    return code if code > 0 else 1


@contextmanager
def _born_deaf() -> Iterator[None]:
    """Have processes that are started here begin with `ENDING_SIGNALS` blocked; for us they wait as long.

    Between its birth and its first handler a worker would otherwise die of them, with a traceback.
    """
    # It is started with the first process otherwise, and lifts the blockade.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _told_to_end() -> Iterator[socket.socket]:
    """Give a socket from which an octet can be read for each of `ENDING_SIGNALS` that comes."""
    reading, writing = socket.socketpair()
    reading.setblocking(False)
    writing.setblocking(False)
    handlers = {number: signal.signal(number, lambda *_: None) for number in ENDING_SIGNALS}
    before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    try:
        yield reading
    finally:
        signal.set_wakeup_fd(before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        reading.close()
        writing.close()


def _signals(told: socket.socket) -> bytes:
    """Return the numbers of the signals that have come since the last call."""
    try:
        return bytes(number for number in told.recv(64) if number in ENDING_SIGNALS)
    except BlockingIOError:
        return b""
