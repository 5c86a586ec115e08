"""The sidecar of a soak: one process after the other, on the same ports."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.load.cost import Process
from tests.support.sidecar import Sidecar, sidecar

__all__ = ["Resources", "Sidecars"]

_DRAIN_SECONDS = 60.0
_EXPECTED_DEATHS = (-signal.SIGKILL,)


@dataclass(frozen=True, slots=True)
class Resources:
    """What the processes of a sidecar have."""

    octets: int
    files: int
    threads: int


class Sidecars:
    """Starts and ends sidecars; one runs at any time, but for moments."""

    def __init__(self, flags: list[str | Path], environment: Mapping[str, str | None]) -> None:
        self.starts = 0
        self.wrong: list[str] = []
        self._flags = flags
        self._environment = environment
        self._stack = AsyncExitStack()
        self._current: Sidecar | None = None
        self._contexts: AsyncExitStack | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run one for the time of a `with`."""
        await self._start()
        try:
            yield
        finally:
            await self._end(signal.SIGTERM)

    @property
    def current(self) -> Sidecar:
        """The one that runs."""
        assert self._current is not None
        return self._current

    def resources(self) -> Resources:
        """Return what all of its processes have now."""
        process = Process(self.current.program.pid)
        return Resources(process.rss_octets(), process.open_files(), process.threads())

    async def restart(self) -> None:
        """End it in order, and start another one."""
        await self._end(signal.SIGTERM)
        await self._start()

    async def kill(self, *, down_seconds: float = 0.0) -> None:
        """Kill the main process, and start another one after a time; the workers are left to themselves."""
        await self._end(signal.SIGKILL)
        await asyncio.sleep(down_seconds)
        await self._start()

    async def take_over(self) -> None:
        """Start another one, which takes over; wait until the first has ended."""
        before, contexts = self.current, self._contexts
        assert contexts is not None
        await self._start()
        status = await before.program.ended(within_seconds=_DRAIN_SECONDS)
        await self._judge(before, status)
        await contexts.aclose()

    async def kill_worker(self, workers: int) -> None:
        """Kill one of so many workers, and wait until another one listens."""
        # Not before all have started: a worker that dies sooner ends its sidecar.
        await self.current.logged('"listening"', workers)
        told = [line for line in self.current.log() if line.get("message") == "listening"]
        # The last one that started lives: nothing kills it but this.
        os.kill(int(str(told[-1]["worker"])), signal.SIGKILL)
        await self.current.logged('"listening"', len(told) + 1)

    async def _start(self) -> None:
        contexts = AsyncExitStack()
        self._current = await contexts.enter_async_context(sidecar(*self._flags, env=self._environment))
        self._contexts = contexts
        self.starts += 1

    async def _end(self, number: signal.Signals) -> None:
        current, contexts = self.current, self._contexts
        assert contexts is not None
        status = await current.program.stop(number, within_seconds=_DRAIN_SECONDS)
        await self._judge(current, status)
        await contexts.aclose()

    async def _judge(self, ended: Sidecar, status: int) -> None:
        if status not in (0, *_EXPECTED_DEATHS):
            self.wrong.append(f"the sidecar ended with {status}; its last lines:\n{ended.program.tail()}")
        await asyncio.sleep(0)
        for line in ended.program.lines:
            if "internal error" in line or "Traceback" in line:
                self.wrong.append(f"the sidecar logged: {line[:500]}")
