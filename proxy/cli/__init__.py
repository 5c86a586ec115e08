"""The command line: `cloudrun-sidecar COMMAND`; one file a command.

* `commands`            the list of them, and what is common to their help
* `options`             the flags that are made of the settings
* `serve`, `check`, …   a command each, imported when it is run
* `anew`                how `serve` gets rid of all of this before it serves
"""

from __future__ import annotations

import sys

from proxy.cli.anew import handed_over, serve_anew, serve_here

__all__ = ["main"]


def main() -> None:
    """Run what the command line says; ends in SystemExit."""
    settings = handed_over()
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
        sys.exit(1)
