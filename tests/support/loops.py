"""The event loops that tests run on, and how a test waits until all that is ready has run, or moves the clock."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Final, ParamSpec

from proxy.network.loop import loop_factory

__all__ = [
    "LOOPS",
    "IdleLoop",
    "ManualLoop",
    "asyncio_loop",
    "fast_loop",
    "loop_idle",
    "skip",
    "uvloop_loop",
    "with_manual_clock",
]

P = ParamSpec("P")


class _IdleSelector(selectors.DefaultSelector):
    """Wakes the coroutines that wait for an idle loop when the loop is about to sleep."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[asyncio.Future[None]] = []

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        waiting, self.waiting = self.waiting, []
        if not waiting:
            return super().select(timeout)
        for future in waiting:
            if not future.done():
                future.set_result(None)
        return []


class IdleLoop(asyncio.SelectorEventLoop):
    """A loop of asyncio that `loop_idle` can wait for."""

    def __init__(self) -> None:
        self.idle_selector = _IdleSelector()
        super().__init__(self.idle_selector)


async def loop_idle() -> None:
    """Return when every task waits for a timer, a socket, a thread, or another task.

    Octets that were on their way between two sockets of this process have been read by then.
    """
    loop = asyncio.get_running_loop()
    assert isinstance(loop, IdleLoop)
    idle = loop.create_future()
    loop.idle_selector.waiting.append(idle)
    await idle


class ManualLoop(IdleLoop):
    """A loop whose clock stands until it is moved, and which collects the exceptions that nothing caught."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__()
        self.uncaught: list[dict[str, Any]] = []
        self.set_exception_handler(lambda _, context: self.uncaught.append(context))

    def time(self) -> float:
        return self.now

    def turn(self) -> None:
        """Run what is ready now, and not what that makes ready."""
        self.call_soon(self.stop)
        self.run_forever()

    def run_ready(self) -> None:
        """Run until nothing is ready."""
        self.run_until_complete(loop_idle())

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """For the time of a `with`, be the running loop: what is called there believes to be called in a turn."""
        asyncio.events._set_running_loop(self)
        try:
            yield
        finally:
            asyncio.events._set_running_loop(None)

    def advance(self, seconds: float) -> None:
        """Move the clock, and run the timers that have become due."""
        self.now += seconds
        self.turn()


def with_manual_clock(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run an asynchronous test on a `ManualLoop`; an exception that nothing caught fails it."""

    @wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        loop = ManualLoop()
        with asyncio.Runner(loop_factory=lambda: loop, debug=True) as runner:
            runner.run(test(*args, **kwargs))
        assert not loop.uncaught

    return run


async def skip(seconds: float) -> None:
    """Move the clock of the running `ManualLoop`, and run all that is due then."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, ManualLoop)
    loop.now += seconds
    await loop_idle()


def asyncio_loop() -> asyncio.AbstractEventLoop:
    """Return a new loop of asyncio that does not report slow callbacks."""
    return _silent(IdleLoop())


class _FastLoop(IdleLoop):
    """Never in debug mode, in which each callback keeps the stack of its caller."""

    def set_debug(self, enabled: bool) -> None:
        """Stay as it is: pytest-asyncio has one setting for all tests."""
        super().set_debug(False)


def fast_loop() -> asyncio.AbstractEventLoop:
    """Return a new loop for tests of other processes: all that runs on it are clients, services and an emulated Google.

    Debug mode, meant for the code under test, more than doubles what these cost.
    """
    return _FastLoop()


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
