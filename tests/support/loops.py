"""The event loops that asynchronous tests run on."""

from __future__ import annotations

import asyncio
from typing import Final

from proxy.network.loop import loop_factory

__all__ = ["LOOPS", "asyncio_loop", "uvloop_loop"]


def asyncio_loop() -> asyncio.AbstractEventLoop:
    """Return a new loop of asyncio that does not report slow callbacks."""
    return _silent(asyncio.new_event_loop())


def uvloop_loop() -> asyncio.AbstractEventLoop:
    """Return a new loop as a worker has it where uvloop is installed, which does not report slow callbacks."""
    make = loop_factory()
    assert make is not None
    return _silent(make())


LOOPS: Final = {"asyncio": asyncio_loop, "uvloop": uvloop_loop}
"""Every kind of loop that the sidecar runs on, by name."""


def _silent(loop: asyncio.AbstractEventLoop) -> asyncio.AbstractEventLoop:
    # All tests run in debug mode, which logs a callback of more than 0.1 s with the repr of its task and of what that
    # waits for, results included. On a busy machine any callback may be that slow: the line says nothing of the
    # program, and is in the way of tests that look at everything which was logged.
    loop.slow_callback_duration = float("inf")
    return loop
