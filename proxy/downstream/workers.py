"""Worker processes: started by Hypercorn, ended by us.

Hypercorn's own parent sends SIGTERM to all workers as soon as one has ended, waits for none of them, and says 0 where
one has failed. So only its way of starting them is used (`hypercorn.run._populate`; a test holds its signature):

* the first SIGTERM, SIGINT or SIGQUIT to the parent has every worker drain, the second has them cut what is left;
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
from proxy.downstream.orders import Order, Orders
from proxy.downstream.signals import ENDING_SIGNALS, HANDLED_SIGNALS, RELOAD_SIGNAL, block_signals, ignore_signals
from proxy.exit_codes import ExitCode

__all__ = ["run_workers"]

_log: Final = structlog.get_logger("workers")

_CUT_SECONDS: Final = 5.0
"""How long workers may take to end once all that is live has to be cut."""


def run_workers(config: ListenerConfig, worker: Callable[..., None], *, drain_seconds: float) -> ExitCode:
    """Run `config.workers` processes of `worker(config, sockets, shutdown_event)` until the last one has ended.

    `worker` is pickled by its name, and its `shutdown_event` is the `Orders`; it begins with `HANDLED_SIGNALS` blocked.
    One that has not ended some seconds after `drain_seconds` is killed. Returns OK after an orderly end,
    SETTINGS_UNUSABLE if the first worker that failed said so, else FAILED. Raises ListenFailed.

    When this returns or raises, `HANDLED_SIGNALS` are ignored: the process is about to exit.
    """
    context = get_context("spawn")
    orders = Orders(context)
    with _signals_to_socket() as told:
        sockets = config.create_sockets()
        try:
            workers: list[BaseProcess] = []
            with _signals_blocked():
                hypercorn.run._populate(workers, config, worker, sockets, cast(Any, orders), context)
            return _await_end(workers, orders, told, drain_seconds)
        finally:
            config.release(sockets)


def _await_end(workers: list[BaseProcess], orders: Orders, told: socket.socket, drain_seconds: float) -> ExitCode:
    """Pass orders on until no worker is left; return the exit code."""
    failure = ExitCode.OK
    deadline: float | None = None
    while workers:
        wait(
            [told, *(process.sentinel for process in workers)],
            timeout=None if deadline is None else max(0.0, deadline - time.monotonic()),
        )
        ended = [process for process in workers if process.exitcode is not None]
        # Only now: where a whole group was signalled, a worker may be the first to wake us, but not the first told.
        for _ in _ending_signals(told):
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


def _failure(process: BaseProcess, *, asked: bool) -> ExitCode:
    """Return the exit code that the end of this worker means."""
    code = process.exitcode or 0
    if asked and code == 0:
        return ExitCode.OK
    _log.error("a worker has failed; the others drain and end", pid=process.pid, exit_code=code)
    return ExitCode.SETTINGS_UNUSABLE if code == ExitCode.SETTINGS_UNUSABLE else ExitCode.FAILED


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Have processes that are started here begin with `HANDLED_SIGNALS` blocked; for us they stay pending as long.

    Between its start and its first handler a worker would otherwise die of them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, set(HANDLED_SIGNALS) - set(ENDING_SIGNALS[:2]))
    # It is started with the first process otherwise, and unblocks SIGTERM and SIGINT, which it ignores. What else comes
    # to the whole group stays pending for it, as long as it lives.
    resource_tracker.ensure_running()
    block_signals()
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _signals_to_socket() -> Iterator[socket.socket]:
    """Give a socket that yields an octet for each of `HANDLED_SIGNALS` that comes; ignore them afterwards."""
    reading, writing = socket.socketpair()
    reading.setblocking(False)
    writing.setblocking(False)
    before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    for number in HANDLED_SIGNALS:
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED_SIGNALS)
    try:
        yield reading
    finally:
        ignore_signals()
        signal.set_wakeup_fd(before)
        reading.close()
        writing.close()


def _ending_signals(told: socket.socket) -> bytes:
    """Return the numbers of those of `ENDING_SIGNALS` that have come since the last call."""
    try:
        numbers = told.recv(64)
    except BlockingIOError:
        return b""
    if RELOAD_SIGNAL in numbers:
        _log.warning("SIGHUP changes nothing: settings are read at the start; restart to apply new ones")
    return bytes(number for number in numbers if number in ENDING_SIGNALS)
