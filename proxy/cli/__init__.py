"""The command line: `cloudrun-sidecar COMMAND`; one file a command.

* `commands`            the list of them, and what is common to their help
* `redaction`           removes possible secrets from click's messages
* `completion`          what the shell completes: route names, hosts, accounts, values
* `output`              standard streams that are always open, and whose writes never raise
* `failures`            how every command says that it failed
* `parsing`             reads a command line to its end, and says all its mistakes
* `seconds`             the type of options that are times
* `options`             the flags that are made of the settings
* `deployment_options`  the flags of deployments and of Restate's admin API, and what they stand for
* `emulate_options`     what the options of `emulate` take
* `screen`              prints the reports of a check, with a line of progress
* `probe`               asks the admin port of a running sidecar
* `serve`, `check`, …   a command each, imported when it is run
* `settings_process`    the process in which `serve` reads its settings
"""

from __future__ import annotations

import os
import signal
import sys

import proxy
from proxy.cli.output import open_standard_streams, run
from proxy.exit_codes import ExitCode, error_line

__all__ = ["main"]

_REPLACED = (
    "another distribution with a package named proxy, such as proxy.py, has replaced files of this one; install "
    "cloudrun-sidecar into an environment of its own"
)


def main() -> None:
    """Run what the command line says; ends in SystemExit."""
    if os.getpid() == 1:
        # The kernel drops a signal for which process 1 has no handler: a container would run on until it is killed.
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    open_standard_streams()
    if not hasattr(proxy, "__version__"):
        sys.stderr.write(error_line(_REPLACED, sys.stderr))
        sys.exit(ExitCode.SETTINGS_UNUSABLE)
    # click takes one `--` before a command.
    if sys.argv[1:2] == ["serve"] or sys.argv[1:3] == ["--", "serve"]:
        sys.exit(_serve())
    from proxy.cli.commands import commands  # not in a process that serves: see `settings/reading`

    run(commands)


def _serve() -> int:
    """Read the settings in another process, serve with them, and return the exit code."""
    from proxy.signals import defer_signals  # the other commands keep the defaults

    defer_signals()
    # A parent that ignores SIGCHLD hands that down; exit codes of our own children would be lost.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # Imported after the signals are blocked. Other commands do without these modules.
    from proxy.settings.reading import CommandLine, SettingsNotRead, read_settings

    try:
        command_line = CommandLine.of_this_process("proxy.cli.settings_process")
        settings = read_settings(command_line)
        from proxy.supervisor.serve import serve  # not for help, or a mistake in a setting

        return serve(settings, command_line)
    except SettingsNotRead as exc:
        if text := str(exc):
            sys.stderr.write(error_line(text, sys.stderr))
        return exc.exit_code
    except KeyboardInterrupt:  # before the sidecar handles signals
        sys.stderr.write(error_line("interrupted", sys.stderr))
        return ExitCode.FAILED
