"""Workers for `run_workers`: functions that a new process finds by their names."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from proxy.downstream.orders import Order, Orders
from proxy.downstream.signals import HANDLED_SIGNALS


def _wait_for(orders: Orders, order: Order) -> None:
    # Another process' memory has nothing to wait on; a signal that will not come is a clock.
    while orders.latest < order:
        signal.sigtimedwait([signal.SIGALRM], 0.01)


def obedient(config: Any, sockets: Any, shutdown_event: Orders) -> None:
    """Ask the parent to end as soon as all are there, and end when told."""
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) >= set(HANDLED_SIGNALS)
    os.kill(os.getppid(), getattr(signal, config.payload))
    _wait_for(shutdown_event, Order.DRAIN)


def signalling(config: Any, sockets: Any, shutdown_event: Orders) -> None:
    """Send the parent a signal that must not end anything, and then one that does."""
    os.kill(os.getppid(), getattr(signal, config.payload))
    os.kill(os.getppid(), signal.SIGTERM)
    _wait_for(shutdown_event, Order.DRAIN)
    assert shutdown_event.latest is Order.DRAIN  # the second ending signal would have it cut


def reluctant(config: Any, sockets: Any, shutdown_event: Orders) -> None:
    """End only when told twice, and let the parent be told twice."""
    os.kill(os.getppid(), signal.SIGTERM)
    _wait_for(shutdown_event, Order.DRAIN)
    os.kill(os.getppid(), signal.SIGTERM)
    _wait_for(shutdown_event, Order.CUT)


def stuck(config: Any, sockets: Any, shutdown_event: Orders) -> None:
    """Never end."""
    os.kill(os.getppid(), signal.SIGTERM)
    while True:
        signal.pause()


def failing(config: Any, sockets: Any, shutdown_event: Orders) -> None:
    """Fail, with the code that stands in the payload."""
    sys.exit(int(config.payload))


def killed(config: Any, sockets: Any, shutdown_event: Orders) -> None:
    """Die; but one of two lives until it is told to end."""
    name = f"{config.payload}/first"
    try:
        os.mkdir(name)
    except FileExistsError:
        _wait_for(shutdown_event, Order.DRAIN)
    else:
        os.kill(os.getpid(), signal.SIGKILL)
