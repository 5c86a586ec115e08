"""The limit of open files of this process, and the part of it that connections may not use.

A descriptor is the lowest free number, so a high number tells that most are in use. The last 32 (of a limit below 128
the last quarter) are left to what must work even then: the admin port, calls for tokens, files. A connection that gets
one of them is closed.
"""

from __future__ import annotations

import contextlib
import resource
from typing import Final

__all__ = ["is_reserved", "raise_descriptor_limit"]

_RESERVED: Final = 32


def raise_descriptor_limit() -> None:
    """Raise the soft limit to the hard one; child processes inherit it.

    The soft limit is 1,024 on most systems, for the sake of programs that use select(2).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # macOS takes less than its hard limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def is_reserved(descriptor: int) -> bool:
    """Return True if a new connection has a descriptor that is not for connections, and must be closed."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft != resource.RLIM_INFINITY and descriptor >= soft - min(_RESERVED, soft // 4)
