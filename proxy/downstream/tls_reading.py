"""What TLS connections receive, decrypted a little at a time where that takes long.

A client may send records of one octet each: 64 KiB of them take seven milliseconds to decrypt, and the event loop
decrypts whatever has come, many times that much, while there is room. So the room adapts to the time that it takes to
fill; with the rest, the loop goes on in its next turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter
from typing import Final

from proxy.connection.reads import Slices

__all__ = ["SlicedReads"]

# One for all connections, because nothing stays in it.
_BUFFER: Final = bytearray(64 << 10)


class SlicedReads(asyncio.BufferedProtocol):
    """Stands between the transport of a TLS connection and a protocol.

    `buffer` is what is read into, and `serve` is called with the number of octets that it has then; by default those
    are given to the protocol's `data_received`.
    """

    def __init__(
        self, protocol: asyncio.Protocol, buffer: bytearray = _BUFFER, serve: Callable[[int], object] | None = None
    ) -> None:
        self._protocol = protocol
        self._view = memoryview(buffer)
        self._serve = serve or self._give
        self._slices = Slices()
        self._began = 0.0

    def _give(self, octets: int) -> None:
        self._protocol.data_received(bytes(self._view[:octets]))

    # ---- called by the transport

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return room for as much as takes no longer than others can wait; decrypting begins now."""
        self._began = perf_counter()
        return self._view[: self._slices.octets]

    def buffer_updated(self, nbytes: int) -> None:
        """Pass on what was decrypted."""
        self._slices.adapt(nbytes, perf_counter() - self._began)
        self._serve(nbytes)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Tell the protocol."""
        self._protocol.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the protocol."""
        self._protocol.connection_lost(exc)

    def eof_received(self) -> bool | None:
        """Tell the protocol."""
        return self._protocol.eof_received()

    def pause_writing(self) -> None:
        """Tell the protocol."""
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """Tell the protocol."""
        self._protocol.resume_writing()
