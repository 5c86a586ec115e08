"""What one of several workers does so that the admin port shows all of them: it reports, and it asks for reports.

The other end is `supervisor/collecting`, which says why it is done so. Everything that takes long is done in slices.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager
from errno import ENOSPC
from functools import partial
from hashlib import blake2b
from io import FileIO
from typing import Any, Final

import structlog

from proxy.admin.slices import collector_paused, in_slices
from proxy.downstream.channel import (
    ANSWER,
    COLLECT,
    COLLECTED,
    REPORT,
    STATE,
    WORKERS_DRAINING,
    WORKERS_READY,
    WORKERS_STARTING,
    Channel,
    file_in_memory,
)
from proxy.observe.combined import Combined
from proxy.observe.live import Live
from proxy.observe.worker_state import WorkerState

__all__ = ["Peers"]

_log: Final = structlog.get_logger("admin")

_COLLECT_SECONDS: Final = 8.0
"""How long the supervisor may take for the states of all workers."""
_MOST_COLLECTIONS: Final = 3
"""Collections in memory at once: one has megabytes, and a slow client needs it for a minute. At least two."""
_REPORT_SECONDS: Final = 1.0
"""How often the state is reported unasked: what a killed worker counted since then is lost."""
_SECONDS_A_LINE: Final = 0.0015
"""The least interval for each line of the state. One takes some 15 µs, so reports take one per cent of a processor."""

_READ_OCTETS: Final = 1 << 16

_READINESS: Final = {
    WORKERS_STARTING: (False, "starting: a worker does not take requests yet"),
    WORKERS_READY: (True, "ready: taking requests"),
    WORKERS_DRAINING: (False, "draining: a worker finishes its live exchanges and refuses new ones"),
}
_REPLACING: Final = (True, "ready: the sidecar before this one takes requests until all workers do")


class _Collection:
    """The state of all workers, for several who read it."""

    def __init__(self, combined: Combined, made: asyncio.Task[None]) -> None:
        self.combined = combined
        self.made = made
        """Ends when it is complete."""
        self.users = 0


class Peers:
    """This worker among the others. `read_process` returns the metrics of the process by name."""

    def __init__(
        self, channel: Channel, state: WorkerState, live: Live, read_process: Callable[[], Awaitable[dict[str, float]]]
    ) -> None:
        self.readiness = _REPLACING if channel.replacing else _READINESS[WORKERS_STARTING]
        """Whether all workers take requests, and that in words."""
        self.started = False
        """True once all did."""
        self.commands: Mapping[bytes, Callable[[], None]] = {
            REPORT: self._answer,
            **{message: partial(self._take_readiness, message) for message in _READINESS},
        }
        """What to call for messages of the supervisor."""
        self.files: Mapping[bytes, Callable[[FileIO | None], None]] = {
            STATE: self._take_state,
            COLLECTED: self._take_last_state,
        }
        """What to call for its messages with a file, with that; None if there was no descriptor left for it."""
        self._channel = channel
        self._state = state
        self._live = live
        self._read_process = read_process
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._reported = b""
        """Digest of the last report."""
        self._failing = False
        """True if the last report could not be made."""
        self._lock = asyncio.Lock()
        self._incoming: list[FileIO | None] = []
        """What has come of the next collection."""
        self._collected: asyncio.Future[list[FileIO]] | None = None
        self._in_use: list[_Collection] = []
        """The newest is the last one."""

    def start(self) -> None:
        """Begin to report."""
        self._start(self._report_repeatedly())

    async def close(self) -> None:
        """Stop, and report a last time."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._report(STATE, unchanged=False)

    @asynccontextmanager
    async def collected(self) -> AsyncIterator[Combined]:
        """Collect the state of all workers, for the time of a `with`. Raises TimeoutError.

        While `_MOST_COLLECTIONS` are in use, those who ask share the newest one. It never is much older than the time
        that a slow client gets: nobody joins the others, and when the first of them is free, a new one is made.
        """
        if len(self._in_use) < _MOST_COLLECTIONS:
            combined = Combined(self._live)
            self._in_use.append(_Collection(combined, self._loop.create_task(self._make(combined))))
        collection = self._in_use[-1]
        collection.users += 1
        try:
            await asyncio.shield(collection.made)
            yield collection.combined
        finally:
            collection.users -= 1
            if not collection.users:
                self._in_use.remove(collection)
                collection.made.cancel()
                with collector_paused():
                    async for _ in in_slices(collection.combined.release()):
                        pass

    async def _make(self, combined: Combined) -> None:
        """Collect. Raises TimeoutError."""
        collected: asyncio.Future[list[FileIO]] = self._loop.create_future()
        try:
            async with self._lock:
                self._collected = collected
                self._channel.report(COLLECT)
                try:
                    async with asyncio.timeout(_COLLECT_SECONDS):
                        await collected
                finally:
                    self._collected = None
            with collector_paused():
                async for _ in in_slices(combined.add(map(_lines, collected.result()))):
                    pass
        finally:  # the files may have come even if this was cancelled
            if collected.done() and not collected.cancelled():
                for state in collected.result():
                    state.close()

    # ---- messages

    def _take_readiness(self, message: bytes) -> None:
        self.readiness = _READINESS[message]
        self.started = self.started or message == WORKERS_READY

    def _take_state(self, state: FileIO | None) -> None:
        self._incoming.append(state)

    def _take_last_state(self, state: FileIO | None) -> None:
        # Messages come in order, so this is a collection and no part of another, even if it comes after its time. But
        # it may have lost a file: the sums would be too small.
        incoming, self._incoming = [*self._incoming, state], []
        states = [one for one in incoming if one is not None]
        if self._collected is not None and not self._collected.done() and len(states) == len(incoming):
            self._collected.set_result(states)
            return
        for unused in states:
            unused.close()

    def _answer(self) -> None:
        self._start(self._report_once())

    # ---- reports

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _report_once(self) -> None:
        self._state.process = await self._read_process()
        await self._report(ANSWER, unchanged=True)

    async def _report_repeatedly(self) -> None:
        while True:
            lines = await self._report(STATE, unchanged=False)
            await asyncio.sleep(max(_REPORT_SECONDS, lines * _SECONDS_A_LINE))

    async def _report(self, message: bytes, *, unchanged: bool) -> int:
        """Send the state, also `unchanged`, or only if the last report was another; return how many lines it has.

        If it cannot be written (EMFILE, ENOMEM, ENOSPC), the supervisor goes on with the last report.
        """
        lines = 0
        digest = blake2b()
        try:
            with file_in_memory() as file:
                async for text in in_slices(self._state.lines()):
                    octets = text.encode()
                    if file.write(octets) != len(octets):
                        raise OSError(ENOSPC, os.strerror(ENOSPC))
                    digest.update(octets)
                    lines += octets.count(b"\n")
                if unchanged or digest.digest() != self._reported:
                    self._reported = digest.digest()
                    self._channel.send_file(message, file)
        except OSError as exc:
            if not self._failing:
                _log.error("what this worker counts cannot be reported: trying again", reason=exc.strerror)
            self._failing = True
        else:
            self._failing = False
        return lines


def _lines(state: FileIO) -> Iterator[bytes]:
    """Yield the lines of a file; its position is not used, because other processes share it."""
    offset, rest = 0, b""
    while octets := os.pread(state.fileno(), _READ_OCTETS, offset):
        offset += len(octets)
        *lines, rest = (rest + octets).split(b"\n")
        yield from lines
