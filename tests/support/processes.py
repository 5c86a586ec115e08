"""Real programs under test: started, listened to line by line, stopped.

A `Program` is its own `asyncio.SubprocessProtocol`, so there is no reading task to lose: lines arrive by callback, and
a wait for a line, or for the end, is a wait for an event.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import aiohttp

__all__ = ["Program", "ProgramFailed", "connections_on", "connections_to", "program"]

_TAIL_LINES = 25
_GRACE_SECONDS = 10.0
_PAUSE_SECONDS = 0.05


class ProgramFailed(RuntimeError):
    """A program ended, or stayed silent, when it should not have; the text has the last lines that it wrote."""

    def __init__(self, program: Program, reason: str) -> None:
        super().__init__(f"{program.name} {reason}; its last lines:\n{program.tail()}")
        self.reason = reason
        self.program = program


class Program(asyncio.SubprocessProtocol):
    """A running program; what it writes to stdout and stderr is in `lines`, in the order of arrival."""

    def __init__(self, name: str, log: Path | None = None) -> None:
        self.name = name
        self.lines: list[str] = []
        self.returncode: int | None = None
        self._log = log.open("wb") if log else None
        self._partial: dict[int, bytes] = {}
        self._transport: asyncio.SubprocessTransport | None = None
        self._changed = asyncio.Event()
        self._over = asyncio.Event()

    @property
    def pid(self) -> int:
        """The process id, also after its end."""
        assert self._transport is not None
        return self._transport.get_pid()

    def tail(self, lines: int = _TAIL_LINES) -> str:
        """Return the last lines, indented; a placeholder when there are none."""
        return "\n".join(f"    {line}" for line in self.lines[-lines:]) or "    (it wrote nothing)"

    async def line(self, pattern: str, *, within_seconds: float = 30.0) -> re.Match[str]:
        """Return the first match of `pattern` in a line, written before or after the call.

        Raises ProgramFailed when the program ends without it, or the time is over.
        """
        return (await self.matches(pattern, 1, within_seconds=within_seconds))[0]

    async def matches(self, pattern: str, count: int, *, within_seconds: float = 30.0) -> list[re.Match[str]]:
        """Return the first `count` lines' matches of `pattern`, written before or after the call.

        Raises ProgramFailed when the program ends before the last of them, or the time is over.
        """
        expression = re.compile(pattern)
        seen = 0
        found: list[re.Match[str]] = []
        try:
            async with asyncio.timeout(within_seconds):
                while True:
                    found += [match for text in self.lines[seen:] if (match := expression.search(text))]
                    if len(found) >= count:
                        return found[:count]
                    seen = len(self.lines)
                    if self._over.is_set():
                        raise ProgramFailed(self, f"ended with {self.returncode} before it wrote {pattern!r} {count}x")
                    await self._change()
        except TimeoutError:
            raise ProgramFailed(self, f"did not write {pattern!r} {count}x within {within_seconds:g} s") from None

    async def answers(self, url: str, *, within_seconds: float = 30.0) -> str:
        """Return the body of the first 200 that `url` gives; meant for a readiness page of this program.

        Raises ProgramFailed when the program ends before, or the time is over.
        """
        last = "nothing"
        try:
            async with asyncio.timeout(within_seconds), aiohttp.ClientSession() as http:
                while self.returncode is None:
                    try:
                        async with http.get(url) as response:
                            body = await response.text()
                            if response.status == 200:
                                return body
                            last = f"{response.status} {body.strip()[:200]}"
                    except aiohttp.ClientError as exc:
                        last = str(exc)
                    await asyncio.sleep(_PAUSE_SECONDS)
        except TimeoutError:
            raise ProgramFailed(self, f"was not ready within {within_seconds:g} s: {url} gave {last}") from None
        raise ProgramFailed(self, f"ended with {self.returncode} before it was ready")

    async def ended(self, *, within_seconds: float | None = _GRACE_SECONDS) -> int:
        """Return the exit status (negative: the signal that ended it); ProgramFailed when it runs on.

        `within_seconds` None means no limit.
        """
        try:
            async with asyncio.timeout(within_seconds):
                await self._over.wait()
        except TimeoutError:
            raise ProgramFailed(self, f"still ran after {within_seconds} s") from None
        assert self.returncode is not None
        return self.returncode

    def send(self, signum: signal.Signals) -> None:
        """Send a signal; nothing happens when the program has ended."""
        if self.returncode is None and self._transport is not None:
            self._transport.send_signal(signum)

    async def stop(self, signum: signal.Signals = signal.SIGTERM, *, within_seconds: float = _GRACE_SECONDS) -> int:
        """Ask it to end and return the exit status; what does not end in time is killed and ProgramFailed raised."""
        self.send(signum)
        try:
            return await self.ended(within_seconds=within_seconds)
        except ProgramFailed:
            self.send(signal.SIGKILL)
            await self.ended()
            raise

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.SubprocessTransport", transport)

    def pipe_data_received(self, fd: int, data: bytes | str) -> None:
        assert isinstance(data, bytes)
        if self._log:
            self._log.write(data)
            self._log.flush()
        *whole, self._partial[fd] = (self._partial.get(fd, b"") + data).split(b"\n")
        self._add(whole)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        if rest := self._partial.pop(fd, b""):
            self._add([rest])

    def process_exited(self) -> None:
        assert self._transport is not None
        self.returncode = self._transport.get_returncode()
        self._changed.set()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._log:
            self._log.close()
        self._over.set()
        self._changed.set()

    def _add(self, lines: Sequence[bytes]) -> None:
        if lines:
            self.lines += [line.decode(errors="replace").rstrip("\r") for line in lines]
            self._changed.set()

    def close(self) -> None:
        """Free the transport; the program must have ended."""
        if self._transport is not None:
            self._transport.close()


@asynccontextmanager
async def program(
    name: str,
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str | None] | None = None,
    log: Path | None = None,
    stop: signal.Signals = signal.SIGTERM,
    stop_seconds: float = _GRACE_SECONDS,
    pass_fds: Sequence[int] = (),
) -> AsyncIterator[Program]:
    """Run `argv` with `env` laid over this process' environment (None removes); at the end of the block it is stopped.

    It runs in a session of its own: a Ctrl-C in the terminal reaches only the process that started it, which then stops
    it in order. If that process is killed, the kernel sends `stop` instead.
    """
    loop = asyncio.get_running_loop()
    child = Program(name, log)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})}
    await loop.subprocess_exec(
        lambda: child,
        *_leash(stop),
        *map(str, argv),
        env={name: value for name, value in environment.items() if value is not None},
        stdin=asyncio.subprocess.DEVNULL,
        pass_fds=pass_fds,
        start_new_session=True,
    )
    try:
        yield child
    finally:
        try:
            await child.stop(stop, within_seconds=stop_seconds)
        finally:
            child.close()


def _leash(stop: signal.Signals) -> list[str]:
    """Return what to put before a command so that it does not outlive us (Linux; elsewhere it may)."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", stop.name.removeprefix("SIG"), "--"] if setpriv else []


def connections_on(pid: int, port: int) -> int:
    """How many established TCP connections to this port of 127.0.0.1 the process has accepted (Linux)."""
    return _connections(pid, port, column=1)


def connections_to(pid: int, port: int) -> int:
    """How many established TCP connections the process has made to this port of 127.0.0.1 (Linux)."""
    return _connections(pid, port, column=2)


def _connections(pid: int, port: int, *, column: int) -> int:
    """Count them by port in a column of /proc/PID/net/tcp: addresses of this side are in 1, those of peers in 2."""
    with open(f"/proc/{pid}/net/tcp", encoding="ascii") as table:
        rows = [row.split() for row in table.readlines()[1:]]
    known = {row[9] for row in rows if int(row[column].partition(":")[2], 16) == port and row[3] == "01"}
    folder = f"/proc/{pid}/fd"
    return sum(os.readlink(f"{folder}/{name}").strip("socket:[]") in known for name in os.listdir(folder))
