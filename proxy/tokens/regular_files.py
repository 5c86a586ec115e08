"""Reads a small file from an untrusted path: a named pipe, a device or an endless file must not block the reader.

What remains is a file system that does not answer (a network mount that hangs). No flag of `open` helps against that,
so call this on a thread that may be lost (`blocking`).
"""

from __future__ import annotations

import os
import stat
from typing import Final

__all__ = ["MOST_OCTETS", "FileTooLarge", "NotRegularFile", "read_regular"]

MOST_OCTETS: Final = 1 << 20
"""A credential, a subject token or what an executable prints is a few KiB."""


class NotRegularFile(OSError):
    """The path is a directory, a named pipe, a device or a socket; `strerror` says so in words."""


class FileTooLarge(OSError):
    """The file has more octets than may be read; `strerror` says so in words."""


def read_regular(path: str, most_octets: int = MOST_OCTETS) -> bytes:
    """Return the content of a regular file, or of a symbolic link to one.

    Raises NotRegularFile, FileTooLarge, another OSError, or ValueError for a path with a null character.
    """
    # Checked first, because opening some devices has an effect; and again below, in case the file was replaced.
    _refuse_unless_regular(path, os.stat(path).st_mode)
    # Without O_NONBLOCK, opening a pipe waits for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        _refuse_unless_regular(path, os.fstat(descriptor).st_mode)
        file = open(descriptor, "rb")  # noqa: SIM115 - from here on it closes the descriptor
    except BaseException:
        os.close(descriptor)
        raise
    with file:
        content = file.read(most_octets + 1)
    if len(content) > most_octets:
        raise FileTooLarge(None, f"it is larger than {most_octets // 1024} KiB", path)
    return content


def _refuse_unless_regular(path: str, mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    kinds = (
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISFIFO, "a named pipe"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
        (stat.S_ISSOCK, "a socket"),
    )
    kind = next((words for is_kind, words in kinds if is_kind(mode)), "something else")
    raise NotRegularFile(None, f"it is {kind}, not a regular file", path)
