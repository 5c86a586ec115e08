"""One worker process, as the supervisor knows it."""

from __future__ import annotations

import copy
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from io import FileIO
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import DupFd
from typing import Any, Final

from proxy.downstream.channel import Channel, content_of, file_in_memory
from proxy.downstream.config import ListenerConfig
from proxy.exit_codes import KILLED_REMEDY
from proxy.network.descriptors import first_descriptor_limit, take_first_descriptor_limit
from proxy.signals import signal_name
from proxy.supervisor.channel import WorkerChannel

__all__ = ["WorkerProcess"]


_START_SECONDS: Final = 60.0
"""How long a start may take that needs two seconds; machines may be slow or busy."""

_UNREAD_OCTETS: Final = 6 << 10
"""Room for sixteen messages that a worker has not read (Linux doubles it, and takes 768 octets for each).

A worker that stands still soon gets no more connections, and those in it are lost when the worker is killed.
"""


class WorkerProcess:
    """A worker process and its channel."""

    def __init__(self, process: BaseProcess, channel: WorkerChannel) -> None:
        self.process = process
        self.channel = channel
        self.started_at = time.monotonic()
        self.start_by = self.started_at + _START_SECONDS
        """When it is killed, if it replaces another and is not ready, on the monotonic clock."""
        self.last_handed_over = 0
        """Serial number of the last connection that was sent to it."""
        self.replaced = False
        """Whether another one was started, or is about to be, in its place."""
        self._killed = False

    @property
    def pid(self) -> int:
        """Its process."""
        return self.process.pid or 0

    def kill(self) -> None:
        """End it at once. The caller says why."""
        self._killed = True
        self.process.kill()

    def exit_reason(self) -> dict[str, object]:
        """Return why it has exited, for the log, and what to do about it if that is not said elsewhere."""
        code = self.process.exitcode or 0
        if code >= 0:
            return {"exit_code": code}
        said: dict[str, object] = {"signal": signal_name(-code)}
        if code == -signal.SIGKILL and not self._killed:
            said["remedy"] = f"{KILLED_REMEDY}, or serve with fewer workers"
        return said

    @classmethod
    def start(
        cls,
        work: Callable[[ListenerConfig, Channel], None],
        config: ListenerConfig,
        listening: Sequence[socket.socket],
        *,
        admin: socket.socket | None,
        heartbeat_seconds: float,
        replacing: bool,
    ) -> WorkerProcess:
        """Start a process of `work(config, channel)`. `HANDLED_SIGNALS` must be blocked: it starts with that.

        `listening` are the supervisor's sockets; the worker gets their addresses, and a copy of the `admin` socket.
        `replacing`: another sidecar takes requests there until all workers do. Raises OSError, and leaves nothing open
        then.
        """
        supervisor_end, worker_end = socket.socketpair()
        supervisor_end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UNREAD_OCTETS)
        with worker_end, ExitStack() as unless_started, ExitStack() as once_started:
            unless_started.enter_context(supervisor_end)
            settings = once_started.enter_context(file_in_memory())
            settings.write(config.payload.encode())
            channel = Channel(
                worker_end,
                [bound.getsockname() for bound in listening],
                tls_addresses=[one.getsockname() for one in listening if one.fileno() in config.tls_descriptors],
                admin=admin,
                heartbeat_seconds=heartbeat_seconds,
                replacing=replacing,
            )
            # multiprocessing writes what it pickles to a pipe of 64 KiB, and has both of its ends open: with more, it
            # would wait for ever for a process that has died before it reads. So the settings are in a file, and the
            # arguments of this process, which it pickles, too, are left out: no worker reads them.
            small = copy.copy(config)
            small.payload = ""
            process = get_context("spawn").Process(
                target=_run, args=(work, small, channel, _Inherited(settings), first_descriptor_limit())
            )
            process.daemon = True
            _leave_removed_folder()
            with _no_arguments():
                process.start()
            unless_started.pop_all()
        return cls(process, WorkerChannel(supervisor_end))


def _leave_removed_folder() -> None:
    """Go to the root folder if the working directory was removed: multiprocessing starts no process there."""
    try:
        os.getcwd()
    except FileNotFoundError:  # relative paths have led nowhere already
        os.chdir("/")


@contextmanager
def _no_arguments() -> Iterator[None]:
    before = sys.argv
    sys.argv = before[:1]
    try:
        yield
    finally:
        sys.argv = before


class _Inherited:
    """A file of which the process that is being started gets a copy: its descriptor, once it is pickled."""

    def __init__(self, file: FileIO) -> None:
        self._file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return _descriptor, (DupFd(self._file.fileno()),)


def _descriptor(inherited: Any) -> int:
    """Return the descriptor, in the process that was started."""
    return int(inherited.detach())


def _run(
    work: Callable[[ListenerConfig, Channel], None],
    config: ListenerConfig,
    channel: Channel,
    settings: int,
    descriptor_limit: int | None,
) -> None:
    """Run the work of a worker, whose settings are in the file with this descriptor."""
    take_first_descriptor_limit(descriptor_limit)
    config.payload = content_of(settings).decode()
    work(config, channel)
