"""What signals mean to a process that serves.

==================  =====================================================================================
SIGTERM, SIGINT     drain and end; the second one cuts what is still live
SIGQUIT             the same
SIGHUP              nothing yet but a log line: settings are read at the start
SIGUSR1, SIGUSR2    nothing
SIGTTOU, SIGTTIN    nothing: a background job whose terminal stops writers (`stty tostop`) goes on serving
==================  =====================================================================================

The kernel's defaults would end or stop the process at once. So `hold_signals` is called first: until there are
handlers, all but SIGTERM and SIGINT stay pending, also in processes that are started meanwhile.
SIGTERM and SIGINT keep their defaults until then, so that a start that hangs can be ended.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable
from typing import Final

__all__ = ["ENDING_SIGNALS", "HANDLED_SIGNALS", "RELOAD_SIGNAL", "block_signals", "hold_signals", "ignore_signals"]

ENDING_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
"""What asks a process to end. A worker process starts with them blocked, and unblocks them when it can obey."""

RELOAD_SIGNAL: Final = signal.SIGHUP

HANDLED_SIGNALS: Final = (*ENDING_SIGNALS, RELOAD_SIGNAL, signal.SIGUSR1, signal.SIGUSR2)
"""All that need a handler."""


def hold_signals() -> None:
    """Keep signals pending that must not end the process before it has handlers; ignore those that would stop it."""
    for number in (signal.SIGTTOU, signal.SIGTTIN):
        signal.signal(number, signal.SIG_IGN)
    block_signals(set(HANDLED_SIGNALS) - {signal.SIGTERM, signal.SIGINT})


def block_signals(numbers: Iterable[signal.Signals] = HANDLED_SIGNALS) -> None:
    """Keep signals pending for this thread, and for threads and processes that it starts from here on."""
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)


def ignore_signals() -> None:
    """Have no signal do anything any more: the process is ending in order, and its exit code must say so."""
    for number in HANDLED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
