"""Collects what all workers have counted, for a worker that shows it, and keeps what those that have ended had counted.

The admin port is served by the workers: the supervisor loads no HTTP server, which would be 20 MiB for a few requests a
minute. A worker that is asked for metrics or status asks the supervisor (`COLLECT`). That has every worker report its
state (`REPORT`), waits a while at most, and sends the worker all states and what it knows itself (`COLLECTED`). So no
worker needs a connection to another one, and one whose event loop stands still delays an answer, but does not prevent
it: its last state is sent.

Beside that every worker reports its state every second or so. When a worker has ended, what it had counted by its last
report is added to the totals here. A worker that drains reports at its end, so nothing is lost; of a worker that is
killed, what it counted since its last report is. No sum ever decreases: all that was shown is in a report that is here.

The supervisor reads a state only when its worker has ended; before that it hands on files.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import structlog

from proxy.downstream.channel import (
    REPORT,
    WORKERS_DRAINING,
    WORKERS_READY,
    WORKERS_STARTING,
)
from proxy.observe.background import dropped_lines
from proxy.observe.totals import Totals, state_line
from proxy.settings.plain import PlainSettings
from proxy.supervisor.channel import WorkerChannel

__all__ = ["Collecting", "Supervised"]

_log: Final = structlog.get_logger("supervisor")

_REPORT_SECONDS: Final = 4.0
"""How long workers may take to report; with thousands of routes a busy one takes a second. Prometheus waits for ten."""


class Supervised(Protocol):
    """A worker, as the supervisor knows it."""

    @property
    def channel(self) -> WorkerChannel:
        """The channel to it."""

    @property
    def pid(self) -> int:
        """Its process."""

    @property
    def started_at(self) -> float:
        """When it was started, on the monotonic clock."""


class Collecting:
    """The collection under way, and the totals."""

    def __init__(self) -> None:
        self.restarts = 0
        """Number of workers that were replaced because they had ended; set by what replaces them."""
        self.settings: Mapping[str, Any] = {}
        """The state of reloads (`observe.metrics.SettingsMetrics`)."""
        self.due = math.inf
        """When `check` must be called, on the monotonic clock."""
        self._totals = Totals()
        self._started_at = time.time()
        self._askers: list[WorkerChannel] = []
        """Workers that get the collection under way."""

    def check(self, workers: Sequence[Supervised]) -> None:
        """Finish the collection under way if all have reported or their time is over, and start one if it is wanted."""
        if self._askers:
            late = [worker for worker in workers if worker.channel.answer_awaited]
            if late and time.monotonic() < self.due:
                return
            askers, self._askers, self.due = self._askers, [], math.inf
            for asker in askers:
                if not asker.gone:
                    self._answer(asker, workers, late)
        self._askers = [worker.channel for worker in workers if worker.channel.wants_states]
        if self._askers:
            self._ask(workers)

    def tell_readiness(self, workers: Sequence[Supervised], *, started: bool) -> None:
        """Tell all workers whether all take requests, where that has changed. `started`: the first ones have."""
        if any(worker.channel.draining for worker in workers):
            message = WORKERS_DRAINING
        elif not started or not all(worker.channel.ready for worker in workers):
            message = WORKERS_STARTING
        else:
            message = WORKERS_READY
        for worker in workers:
            channel = worker.channel
            if channel.told != message and not (channel.gone or channel.leaving):
                channel.told = message
                channel.send_command(message)

    def retire(self, channel: WorkerChannel) -> None:
        """Add what a worker that has ended had counted to the totals."""
        state, channel.state = channel.state, None
        if state is None:
            return
        with state:
            content = os.pread(state.fileno(), os.fstat(state.fileno()).st_size, 0)
        for line in content.splitlines():
            self._totals.add(line)

    def keep(self, settings: PlainSettings) -> None:
        """Drop the totals of what these settings name no more; workers that end later may still have counted it."""
        self._totals.keep(settings.routes, settings.deployments)

    def _ask(self, workers: Sequence[Supervised]) -> None:
        self.due = time.monotonic() + _REPORT_SECONDS
        for worker in workers:
            channel = worker.channel
            channel.wants_states = False
            if channel.ready and not (channel.gone or channel.leaving):
                channel.answer_awaited = True
                channel.send_command(REPORT)

    def _answer(self, asker: WorkerChannel, workers: Sequence[Supervised], late: Sequence[Supervised]) -> None:
        try:
            known = {
                "pid": os.getpid(),
                "started_at": self._started_at,
                "workers": [_row(worker, late) for worker in workers],
                "restarts": self.restarts,
                "log_lines_dropped": dropped_lines(),
                "settings": self.settings,
            }
            lines = [state_line("supervisor", "", None, known), *self._totals.lines()]
            states = [worker.channel.state for worker in workers if worker.channel.state is not None]
            asker.send_collection(states, "".join(lines).encode())
        except OSError as exc:  # EMFILE, ENOMEM: the worker's time runs out
            _log.error("the states of workers could not be sent to one of them", reason=exc.strerror)


def _row(worker: Supervised, late: Sequence[Supervised]) -> list[object]:
    """Return what `observe.combined.WorkerRow` has but the exchanges in flight."""
    channel = worker.channel
    state = "ready" if channel.ready else "starting"
    if channel.draining:
        state = "draining"
    if worker in late:
        state = "silent"
    return [worker.pid, state, time.time() - (time.monotonic() - worker.started_at), channel.connections]
