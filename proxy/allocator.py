"""What the process asks of the C library's allocator."""

from __future__ import annotations

import contextlib
from typing import Final

__all__ = ["return_large_blocks"]

# In glibc's malloc.h.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3

_LARGE_OCTETS: Final = 256 << 10
"""More than is read from a socket, or written to it, at a time (`http2.policy.sending.MAX_TAKEN_OCTETS`)."""
_KEPT_OCTETS: Final = 8 << 20
"""What stays free at the end of the heap. To return pages and ask for them again took a third of an upload."""


def return_large_blocks() -> None:
    """Have a block of 256 KiB or more return to the system as soon as it is freed, and smaller ones stay.

    glibc begins with 128 KiB, and raises that up to 32 MiB as such blocks are freed. Then buffers of clients that have
    gone leave holes in the heap: memory stays at several times `queued_octets`. Until then, each block of content is
    mapped, and cleared by the kernel, each time. Without glibc this does nothing.
    """
    with contextlib.suppress(ImportError, OSError, AttributeError, TypeError):
        import ctypes

        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, _LARGE_OCTETS)
        library.mallopt(_M_TRIM_THRESHOLD, _KEPT_OCTETS)
