"""How much a TLS connection decrypts at a time."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path

import pytest

from proxy.downstream import tls_reading
from proxy.downstream.tls import Handshakes, TlsContext, TlsFiles
from proxy.downstream.tls_reading import SlicedReads
from proxy.emulator import Certificates


class Collects(asyncio.Protocol):
    """Keeps what it receives, piece by piece, until it is as much as is expected."""

    def __init__(self, octets: int) -> None:
        self._missing = octets
        self.pieces: list[bytes] = []
        self.complete = asyncio.Event()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.pieces.append(data)
        self._missing -= len(data)
        if not self._missing:
            self.complete.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set_result(None)


@pytest.mark.asyncio
async def test_room_shrinks_while_it_takes_long_to_fill_and_grows_while_it_is_quick(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr(tls_reading, "perf_counter", lambda: now)
    collects = Collects(0)
    reads = SlicedReads(collects)

    def room_after(seconds: float) -> int:
        nonlocal now
        view = reads.get_buffer(-1)
        view[:] = b"x" * len(view)
        now += seconds
        reads.buffer_updated(len(view))
        return len(reads.get_buffer(-1))

    assert [room_after(0.003) for _ in range(3)] == [256, 64, 64]
    assert [room_after(0.0) for _ in range(11)] == [*(64 << n for n in range(1, 11)), 64 << 10]
    assert sum(map(len, collects.pieces)) == 1024 + 256 + 64 + sum(64 << n for n in range(11))


@pytest.mark.asyncio
async def test_records_of_one_octet_arrive_whole_and_not_in_one_turn(tmp_path: Path) -> None:
    certificates = Certificates.create(tmp_path)
    context = TlsContext(TlsFiles(*certificates.server_files("localhost")))
    loop = asyncio.get_running_loop()
    sent = bytes(number % 251 for number in range(20_000))
    collects = Collects(len(sent))
    handshakes = Handshakes(loop, context, admits=lambda *_: True, on_failed=lambda *_: None)
    ours, its = socket.socketpair()
    handshakes.begin(its, lambda: collects, lambda: None)
    trusting = ssl.create_default_context(cafile=certificates.ca_file)
    _, writer = await asyncio.open_connection(sock=ours, ssl=trusting, server_hostname="localhost")
    for octet in sent:
        writer.write(bytes([octet]))  # a record each
    await collects.complete.wait()
    assert b"".join(collects.pieces) == sent
    assert len(collects.pieces) >= 5
    assert len(collects.pieces[0]) <= 1024
    writer.close()
    await collects.ended
