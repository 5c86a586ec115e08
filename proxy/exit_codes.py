"""The exit codes of all commands, in one place.

A service manager decides by the exit code whether to restart: config/systemd/cloudrun-sidecar.service restarts after
every code but `SETTINGS_UNUSABLE`.
"""

from __future__ import annotations

from enum import IntEnum

__all__ = ["ExitCode"]


class ExitCode(IntEnum):
    """Why a command ended."""

    OK = 0
    """The command did what it was asked to do."""
    FAILED = 1
    """A failure that a restart may solve: a port in use, an address that does not exist yet, a worker that fails at the
    start. For `check`, `token`, `healthcheck` and `wait`: what they looked at does not work."""
    SETTINGS_UNUSABLE = 2
    """The command line, the environment or a file has to be changed first; with the same ones it fails again."""
    WARNINGS = 3
    """Only from `check --strict`: nothing failed, but there are warnings."""
