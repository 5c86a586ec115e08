"""Reads that are served a slice in each turn of the loop, as if every slice took long."""

from __future__ import annotations

from typing import Final

from proxy.connection.protocol import Http2Protocol
from proxy.connection.reads import Reads
from proxy.http2.engine import Engine

__all__ = ["SLICE_OCTETS", "serve_in_slices"]

SLICE_OCTETS: Final = 64
"""The least that is served in a turn."""
FIRST_OCTETS: Final = 2_048
SLICE_SECONDS: Final = 1.0


class SlowEngine(Engine):
    """Has another engine receive octets, and lets time pass; before it has one, they are lost."""

    def __init__(self) -> None:
        self.now = 0.0
        self.engine: Engine | None = None
        self.slices = 0

    def receive(self, data: bytes) -> None:
        self.now += SLICE_SECONDS
        self.slices += 1
        assert len(data) <= SLICE_OCTETS or self.engine is None
        if self.engine is not None:
            self.engine.receive(data)


def serve_in_slices(connection: Http2Protocol) -> SlowEngine:
    """Have all that a new connection reads be served in the smallest slices; return what counts them."""
    slow = SlowEngine()
    reads = Reads(slow, lambda: slow.now)
    reads.take(bytearray(FIRST_OCTETS), FIRST_OCTETS)  # slices become smaller while they take long
    while reads.left:
        reads.serve()
    slow.slices, slow.engine = 0, connection.engine
    connection._reads = reads
    return slow
