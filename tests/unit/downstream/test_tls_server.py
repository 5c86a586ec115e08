"""The listening socket with TLS; handshakes are tested with the real program."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from proxy.downstream.tls import Handshakes, TlsContext, TlsFiles, TlsServer
from proxy.emulator import Certificates


@pytest.mark.asyncio
async def test_all_connections_in_its_queue_are_accepted_before_it_closes(tmp_path: Path) -> None:
    certificate, key = Certificates.create(tmp_path).server_files("localhost")
    loop = asyncio.get_running_loop()
    accepted: list[bool] = []
    context = TlsContext(TlsFiles(certificate, key))
    # None is admitted, so each is closed as soon as it is accepted.
    handshakes = Handshakes(loop, context, admits=lambda *_: False, on_failed=lambda *_: None)
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listening:
        server = TlsServer(loop, listening, handshakes, asyncio.Protocol, lambda: accepted.append(True))
        # The event loop does not run meanwhile: the kernel connects them.
        waiting = [socket.create_connection(listening.getsockname()) for _ in range(200)]
        server.close()
        assert len(accepted) == 200
        assert {connection.recv(1) for connection in waiting} == {b""}
        for connection in waiting:
            connection.close()
