"""What one of several workers does so that the admin port shows all of them: it reports, and it asks for reports.

The other end is `supervisor/collecting`, which says why it is done so. Everything that takes long is done in slices.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import partial
from typing import Any, Final

from proxy.admin.slices import in_slices
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

_COLLECT_SECONDS: Final = 5.0
"""How long the supervisor may take for the states of all workers."""
_REPORT_SECONDS: Final = 1.0
"""How often the state is reported unasked: what a killed worker counted since then is lost."""
_SECONDS_A_LINE: Final = 0.0015
"""The least interval for each line of the state. One takes some 15 µs, so reports take one per cent of a processor."""

_READINESS: Final = {
    WORKERS_STARTING: (False, "starting: a worker does not take requests yet"),
    WORKERS_READY: (True, "ready: taking requests"),
    WORKERS_DRAINING: (False, "draining: a worker finishes its live exchanges and refuses new ones"),
}


class Peers:
    """This worker among the others. `read_process` returns metrics of the process in Prometheus' text format."""

    def __init__(
        self, channel: Channel, state: WorkerState, live: Live, read_process: Callable[[], Awaitable[str]]
    ) -> None:
        self.readiness = _READINESS[WORKERS_STARTING]
        """Whether all workers take requests, and that in words."""
        self.started = False
        """True once all did."""
        self.commands: Mapping[bytes, Callable[[], None]] = {
            REPORT: self._answer,
            **{message: partial(self._take_readiness, message) for message in _READINESS},
        }
        """What to call for messages of the supervisor."""
        self.documents: Mapping[bytes, Callable[[bytes], None]] = {
            STATE: self._take_state,
            COLLECTED: self._take_last_state,
        }
        """What to call for its messages with content, with that."""
        self._channel = channel
        self._state = state
        self._live = live
        self._read_process = read_process
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._reported = b""
        self._lock = asyncio.Lock()
        self._incoming: list[bytes] = []
        self._asked = 0
        """Collections that were asked for and have not come."""
        self._collected: asyncio.Future[list[bytes]] | None = None

    def start(self) -> None:
        """Begin to report."""
        self._start(self._report_repeatedly())

    async def close(self) -> None:
        """Stop, and report a last time."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._send(STATE, "".join(self._state.lines()).encode())

    async def collect(self) -> Combined:
        """Return the state of all workers. Raises TimeoutError."""
        async with self._lock:
            self._collected = self._loop.create_future()
            self._asked += 1
            self._channel.report(COLLECT)
            try:
                async with asyncio.timeout(_COLLECT_SECONDS):
                    states = await self._collected
            finally:
                self._collected = None
        combined = Combined(self._live)
        async for _ in in_slices(combined.add(states)):
            pass
        return combined

    # ---- messages

    def _take_readiness(self, message: bytes) -> None:
        self.readiness = _READINESS[message]
        self.started = self.started or message == WORKERS_READY

    def _take_state(self, content: bytes) -> None:
        self._incoming.append(content)

    def _take_last_state(self, content: bytes) -> None:
        # Only whole collections are used: one may come after its time, and another be asked for already.
        states, self._incoming = [*self._incoming, content], []
        self._asked -= 1
        if self._collected is not None and not self._asked and not self._collected.done():
            self._collected.set_result(states)

    def _answer(self) -> None:
        self._start(self._report_once())

    # ---- reports

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _report_once(self) -> None:
        self._state.process = _numbers(await self._read_process())
        content, _ = await self._render()
        self._send(ANSWER, content)

    async def _report_repeatedly(self) -> None:
        while True:
            content, lines = await self._render()
            if content != self._reported:
                self._send(STATE, content)
            await asyncio.sleep(max(_REPORT_SECONDS, lines * _SECONDS_A_LINE))

    async def _render(self) -> tuple[bytes, int]:
        pieces = [text.encode() async for text in in_slices(self._state.lines())]
        return b"".join(pieces), sum(piece.count(b"\n") for piece in pieces)

    def _send(self, message: bytes, content: bytes) -> None:
        try:
            file = file_in_memory()
            file.write(content)
        except OSError:  # EMFILE, ENOMEM: the supervisor goes on with the last report
            return
        self._reported = content
        self._channel.send_file(message, file)


def _numbers(exposition: str) -> dict[str, float]:
    """Return the samples of an exposition without labels, by name."""
    lines = [line.split() for line in exposition.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}
