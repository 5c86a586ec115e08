"""Several workers: processes that are handed their connections.

A socket that several processes listen on gives most connections to the one that wakes up first, and sixteen
connections may end on one of two workers. So the supervisor alone listens. It accepts, and hands each connection to
the worker that has the fewest (`downstream/handover`). When the supervisor is gone nobody holds its ports.

* The first SIGTERM, SIGINT or SIGQUIT to the supervisor has every worker drain, the second has them cut what is left.
* To a worker a signal means to drain, however often it comes: a terminal's Ctrl-C reaches supervisor and workers at
  once, and service managers signal whole groups.
* A worker that ends unasked ends the others, in order, and the exit code is not 0.
* A worker that does not end although its time is over is killed, and the exit code is not 0.
* A worker whose supervisor is gone drains and ends.
"""

from __future__ import annotations

import math
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context, resource_tracker
from multiprocessing.process import BaseProcess
from typing import Final

import structlog

from proxy.downstream.channel import CUT, DRAIN, Channel
from proxy.downstream.config import ListenerConfig, Sockets
from proxy.exit_codes import ExitCode
from proxy.signals import ENDING_SIGNALS, HANDLED_SIGNALS, RELOAD_SIGNAL, block_signals, ignore_signals
from proxy.supervisor.channel import WorkerChannel

__all__ = ["run_workers"]

_log: Final = structlog.get_logger("supervisor")

_CUT_SECONDS: Final = 5.0
"""How long workers may take to end once all that is live has to be cut."""

_MOST_ACCEPTED: Final = 64
"""Connections that are accepted at once, before anything else gets its turn."""

_NO_DESCRIPTORS_SECONDS: Final = 1.0
"""How long nothing is accepted after the kernel has said that it cannot be."""


def run_workers(
    config: ListenerConfig, work: Callable[[ListenerConfig, Channel], None], *, drain_seconds: float
) -> ExitCode:
    """Run `config.workers` processes of `work(config, channel)` until the last one has ended.

    `work` is pickled by its name, and begins with `HANDLED_SIGNALS` blocked. A worker that has not ended some seconds
    after `drain_seconds` is killed. Returns OK after an orderly end, SETTINGS_UNUSABLE if the first worker that failed
    said so, else FAILED. Raises ListenFailed.

    When this returns or raises, `HANDLED_SIGNALS` are ignored: the process is about to exit.
    """
    with _signals_to_socket() as signals:
        sockets = config.create_sockets()
        try:
            supervisor = _Supervisor(sockets, signals, drain_seconds)
            with _signals_blocked():
                for _ in range(config.workers):
                    supervisor.start_worker(config, work)
            return supervisor.run()
        finally:
            config.release(sockets)


class _Worker:
    """A worker process and its channel."""

    def __init__(self, process: BaseProcess, channel: WorkerChannel) -> None:
        self.process = process
        self.channel = channel
        self.last_given = 0
        """Of all connections, which was the last that it was handed."""


