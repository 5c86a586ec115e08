"""Reads the settings again when their file changes, or on request: what a reload needs, in a thread of its own.

A file on a network mount may block whatever touches it, so neither an event loop nor a supervisor does. The thread
waits without using the processor, and costs some 20 KiB.

* Changes in quick succession are one: the file must have been left alone for `_QUIET_SECONDS`.
* A file that is missing or closed to us is no change, for `_MISSING_SECONDS`: editors and mounts replace files. After
  that it is reported, once.
* If the reading failed and the settings are not at fault (its process was killed, there was no descriptor), they are
  read again after `_AGAIN_SECONDS`.
* What is read is what is applied: the settings carry the state of the file that they were read from. If the file is in
  another state by then, it is read again before anything is reported.
"""

from __future__ import annotations

import contextlib
import enum
import math
import select
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from proxy.exit_codes import ExitCode
from proxy.settings.file_state import state_of_path
from proxy.settings.plain import PlainSettings
from proxy.settings.reading import DEADLINE_SECONDS, CommandLine, Reading, SettingsNotRead
from proxy.settings.watching import WatchedFile, can_be_watched
from proxy.signals import block_signals

__all__ = ["Refused", "Reloader"]

_log: Final = structlog.get_logger("settings")

_QUIET_SECONDS: Final = 0.3
_LONGEST_WAIT_SECONDS: Final = 5.0
"""How long to wait at most for a file that is written to without a pause."""

_MISSING_SECONDS: Final = 10.0

_MOST_READINGS: Final = 3
"""How often in a row to read a file that changes while it is read."""

_MOST_REQUESTS: Final = 1024
"""Requests that have come until one is served; they are one."""

_AGAIN_SECONDS: Final = 30.0
_NOT_READ: Final = (-1,)
"""Differs from the state of every file, so that the file counts as changed."""

_CLOSE_SECONDS: Final = 1.0
_AFTER_ERROR_SECONDS: Final = 5.0


class _Happened(enum.Enum):
    """What a wait has ended with."""

    NOTHING = "time is over"
    EVENT = "the file, or the way to it, may have changed"
    REQUEST = "settings shall be read; also after `close`"


@dataclass(frozen=True, slots=True)
class Refused:
    """Why the settings in force stay: everything that is wrong, with file and key."""

    problems: tuple[str, ...]
    """A sentence each."""
    transient: bool = False
    """True if the reading failed, and not the settings: the same ones may be taken another time."""


