"""Standard output and standard error for a process that must not wait for their readers.

A reader that stops leaves a full pipe, and every write to that blocks; if the event loop writes, everything stops, the
handling of SIGTERM included. So `background_output` replaces `sys.stdout` and `sys.stderr`: what is written goes into
a bounded queue, and one daemon thread for each stream writes it to the descriptor. Log lines, warnings, tracebacks and
prints of libraries all come this way.

Workers share a pipe, which takes a line that is longer than `PIPE_BUF` in pieces. So a writer holds a lock; without it,
lines of other workers would be mixed into a long one, and clients choose how long a path is.

A line that finds the queue full is dropped and counted; as soon as the reader has caught up, a line says how many were
dropped. `dropped_lines` is the total for the metrics.

Where no thread can be started (a limit on processes), the thread that writes a line also writes the queue to the
descriptor, as far as that does not block. The next line tries to start the thread again.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import select
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import Final, TextIO

import structlog

from proxy.signals import threads_without_signals

__all__ = ["background_output", "dropped_lines"]

_log: Final = structlog.get_logger("observe")

_MOST_QUEUED_OCTETS: Final = 1 << 20
"""About five thousand lines."""
_LONGEST_WRITE_OCTETS: Final = getattr(select, "PIPE_BUF", 512)
"""POSIX writes this much to a pipe whole or not at all: it does not mix with what programs write that hold no lock."""
_EXIT_SECONDS: Final = 1.0
"""How long the exit waits for a reader that may have stopped."""

_streams: list[BackgroundStream] = []
_dropped_by_closed_streams = 0


def dropped_lines() -> int:
    """Return how many lines this process has dropped since it started."""
    return _dropped_by_closed_streams + sum(stream.dropped for stream in _streams)


@contextlib.contextmanager
def background_output() -> Iterator[None]:
    """Replace `sys.stdout` and `sys.stderr` as described above.

    At the end, what is still queued is written, for a second at most. Streams that could not deliver everything stay
    replaced and drop whatever else is written: the interpreter flushes both when it exits, and would wait for a reader
    that has stopped, or exit with 120 because of one that has gone.
    """
    global _dropped_by_closed_streams
    before = sys.stdout, sys.stderr
    for stream in before:
        # What others have left in their buffers would be written at exit, too.
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    out, err = BackgroundStream(sys.stdout), BackgroundStream(sys.stderr)
    _streams.extend((out, err))
    sys.stdout, sys.stderr = out, err
    try:
        yield
    finally:
        if out.close_within(_EXIT_SECONDS):
            sys.stdout = before[0]
        if err.close_within(_EXIT_SECONDS):
            sys.stderr = before[1]
        for stream in (out, err):
            _streams.remove(stream)
            _dropped_by_closed_streams += stream.dropped


class BackgroundStream(io.TextIOBase):
    """A text stream that never raises, and does not wait for a reader; its thread starts with the first line.

    Text is queued by whole lines. Any thread may write.
    """

    def __init__(self, target: TextIO, max_queued_octets: int = _MOST_QUEUED_OCTETS) -> None:
        self.dropped = 0
        """Lines that were written here and not delivered."""
        self._target = target
        self._max_queued_octets = max_queued_octets
        self._write = _writer_to(target)
        self._lines: SimpleQueue[bytes | None] = SimpleQueue()
        # Re-entrant: a destructor that runs while this is held may write a warning.
        self._lock = threading.RLock()
        self._queued_octets = 0
        self._partial = ""
        self._unreported = 0
        self._failing = False
        self._thread: threading.Thread | None = None
        self._over = False

    # ---- what callers see: a text stream

    @property
    def encoding(self) -> str:  # type: ignore[override]  # a read-only attribute there
        return "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]  # a read-only attribute there
        return "backslashreplace"

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._target.isatty()

    def fileno(self) -> int:
        return self._target.fileno()

    def flush(self) -> None:
        """Queue what is written of a line so far, and do not wait for anything."""
        with self._lock:
            partial, self._partial = self._partial, ""
            if partial:
                self._put(partial)

    def write(self, text: str) -> int:
        if threading.current_thread() is self._thread:
            # The report about dropped lines. It may block, so without the lock that other threads take.
            self._write_or_drop(text.encode("utf-8", "backslashreplace"), 0)
            return len(text)
        with self._lock:
            *lines, self._partial = (self._partial + text).split("\n")
            for line in lines:
                self._put(f"{line}\n")
            if len(self._partial) > self._max_queued_octets:
                self.flush()
        return len(text)

    def close_within(self, seconds: float) -> bool:
        """Take nothing more, wait until what is queued is written, and return whether the last write succeeded."""
        self.flush()
        with self._lock:
            self._over = True
            if self._thread is None:
                self._write_here(seconds)
                return not self._failing and not self._queued_octets
        self._lines.put(None)
        self._thread.join(seconds)
        return not self._thread.is_alive() and not self._failing

    # ---- inside

    def _put(self, line: str) -> None:
        octets = line.encode("utf-8", "backslashreplace")
        if self._over or self._queued_octets + len(octets) > self._max_queued_octets:
            self._drop(1)
            return
        self._queued_octets += len(octets)
        self._lines.put(octets)
        if not self._started():
            self._write_here(0.0)

    def _started(self) -> bool:
        """Start the thread unless it runs; return False where the system has no thread for us."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="output", daemon=True)
            try:
                with threads_without_signals():
                    thread.start()
            except RuntimeError:
                return False
            self._thread = thread
        return True

    def _write_here(self, seconds: float) -> None:
        """Write what is queued in this thread, while there is no other, and the reader takes more within this time."""
        while self._queued_octets and _takes_more(self._target, seconds):
            self._deliver(self._lines.get_nowait() or b"", 1)

    def _drop(self, lines: int) -> None:
        with self._lock:
            self.dropped += lines
            self._unreported += lines

    def _run(self) -> None:
        """Write what is queued until the stream is closed, several lines at once where there are some."""
        line: bytes | None = b""
        while line is not None:
            line = self._lines.get()
            piece, count = b"", 0
            while line is not None:
                if count and len(piece) + len(line) > _LONGEST_WRITE_OCTETS:
                    self._deliver(piece, count)
                    piece, count = b"", 0
                piece += line
                count += 1
                try:
                    line = self._lines.get_nowait()
                except Empty:
                    break
            if count:
                self._deliver(piece, count)
        if self._unreported and not self._failing:
            self._report()

    def _deliver(self, piece: bytes, lines: int) -> None:
        self._write_or_drop(piece, lines)
        with self._lock:
            self._queued_octets -= len(piece)
            caught_up = self._queued_octets <= self._max_queued_octets // 2
        if self._unreported and caught_up and not self._failing:
            self._report()

    def _write_or_drop(self, octets: bytes, lines: int) -> None:
        try:
            self._write(octets)
            self._failing = False
        except (OSError, ValueError):  # the reader has gone, or the disk is full; ValueError: the stream is closed
            self._failing = True
            self._drop(lines)

    def _report(self) -> None:
        with self._lock:
            count, self._unreported = self._unreported, 0
        _log.warning("log lines were dropped: the reader of this output did not keep up", dropped=count)