class _Supervisor:
    """Accepts for its workers until the last of them has ended."""

    def __init__(self, sockets: Sockets, signals: socket.socket, drain_seconds: float) -> None:
        self._listening = sockets.insecure_sockets
        self._signals = signals
        self._drain_seconds = drain_seconds
        self._workers: list[_Worker] = []
        self._selector = selectors.DefaultSelector()
        self._given = 0
        self._accepting = False
        self._accept_at = 0.0
        self._order: bytes | None = None
        self._kill_at = math.inf
        self._failure = ExitCode.OK
        self._selector.register(signals, selectors.EVENT_READ, None)  # `run` looks at it first, whatever happened

    def start_worker(self, config: ListenerConfig, work: Callable[[ListenerConfig, Channel], None]) -> None:
        """Start one worker. `HANDLED_SIGNALS` have to be blocked meanwhile."""
        ours, its = socket.socketpair()
        with its:
            channel = Channel(its, [bound.getsockname() for bound in self._listening])
            process = get_context("spawn").Process(target=work, args=(config, channel))
            process.daemon = True
            process.start()
        worker = _Worker(process, WorkerChannel(ours))
        self._workers.append(worker)
        self._selector.register(process.sentinel, selectors.EVENT_READ, partial(self._ended, worker))
        self._selector.register(ours, selectors.EVENT_READ, partial(self._use_channel, worker))

    def run(self) -> ExitCode:
        """Serve until no worker is left; return the exit code."""
        while self._workers:
            now = time.monotonic()
            self._accept_or_not(now)
            due = min(self._kill_at, self._accept_at if self._accept_at > now else math.inf)
            happened = self._selector.select(None if due == math.inf else max(0.0, due - now))
            # First of all: where a whole group was signalled, a worker may be the first to wake us.
            self._obey_signals()
            for key, _ in happened:
                if key.data is not None:
                    key.data()
            if time.monotonic() >= self._kill_at:
                self._kill()
        return self._failure

    # ---- connections

    def _accept_or_not(self, now: float) -> None:
        """Look at the listening sockets exactly while a worker can be handed a connection."""
        accepting = now >= self._accept_at and self._least() is not None
        if accepting == self._accepting:
            return
        self._accepting = accepting
        for listening in self._listening:
            if accepting:
                self._selector.register(listening, selectors.EVENT_READ, partial(self._accept, listening))
            else:
                self._selector.unregister(listening)

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(_MOST_ACCEPTED):
            try:
                connection, _ = listening.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as exc:  # EMFILE, ENFILE, ENOBUFS, ENOMEM
                _log.error("cannot accept connections for a while", reason=exc.strerror)
                self._accept_at = time.monotonic() + _NO_DESCRIPTORS_SECONDS
                return
            for worker in self._workers:
                self._use_channel(worker)  # who has how many now
            self._hand_over(connection)
            if self._least() is None:
                return

    def _least(self) -> _Worker | None:
        """Return the worker with the fewest connections of those that read what they are sent."""
        return min(
            (worker for worker in self._workers if not (worker.channel.gone or worker.channel.full)),
            key=lambda worker: (worker.channel.connections, worker.last_given),
            default=None,
        )

    def _hand_over(self, connection: socket.socket) -> None:
        worker = self._least()
        if worker is None:
            connection.close()
            return
        self._given += 1
        worker.last_given = self._given
        worker.channel.hand_over(connection)
        self._look_at(worker)

    def _use_channel(self, worker: _Worker) -> None:
        if worker.channel.gone:  # closed since it was looked at
            return
        worker.channel.read_reports()
        worker.channel.flush()
        self._look_at(worker)

    def _look_at(self, worker: _Worker) -> None:
        """Have the selector tell what this channel waits for; close it where the worker is gone."""
        channel = worker.channel
        if not channel.gone:
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if channel.full else 0)
            if self._selector.get_key(channel.socket).events != events:
                self._selector.modify(channel.socket, events, partial(self._use_channel, worker))
        elif channel.socket.fileno() >= 0:
            self._selector.unregister(channel.socket)
            for connection in channel.close():
                self._hand_over(connection)  # nobody has seen it yet: another worker serves it as well

    # ---- ending

    def _obey_signals(self) -> None:
        for _ in _ending_signals(self._signals):
            self._end(CUT if self._order is not None else DRAIN)

    def _end(self, order: bytes) -> None:
        """Order all workers to end; those that have not when their time is over are killed."""
        self._order = order
        seconds = _CUT_SECONDS + (self._drain_seconds if order == DRAIN else 0.0)
        self._kill_at = min(self._kill_at, time.monotonic() + seconds)
        for worker in self._workers:
            if not worker.channel.gone:
                worker.channel.order(order)
                self._look_at(worker)

    def _ended(self, worker: _Worker) -> None:
        """Note that a worker's process is over."""
        self._failure = self._failure or _failure(worker.process, asked=self._order is not None)
        self._selector.unregister(worker.process.sentinel)
        self._workers.remove(worker)
        worker.channel.gone = True
        self._look_at(worker)
        if self._order is None:
            self._end(DRAIN)

    def _kill(self) -> None:
        self._kill_at = math.inf
        for worker in self._workers:
            _log.error("a worker does not end: killing it", pid=worker.process.pid)
            worker.process.kill()


def _failure(process: BaseProcess, *, asked: bool) -> ExitCode:
    """Return the exit code that the end of this worker means."""
    process.join()  # it is over, but may not have been waited for
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


def _ending_signals(signals: socket.socket) -> bytes:
    """Return the numbers of those of `ENDING_SIGNALS` that have come since the last call."""
    try:
        numbers = signals.recv(64)
    except BlockingIOError:
        return b""
    if RELOAD_SIGNAL in numbers:
        _log.warning("SIGHUP changes nothing: settings are read at the start; restart to apply new ones")
    return bytes(number for number in numbers if number in ENDING_SIGNALS)
