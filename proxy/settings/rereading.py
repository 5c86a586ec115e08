"""Reads the settings again while an event loop runs: what a reload needs.

It is apart from `reading`, which is imported before it is known whether there will be an event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading

from proxy.exit_codes import ExitCode
from proxy.settings.plain import PlainSettings
from proxy.settings.reading import DEADLINE_SECONDS, CommandLine, Reading, SettingsNotRead

__all__ = ["reread_settings"]


async def reread_settings(command_line: CommandLine, *, seconds: float = DEADLINE_SECONDS) -> PlainSettings:
    """Return the settings of a command line without blocking the event loop.

    Raises SettingsNotRead; its text has what the process wrote to standard error. Cancellation ends the process. The
    thread is a daemon: it does not delay the end of this process.
    """
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[PlainSettings] = loop.create_future()
    reading = Reading(command_line, capture_errors=True)

    def finish(settings: PlainSettings | None, exc: BaseException | None) -> None:
        if outcome.done():  # cancelled
            return
        if settings is None:
            outcome.set_exception(exc or SettingsNotRead(ExitCode.FAILED))
        else:
            outcome.set_result(settings)

    def read() -> None:
        settings, failure = None, None
        try:
            with reading:
                settings = reading.result(seconds)
        except BaseException as exc:  # noqa: BLE001 - raised where it is awaited
            failure = exc
        with contextlib.suppress(RuntimeError):  # The loop is closed: nothing awaits this any more.
            loop.call_soon_threadsafe(finish, settings, failure)

    threading.Thread(target=read, name="settings", daemon=True).start()
    try:
        return await outcome
    finally:
        reading.cancel()