def _writer_to(target: TextIO) -> Callable[[bytes], None]:
    """Return what writes all octets to a stream, blocking: to its descriptor where it has one.

    `sys.stderr.write` would hold a lock while it is blocked that the interpreter takes when it exits.
    """
    try:
        descriptor = target.fileno()
    except (OSError, ValueError):

        def write_text(octets: bytes) -> None:
            target.write(octets.decode())
            target.flush()

        return write_text

    def write(octets: bytes) -> None:
        with _alone(descriptor):
            while octets:
                try:
                    octets = octets[os.write(descriptor, octets) :]
                except BlockingIOError:  # another process that shares the descriptor has made it non-blocking
                    poll = select.poll()
                    poll.register(descriptor, select.POLLOUT)
                    poll.poll()

    return write


def _takes_more(target: TextIO, seconds: float) -> bool:
    """Return True if a short write to a stream does not block, at once or within this time."""
    try:
        poll = select.poll()
        poll.register(target.fileno(), select.POLLOUT)
        return bool(poll.poll(seconds * 1_000))
    except (OSError, ValueError):  # it has no descriptor, or is closed
        return True


@contextlib.contextmanager
def _alone(descriptor: int) -> Iterator[None]:
    """Wait while another process is in here with the same pipe or socket; other files take a line at once.

    Linux ends the lock of a process that dies. Without locks for pipes, as on other systems, nobody waits.
    """
    with contextlib.suppress(OSError):
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
            fcntl.lockf(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            fcntl.lockf(descriptor, fcntl.LOCK_UN)
