"""How much memory Python's allocators have given out."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["traced_octets"]


@contextmanager
def traced_octets() -> Iterator[Callable[[], int]]:
    """Trace allocations during a `with`; the value returns how many octets of them have not been freed."""
    tracemalloc.start()
    try:
        yield lambda: tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
