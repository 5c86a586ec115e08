"""Reloads the settings of all workers together.

The supervisor alone watches the settings file and reads it (`settings/reloading`). It sends what was read to every
worker, and each answers. A worker that is started later starts with the settings then in force.
"""

from __future__ import annotations

import contextlib
import json
import math
import socket
import time
from collections import deque
from collections.abc import Iterable
from typing import Any, Final

import structlog

from proxy.downstream.channel import PROBLEMS, SETTINGS
from proxy.downstream.config import ListenerConfig
from proxy.network.service_manager import ServiceManager
from proxy.observe.lines import configure_logging
from proxy.settings.changes import Changes, log_refused, log_reloaded
from proxy.settings.plain import PlainSettings
from proxy.settings.reading import CommandLine
from proxy.settings.reloading import Refused, Reloader
from proxy.supervisor.channel import WorkerChannel

__all__ = ["Reloading"]

_log: Final = structlog.get_logger("supervisor")

_ANSWER_SECONDS: Final = 10.0
"""How long workers may take over new settings before that is logged."""


class Reloading:
    """Reads settings again, sends them to workers, and logs the result once all have answered.

    `manager` is told when a reading begins, and when its result is in force in all workers, or refused.
    """

    def __init__(
        self,
        command_line: CommandLine,
        settings: PlainSettings,
        config: ListenerConfig,
        manager: ServiceManager | None = None,
    ) -> None:
        self._manager = manager or ServiceManager({})
        self.settings = settings
        """The settings in force."""
        self.due = math.inf
        """When `check` must be called, on the monotonic clock."""
        self.state: dict[str, Any] = {
            "read_at": time.time(),
            "reloaded": 0,
            "refused": 0,
            "problems": (),
            "refused_at": None,
            "need_restart": (),
        }
        """What metrics and status page show of it (`observe.metrics.SettingsMetrics`)."""
        self.socket, self._written = socket.socketpair()
        """Readable when `take` must be called."""
        self.socket.setblocking(False)
        self._written.setblocking(False)
        self._config = config
        self._outcomes: deque[tuple[PlainSettings | Refused, bool, int]] = deque()
        self._unanswered: tuple[Changes, bool] | None = None
        self._reload = 0
        """The last reload that was taken, as the service manager counts them."""
        self._reloader = Reloader(command_line, settings, self._deliver, begin=self._manager.reloading)

    def start(self) -> None:
        """Begin to watch the settings file."""
        self._reloader.start()

    def request(self) -> None:
        """Have the settings read even if their file is unchanged."""
        self._reloader.request()

    def close(self) -> None:
        """End a reading under way, and release everything."""
        self._reloader.close()
        self.socket.close()
        self._written.close()

    def take(self, channels: Iterable[WorkerChannel], *, draining: bool) -> None:
        """Send the workers what was read, unless all drain."""
        with contextlib.suppress(BlockingIOError):
            self.socket.recv(64)
        live = [channel for channel in channels if not channel.gone]
        while self._outcomes:
            outcome, requested, self._reload = self._outcomes.popleft()
            if draining:
                continue
            if isinstance(outcome, Refused):
                self._refuse(outcome.problems, live)
            else:
                self._apply(outcome, requested, live)

    def check(self, channels: Iterable[WorkerChannel]) -> None:
        """Log the last reload if all workers have answered, or their time is over."""
        if self._unanswered is None:
            return
        live = [channel for channel in channels if not channel.gone]
        late = sum(1 for channel in live if channel.settings_awaited > 0)
        if late and time.monotonic() < self.due:
            return
        changes, requested = self._unanswered
        kept = sum(channel.settings_kept > 0 for channel in live)
        self._unanswered, self.due = None, math.inf
        log_reloaded(changes, requested=requested, workers=len(live) - late - kept)
        self._manager.reloaded(self._reload, refused=self.state["refused_at"] is not None)
        if kept:
            _log.error("workers without the new settings: restart to have them in all", failed=kept)
        if late:
            what = "workers have not answered: each takes the new settings when its event loop goes on, or is replaced"
            _log.warning(what, workers=late)

    def _deliver(self, outcome: PlainSettings | Refused, requested: bool) -> None:
        """Note what was read; it is called in the thread of the reloader."""
        self._outcomes.append((outcome, requested, self._manager.reloads))
        with contextlib.suppress(OSError):  # readable already, or closed
            self._written.send(b"r")

    def _apply(self, read: PlainSettings, requested: bool, channels: list[WorkerChannel]) -> None:
        content = read.to_json().encode()
        for channel in channels:
            channel.settings_kept = 0
            try:
                channel.send_document(SETTINGS, content)
            except OSError:  # EMFILE, ENOMEM
                channel.settings_kept = 1
        if self._unanswered is not None:  # the workers answer in order: one line will do for what is overtaken
            log_reloaded(self._unanswered[0], requested=False)
        changes = Changes.between(self.settings, read)
        self.settings = changes.in_force
        # What has been reported is over: that is told even where nothing else has changed.
        mended = self.state["refused_at"] is not None or (self.state["need_restart"] and not changes.need_restart)
        self.state |= {"read_at": time.time(), "reloaded": self.state["reloaded"] + 1, "refused_at": None}
        self.state |= {"problems": (), "need_restart": changes.need_restart}
        self._config.payload = changes.in_force.to_json()
        configure_logging(self.settings.log_level, self.settings.log_format)
        self._unanswered = changes, requested or bool(mended)
        self.due = time.monotonic() + _ANSWER_SECONDS

    def _refuse(self, problems: tuple[str, ...], channels: list[WorkerChannel]) -> None:
        log_refused(problems, config=self.settings.config)
        self.state |= {"refused": self.state["refused"] + 1, "problems": problems, "refused_at": time.time()}
        with contextlib.suppress(OSError):  # only the metrics of the workers lack it
            for channel in channels:
                channel.send_document(PROBLEMS, json.dumps(problems).encode())
        if self._unanswered is None:  # else once workers have answered what was sent before
            self._manager.reloaded(self._reload, refused=True)
