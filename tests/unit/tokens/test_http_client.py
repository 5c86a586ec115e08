"""The authorities that calls to Google trust: the file that names them may come late, and may be replaced."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from proxy.emulator.certificates import Certificates
from proxy.errors import TokenUnavailable
from proxy.tokens.aiohttp_resolver import AiohttpResolver
from proxy.tokens.blocking import BlockingCalls
from proxy.tokens.http_client import HttpClient
from tests.support.peers.sockets import server_context


def put(bundle: Path, content: str | None) -> None:
    """Write the file, or remove it."""
    if content is None:
        bundle.unlink()
    else:
        bundle.write_text(content)


@asynccontextmanager
async def answering(authority: Certificates) -> AsyncIterator[str]:
    """Answer each request on a connection of its own; the URL."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok")
        writer.close()

    tls = server_context(*authority.server_files("127.0.0.1"), alpn=["http/1.1"])
    async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls) as server:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/"


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path that SSL_CERT_FILE names. There is nothing at it."""
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "bundle.pem"))
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "bundle.pem"


@pytest_asyncio.fixture
async def client() -> AsyncIterator[HttpClient]:
    made = HttpClient(AiohttpResolver(), BlockingCalls(), direct=False, connect_seconds=4)
    yield made
    await made.close()


async def ask(client: HttpClient, url: str) -> int:
    """Make a call; the status of the answer."""
    return (await client.send("GET", url, {})).status


@pytest.mark.asyncio
async def test_a_missing_file_is_named_and_trusted_once_it_has_come(
    client: HttpClient, bundle: Path, tmp_path: Path
) -> None:
    authority = Certificates.create(tmp_path / "ca")
    async with answering(authority) as url:
        for _ in range(2):
            with pytest.raises(
                TokenUnavailable,
                match=f"SSL_CERT_FILE names {re.escape(repr(str(bundle)))}.*No such file.*put the trusted",
            ):
                await ask(client, url)
        shutil.copy(authority.ca_file, bundle)
        assert await ask(client, url) == 200


@pytest.mark.parametrize("content", ["nothing", "half", "another authority"])
@pytest.mark.asyncio
async def test_a_file_that_is_completed_or_replaced_is_read_again_after_a_certificate_that_does_not_verify(
    client: HttpClient, bundle: Path, tmp_path: Path, content: str
) -> None:
    authority, other = Certificates.create(tmp_path / "ca"), Certificates.create(tmp_path / "other")
    whole = authority.ca_file.read_text()
    put(bundle, {"nothing": "", "half": whole[: len(whole) // 2]}.get(content, other.ca_file.read_text()))
    async with answering(authority) as url:
        for _ in range(2):
            with pytest.raises(TokenUnavailable, match="its certificate does not verify"):
                await ask(client, url)
        put(bundle, whole)
        assert await ask(client, url) == 200


@pytest.mark.asyncio
async def test_what_was_read_is_used_while_the_file_is_as_it_was_or_is_missing(
    client: HttpClient, bundle: Path, tmp_path: Path
) -> None:
    authority, other = Certificates.create(tmp_path / "ca"), Certificates.create(tmp_path / "other")
    shutil.copy(authority.ca_file, bundle)
    async with answering(authority) as trusted, answering(other) as untrusted:
        assert await ask(client, trusted) == 200
        read = client._trust
        with pytest.raises(TokenUnavailable, match="its certificate does not verify"):
            await ask(client, untrusted)
        assert await ask(client, trusted) == 200
        assert client._trust is read
        put(bundle, None)
        with pytest.raises(TokenUnavailable, match="its certificate does not verify"):
            await ask(client, untrusted)
        assert await ask(client, trusted) == 200
        shutil.copy(other.ca_file, bundle)
        assert await ask(client, untrusted) == 200
