"""TLS towards clients: the certificate, which is replaced while connections are served, and handshakes."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from proxy.downstream.tls_reading import SlicedReads

__all__ = ["HANDSHAKE_SECONDS", "Handshakes", "TlsContext", "TlsFiles", "TlsServer", "TlsUnusable", "server_context"]

_log: Final = structlog.get_logger("downstream")

HANDSHAKE_SECONDS: Final = 10.0
"""Time for a handshake."""
_LAST_SECONDS: Final = 1.0
"""Time for handshakes that are under way when the listener is closed."""
_POLL_SECONDS: Final = 5.0
"""Between two looks at the files."""
_SHUTDOWN_SECONDS: Final = 1.0
"""Time for the end of TLS when a connection is closed in order."""

_SIGNING_TURNS: Final = 3
"""Turns of the loop in which a handshake whose first octets are here is begun, reads them, and signs."""
_MOST_ACCEPTED: Final = 64
"""Connections accepted in a row before other events are served."""
_NO_DESCRIPTORS_SECONDS: Final = 1.0
"""Pause in accepting after the kernel could not make a descriptor."""

# Ephemeral keys and authenticated encryption: RFC 9113, 9.2.2 forbids everything else with TLS 1.2.
_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"

_CERTIFICATE: Final = b"-----BEGIN CERTIFICATE-----"
_KEY: Final = b"PRIVATE KEY-----"


class TlsUnusable(Exception):
    """The files of a certificate cannot be used; `str()` names them and says why."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files."""

    certificate: Path
    """The certificate, followed by those of the authorities between it and the root."""
    key: Path
    """Its private key."""
    client_ca: Path | None = None
    """Certificates of the authorities of clients, which must have a certificate then; None: they need none."""

    def state(self) -> tuple[tuple[int, ...] | None, ...]:
        """Return what differs once a file was replaced or written to. Blocks."""
        return tuple(_state(path) for path in (self.certificate, self.key, self.client_ca))


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """Return a context for TLS 1.2 and newer that offers `h2` and `http/1.1` (ALPN). Blocks; raises TlsUnusable."""
    certificate, key = _read(files.certificate, "tls_certificate"), _read(files.key, "tls_key")
    if _CERTIFICATE not in certificate:
        raise TlsUnusable(f"{files.certificate} (tls_certificate) holds no PEM certificate")
    if _KEY not in key:
        raise TlsUnusable(f"{files.key} (tls_key) holds no private key in PEM form")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION  # RFC 9113, 9.2.1
    context.set_ciphers(_CIPHERS)
    context.set_alpn_protocols(["h2", "http/1.1"])
    try:
        context.load_cert_chain(files.certificate, files.key, password=_no_password)
    except ssl.SSLError as exc:
        if exc.reason == "KEY_VALUES_MISMATCH":
            raise TlsUnusable(
                f"the private key in {files.key} (tls_key) is not that of the certificate in {files.certificate} "
                "(tls_certificate)"
            ) from None
        # OpenSSL gives no reason where it cannot read a PEM file.
        why = _words(exc) if exc.reason else "one of the two is damaged"
        raise TlsUnusable(
            f"{files.certificate} (tls_certificate) and {files.key} (tls_key) cannot be used: {why}"
        ) from None
    except OSError as exc:
        raise TlsUnusable(f"the certificate cannot be used: {exc.strerror}") from None
    if files.client_ca is not None:
        try:
            context.load_verify_locations(cafile=files.client_ca)
        except ssl.SSLError:
            raise TlsUnusable(f"{files.client_ca} (tls_client_ca) holds no PEM certificate") from None
        except OSError as exc:
            raise TlsUnusable(f"{files.client_ca} (tls_client_ca) cannot be read: {exc.strerror}") from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class TlsContext:
    """The context for new connections. From `start` to `close`, it is made again whenever the files change.

    A thread looks at them, because reading a file may block. While they cannot be used, the old context stays. Raises
    TlsUnusable.
    """

    def __init__(self, files: TlsFiles, *, poll_seconds: float = _POLL_SECONDS) -> None:
        self._files = files
        self._seen = files.state()
        self.context = server_context(files)
        """For the next connection; those that are open keep theirs."""
        self._poll_seconds = poll_seconds
        self._wake = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._watch, name="tls-certificate", daemon=True)

    def start(self) -> None:
        """Begin to look at the files."""
        self._thread.start()

    def change(self, files: TlsFiles) -> None:
        """Look at these files from now on, and now."""
        self._files = files
        self._wake.set()

    def close(self) -> None:
        """Look no more. Does not wait for a read that blocks."""
        self._closed = True
        self._wake.set()

    def _watch(self) -> None:
        before = self._files
        while not self._closed:
            self._wake.wait(self._poll_seconds)
            self._wake.clear()
            files = self._files
            state = files.state()
            if self._closed or (state == self._seen and files == before):
                continue
            self._seen, before = state, files
            try:
                self.context = server_context(files)
            except TlsUnusable as exc:
                # One file may have been replaced before the other: the next look will find that, too.
                _log.error("TLS certificate cannot be used: the old one stays", reason=str(exc))
            else:
                _log.info("TLS certificate replaced", file=str(files.certificate))


