"""The signals of a process that serves.

==================  =========================================================================================
SIGTERM, SIGINT     drain and exit; the second one aborts what is still live
SIGQUIT             the same
SIGHUP              read the settings again
SIGUSR1, SIGUSR2    ignored
SIGTTOU, SIGTTIN    ignored: a background job keeps serving when its terminal stops writers (`stty tostop`)
==================  =========================================================================================

The kernel's default actions would end or stop the process at once. So `defer_signals` is called first: all but SIGTERM
and SIGINT stay pending until there are handlers, in child processes too. SIGTERM and SIGINT keep their default actions
until then, so that a start that hangs can be ended.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterable, Iterator
from typing import Final

__all__ = [
    "ENDING_SIGNALS",
    "HANDLED_SIGNALS",
    "RELOAD_SIGNAL",
    "block_signals",
    "defer_signals",
    "ignore_signals",
    "signal_name",
    "signals_blocked",
    "threads_without_signals",
]

ENDING_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
"""Signals that drain the process. A worker process starts with them blocked, and unblocks them with its handlers."""

RELOAD_SIGNAL: Final = signal.SIGHUP
"""The signal by which service managers ask for new settings."""

HANDLED_SIGNALS: Final = (*ENDING_SIGNALS, RELOAD_SIGNAL, signal.SIGUSR1, signal.SIGUSR2)
"""All signals that need a handler, because their default action ends the process."""


def defer_signals() -> None:
    """Block signals that must not end the process before it has handlers; ignore those that would stop it."""
    for number in (signal.SIGTTOU, signal.SIGTTIN):
        signal.signal(number, signal.SIG_IGN)
    block_signals(set(HANDLED_SIGNALS) - {signal.SIGTERM, signal.SIGINT})


def block_signals(numbers: Iterable[signal.Signals] = HANDLED_SIGNALS) -> None:
    """Keep signals pending for this thread, and for threads and processes that it starts from now on."""
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)


def signal_name(number: int) -> str:
    """Return the name of a signal, or its number where it has none: most real-time signals have none (signal(7))."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def ignore_signals() -> None:
    """Ignore all `HANDLED_SIGNALS`: the process is exiting in order, and a signal must not change its exit code."""
    for number in HANDLED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def signals_blocked(numbers: Iterable[signal.Signals] = HANDLED_SIGNALS) -> Iterator[None]:
    """Block signals in this context, for this thread and for threads and processes that are started in it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def threads_without_signals() -> contextlib.AbstractContextManager[None]:
    """Return a context whose threads get no signals: the main thread may block some of them for a while."""
    return signals_blocked(signal.valid_signals())
