"""The state of a file, by which a change is noticed without reading it."""

from __future__ import annotations

import os
import stat

__all__ = ["file_state", "state_of_path"]


def file_state(descriptor: int) -> tuple[int, ...]:
    """Return device, inode, size and the times of the last changes; `()` if it is not a regular file. Raises OSError.

    The time of the last status change is among them, so that new permissions count as a change.
    """
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def state_of_path(path: str | os.PathLike[str]) -> tuple[int, ...]:
    """Return the state of the file at this path. Raises OSError if it is missing or this process may not read it."""
    # Not opened unless it is a regular file: a named pipe would be opened for its writer, too.
    if not stat.S_ISREG(os.stat(path).st_mode):
        return ()
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return file_state(descriptor)
    finally:
        os.close(descriptor)
