"""Threads for google-auth, which blocks. Its HTTP is done by the event loop.

google-auth waits on its thread while the event loop makes the call with the sidecar's HTTP client: some 130 µs a call,
once an hour. These are not the loop's default threads: those resolve names, for which the calls made from here wait.
They are daemons, so that the process ends whatever they do.
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
from proxy.tokens.gate import Gate

__all__ = ["GoogleAuthThreads"]

T = TypeVar("T")

_THREADS: Final = 4
_THREAD_NAME: Final = "google-auth"
_LONGEST_CALL_SECONDS: Final = 30.0

_LONGEST_JOB_SECONDS: Final = 40.0
"""The longest job makes six calls: four to AWS, one to the STS, one to IAM."""

_CLOSE_SECONDS: Final = 1.0

_CANCELLED: Final = "the mint was given up before it ended"


class GoogleAuthThreads:
    """Runs jobs on threads, a few at a time."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._threads = Gate(_THREADS)
        self._jobs: dict[concurrent.futures.Future[Any], _JobCalls] = {}
        self._closed = False

    async def run(self, job: Callable[[BlockingSend], T]) -> T:
        """Return what `job` returns, or raise what it raises; it is called on a thread, with an HTTP client.

        When cancelled or late (TokenTimeout), the job's HTTP call is cancelled and every further one refused, so that
        its thread ends. Another job may start at once.
        """
        async with self._threads.place():
            if self._closed:
                raise TokenUnavailable("the sidecar is shutting down and mints no more tokens")
            calls = _JobCalls(asyncio.get_running_loop(), self._send)
            outcome = start_daemon(lambda: job(calls.send), _THREAD_NAME)
            self._jobs[outcome] = calls
            # Called on the thread, where the job ends: that may be long after the caller has left.
            outcome.add_done_callback(lambda ended: self._jobs.pop(ended, None))
            try:
                async with asyncio.timeout(_LONGEST_JOB_SECONDS):
                    return await outcome_of(outcome)
            except TimeoutError:
                raise TokenTimeout(f"Google's answers did not come within {_LONGEST_JOB_SECONDS:g} s") from None
            finally:
                calls.refuse()

    async def close(self) -> None:
        """Cancel the HTTP calls of all jobs and wait for the jobs, up to a second."""
        self._closed = True
        running = list(self._jobs.items())
        for _, calls in running:
            calls.refuse()
        if running:
            # A thread that is in compiled code when the interpreter ends could end the process with an error.
            jobs = [job for job, _ in running]
            await outcome_of(start_daemon(lambda: concurrent.futures.wait(jobs, _CLOSE_SECONDS), _THREAD_NAME))


class _JobCalls:
    """The HTTP calls of one job. `send` is called on the job's thread, `refuse` on the loop's."""

    def __init__(self, loop: asyncio.AbstractEventLoop, send: Send) -> None:
        self._loop = loop
        self._to_loop = send
        self._lock = threading.Lock()
        self._call: concurrent.futures.Future[Reply] | None = None
        self._refused = False

    def send(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None) -> Reply:
        async def make() -> Reply:
            return await self._to_loop(method, url, headers, body)

        with self._lock:
            if self._refused:
                raise TokenUnavailable(_CANCELLED)
            call = self._call = asyncio.run_coroutine_threadsafe(make(), self._loop)
        try:
            return call.result(_LONGEST_CALL_SECONDS)
        except concurrent.futures.CancelledError:
            raise TokenUnavailable(_CANCELLED) from None
        except TimeoutError:
            call.cancel()
            raise TokenTimeout(f"no answer within {_LONGEST_CALL_SECONDS:g} s") from None

    def refuse(self) -> None:
        with self._lock:
            self._refused = True
            if self._call is not None:
                self._call.cancel()
