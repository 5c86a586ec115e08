"""Signals of a supervisor: blocked while workers start, and received as octets of a socket."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker

from proxy.signals import ENDING_SIGNALS, HANDLED_SIGNALS, block_signals, ignore_signals, signals_blocked

__all__ = ["blocked_for_workers", "signals_to_socket"]


@contextmanager
def blocked_for_workers() -> Iterator[None]:
    """Start child processes with `HANDLED_SIGNALS` blocked; meanwhile, they stay pending in this process too.

    Otherwise a signal between the start of a worker and its first handler would kill the worker.
    """
    with signals_blocked(set(HANDLED_SIGNALS) - set(ENDING_SIGNALS[:2])):
        # Otherwise multiprocessing starts it with the first worker; it then unblocks SIGTERM and SIGINT, which it
        # ignores. Other signals to the group stay pending in it until it exits.
        resource_tracker.ensure_running()
        block_signals()
        yield


@contextmanager
def signals_to_socket() -> Iterator[socket.socket]:
    """Yield a socket that receives the number of each of `HANDLED_SIGNALS` as an octet; ignore them afterwards."""
    reading, writing = socket.socketpair()
    reading.setblocking(False)
    writing.setblocking(False)
    before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    for number in HANDLED_SIGNALS:
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED_SIGNALS)
    try:
        yield reading
    finally:
        ignore_signals()
        signal.set_wakeup_fd(before)
        reading.close()
        writing.close()
