"""TLS of an upstream connection: the handshake, and what stands between the socket's transport and the protocol.

`ssl` does TLS in memory: octets of the socket are put in, and octets for it are taken out. Event loops do the same, but
their code costs as much as TLS itself where messages are small. This is compiled, and reads no more often than there
are complete records, because a read of an incomplete one raises an exception. All connections read from their sockets
into one buffer, because nothing stays in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from typing import Any, Final, cast

from proxy.connection.protocol import Http2Protocol

__all__ = ["TlsTransport", "open_tls"]

# The most octets that a record holds, and those before them (RFC 8446, 5.1).
_RECORD_OCTETS: Final = 16 << 10
_HEADER_OCTETS: Final = 5

# One for all connections, so that it stays in the processor's cache.
_READ_BUFFER: Final = bytearray(256 << 10)
_READ_VIEW: Final = memoryview(_READ_BUFFER)


async def open_tls(
    protocol: Http2Protocol, connected: socket.socket, context: ssl.SSLContext, server_hostname: str
) -> None:
    """Verify the server at the other end of a connected socket, and let `protocol` use the connection.

    The socket belongs to it then; if it fails, the socket is closed. Raises ssl.SSLError where TLS fails, and OSError.
    It waits for the server without a deadline.
    """
    loop = asyncio.get_running_loop()
    try:
        transport = TlsTransport(protocol, context, server_hostname)
        await transport.shake_hands(loop, connected)
    except BaseException:
        connected.close()
        raise
    await loop.create_connection(lambda: cast(asyncio.Protocol, transport), sock=connected)


class TlsTransport:
    """Stands between a socket's transport, to which it is the protocol, and a protocol, to which it is the transport.

    It has what they call of `asyncio.Transport` and `asyncio.Protocol` without deriving from them: a compiled class has
    no interpreted base.
    """

    __slots__ = (
        "__weakref__",
        "_blocked",
        "_body_octets",
        "_delayed",
        "_ended",
        "_failure",
        "_header_octets",
        "_incoming",
        "_outgoing",
        "_paused",
        "_peer_ended",
        "_protocol",
        "_read",
        "_records",
        "_tls",
        "_transport",
        "_write",
    )

    def __init__(self, protocol: Http2Protocol, context: ssl.SSLContext, server_hostname: str) -> None:
        self._protocol = protocol
        self._transport: Any = None
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_hostname)
        # Without the interpreted methods around it where there is one.
        tls: ssl.SSLObject = getattr(self._tls, "_sslobj", self._tls)
        self._read = cast(Callable[[int, bytearray | memoryview], int], tls.read)
        self._write = tls.write
        self._records = 0  # complete ones that were not read
        self._header_octets = 0  # of the record that is not complete, and were received
        self._body_octets = 0  # of that record, and are missing
        self._delayed = b""  # to be encrypted and written when a message of the handshake, begun by the peer, has ended
        self._blocked = False  # the transport below takes nothing now
        self._paused = False
        self._ended = False  # nothing more is written or read
        self._peer_ended = False
        self._failure: ssl.SSLError | None = None

    async def shake_hands(self, loop: asyncio.AbstractEventLoop, connected: socket.socket) -> None:
        """Do the handshake on a socket. Raises ssl.SSLError where it fails, and OSError."""
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await loop.sock_sendall(connected, self._outgoing.read())
            except ssl.SSLError:
                with contextlib.suppress(OSError):
                    connected.send(self._outgoing.read())  # the alert that says why
                raise
            received = await loop.sock_recv(connected, len(_READ_BUFFER))
            if not received:
                raise ConnectionResetError
            self._incoming.write(received)
            self._records += self._count_records(bytearray(received), len(received))
        await loop.sock_sendall(connected, self._outgoing.read())

    # ---- the transport of the protocol above

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return the TLS object for `ssl_object`, and what the transport below has for other names."""
        return self._tls if name == "ssl_object" else self._transport.get_extra_info(name, default)

    def is_closing(self) -> bool:
        """Return True once it is closed, or about to be."""
        return bool(self._transport.is_closing())

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set how many encrypted octets wait before the protocol is paused, and how many until it goes on."""
        self._transport.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        """Return how many octets wait to be written."""
        return int(self._transport.get_write_buffer_size()) + len(self._delayed)

    def pause_reading(self) -> None:
        """Serve nothing until `resume_reading`."""
        self._paused = True
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Serve what was read, in the next loop turn, and then read again."""
        self._paused = False
        self._protocol.loop.call_soon(self._serve_and_read)

    def write(self, data: bytes) -> None:
        """Encrypt and write."""
        size = len(data)
        written = 0
        if self._delayed:  # TLS may take it again, but not before that
            self._delayed += data
            return
        try:
            # All of it with OpenSSL 3.0 and Python 3.11; the interface allows less.
            written = self._write(data)
            if written < size:
                whole = memoryview(data)
                while written < size:
                    written += self._write(whole[written:])
        except ssl.SSLWantReadError:
            # A message of the handshake, as a new ticket is, has come in part (RFC 8446, 5.1): TLS takes nothing yet.
            self._delayed = data[written:]
            self._protocol.pause_writing()
        except ssl.SSLError as exc:
            # What was read in this turn may have been an alert, which says more.
            self._failure = self._failure or exc
            self._transport.abort()
            return
        self._transport.write(self._outgoing.read())

    def can_write_eof(self) -> bool:
        """Return True: HTTP/2 writes nothing any more when it closes, and waits until the peer closes."""
        return True

    def write_eof(self) -> None:
        """Say that nothing follows: close_notify (RFC 8446, 6.1), and the end of the TCP connection's direction."""
        self._ended = True
        with contextlib.suppress(ssl.SSLError):  # the peer's own has not come
            self._tls.unwrap()
        self._transport.write(self._outgoing.read())
        self._transport.write_eof()

    def abort(self) -> None:
        """Close at once; what waits is lost."""
        self._transport.abort()

    # ---- the protocol of the transport below

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the protocol; it may have come with the end of the handshake what it is to read first."""
        self._transport = transport
        self._protocol.connection_made(cast(asyncio.Transport, self))
        self._serve()

    def get_buffer(self, size_hint: int) -> bytearray:
        """Return the buffer to read into, which all connections share."""
        return _READ_BUFFER

    def buffer_updated(self, octets: int) -> None:
        """Decrypt the octets that were read into the buffer, and serve them."""
        if not self._ended:
            self._incoming.write(_READ_VIEW[:octets])
            self._records += self._count_records(_READ_BUFFER, octets)
            self._serve()

    def data_received(self, data: bytes) -> None:
        """Decrypt and serve octets; for event loops that do not ask for a buffer."""
        if not self._ended:
            self._incoming.write(data)
            self._records += self._count_records(bytearray(data), len(data))
            self._serve()

    def eof_received(self) -> bool | None:
        """End as the protocol does: HTTP/2 knows whether it misses something."""
        return self._protocol.eof_received()

    def pause_writing(self) -> None:
        """Pause the protocol."""
        self._blocked = True
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """Let the protocol write again, unless something is delayed."""
        self._blocked = False
        if not self._delayed:
            self._protocol.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the protocol."""
        self._protocol.connection_lost(exc or self._failure)

    # ---- inside

    def _count_records(self, data: bytearray, octets: int) -> int:
        """Return how many records end within the first octets of `data`."""
        place = records = 0
        while place < octets:
            if self._header_octets < _HEADER_OCTETS:
                self._header_octets += 1
                if self._header_octets >= _HEADER_OCTETS - 1:
                    self._body_octets = self._body_octets << 8 | data[place]
                place += 1
            else:
                passed = min(self._body_octets, octets - place)
                self._body_octets -= passed
                place += passed
            if self._header_octets == _HEADER_OCTETS and not self._body_octets:
                self._header_octets = 0
                records += 1
        return records

    def _serve_and_read(self) -> None:
        self._serve()
        # Not before: the end of the TCP connection, which may come next, would be served before what precedes it.
        if not self._paused and not self._transport.is_closing():
            self._transport.resume_reading()

    def _serve(self) -> None:
        """Serve the content of the complete records, unless the protocol is paused."""
        while self._records and not self._paused and not self._transport.is_closing():
            buffer = self._protocol.get_buffer(-1)
            octets = self._decrypt(buffer)
            if octets:
                self._protocol.buffer_updated(octets)
            if self._failure is not None:
                self._transport.abort()
            elif self._peer_ended:
                self._protocol.eof_received()
                self._transport.close()

    def _decrypt(self, buffer: bytearray) -> int:
        """Put the content of complete records into a buffer; return how many octets. It has room for one at least."""
        room = len(buffer)
        octets = count = 0
        rest: memoryview | None = None
        try:
            while self._records and octets + _RECORD_OCTETS <= room:
                self._records -= 1
                if not octets:
                    count = self._read(room, buffer)
                else:
                    rest = memoryview(buffer)[octets:] if rest is None else rest[count:]
                    count = self._read(room - octets, rest)
                if not count:
                    self._peer_ended = True
                    self._records = 0
                octets += count
        except ssl.SSLWantReadError:
            # Records of the handshake, as new tickets are, have no content.
            self._records = 0
            self._go_on_writing()
        except ssl.SSLError as exc:
            self._failure = exc
            self._records = 0
        return octets

    def _go_on_writing(self) -> None:
        """Write what TLS answers to a message of the handshake, and what was delayed by it."""
        if self._delayed:
            delayed, self._delayed = self._delayed, b""
            self.write(delayed)
            if not (self._delayed or self._blocked or self._transport.is_closing()):
                self._protocol.resume_writing()
        elif self._outgoing.pending:
            self._transport.write(self._outgoing.read())