class Reloader:
    """Calls `deliver` in its thread with what was read: settings, or why there are none.

    Settings are delivered after each reading, even if they are the same as before. The second argument of `deliver` is
    True if the reading was requested (SIGHUP). `begin` is called in its thread before each reading.
    """

    def __init__(
        self,
        command_line: CommandLine,
        settings: PlainSettings,
        deliver: Callable[[PlainSettings | Refused, bool], None],
        *,
        begin: Callable[[], None] = lambda: None,
    ) -> None:
        self._command_line = command_line
        self._read_before = settings
        self._deliver = deliver
        self._begin = begin
        self._state: tuple[int, ...] | None = settings.config_state
        """State of the file when it was last dealt with; None if it could not be read."""
        self._ours, self._its = socket.socketpair()
        self._ours.setblocking(False)
        self._its.setblocking(False)
        self._missing_since = math.inf
        """Since when the file cannot be read, on the monotonic clock; infinite if it can, or if that was reported."""
        self._again_at = math.inf
        """When to look at the file though nothing has happened, on the monotonic clock; infinite for never."""
        self._reading: Reading | None = None
        self._closed = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="settings", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def request(self) -> None:
        """Have the settings read even if their file is unchanged."""
        with contextlib.suppress(OSError):  # there are requests enough, or it is closed
            self._ours.send(b"r")

    def close(self) -> None:
        """End the thread, and a reading under way."""
        with self._lock:
            self._closed = True
            if self._reading is not None:
                self._reading.cancel()
        self._ours.close()
        if self._thread.ident is None:
            self._its.close()
        else:
            self._thread.join(_CLOSE_SECONDS)  # It may hang in a system call of a network mount.

    # ---- in the thread

    def _run(self) -> None:
        block_signals()
        with self._its:
            while not self._closed:
                try:
                    self._watch()
                except Exception:  # noqa: BLE001 - nothing would be read any more, and nobody would know
                    _log.exception("internal error while the settings were watched: they are watched again")
                    self._select(None, _AFTER_ERROR_SECONDS)

    def _watch(self) -> None:
        """Read whenever there is a reason to, until another file is to be watched, or until `close`."""
        path = self._read_before.config
        if path is None or not can_be_watched(path):
            self._follow(path, None)
        else:
            with WatchedFile(path) as file:
                self._follow(path, file)

    def _follow(self, path: Path | None, file: WatchedFile | None) -> None:
        if file is not None:
            self._look(file)
        while not self._closed and path == self._read_before.config:
            if self._wait(file):
                self._read(requested=True)
                continue
            self._again_at = math.inf
            if file is not None:
                self._look(file)

    def _look(self, file: WatchedFile) -> None:
        """Read the settings if the file has changed."""
        file.watch()
        try:
            state = state_of_path(file.path)
        except OSError as exc:
            if self._state is not None:
                now = time.monotonic()
                self._missing_since = min(self._missing_since, now)
                if now >= self._missing_since + _MISSING_SECONDS:
                    self._state, self._missing_since = None, math.inf
                    self._deliver(Refused((f"{file.path}: cannot be read: {exc.strerror}",)), False)
            return
        self._missing_since = math.inf
        if state != self._state:
            self._read(requested=False)

    def _wait(self, file: WatchedFile | None) -> bool:
        """Wait for a reason to look at the file, and until it is left alone; return whether there is a request."""
        polling = file.poll_seconds if file is not None else None
        due = min(self._missing_since + _MISSING_SECONDS, self._again_at) - time.monotonic()
        happened = self._select(file, min(due, math.inf if polling is None else polling))
        give_up = time.monotonic() + _LONGEST_WAIT_SECONDS
        while happened is _Happened.EVENT and file is not None and time.monotonic() < give_up:
            file.watch()
            happened = self._select(file, _QUIET_SECONDS)
        return happened is _Happened.REQUEST

    def _select(self, file: WatchedFile | None, seconds: float) -> _Happened:
        """Wait for a request or an event, so many seconds at most."""
        deadline = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self._its, select.POLLIN)
        descriptor = file.fileno() if file is not None else None
        if descriptor is not None:
            poll.register(descriptor, select.POLLIN)
        while (left := deadline - time.monotonic()) > 0:
            ready = {number for number, _ in poll.poll(None if left == math.inf else math.ceil(left * 1000))}
            if self._its.fileno() in ready:
                self._its.recv(_MOST_REQUESTS)  # b"" after `close`
                return _Happened.REQUEST
            if descriptor in ready and file is not None and file.read_events():
                return _Happened.EVENT
        return _Happened.NOTHING

    def _read(self, *, requested: bool) -> None:
        """Read the settings, again if their file changes meanwhile, and deliver them."""
        self._begin()
        path = self._read_before.config
        outcome: PlainSettings | Refused | None = None
        for _ in range(_MOST_READINGS):
            before = _state(path)
            if path is not None and before == ():
                what = (
                    "is a directory now" if path.is_dir() else "is not a regular file, and cannot be read a second time"
                )
                outcome = Refused((f"{path}: {what}; put a file in its place, or restart",))
                self._state = before
                break
            outcome = self._result()
            if self._closed or outcome is None:
                return
            settings = outcome if isinstance(outcome, PlainSettings) else None
            self._state = before if settings is None else settings.config_state
            if self._state == _state(path if settings is None else settings.config):
                break
        self._missing_since = self._again_at = math.inf
        if isinstance(outcome, PlainSettings):
            self._read_before = outcome
        elif outcome is not None and outcome.transient:
            self._state, self._again_at = _NOT_READ, time.monotonic() + _AGAIN_SECONDS
        if outcome is not None:
            self._deliver(outcome, requested)

    def _result(self) -> PlainSettings | Refused | None:
        """Run the process that reads the settings; return None after `close`."""
        try:
            with self._lock:
                if self._closed:
                    return None
                reading = self._reading = Reading(self._command_line, capture_errors=True)
            with reading:
                settings = reading.result(DEADLINE_SECONDS)
            missing = self._read_before.config
            if missing is not None and settings.config is None:
                # The default file, which nobody named, is gone: that is no wish to remove its routes.
                return Refused((f"{missing}: there is no such file; put it back, or restart without it",))
            return settings
        except SettingsNotRead as exc:
            return Refused(_problems(exc), transient=exc.exit_code == ExitCode.FAILED)
        except OSError as exc:  # EMFILE, ENFILE, ENOMEM
            return Refused((f"the settings cannot be read: {exc.strerror}",), transient=True)
        finally:
            with self._lock:
                self._reading = None


def _state(path: Path | None) -> tuple[int, ...] | None:
    """Return the state of the file, None if it cannot be read, `()` if there is none."""
    if path is None:
        return ()
    try:
        return state_of_path(path)
    except OSError:
        return None


def _problems(exc: SettingsNotRead) -> tuple[str, ...]:
    """Return the problems, which are listed in indented lines, or all that was said."""
    lines = str(exc).splitlines()
    if "Traceback (most recent call last):" in lines:
        what = "if another version of cloudrun-sidecar was installed meanwhile, restart it"
        return (f"the process that reads the settings failed: {lines[-1]}; {what}",)
    listed = tuple(line.strip() for line in lines if line.startswith("  "))
    said = " ".join(line.strip() for line in lines if line.strip())
    return listed or (said or f"the process that reads the settings exited with {exc.exit_code}",)
