"""Threads for google-auth, which blocks. Its HTTP is done by the event loop.

google-auth waits on its thread while the loop makes the call on a session of ours: some 130 µs a call, once an hour.
The threads are our own, not the loop's default ones: those resolve names, which the calls made from here wait for. They
are daemons, so that the process ends whatever they do.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from proxy.errors import TokenTimeout, TokenUnavailable
from proxy.tokens.blocking import outcome_of, start_daemon
from proxy.tokens.calls import BlockingSend, Reply, Send

__all__ = ["GoogleAuthThreads"]

T = TypeVar("T")

_THREADS: Final = 4
_THREAD_NAME: Final = "google-auth"
_LONGEST_CALL_SECONDS: Final = 30.0

_LONGEST_ERRAND_SECONDS: Final = 40.0
"""The longest errand makes six calls: four to AWS, one to the STS, one to IAM."""

_GOODBYE_SECONDS: Final = 1.0

_GIVEN_UP: Final = "the mint was given up before it ended"


class GoogleAuthThreads:
    """Runs errands on threads, a few at a time."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._places = asyncio.Semaphore(_THREADS)
        self._errands: dict[concurrent.futures.Future[Any], _Line] = {}
        self._closed = False

    async def run(self, errand: Callable[[BlockingSend], T]) -> T:
        """Return what `errand` returns, or raise what it raises; it is called on a thread, with HTTP that it may use.

        Cancelled or out of time (TokenTimeout), the errand's call is broken off and every further one refused, so that
        its thread ends. Its place is free at once.
        """
        async with self._places:
            if self._closed:
                raise TokenUnavailable("the sidecar is shutting down and mints no more tokens")
            line = _Line(asyncio.get_running_loop(), self._send)
            outcome = start_daemon(lambda: errand(line.send), _THREAD_NAME)
            self._errands[outcome] = line
            # Called where the errand ends: on its thread, which may be long after whoever waited has left.
            outcome.add_done_callback(self._forget)
            try:
                async with asyncio.timeout(_LONGEST_ERRAND_SECONDS):
                    return await outcome_of(outcome)
            except TimeoutError:
                raise TokenTimeout(f"Google's answers did not come within {_LONGEST_ERRAND_SECONDS:g} s") from None
            finally:
                line.cut()

    async def close(self) -> None:
        """Break all errands off and wait for them, up to a second."""
        self._closed = True
        running = list(self._errands.items())
        for _, line in running:
            line.cut()
        if running:
            # A thread that is in compiled code when the interpreter ends could end the process with an error.
            errands = [errand for errand, _ in running]
            await outcome_of(start_daemon(lambda: concurrent.futures.wait(errands, _GOODBYE_SECONDS), _THREAD_NAME))

    def _forget(self, errand: concurrent.futures.Future[Any]) -> None:
        self._errands.pop(errand, None)


class _Line:
    """One errand's way to the loop. `send` is called on the errand's thread, `cut` on the loop's."""

    def __init__(self, loop: asyncio.AbstractEventLoop, send: Send) -> None:
        self._loop = loop
        self._to_loop = send
        self._lock = threading.Lock()
        self._call: concurrent.futures.Future[Reply] | None = None
        self._cut = False

    def send(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None) -> Reply:
        async def make() -> Reply:
            return await self._to_loop(method, url, headers, body)

        with self._lock:
            if self._cut:
                raise TokenUnavailable(_GIVEN_UP)
            call = self._call = asyncio.run_coroutine_threadsafe(make(), self._loop)
        try:
            return call.result(_LONGEST_CALL_SECONDS)
        except concurrent.futures.CancelledError:
            raise TokenUnavailable(_GIVEN_UP) from None
        except TimeoutError:
            call.cancel()
            raise TokenTimeout(f"no answer within {_LONGEST_CALL_SECONDS:g} s") from None

    def cut(self) -> None:
        with self._lock:
            self._cut = True
            if self._call is not None:
                self._call.cancel()
