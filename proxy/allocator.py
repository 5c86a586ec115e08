"""What the process asks of the C library's allocator."""

from __future__ import annotations

import contextlib
from typing import Final

__all__ = ["return_large_blocks"]

_M_MMAP_THRESHOLD: Final = -3  # in glibc's malloc.h
_LARGE_OCTETS: Final = 256 << 10
"""More than an event loop reads at a time: content on its way is not mapped anew with each read."""


def return_large_blocks() -> None:
    """Have a block of 256 KiB or more return to the system as soon as it is freed.

    glibc begins with 128 KiB, and raises that up to 32 MiB as such blocks are freed. Then buffers of clients that have
    gone leave holes in the heap: memory stays at several times `queued_octets`. Without glibc this does nothing.
    """
    with contextlib.suppress(ImportError, OSError, AttributeError, TypeError):
        import ctypes

        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_OCTETS)