class Handshakes:
    """Makes TLS connections of accepted sockets.

    `admits` is asked with the socket, the number of handshakes under way, and what ends the oldest of them if it began
    before a time, and returns whether it has; one that is not admitted is closed. `on_failed` is told of each that
    failed: the client's socket name, and why.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        tls: TlsContext,
        *,
        admits: Callable[[socket.socket, int, Callable[[float], bool]], bool],
        on_failed: Callable[[object, str], None],
    ) -> None:
        self._loop = loop
        self._tls = tls
        self._admits = admits
        self._on_failed = on_failed
        self._tasks: set[asyncio.Task[None]] = set()
        self._began: dict[socket.socket, float] = {}
        """When each handshake began that was not told to end, as the event loop counts; the oldest is the first."""
        self._turn = asyncio.Lock()
        """Held by the handshake that has its turn: to sign takes milliseconds, in which nothing else is served."""

    def begin(
        self,
        connection: socket.socket,
        make_protocol: Callable[[], asyncio.Protocol],
        on_closed: Callable[[], None],
    ) -> None:
        """Serve the connection once its handshake is over; call `on_closed` if that fails.

        Its protocol is made at once, so that the listener counts the connection from its beginning.
        """
        if not self._admits(connection, len(self._began), self._end_oldest):
            connection.close()
            on_closed()
            return
        self._began[connection] = self._loop.time()
        task = self._loop.create_task(self._shake_hands(connection, SlicedReads(make_protocol()), on_closed))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def wait(self) -> None:
        """Wait for all handshakes under way, for a second at most; those that are not over then are ended."""
        try:
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=_LAST_SECONDS)
        finally:
            while self._end_oldest(math.inf):
                pass
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _end_oldest(self, before: float) -> bool:
        """End the oldest handshake if it began before this time; return False if none did."""
        connection, began = next(iter(self._began.items()), (None, before))
        if connection is None or began >= before:
            return False
        del self._began[connection]
        with contextlib.suppress(OSError):  # it has ended already
            connection.shutdown(socket.SHUT_RDWR)
        return True

    async def _shake_hands(
        self, connection: socket.socket, protocol: asyncio.BaseProtocol, on_closed: Callable[[], None]
    ) -> None:
        peer = _peer_of(connection)
        try:
            connection.setblocking(False)
            await self._first_octets(connection)
            async with self._turn:
                connecting = self._loop.create_task(self._connect(protocol, connection))
                for _ in range(_SIGNING_TURNS):
                    await asyncio.sleep(0)
            await connecting
        except OSError as exc:  # ssl.SSLError is one
            self._on_failed(peer, _words(exc))
            on_closed()
        finally:
            self._began.pop(connection, None)

    async def _connect(self, protocol: asyncio.BaseProtocol, connection: socket.socket) -> None:
        await self._loop.connect_accepted_socket(
            lambda: protocol,
            connection,
            ssl=self._tls.context,
            ssl_handshake_timeout=HANDSHAKE_SECONDS,
            ssl_shutdown_timeout=_SHUTDOWN_SECONDS,
        )

    async def _first_octets(self, connection: socket.socket) -> None:
        """Wait until the client has sent something. If that fails, the connection is closed.

        Raises ConnectionAbortedError if the client is late.
        """
        readable = asyncio.Event()
        complete = False
        self._loop.add_reader(connection, readable.set)
        try:
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                await readable.wait()
            complete = True
        except TimeoutError:
            raise ConnectionAbortedError(f"the client has sent nothing for {HANDSHAKE_SECONDS:.0f} s") from None
        finally:
            self._loop.remove_reader(connection)
            if not complete:
                connection.close()


def _peer_of(connection: socket.socket) -> object:
    """Return the name of the client's socket; None if it has gone already."""
    try:
        return connection.getpeername()
    except OSError:
        return None


class TlsServer:
    """An asyncio server for Hypercorn, on a listening socket: each connection gets the certificate of the moment."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listening: socket.socket,
        handshakes: Handshakes,
        make_protocol: Callable[[], asyncio.Protocol],
        on_closed: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._listening = listening
        self._handshakes = handshakes
        self._make_protocol = make_protocol
        self._on_closed = on_closed
        listening.setblocking(False)
        loop.add_reader(listening, self._accept)

    def close(self) -> None:
        """Accept what waits, and no more."""
        if self._listening.fileno() >= 0:
            while self._accept():
                pass
            self._loop.remove_reader(self._listening)
            self._listening.close()

    async def wait_closed(self) -> None:
        """Wait for all handshakes under way."""
        await self._handshakes.wait()

    def _accept(self) -> bool:
        """Accept connections; return True if more may wait."""
        for _ in range(_MOST_ACCEPTED):
            try:
                connection, _ = self._listening.accept()
            except ConnectionAbortedError:
                continue
            except BlockingIOError:
                return False
            except OSError as exc:  # EMFILE, ENFILE, ENOBUFS, ENOMEM
                _log.error("cannot accept connections", reason=exc.strerror, retry_seconds=_NO_DESCRIPTORS_SECONDS)
                self._loop.remove_reader(self._listening)
                self._loop.call_later(_NO_DESCRIPTORS_SECONDS, self._resume)
                return False
            self._handshakes.begin(connection, self._make_protocol, self._on_closed)
        return True

    def _resume(self) -> None:
        if self._listening.fileno() >= 0:  # it may have been closed since
            self._loop.add_reader(self._listening, self._accept)


def _no_password() -> str:
    raise TlsUnusable("the private key (tls_key) is encrypted: nobody can type its password here; decrypt it")


def _read(path: Path, setting: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise TlsUnusable(f"{path} ({setting}) cannot be read: {exc.strerror}") from None


def _state(path: Path | None) -> tuple[int, ...] | None:
    if path is None:
        return None
    with contextlib.suppress(OSError):
        found = os.stat(path)
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
    return None


def _words(exc: OSError) -> str:
    """Return the reason in the words of OpenSSL or of the system."""
    if isinstance(exc, ssl.SSLError) and exc.reason:
        return exc.reason.replace("_", " ").lower()
    return exc.strerror or str(exc) or "the connection ended"
