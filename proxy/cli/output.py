r"""Standard streams that are always open, and whose writes never raise.

* A stream that is closed (`>&-`) becomes /dev/null, or where that is missing a socket without another end.
* A character that the encoding of a stream does not have is written as an escape, as in `\u2026`.
* What cannot be written is dropped. `run` says so at the end of a command, in one sentence, and then the command has
  failed. That a reader has gone (`| head -1`) is no failure, and nothing is said of it.

So a command always goes to its end, and its exit code is that of what it found.
"""

from __future__ import annotations

import io
import os
import select
import socket
import sys
from collections.abc import Callable
from typing import Any, Final, TextIO

from proxy.exit_codes import ExitCode, error_line

__all__ = ["open_standard_streams", "output_problem", "print_optional", "run"]

_ENCODING_ERRORS: Final = "backslashreplace"


def open_standard_streams() -> None:
    """Replace `sys.stdin`, `sys.stdout` and `sys.stderr` as described above.

    /dev/null takes the numbers of closed ones: a file or socket that is opened later would get such a number, and lines
    for stderr would be written there.
    """
    if None in (sys.stdin, sys.stdout, sys.stderr):
        while (descriptor := _nothing()) <= 2:
            os.set_inheritable(descriptor, True)
        os.close(descriptor)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - it stays open
    sys.stdout = _opened(sys.stdout, 1)
    sys.stderr = _opened(sys.stderr, 2)


def output_problem() -> str | None:
    """Return why something could not be written to standard output; None if all was, or if its reader has gone."""
    output = _standard_output()
    return (
        None if output is None or isinstance(output.problem, ConnectionError | None) else str(output.problem.strerror)
    )


def print_optional(text: str) -> None:
    """Print a line of a command whose result is its exit code: a failed write is reported, and the command succeeds."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
    if (output := _standard_output()) is not None:
        output.fails_command = False


def run(command: Callable[[], object]) -> None:
    """Run a command, which ends in SystemExit; if standard output could not be written, say so, and fail."""
    try:
        command()
    except SystemExit as end:
        sys.stdout.flush()
        problem, output = output_problem(), _standard_output()
        if problem is not None:
            sys.stderr.write(error_line(f"standard output cannot be written: {problem}", sys.stderr))
            if not end.code and output is not None and output.fails_command:
                raise SystemExit(ExitCode.FAILED) from None
        raise


def _nothing() -> int:
    """Return a new descriptor of /dev/null; without one, of a socket whose other end is closed."""
    try:
        return os.open(os.devnull, os.O_RDWR)
    except OSError:  # a container without devices, or a user who may not write to this one
        ours, other = socket.socketpair()
        other.close()
        return ours.detach()


class _StandardOutput(io.FileIO):
    """A descriptor that drops everything after the first write that fails."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.problem: OSError | None = None
        """Why a write failed; None if none did."""
        self.fails_command = True
        """False if the command can do without what it wrote."""

    def write(self, octets: Any) -> int:
        try:
            while self.problem is None:
                written = super().write(octets)
                if written is not None:
                    return written
                # Another process that shares the descriptor has made it non-blocking.
                poll = select.poll()
                poll.register(self, select.POLLOUT)
                poll.poll()
        except OSError as exc:
            self.problem = exc
        return len(octets)


def _opened(stream: TextIO | None, descriptor: int) -> TextIO:
    """Return what writes to the descriptor in the place of its stream; a stream of another kind stays."""
    if stream is not None and not (isinstance(stream, io.TextIOWrapper) and stream.fileno() == descriptor):
        return stream
    return io.TextIOWrapper(
        io.BufferedWriter(_StandardOutput(descriptor)),
        encoding="utf-8" if stream is None else stream.encoding,
        errors=_ENCODING_ERRORS,
        line_buffering=descriptor == 2 or (stream is not None and stream.line_buffering),
        write_through=stream is not None and stream.write_through,
    )


def _standard_output() -> _StandardOutput | None:
    """Return what standard output writes to; None where it is another stream, as in tests."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw if isinstance(raw, _StandardOutput) else None
