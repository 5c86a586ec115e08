"""The process that reads the settings of `serve` and ends: the other end of `settings/reading`.

It runs the command line as click has it. `serve` comes here to its end: settings that are valid are sent over the
socket; for `--help`, `--print-config`, usage errors and problems with the settings nothing is sent.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from functools import partial

from proxy.cli.commands import commands
from proxy.cli.output import open_standard_streams, run
from proxy.exit_codes import ExitCode, error_line, no_thread
from proxy.settings.plain import PlainSettings

__all__ = ["main"]


def main(descriptor: int) -> None:
    """Read the settings that `sys.argv` results in, and send them to the socket `descriptor`; ends in SystemExit."""
    answer = socket.socket(fileno=descriptor)
    open_standard_streams()
    try:
        threading.Thread(target=_end_with_parent, args=(answer,), daemon=True).start()
    except RuntimeError as exc:
        if not (said := no_thread(exc)):
            raise
        sys.stderr.write(error_line(said, sys.stderr))
        sys.exit(ExitCode.FAILED)
    run(partial(commands, obj=partial(_send, answer)))


def _end_with_parent(answer: socket.socket) -> None:
    """End this process when the other end of the socket is closed, whatever it is doing: opening a pipe may block."""
    answer.recv(1)
    os._exit(ExitCode.FAILED)


def _send(answer: socket.socket, settings: PlainSettings) -> None:
    answer.sendall(settings.to_json().encode())
    answer.shutdown(socket.SHUT_WR)
