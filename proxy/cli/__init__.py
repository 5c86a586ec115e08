"""The command line: `cloudrun-sidecar COMMAND`; one file a command.

* `commands`            the list of them, and what is common to their help
* `pasted`              what click may repeat of a command line
* `options`             the flags that are made of the settings
* `serve`, `check`, …   a command each, imported when it is run
* `anew`                how `serve` gets rid of all of this before it serves
"""

from __future__ import annotations

import os
import sys

from proxy.cli.anew import handed_over, serve_anew, serve_here
from proxy.exit_codes import ExitCode

__all__ = ["main"]


def main() -> None:
    """Run what the command line says; ends in SystemExit."""
    _hold_standard_streams()
    settings = handed_over()
    if settings is not None or sys.argv[1:2] == ["serve"]:
        from proxy.signals import hold_signals  # the other commands keep the defaults

        hold_signals()
    if settings is not None:
        _serve(settings)
    else:
        from proxy.cli.commands import commands  # not where settings were handed over: see `anew`

        commands(obj=serve_anew)


def _serve(settings: str) -> None:
    try:
        sys.exit(serve_here(settings))
    except KeyboardInterrupt:  # before the sidecar listens to signals; in the words of click
        sys.stderr.write("Aborted!\n")
        sys.exit(ExitCode.FAILED)


def _hold_standard_streams() -> None:
    """Open those that whoever started this has closed.

    What is opened later would get their numbers, and a socket what is written to stderr: a process that begins anew
    takes for its stderr whatever is open there.
    """
    if None not in (sys.stdin, sys.stdout, sys.stderr):
        return
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - it stays open
