from __future__ import annotations

import asyncio
import ssl
import stat
from pathlib import Path

import pytest

from proxy.emulator import Certificates
from tests.support.emulated import trusting


async def _shake_hands(ca_file: Path, files: tuple[Path, Path], server_name: str) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*files)
    done = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        done.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        port = server.sockets[0].getsockname()[1]
        strict = trusting(ca_file)
        strict.verify_flags |= ssl.VERIFY_X509_STRICT
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=strict, server_hostname=server_name)
        writer.close()
        await writer.wait_closed()
        await done.wait()
    finally:
        server.close()


@pytest.mark.asyncio
@pytest.mark.parametrize("name", ["iamcredentials.googleapis.com", "127.0.0.1", "::1"])
async def test_a_strict_client_accepts_each_requested_name(tmp_path: Path, name: str) -> None:
    certificates = Certificates.create(tmp_path / "made")
    files = certificates.server_files("iamcredentials.googleapis.com", "127.0.0.1", "::1")
    await _shake_hands(certificates.ca_file, files, name)


@pytest.mark.asyncio
async def test_a_name_that_was_not_requested_is_refused(tmp_path: Path) -> None:
    certificates = Certificates.create(tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        await _shake_hands(certificates.ca_file, certificates.server_files("a.example"), "b.example")


@pytest.mark.asyncio
async def test_another_authority_is_not_trusted(tmp_path: Path) -> None:
    mine, other = Certificates.create(tmp_path / "mine"), Certificates.create(tmp_path / "other")
    with pytest.raises(ssl.SSLCertVerificationError):
        await _shake_hands(other.ca_file, mine.server_files("a.example"), "a.example")


def test_the_same_names_give_the_same_files(tmp_path: Path) -> None:
    certificates = Certificates.create(tmp_path)
    assert certificates.server_files("a.example") == certificates.server_files("a.example")
    assert certificates.server_files("a.example") != certificates.server_files("a.example", "b.example")


def test_keys_are_private_and_the_authoritys_is_not_written(tmp_path: Path) -> None:
    certificates = Certificates.create(tmp_path)
    chain, key = certificates.server_files("*.a.example")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert {file for file in tmp_path.iterdir() if b"PRIVATE KEY" in file.read_bytes()} == {key}
    assert chain.read_bytes().count(b"BEGIN CERTIFICATE") == 2


def test_a_certificate_without_names_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name"):
        Certificates.create(tmp_path).server_files()
