"""The supervisor accepts connections, and hands each to the worker with the fewest."""

from __future__ import annotations

import math
import selectors
import socket
import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Final

import structlog

from proxy.supervisor.process import WorkerProcess

__all__ = ["Accepting"]

_log: Final = structlog.get_logger("supervisor")

_MOST_ACCEPTED: Final = 64
"""Connections accepted in a row before other events are served."""

_NO_DESCRIPTORS_SECONDS: Final = 1.0
"""Pause in accepting after the kernel could not make a descriptor."""

_PATIENCE_SECONDS: Final = 1.0
"""How long a worker that has the fewest connections gets new ones, and these wait for it, although it does not read: it
may have been busy only. A burst of connections would go to the others, and they keep them."""


class Accepting:
    """The listening sockets, and the connections that no worker has yet.

    `workers` is the supervisor's list, which changes. `permitted` returns whether connections may be taken from the
    kernel's queue, if a worker can serve them. `read_reports` reads what the workers have reported: their numbers of
    connections are current then.
    """

    def __init__(
        self,
        listening: Sequence[socket.socket],
        tls_descriptors: Collection[int],
        selector: selectors.BaseSelector,
        workers: Sequence[WorkerProcess],
        permitted: Callable[[], bool],
        read_reports: Callable[[], None],
    ) -> None:
        self.draining = False
        """True if all workers drain: one that drains gets connections then, and answers with 503."""
        self._listening = [(one, one.fileno() in tls_descriptors) for one in listening]
        self._selector = selector
        self._workers = workers
        self._permitted = permitted
        self._read_reports = read_reports
        self._handed_over = 0
        self._waiting: list[tuple[socket.socket, bool]] = []
        """Accepted connections that no worker can take yet, and whether each is for TLS."""
        self._accepting = False
        self._accept_at = 0.0

    def due(self, now: float) -> float:
        """Return when a pause in accepting ends, on the monotonic clock; infinite if there is none."""
        full = (worker for worker in self._workers if worker.channel.full_since)
        ends = (self._accept_at, *(_patient_until(worker) for worker in full))
        return min((end for end in ends if end > now), default=math.inf)

    def update(self, now: float) -> None:
        """Watch the listening sockets exactly while a worker can take a connection."""
        accepting = now >= self._accept_at and self._may_accept()
        if accepting == self._accepting:
            return
        self._accepting = accepting
        for listening, tls in self._listening:
            if accepting:
                self._selector.register(listening, selectors.EVENT_READ, partial(self._accept, listening, tls))
            else:
                self._selector.unregister(listening)

    def hand_over(self, connection: socket.socket, *, tls: bool) -> None:
        """Send a connection to the worker with the fewest, or keep it until one can take it."""
        worker = self._least_loaded()
        if worker is None:
            self._waiting.append((connection, tls))
            return
        self._handed_over += 1
        worker.last_handed_over = self._handed_over
        worker.channel.hand_over(connection, tls=tls)

    def hand_over_waiting(self) -> None:
        """Send the workers the connections that were kept, as far as they can take them."""
        while self._waiting and self._least_loaded() is not None:
            connection, tls = self._waiting.pop(0)
            self.hand_over(connection, tls=tls)

    def stop(self, last: WorkerProcess) -> None:
        """Close the listening sockets, and send this worker all connections that wait: no other one will serve them.

        The kernel resets connections that wait in the queue of a socket that is closed.
        """
        waiting, self._waiting = self._waiting, []
        for listening, tls in self._listening:
            if self._accepting:
                self._selector.unregister(listening)
            try:
                while True:
                    connection, _ = listening.accept()
                    waiting.append((connection, tls))
            except OSError:  # BlockingIOError: there are no more
                listening.close()
        self._listening = []
        self._accepting = False
        last.channel.hand_over_last(waiting)

    def close(self) -> None:
        """Close the connections that no worker has taken."""
        for connection, _ in self._waiting:
            connection.close()

    def _accept(self, listening: socket.socket, tls: bool) -> None:
        for _ in range(_MOST_ACCEPTED):
            self._read_reports()  # `stop` may be called meanwhile
            if listening.fileno() < 0 or not self._may_accept():
                return
            try:
                connection, _ = listening.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as exc:  # EMFILE, ENFILE, ENOBUFS, ENOMEM
                _log.error("cannot accept connections", reason=exc.strerror, retry_seconds=_NO_DESCRIPTORS_SECONDS)
                self._accept_at = time.monotonic() + _NO_DESCRIPTORS_SECONDS
                return
            self.hand_over(connection, tls=tls)

    def _may_accept(self) -> bool:
        return self._permitted() and self._least_loaded() is not None

    def _least_loaded(self) -> WorkerProcess | None:
        """Return the worker with the fewest connections; None if it cannot take one now, or no worker can.

        It must have started. One that has left something unread for a while comes after those that read, and is left
        out once it can be sent nothing more.
        """
        now = time.monotonic()
        least = min(
            (
                worker
                for worker in self._workers
                if worker.channel.ready
                and (self.draining or not worker.channel.draining)
                and not (worker.channel.gone or worker.channel.leaving)
                and not (worker.channel.full_since and _patient_until(worker) <= now)
            ),
            key=lambda worker: (
                worker.channel.unread_seconds(now) >= _PATIENCE_SECONDS,
                worker.channel.connections,
                worker.last_handed_over,
            ),
            default=None,
        )
        return None if least is None or least.channel.has_unsent else least


def _patient_until(worker: WorkerProcess) -> float:
    return worker.channel.full_since + _PATIENCE_SECONDS
