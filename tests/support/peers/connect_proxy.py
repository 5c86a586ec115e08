"""An HTTP proxy that opens tunnels (CONNECT) to the services that it knows, and answers 502 for all others."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final

__all__ = ["ConnectProxy", "connect_proxy"]

_HOST: Final = "127.0.0.1"


class ConnectProxy:
    """The proxy. With `login` (USER:PASSWORD) it asks for that."""

    def __init__(self, ports: Mapping[str, int], login: str | None) -> None:
        self.port = 0
        self.heads: list[bytes] = []
        """The requests, as they came."""
        self.ports = dict(ports)
        """HOST:PORT of a target → the port on 127.0.0.1 that it stands for."""
        self._authorization = login and b"Basic " + base64.b64encode(login.encode())
        self._tunnels: set[asyncio.Task[None]] = set()

    def targets(self) -> list[str]:
        """Return what it was asked to connect to, in order."""
        return [head.split()[1].decode() for head in self.heads]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Have one client's conversation."""
        task = asyncio.current_task()
        assert task is not None
        self._tunnels.add(task)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.heads.append(head)
            method, target, _ = head.split(maxsplit=2)
            fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
            if self._authorization and fields.get(b"proxy-authorization") != self._authorization:
                writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n")
            elif method != b"CONNECT" or target.decode() not in self.ports:
                writer.write(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n")
            else:
                far_reader, far_writer = await asyncio.open_connection(_HOST, self.ports[target.decode()])
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            self._tunnels.discard(task)

    async def close(self) -> None:
        """End all tunnels."""
        tunnels = list(self._tunnels)
        for task in tunnels:
            task.cancel()
        await asyncio.gather(*tunnels, return_exceptions=True)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while octets := await reader.read(64 << 10):
            writer.write(octets)
            await writer.drain()
    finally:
        writer.close()


@asynccontextmanager
async def connect_proxy(ports: Mapping[str, int], *, login: str | None = None) -> AsyncIterator[ConnectProxy]:
    """A listening proxy for the time of a `with`."""
    proxy = ConnectProxy(ports, login)
    async with await asyncio.start_server(proxy.serve, _HOST, 0) as accepting:
        proxy.port = accepting.sockets[0].getsockname()[1]
        yield proxy
        await proxy.close()
