"""Starts workers in the place of others: of those that have exited, and of the last one that begins to drain.

If all workers are signalled, and not the supervisor, none takes requests until the first has drained, which may take
the whole `drain_timeout`. So another one starts beside them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Final

import structlog

from proxy.supervisor.process import WorkerProcess
from proxy.supervisor.restarts import Restarts

__all__ = ["Replacing"]

_log: Final = structlog.get_logger("supervisor")


class Replacing:
    """Plans the starts of workers, once the first ones have become ready; `workers` is the supervisor's list."""

    def __init__(self, workers: Sequence[WorkerProcess]) -> None:
        self.starts = Restarts()
        """The starts that are to come."""
        self._workers = workers

    @property
    def due(self) -> float:
        """When to call `check` at the latest, on the monotonic clock."""
        return min((worker.start_by for worker in self._starting()), default=math.inf)

    def check(self, now: float) -> None:
        """Kill workers that do not become ready in time, and replace one that drains if no other takes requests."""
        for worker in self._starting():
            if now >= worker.start_by:
                _log.error("worker does not start: killing it", pid=worker.pid)
                worker.start_by = math.inf
                worker.kill()
        draining = [worker for worker in self._workers if worker.channel.draining and not worker.replaced]
        if draining and self.starts.next == math.inf and not self._is_served():
            self._replace_draining(draining[0])

    def replace(self, worker: WorkerProcess) -> None:
        """Plan the start of another one after this worker has exited, unless it was replaced before."""
        said = {"pid": worker.pid, **worker.exit_reason()}
        if worker.channel.draining and not worker.process.exitcode:
            if not worker.replaced:
                self._replace_draining(worker)
        elif worker.replaced:
            _log.error("worker failed while draining", **said)
        else:
            delay = self.plan(time.monotonic() - worker.started_at)
            _log.error("worker died: starting another", **said, after_seconds=delay)

    def plan(self, lived_seconds: float) -> float:
        """Plan the start of another worker after one that lived this long; return in how many seconds."""
        return self.starts.add(time.monotonic(), lived_seconds, served=self._is_served())

    def _replace_draining(self, worker: WorkerProcess) -> None:
        worker.replaced = True
        self.plan(math.inf)  # as after a long life: it has not failed
        _log.info("worker was told to end: starting another", pid=worker.pid)

    def _starting(self) -> list[WorkerProcess]:
        return [worker for worker in self._workers if not worker.channel.ready]

    def _is_served(self) -> bool:
        """Return True if a worker takes requests, or starts and is about to."""
        return any(not (worker.channel.draining or worker.channel.gone) for worker in self._workers)
