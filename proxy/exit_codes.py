"""The exit codes of all commands, and the line in which they say why, in one place.

A service manager decides by the exit code whether to restart: config/systemd/cloudrun-sidecar.service restarts after
every code but `SETTINGS_UNUSABLE`.
"""

from __future__ import annotations

import os
from enum import IntEnum
from typing import Final, TextIO

__all__ = ["KILLED_REMEDY", "PROCESSES_REMEDY", "ExitCode", "error_line", "no_thread", "shows_colours"]


PROCESSES_REMEDY: Final = "raise the limit of processes and threads (ulimit -u, --pids-limit, TasksMax)"
"""What to do where the system starts no more of them."""

KILLED_REMEDY: Final = "if the kernel ended it for want of memory (its log, dmesg, says so), raise the limit of memory"
"""What to do where SIGKILL ended a process, and nobody says why."""


class ExitCode(IntEnum):
    """Why a command ended."""

    OK = 0
    """The command did what it was asked to do."""
    FAILED = 1
    """A failure that a restart may solve: a port in use, an address that does not exist yet, a worker that fails at the
    start. For `check`, `token`, `healthcheck` and `wait`: what they looked at does not work."""
    SETTINGS_UNUSABLE = 2
    """The command line, the environment or a file has to be changed first; with the same ones it fails again. Never
    from `healthcheck`: Docker reserves this code of a HEALTHCHECK, so there it is `FAILED`."""
    WARNINGS = 3
    """Only from `check --strict`: nothing failed, but there are warnings."""


def error_line(text: str, stream: TextIO) -> str:
    """Return the line that says on this stream, after the name of the program, why a command ended."""
    name = "cloudrun-sidecar:"
    # SGR (ECMA-48, 8.3.117): red and bold.
    return f"\x1b[31;1m{name}\x1b[0m {text}\n" if shows_colours(stream) else f"{name} {text}\n"


def no_thread(exc: RuntimeError) -> str:
    """Return a sentence if this says that the system starts no more threads; else ""."""
    if str(exc) != "can't start new thread":
        return ""
    return f"cannot start a thread: {PROCESSES_REMEDY} or of memory (ulimit -v)"


def shows_colours(stream: TextIO) -> bool:
    """Return True if the stream is a terminal that shows colours (NO_COLOR: https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
