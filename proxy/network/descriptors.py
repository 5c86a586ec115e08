"""The limit of open files of this process, and the part of it that connections may not use.

A descriptor is the lowest free number, so a high number tells that most are in use. The last 32 (of a limit below 128
the last quarter) are left to what must work even then: the admin port, calls for tokens, files. A client's connection
that gets one of them is closed. Half of them are for connections to services, too: otherwise clients that come before
the first of these could use up all descriptors, and no request would be answered.
"""

from __future__ import annotations

import contextlib
import resource
from typing import Final

__all__ = [
    "descriptors_refusal",
    "first_descriptor_limit",
    "is_reserved",
    "lower_descriptor_limit",
    "raise_descriptor_limit",
    "take_first_descriptor_limit",
]

_RESERVED: Final = 32
_LEAST: Final = 32
"""A sidecar with one worker has 18 open before it has a connection, and the last quarter is reserved."""

_first: int | None = None


def raise_descriptor_limit() -> None:
    """Raise the soft limit to the hard one; child processes inherit it.

    The soft limit is 1,024 on most systems, for the sake of programs that use select(2), or close each number below it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        take_first_descriptor_limit(soft)
        with contextlib.suppress(ValueError, OSError):  # macOS takes less than its hard limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def first_descriptor_limit() -> int | None:
    """Return the soft limit before `raise_descriptor_limit`, in a worker that of the supervisor; None: not raised."""
    return _first


def take_first_descriptor_limit(soft: int | None) -> None:
    """Take the soft limit that `first_descriptor_limit` returned in the supervisor."""
    global _first
    _first = soft


def lower_descriptor_limit(pid: int) -> None:
    """Give a program that was just started the soft limit of this one before it was raised; only on Linux."""
    if _first is not None and hasattr(resource, "prlimit"):
        with contextlib.suppress(OSError):  # it has ended already
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (_first, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def descriptors_refusal() -> str:
    """Return why this process cannot serve with so few descriptors, in a sentence; "" if there are enough.

    With a few less, libuv ends the process without a word.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= _LEAST:
        return ""
    return f"the limit of open files is {soft}, and {_LEAST} are the least: raise it (ulimit -n, LimitNOFILE)"


def is_reserved(descriptor: int, *, to_service: bool) -> bool:
    """Return True if a new connection has a descriptor that is not for connections, and must be closed.

    `to_service`: it is one to a service, and not one of a client.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    reserved = min(_RESERVED, soft // 4)
    return soft != resource.RLIM_INFINITY and descriptor >= soft - (reserved // 2 if to_service else reserved)
