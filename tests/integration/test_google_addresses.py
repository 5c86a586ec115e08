"""Google's hosts have several addresses: one accepts connections and does not serve, another one is the emulator's."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from proxy.emulator import Certificates, CredentialFiles, Google, GoogleServer
from proxy.errors import TokenTimeout
from proxy.network.resolver import AddressInfo, Resolver
from proxy.tokens import google as google_module
from proxy.tokens import http_client
from proxy.tokens.aiohttp_resolver import AiohttpResolver
from proxy.tokens.google import GoogleMint
from proxy.tokens.model import TokenKey
from tests.support.emulated import AUDIENCE, signing_key
from tests.support.loops import skip, with_manual_clock

KEY = TokenKey(None, (), AUDIENCE)


class Places(Resolver):
    """Resolves all names to the same addresses, each with a port of its own."""

    def __init__(self, *places: tuple[str, int]) -> None:
        super().__init__()
        self._places = places

    async def resolve(self, host: str, port: int) -> list[AddressInfo]:
        found = [entry for place in self._places for entry in socket.getaddrinfo(*place, type=socket.SOCK_STREAM)]
        return [AddressInfo(*entry) for entry in found]


class Broken(asyncio.Protocol):
    """Accepts connections, and closes them at the first octets or is silent."""

    accepted = 0
    closes = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        type(self).accepted += 1
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self.closes:
            self._transport.close()


@asynccontextmanager
async def broken(host: str, *, closes: bool) -> AsyncIterator[tuple[type[Broken], int]]:
    """Listen on a free port of this address; yields its protocol, which counts connections, and the port."""
    kind = type("BrokenHere", (Broken,), {"closes": closes})
    server = await asyncio.get_running_loop().create_server(kind, host, 0)
    try:
        yield kind, server.sockets[0].getsockname()[1]
    finally:
        server.close()


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("host", "closes"),
    [("::1", False), ("127.0.0.2", False), ("::1", True)],
    ids=["IPv6 is silent", "IPv4 is silent", "IPv6 refuses TLS"],
)
async def test_a_mint_uses_another_address_of_google_and_remembers_it(
    certificates: Certificates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, closes: bool
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.ca_file))
    monkeypatch.setattr(google_module, "_CONNECT_SECONDS", 1.5)
    google = Google(signing_key=signing_key())
    async with GoogleServer(google, certificates) as server, broken(host, closes=closes) as (there, port):
        files = CredentialFiles(tmp_path, google, server, account="me@p.iam.gserviceaccount.com", by_name=True)
        environment = {"GOOGLE_APPLICATION_CREDENTIALS": str(files.write("service-account-key").file)}
        names = AiohttpResolver(Places((host, port), ("127.0.0.1", port_of(server.tls_address))))
        mint = GoogleMint(environment=environment, resolver=names)
        try:
            async with asyncio.TaskGroup() as together:
                for _ in range(2):
                    together.create_task(mint(KEY))
        finally:
            await mint.close()
        tried = there.accepted
        assert tried in {1, 2}, "the second call may begin when the first one has failed"
        again = GoogleMint(environment=environment, resolver=names)
        await again(KEY)
        await again.close()
        assert there.accepted == tried, "the other address comes first now"
        assert len(google.mints) == 3


@pytest.mark.asyncio
async def test_an_address_of_the_metadata_server_that_does_not_answer_is_not_asked_again(
    certificates: Certificates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    google = Google(signing_key=signing_key())
    async with GoogleServer(google, certificates) as server, broken("::1", closes=False) as (there, port):
        environment = {"HOME": str(tmp_path), "GCE_METADATA_HOST": "metadata.example"}
        names = AiohttpResolver(Places(("::1", port), ("127.0.0.1", port_of(server.metadata_address))))
        with monkeypatch.context() as impatient:
            impatient.setattr(http_client, "_TOTAL_SECONDS", 0.3)
            mint = GoogleMint(environment=environment, resolver=names)
            with pytest.raises(TokenTimeout, match="did not answer within"):
                await mint(KEY)  # a request that was sent is not sent again
            await mint.close()
        again = GoogleMint(environment=environment, resolver=names)
        assert (await again(KEY)).key == KEY
        await again.close()
        assert there.accepted == 1


@with_manual_clock
async def test_an_address_that_failed_comes_last_for_ten_minutes() -> None:
    names = AiohttpResolver(Places(("127.0.0.1", 1), ("127.0.0.2", 1), ("127.0.0.3", 1)))

    async def order() -> str:
        return "".join(found["host"][-1] for found in await names.resolve("a.example", 443))

    assert not names.has_failed("a.example", 0.0), "it was never looked up"
    loop = asyncio.get_running_loop()
    assert await order() == "123"
    began = loop.time()
    await skip(1.0)
    assert names.has_failed("a.example", began)
    assert await order() == "231"
    assert names.has_failed("a.example", began), "an attempt that began before the same address had failed"
    assert await order() == "231"
    await skip(300.0)
    assert names.has_failed("a.example", loop.time() - 1.0)
    assert await order() == "312"
    await skip(301.0)
    assert await order() == "132"
    alone = AiohttpResolver(Places(("127.0.0.1", 1)))
    await alone.resolve("a.example", 443)
    assert not alone.has_failed("a.example", 0.0)
