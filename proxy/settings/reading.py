"""Reads the settings in a short-lived process: at the start of `serve`, and (by way of `reloading`) for a reload.

The process that serves never imports click, pydantic or the model: Python does not unload modules, and these take
11 MiB. The reading process

* is started with the same interpreter, flags, import path, working directory and environment;
* inherits standard streams and every inheritable descriptor under its number, so `--config /dev/stdin`, `/dev/fd/3` and
  `/proc/self/fd/3` mean the same file there;
* writes help, usage errors and problems to the same standard output and error, and its exit code becomes ours;
* sends `PlainSettings` as JSON over a socket;
* ends when the other end of this socket is closed: after the deadline, when the reading is cancelled, and when this
  process ends, even by SIGKILL. It has all ending signals blocked: Ctrl-C reaches both processes, and one answers.
"""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from proxy.exit_codes import KILLED_REMEDY, PROCESSES_REMEDY, ExitCode
from proxy.settings.plain import PlainSettings
from proxy.signals import signal_name, signals_blocked

__all__ = ["DEADLINE_SECONDS", "CommandLine", "Reading", "SettingsNotRead", "read_settings"]

DEADLINE_SECONDS: Final = 60.0
"""How long the process may take. It needs half a second; a pipe or network mount that it reads may take longer."""

_KILLED_SECONDS: Final = 5.0
"""How long to wait for the end of a killed process; one that hangs in a system call of a network mount stays."""

# A socket, not a pipe: `--config /dev/fd/N` with the number of a pipe would read from it and hang; opening a socket by
# such a name fails at once.
_CODE: Final = (
    "import sys; sys.path[:] = {import_path!a}; sys.argv[0] = {program!a}; __package__ = {package!a}; "
    "from {reader} import main; main({descriptor})"
)


class SettingsNotRead(Exception):
    """The reading process gave no settings: it printed something else, such as help, or failed.

    The text is "" where the process has written the reason to standard error itself.
    """

    def __init__(self, exit_code: int, text: str = "") -> None:
        self.exit_code = exit_code
        super().__init__(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandLine:
    """Everything that the settings are read from, but for files; a reload reads the same again."""

    reader: str
    """Module whose `main(descriptor)` reads the settings from `sys.argv` and sends their JSON to a socket."""
    program: str
    """`sys.argv[0]`."""
    package: str | None
    """`__package__` of the main module. Usage errors name the program by it (`python -m proxy`)."""
    arguments: tuple[str, ...]
    """`sys.argv[1:]`."""
    environment: Mapping[str, str]
    """All variables that the reading process gets."""
    import_path: tuple[str, ...]
    """`sys.path`."""

    @classmethod
    def of_this_process(cls, reader: str) -> CommandLine:
        """Return the command line that this process was started with."""
        return cls(
            reader=reader,
            program=sys.argv[0],
            package=getattr(sys.modules["__main__"], "__package__", None),
            arguments=tuple(sys.argv[1:]),
            environment=dict(os.environ),
            import_path=tuple(sys.path),
        )


def read_settings(command_line: CommandLine, *, seconds: float = DEADLINE_SECONDS) -> PlainSettings:
    """Return the settings of a command line; it blocks, and is interrupted by signals. Raises SettingsNotRead."""
    with Reading(command_line, capture_errors=False) as reading:
        return reading.result(seconds)


class Reading:
    """One run of the reading process: a context manager that starts it, and ends it however the block ends."""

    def __init__(self, command_line: CommandLine, *, capture_errors: bool) -> None:
        self._command_line = command_line
        self._capture_errors = capture_errors
        self._ours, self._its = socket.socketpair()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Reading:
        try:
            with self._its, signals_blocked():
                self._process = self._start(self._its.fileno())
        except OSError as exc:
            self._ours.close()
            what = f"cannot start {sys.executable or 'Python'} to read the settings: {exc.strerror or exc}"
            if exc.errno in (errno.EAGAIN, errno.ENOMEM):
                what = f"{what}; {PROCESSES_REMEDY} or of memory"
            raise SettingsNotRead(ExitCode.FAILED, what) from exc
        except BaseException:  # KeyboardInterrupt, as the signals are unblocked
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._ours.close()
        if self._process is None:
            return
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_KILLED_SECONDS)
        if self._process.stderr is not None:
            self._process.stderr.close()

    def cancel(self) -> None:
        """Make `result` raise soon, from another thread."""
        with contextlib.suppress(OSError):  # It is over already.
            self._ours.shutdown(socket.SHUT_RDWR)

    def result(self, seconds: float) -> PlainSettings:
        """Wait for the settings; SettingsNotRead if there are none, or none in time."""
        assert self._process is not None  # noqa: S101 - tells the type checker
        deadline = time.monotonic() + seconds
        answer, errors = bytearray(), bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(self._ours, selectors.EVENT_READ, answer)
            if self._process.stderr is not None:
                selector.register(self._process.stderr, selectors.EVENT_READ, errors)
            while selector.get_map():
                for key, _ in selector.select(max(0.0, deadline - time.monotonic())):
                    octets = os.read(key.fd, 1 << 16)
                    key.data.extend(octets)
                    if not octets:
                        selector.unregister(key.fileobj)
                if time.monotonic() >= deadline:
                    raise _too_late(seconds)
        if answer:
            try:
                return PlainSettings.from_json(bytes(answer))
            except ValueError as exc:
                what = f"the settings were read by another version of cloudrun-sidecar, restart it: {exc}"
                raise SettingsNotRead(ExitCode.FAILED, what) from exc
        try:
            exit_code = self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise _too_late(seconds) from None
        if exit_code < 0:
            what = f"the process that reads the settings was ended by {signal_name(-exit_code)}"
            if exit_code == -signal.SIGKILL:
                what = f"{what}; {KILLED_REMEDY}"
            raise SettingsNotRead(ExitCode.FAILED, what)
        raise SettingsNotRead(exit_code, errors.decode(errors="replace"))

    def _start(self, descriptor: int) -> subprocess.Popen[bytes]:
        given = self._command_line
        code = _CODE.format(
            import_path=list(given.import_path),
            program=given.program,
            package=given.package,
            reader=given.reader,
            descriptor=descriptor,
        )
        # Private, but what multiprocessing and CPython's tests start their interpreters with.
        flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
        return subprocess.Popen(  # noqa: S603 - this interpreter, with the arguments that it was started with
            [sys.executable or "", *flags, "-c", code, *given.arguments],
            env=given.environment,
            pass_fds=(descriptor, *_inheritable_descriptors()),
            # SIGPIPE is ignored here; with its default action, one to the process group would end the process.
            restore_signals=False,
            stdout=subprocess.DEVNULL if self._capture_errors else None,
            stderr=subprocess.PIPE if self._capture_errors else None,
        )


def _too_late(seconds: float) -> SettingsNotRead:
    what = f"the settings were not read within {seconds:g} seconds: does a pipe or a network mount with them hang?"
    return SettingsNotRead(ExitCode.FAILED, what)


def _inheritable_descriptors() -> list[int]:
    """Return the descriptors over 2 that this process was started with for its own use, or has made inheritable."""
    found = []
    with contextlib.suppress(OSError):  # There is no /dev/fd, so nothing can be named by it.
        for number in map(int, os.listdir("/dev/fd")):
            with contextlib.suppress(OSError):  # what the listing itself was read from
                if number > 2 and os.get_inheritable(number):
                    found.append(number)
    return found
