"""Tests that run in this process what ends a process: its signals are put back afterwards."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from proxy.signals import HANDLED_SIGNALS

__all__ = ["signals_restored"]


@contextmanager
def signals_restored() -> Iterator[None]:
    """Put handlers and mask back at the end of a `with`."""
    numbers = (*HANDLED_SIGNALS, signal.SIGTTOU, signal.SIGTTIN)
    handlers = {number: signal.getsignal(number) for number in numbers}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
