"""Calls to Google: the authorities that they trust, whose file may come late and be replaced, and why a call failed."""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp.abc import ResolveResult

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


@pytest.mark.asyncio
async def test_a_machine_without_authorities_is_told_to_install_them(
    client: HttpClient, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(bundle, "")
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "nowhere"))
    async with answering(Certificates.create(tmp_path / "ca")) as url:
        with pytest.raises(TokenUnavailable, match="does not verify: this machine has no trusted") as failed:
            await ask(client, url)
    assert "ca-certificates" in failed.value.remedy


@asynccontextmanager
async def saying(answer: bytes) -> AsyncIterator[int]:
    """Read what comes first, answer these octets, and close; the port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1 << 16)
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize(
    ("login", "answer", "why"),
    [
        ("", b"", "the connection was closed without an answer"),
        ("", b"SSH-2.0-OpenSSH\r\n", "the answer is not HTTP"),
        ("", b"HTTP/1.1 407 No\r\n\r\n", "the proxy requires a login (407)"),
        ("ada:hunter2@", b"HTTP/1.1 407 No\r\n\r\n", "the proxy refuses the login in its URL (407)"),
        (
            "ada:hunter2@",
            b"HTTP/1.1 407 No\r\nproxy-authenticate: Negotiate\r\n\r\n",
            "the proxy wants a login by Negotiate (407), and only Basic is supported",
        ),
        ("", b"HTTP/1.1 403 Not on the list\r\n\r\n", "the proxy does not let it through (403 Not on the list)"),
        ("", b"HTTP/1.1 200 OK\r\n\r\n", "the connection was closed"),
    ],
)
@pytest.mark.asyncio
async def test_a_failure_on_the_way_through_a_proxy_names_the_proxy_and_no_login(
    client: HttpClient, bundle: Path, monkeypatch: pytest.MonkeyPatch, login: str, answer: bytes, why: str
) -> None:
    put(bundle, "")
    async with saying(answer) as port:
        monkeypatch.setenv("https_proxy", f"http://{login}127.0.0.1:{port}")
        with pytest.raises(TokenUnavailable) as failed:
            await ask(client, "https://oauth2.googleapis.com/token")
    sentence = str(failed.value)
    assert sentence.startswith(
        f"oauth2.googleapis.com could not be asked through the proxy that the environment names: {why}"
    )
    assert "hunter2" not in sentence


@pytest.mark.asyncio
async def test_the_name_of_a_proxy_that_does_not_resolve_is_not_googles(
    client: HttpClient, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(bundle, "")
    monkeypatch.setenv("https_proxy", "http://proxy.invalid:3128")
    with pytest.raises(TokenUnavailable, match="the name of the proxy does not resolve"):
        await ask(client, "https://oauth2.googleapis.com/token")


@pytest.mark.asyncio
async def test_a_proxy_that_says_nothing_is_named(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(bundle, "")
    client = HttpClient(AiohttpResolver(), BlockingCalls(), direct=False, connect_seconds=0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(
            TokenUnavailable, match=r"through the proxy that the environment names: no connection within"
        ):
            await ask(client, "https://oauth2.googleapis.com/token")
    await client.close()


@pytest.mark.parametrize(
    ("scheme", "answer", "why"),
    [
        ("http", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf", "the answer broke off"),
        ("http", b"220 ready\r\n", "the answer is not HTTP"),
        ("https", b"HTTP/1.1 400 No\r\n\r\n", "TLS failed (WRONG_VERSION_NUMBER)"),
    ],
)
@pytest.mark.asyncio
async def test_a_broken_answer_is_described_in_words(
    client: HttpClient, bundle: Path, scheme: str, answer: bytes, why: str
) -> None:
    put(bundle, "")
    async with saying(answer) as port:
        with pytest.raises(TokenUnavailable, match=f"^127.0.0.1 could not be asked: {re.escape(why)}$"):
            await ask(client, f"{scheme}://127.0.0.1:{port}/")


@pytest.mark.asyncio
async def test_name_servers_that_fail_are_told_from_a_name_that_does_not_exist() -> None:
    class Failing(AiohttpResolver):
        async def resolve(self, *_: Any, **__: Any) -> list[ResolveResult]:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    client = HttpClient(Failing(), BlockingCalls(), direct=True, connect_seconds=4)
    why = "its name does not resolve, because the name servers fail; check the name servers of this machine"
    with pytest.raises(TokenUnavailable, match=f"google could not be asked: {why}"):
        await ask(client, "http://google/")
    await client.close()


@pytest.mark.asyncio
async def test_addresses_that_all_refuse_are_one_reason() -> None:
    class TwoAddresses(AiohttpResolver):
        async def resolve(self, *_: Any, **__: Any) -> list[ResolveResult]:
            return [
                ResolveResult(hostname="", host=host, port=9, family=socket.AF_INET, proto=0, flags=0)
                for host in ("127.0.0.1", "127.0.0.2")
            ]

    client = HttpClient(TwoAddresses(), BlockingCalls(), direct=True, connect_seconds=4)
    with pytest.raises(TokenUnavailable, match=r"google could not be asked: Connection refused$"):
        await ask(client, "http://google/")
    await client.close()
