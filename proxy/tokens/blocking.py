"""Threads that may be lost: each call that can block for ever runs on a daemon thread of its own, with a deadline.

A read from a network mount that hangs cannot be cancelled. So its caller waits no longer than the deadline, its thread
takes no place that another call needs, and the process ends without it. Lost threads do not pile up: while a
call about a resource (a path) is overdue, further calls about the same one fail at once.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final, TypeVar

from proxy.errors import TokenTimeout, TokenUnavailable

__all__ = ["FILE_SECONDS", "BlockingCalls", "outcome_of", "start_daemon"]

T = TypeVar("T")

FILE_SECONDS: Final = 3.0
"""How long the file system may take to read a small file: less than the default of `mint_timeout`, so that the answer
to a request that waits says what it waited for."""

_THREAD_NAME: Final = "files"


def start_daemon(call: Callable[[], T], name: str) -> Future[T]:
    """Start `call` on a new daemon thread; the future gets its outcome. Raises TokenUnavailable without threads."""
    outcome: Future[T] = Future()
    # From here on `cancel` has no effect; the thread could not set the outcome of a cancelled future.
    outcome.set_running_or_notify_cancel()

    def work() -> None:
        try:
            result = call()
        except BaseException as exc:  # noqa: BLE001 - the caller gets it
            outcome.set_exception(exc)
        else:
            outcome.set_result(result)

    try:
        threading.Thread(target=work, name=name, daemon=True).start()
    except RuntimeError:
        raise TokenUnavailable("no thread can be started: is a limit on processes or memory reached?") from None
    return outcome


class BlockingCalls:
    """Runs blocking calls for one event loop."""

    def __init__(self) -> None:
        self._overdue: dict[str, float] = {}
        """Since when (monotonic), by resource."""

    async def run(self, call: Callable[[], T], *, resource: str, seconds: float) -> T:
        """Return what `call` returns, or raise what it raises; it runs on a thread of its own.

        Raises TokenTimeout, whose sentence begins with `resource`, after `seconds`, and at once while an earlier call
        about the same resource is overdue. Cancelled or late, the call itself goes on, and its result is dropped.
        """
        since = self._overdue.get(resource)
        if since is not None:
            raise TokenTimeout(_hangs(resource, time.monotonic() - since))
        started = time.monotonic()
        outcome = start_daemon(call, _THREAD_NAME)
        try:
            async with asyncio.timeout(seconds):
                return await outcome_of(outcome)
        except TimeoutError:
            if outcome.done():  # It ended at the deadline, or raised this itself.
                return outcome.result()
            self._overdue[resource] = started
            outcome.add_done_callback(lambda _: self._overdue.pop(resource, None))
            raise TokenTimeout(_hangs(resource, seconds)) from None


async def outcome_of(outcome: Future[T]) -> T:
    """Return or raise the outcome of a call, which goes on if this is cancelled or the loop is closed."""
    loop = asyncio.get_running_loop()
    arrived = asyncio.Event()

    def wake(done: Future[Any]) -> None:
        try:
            loop.call_soon_threadsafe(arrived.set)
        except RuntimeError:  # The loop is closed: there is no caller left.
            del done

    outcome.add_done_callback(wake)
    await arrived.wait()
    return outcome.result()


def _hangs(resource: str, seconds: float) -> str:
    return f"{resource} has not answered for {seconds:.0f} s: is it on a network file system that hangs?"
