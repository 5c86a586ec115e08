"""A server that writes each TLS record itself: messages of the handshake in any pieces, and between any content."""

from __future__ import annotations

import asyncio
import hmac
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, cast

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from proxy.connection.budget import Budget
from proxy.connection.flusher import Flusher
from proxy.emulator import Certificates
from proxy.http2.engine import Limits
from proxy.http2.portable.engine import PortableEngine
from proxy.routes import Origin
from proxy.upstream.connection import Timing, UpstreamConnection
from proxy.upstream.connector import tls_context
from proxy.upstream.tls import TlsTransport
from tests.support.peers.sockets import server_context
from tests.support.peers.transport import MemoryTransport

__all__ = ["ALERT", "DATA", "HANDSHAKE", "RecordServer", "kinds", "record_server"]

ALERT, HANDSHAKE, DATA = 21, 22, 23
HASH: Final = "sha384"
KEY_OCTETS: Final = 32


@dataclass
class Keys:
    """The keys with which the server writes, and how many records it has written (RFC 5288; RFC 8446, 5.3)."""

    key: bytes
    iv: bytes
    number: int
    secret: bytes = b""
    """Of TLS 1.3, where the next keys are made from it."""

    @classmethod
    def of_tls13(cls, secret: bytes) -> Keys:
        """Return the keys that belong to a secret (RFC 8446, 7.3)."""
        return cls(_expanded(secret, b"key", KEY_OCTETS), _expanded(secret, b"iv", 12), 0, secret)

    @classmethod
    def of_tls12(cls, master: bytes, client_random: bytes, server_random: bytes) -> Keys:
        """Return the keys that belong to a master secret (RFC 5246, 6.3); a record, Finished, has been written."""
        seed = b"key expansion" + server_random + client_random
        block, chained = b"", seed
        while len(block) < 2 * (KEY_OCTETS + 4):
            chained = hmac.digest(master, chained, HASH)
            block += hmac.digest(master, chained + seed, HASH)
        return cls(block[KEY_OCTETS : 2 * KEY_OCTETS], block[2 * KEY_OCTETS + 4 : 2 * KEY_OCTETS + 8], 1)


@dataclass
class RecordServer:
    """The server, and the client's connection to it."""

    connection: UpstreamConnection
    tls: TlsTransport
    transport: MemoryTransport
    """Of the client: what it writes is encrypted."""
    keys: Keys
    client_keys: Keys | None = None
    clear: bytearray = field(default_factory=bytearray)
    """What the client has sent as content, if TLS is 1.3."""

    def give(self, *records: bytes) -> None:
        """Have the client read these records at once."""
        self.tls.data_received(b"".join(records))

    def record(self, kind: int, content: bytes) -> bytes:
        """Return the next record."""
        keys, aead = self.keys, AESGCM(self.keys.key)
        number, keys.number = keys.number.to_bytes(12), keys.number + 1
        if not keys.secret:
            head = bytes([kind, 3, 3])
            sealed = aead.encrypt(keys.iv + number[4:], content, number[4:] + head + len(content).to_bytes(2))
            return head + (len(sealed) + 8).to_bytes(2) + number[4:] + sealed
        head = bytes([DATA, 3, 3]) + (len(content) + 17).to_bytes(2)
        return head + aead.encrypt(_mixed(keys.iv, number), content + bytes([kind]), head)

    def change_keys(self) -> None:
        """Write with the next keys, as after a KeyUpdate (RFC 8446, 7.2)."""
        self.keys = Keys.of_tls13(_expanded(self.keys.secret, b"traffic upd", 48))

    def read(self) -> bytes:
        """Read what the client has written, and return it as it is; what is content of TLS 1.3 is in `clear`, too."""
        data = rest = self.transport.read()
        while rest and (keys := self.client_keys) is not None:
            octets = 5 + int.from_bytes(rest[3:5])
            number, keys.number = keys.number.to_bytes(12), keys.number + 1
            opened = AESGCM(keys.key).decrypt(_mixed(keys.iv, number), rest[5:octets], rest[:5])
            if opened[-1] == DATA:
                self.clear += opened[:-1]
            rest = rest[octets:]
        return data


@asynccontextmanager
async def record_server(
    certificates: Certificates, folder: Path, version: ssl.TLSVersion
) -> AsyncIterator[RecordServer]:
    """Shake hands in this version of TLS, and write records from then on."""
    loop = asyncio.get_running_loop()
    context = server_context(*certificates.server_files("localhost"))
    context.minimum_version = context.maximum_version = version
    context.set_ciphers("ECDHE+AES256+AESGCM")
    context.num_tickets = 0
    context.keylog_filename = str(folder / "secrets")
    connection = UpstreamConnection(
        lambda handler: PortableEngine(client=True, limits=Limits(), handler=handler),
        Budget(1 << 24),
        Flusher(loop),
        origin=Origin("https", "localhost", 443),
        timing=Timing(),
    )
    tls = TlsTransport(connection, tls_context(certificates.ca_file), "localhost")
    near, far = socket.socketpair()
    near.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=far)
    with near, closing(writer):
        _, sent = await asyncio.gather(tls.shake_hands(loop, near), _shake_hands(context, reader, writer))
        transport = MemoryTransport(loop, cast(asyncio.Protocol, tls))
        secrets = dict(_secrets(folder / "secrets"))
        if version is ssl.TLSVersion.TLSv1_2:
            ((client_random, master),) = secrets["CLIENT_RANDOM"]
            server = RecordServer(connection, tls, transport, Keys.of_tls12(master, client_random, sent[11:43]))
        else:
            ((_, secret),) = secrets["SERVER_TRAFFIC_SECRET_0"]
            ((_, client_secret),) = secrets["CLIENT_TRAFFIC_SECRET_0"]
            server = RecordServer(connection, tls, transport, Keys.of_tls13(secret), Keys.of_tls13(client_secret))
        tls.connection_made(transport)
        yield server
        connection.abort()
        await connection.gone


def kinds(data: bytes) -> list[int]:
    """Return the kind of each record."""
    found = []
    while data:
        found.append(data[0])
        data = data[5 + int.from_bytes(data[3:5]) :]
    return found


async def _shake_hands(context: ssl.SSLContext, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """Do the server's part, and return all that it has sent."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_side=True)
    sent = b""
    while True:
        try:
            tls.do_handshake()
            over = True
        except ssl.SSLWantReadError:
            over = False
        octets = outgoing.read()
        sent += octets
        writer.write(octets)
        if over:
            return sent
        incoming.write(await reader.read(1 << 16))


def _secrets(file: Path) -> list[tuple[str, list[tuple[bytes, bytes]]]]:
    """Return each label of the file of secrets with what stands behind it."""
    lines = [line.split() for line in file.read_text().splitlines() if not line.startswith("#")]
    return [(label, [(bytes.fromhex(one), bytes.fromhex(other))]) for label, one, other in lines]


def _expanded(secret: bytes, label: bytes, octets: int) -> bytes:
    """HKDF-Expand-Label without a context (RFC 8446, 7.1), for no more octets than a hash has."""
    info = octets.to_bytes(2) + bytes([6 + len(label)]) + b"tls13 " + label + b"\0"
    return hmac.digest(secret, info + b"\1", HASH)[:octets]


def _mixed(iv: bytes, number: bytes) -> bytes:
    return bytes(one ^ other for one, other in zip(iv, number, strict=True))
