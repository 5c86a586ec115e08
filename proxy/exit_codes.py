"""The exit codes of all commands, in one place.

A service manager decides by them whether starting again can help: config/systemd/cloudrun-sidecar.service does so
after every code but `SETTINGS_UNUSABLE`.
"""

from __future__ import annotations

from enum import IntEnum

__all__ = ["ExitCode"]


class ExitCode(IntEnum):
    """What a command's end means."""

    OK = 0
    """It did what it was asked for, and ended in order."""
    FAILED = 1
    """Something failed that may pass by itself: a busy port, an address that is not there yet, a worker that died. Of
    `check`, `token` and `healthcheck`: what was looked at is not well."""
    SETTINGS_UNUSABLE = 2
    """The same command line, environment and files will fail again: somebody has to change them first."""
    WARNINGS = 3
    """Of `check --strict` alone: nothing failed, but there are warnings."""
