"""What clients have taken below TLS."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from proxy.downstream.delivery import tls_delivered


class Holding(asyncio.WriteTransport):
    """A TLS transport that has encrypted everything, and writes some of it in each turn of the loop."""

    def __init__(self, connection: socket.socket, client: socket.socket, turns: int) -> None:
        super().__init__()
        self.turns = turns
        self._connection = connection
        self._client = client
        asyncio.get_running_loop().call_soon(self._write)

    def _write(self) -> None:
        if self.turns:
            self._connection.sendall(bytes(1_000))
            self._client.recv(1_000)
            self.turns -= 1
            asyncio.get_running_loop().call_soon(self._write)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._connection if name == "socket" else object()

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return False


@pytest.mark.asyncio
async def test_what_is_written_while_the_client_reads_is_not_delivered_before_its_end() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.create_connection(listening.getsockname()) as client,
        listening.accept()[0] as connection,
    ):
        transport = Holding(connection, client, 20)
        await tls_delivered(transport)
        assert not transport.turns
