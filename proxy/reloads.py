"""Where a worker gets new settings from: its own reloader, or the supervisor that has one for all workers."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Final, Protocol

import structlog

from proxy.downstream.channel import SETTINGS_KEPT, SETTINGS_TAKEN, Channel
from proxy.network.service_manager import ServiceManager
from proxy.settings.changes import Changes, log_refused, log_reloaded
from proxy.settings.plain import PlainSettings
from proxy.settings.reading import CommandLine
from proxy.settings.reloading import Refused, Reloader

__all__ = ["Reloadable", "Reloads"]

_log: Final = structlog.get_logger("sidecar")

_LOST: Final = (
    "the settings were lost on their way to a worker: limit of open files reached; raise it (ulimit -n), then send "
    "SIGHUP"
)
"""The kernel had no descriptor for their file."""


class Reloadable(Protocol):
    """What new settings are put in force in: a worker."""

    settings: PlainSettings
    """The settings in force."""

    def apply(self, read: PlainSettings) -> Changes:
        """Put settings in force that were read again; return what has changed."""

    def refuse(self, problems: tuple[str, ...]) -> None:
        """Note that settings were read that cannot be used."""


class Reloads:
    """Hands new settings to a worker, on its event loop.

    With a command line, the worker is alone: it watches the settings file, reads it again and logs the result. Without
    one, new settings come from a supervisor, which logs for all workers. `manager` is told when a reading begins, and
    when its result is in force or refused.
    """

    def __init__(
        self,
        worker: Reloadable,
        loop: asyncio.AbstractEventLoop,
        command_line: CommandLine | None,
        manager: ServiceManager | None = None,
    ) -> None:
        self._manager = manager or ServiceManager({})
        self._worker = worker
        self._loop = loop
        self._taking: asyncio.Task[None] | None = None
        """The last settings from the supervisor that are being taken."""
        self._refused = False
        """Whether the last settings that were read were refused."""
        self._need_restart: tuple[str, ...] = ()
        """What of the last settings that were read needs a restart."""
        self._reloader: Reloader | None = None
        if command_line is not None:
            self._reloader = Reloader(command_line, worker.settings, self._deliver, begin=self._manager.reloading)

    def start(self) -> None:
        """Begin to watch the settings file."""
        if self._reloader is not None:
            self._reloader.start()

    def request(self) -> None:
        """Have the settings read even if their file is unchanged. The supervisor decides for its workers."""
        if self._reloader is not None:
            self._reloader.request()

    async def close(self) -> None:
        """End a reading under way."""
        if self._taking is not None:
            self._taking.cancel()
            await asyncio.gather(self._taking, return_exceptions=True)
        if self._reloader is not None:
            await asyncio.to_thread(self._reloader.close)

    def take_settings(self, channel: Channel, content: bytes) -> None:
        """Put settings in force that the supervisor has sent, in their order, and answer."""
        self._taking = self._loop.create_task(self._take(channel, content, self._taking))

    def take_problems(self, content: bytes) -> None:
        """Note why settings were refused, as the supervisor has sent it."""
        self._worker.refuse(tuple(json.loads(content)) if content else ())

    async def _take(self, channel: Channel, content: bytes, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.gather(before, return_exceptions=True)  # with this, `close` cancels that one, too
        if not content:
            _log.error("new settings are not in force", reason=_LOST)
            self._worker.refuse((_LOST,))
            channel.report(SETTINGS_KEPT)
            return
        try:
            # In a thread: the settings of 5,000 routes take a tenth of a second.
            self._worker.apply(await asyncio.to_thread(PlainSettings.from_json, content))
        except Exception as exc:  # noqa: BLE001 - whatever is wrong, the old settings serve
            _log.error("internal error: new settings are not in force", exc_info=exc)
            self._worker.refuse(("internal error: see the log",))
            channel.report(SETTINGS_KEPT)
        else:
            channel.report(SETTINGS_TAKEN)

    def _deliver(self, outcome: PlainSettings | Refused, requested: bool) -> None:
        """Pass what was read to the event loop; it is called in the thread of the reloader."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._on_read, outcome, requested, self._manager.reloads)

    def _on_read(self, outcome: PlainSettings | Refused, requested: bool, reload: int) -> None:
        try:
            if isinstance(outcome, Refused):
                log_refused(outcome.problems, config=self._worker.settings.config)
                self._refused = True
                self._worker.refuse(outcome.problems)
            else:
                changes = self._worker.apply(outcome)
                # What has been reported is over: that is told even where nothing else has changed.
                mended = self._refused or (bool(self._need_restart) and not changes.need_restart)
                self._refused, self._need_restart = False, changes.need_restart
                log_reloaded(changes, requested=requested or mended)
        finally:
            self._manager.reloaded(reload, refused=self._refused)
