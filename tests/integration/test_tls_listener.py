"""The listener with TLS: common clients, certificates that are replaced under load, certificates of clients."""

from __future__ import annotations

import asyncio
import shutil
import signal
import ssl
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import aiohttp
import pytest

from proxy.emulator import Certificates, CloudRunServer
from tests.integration.test_listener import mirror, run
from tests.support.chain import Routes
from tests.support.peers.sockets import client
from tests.support.processes import program
from tests.support.sidecar import Sidecar, sidecar, worker_pids
from tests.support.tls_clients import client_context, client_files

one_or_two = pytest.mark.parametrize("workers", [1, 2])


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A sidecar with a TLS listener, and its files."""

    sidecar: Sidecar
    port: int
    certificate: Path
    key: Path
    ca_file: Path

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    def replace(self, pair: tuple[Path, Path]) -> None:
        """Replace certificate and key, each by a new file of the same name."""
        for new, old in zip(pair, (self.certificate, self.key), strict=True):
            shutil.copy(new, f"{old}.new")
            Path(f"{old}.new").rename(old)

    async def served(self, context: ssl.SSLContext | None = None) -> bytes:
        """Return the certificate (DER) that a new connection gets."""
        return await certificate_at(self.port, context or client_context(self.ca_file))


async def certificate_at(port: int, context: ssl.SSLContext) -> bytes:
    _, writer = await asyncio.open_connection("localhost", port, ssl=context)
    found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    assert isinstance(found, bytes)
    return found


def der(certificate: Path) -> bytes:
    first = certificate.read_text().partition("-----END CERTIFICATE-----")
    return ssl.PEM_cert_to_DER_cert(first[0] + first[1])


@asynccontextmanager
async def stage(
    certificates: Certificates, routes: Routes, folder: Path, *flags: str | Path, workers: int = 1
) -> AsyncIterator[Stage]:
    async with CloudRunServer(mirror, certificates) as far:
        pair = certificates.server_files("localhost")
        certificate, key = (Path(shutil.copy(file, folder)) for file in pair)
        config = routes(
            f'tls_certificate = "{certificate}"\ntls_key = "{key}"\ntls_listen = ["127.0.0.1:0"]', svc=far.url
        )
        given = ("--upstream-ca", certificates.ca_file, "--workers", str(workers), *flags)
        async with sidecar("--config", config, *given) as running:
            if workers > 1:
                await worker_pids(running.program)
            (line, *_) = await running.logged('"listening"')
            (address,) = cast(list[str], line["tls_listen"])
            yield Stage(
                sidecar=running,
                port=int(address.rpartition(":")[2]),
                certificate=certificate,
                key=key,
                ca_file=certificates.ca_file,
            )


@pytest.mark.asyncio
@one_or_two
@pytest.mark.parametrize("engine", ["auto", "h2"])
async def test_common_clients_speak_http2_and_http1_over_tls(
    certificates: Certificates, routes: Routes, tmp_path: Path, engine: str, workers: int
) -> None:
    async with stage(certificates, routes, tmp_path, "--http2-engine", engine, workers=workers) as here:
        ca = str(here.ca_file)
        for version, spoken in (("--http2", "2"), ("--http1.1", "1.1"), ("--no-alpn", "1.1")):
            output = await run(
                *("curl", "-sSf", "--cacert", ca, version, "-o", "/dev/null", "-w", "%{http_version} %{http_code}"),
                f"{here.url}/svc/hello",
            )
            assert output == f"{spoken} 200"
        content = bytes(3 << 20)
        echoed = await run(
            *("curl", "-sSf", "--cacert", ca, "--data-binary", "@-", f"{here.url}/svc/hello"), stdin=content
        )
        assert f'"octets": {len(content)}' in echoed
        output = await run("h2load", "-n500", "-c4", "-m10", f"{here.url}/svc/bytes/1024")
        assert "500 succeeded, 0 failed, 0 errored" in output
        assert "Application protocol: h2" in output
        output = await run("nghttp", "-v", f"{here.url}/svc/hello")
        assert ":status: 200" in output
        # Without TLS, on the other port, nothing has changed.
        await run("curl", "-sSf", "--http2-prior-knowledge", f"{here.sidecar.url}/svc/hello")


@pytest.mark.asyncio
async def test_only_strong_ciphers_and_tls_1_2_and_newer_are_spoken(
    certificates: Certificates, routes: Routes, tmp_path: Path
) -> None:
    async with stage(certificates, routes, tmp_path) as here:

        async def spoken(version: ssl.TLSVersion, ciphers: str) -> str:
            context = client_context(here.ca_file)
            context.minimum_version = context.maximum_version = version
            context.set_ciphers(ciphers)
            _, writer = await asyncio.open_connection("localhost", here.port, ssl=context)
            name, _, _ = writer.get_extra_info("cipher")
            writer.close()
            return str(name)

        assert "GCM" in await spoken(ssl.TLSVersion.TLSv1_2, "ALL:@SECLEVEL=0")
        assert (await spoken(ssl.TLSVersion.TLSv1_3, "ALL")).startswith("TLS_")
        for version, ciphers in (
            (ssl.TLSVersion.TLSv1_2, "ECDHE+AES:!AESGCM:!AESCCM"),
            (ssl.TLSVersion.TLSv1_2, "kRSA:@SECLEVEL=0"),
        ):
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await spoken(version, ciphers)
        (line, *_) = await here.sidecar.logged("TLS handshake failed")
        assert (line["severity"], line["client"] in ("127.0.0.1", "::/64")) == ("WARNING", True)
        async with aiohttp.ClientSession() as http, http.get(f"http://{here.sidecar.admin}/metrics") as page:
            assert "cloudrun_sidecar_downstream_tls_failures_total 2\n" in await page.text()


@pytest.mark.asyncio
@one_or_two
async def test_a_certificate_is_replaced_under_load_and_no_connection_is_lost(
    certificates: Certificates, routes: Routes, tmp_path: Path, workers: int
) -> None:
    async with stage(certificates, routes, tmp_path, workers=workers) as here:
        before = der(here.certificate)
        assert await here.served() == before
        async with client("localhost", here.port, tls=client_context(here.ca_file), scheme="https") as peer:
            open_stream = peer.open("/svc/hello")
            load = await asyncio.create_subprocess_exec(
                *("h2load", "-D4", "-c4", "-m5", f"{here.url}/svc/bytes/100"), stdout=asyncio.subprocess.PIPE
            )
            for pair in (certificates.server_files("localhost", "a.example"), certificates.server_files("localhost")):
                replaced = len(here.sidecar.program.lines)
                here.replace(pair)
                here.sidecar.program.send(signal.SIGHUP)
                await until_served(here, der(pair[0]), workers)
                assert len(here.sidecar.program.lines) > replaced
            output, _ = await load.communicate()
            assert b" 0 failed, 0 errored" in output, output.decode()
            await peer.send(open_stream, b"all", end=True)
            assert b'"octets": 3' in (await peer.response(open_stream)).content
        await here.sidecar.logged("TLS certificate replaced", 2 * workers)


async def until_served(here: Stage, expected: bytes, workers: int) -> None:
    """Wait until every worker serves this certificate: each gets one of as many connections in a row."""
    async with asyncio.timeout(20):
        while {await here.served() for _ in range(2 * workers)} != {expected}:
            await here.sidecar.program.line("TLS certificate replaced")


@pytest.mark.asyncio
@one_or_two
async def test_a_certificate_that_cannot_be_used_leaves_the_old_one(
    certificates: Certificates, routes: Routes, tmp_path: Path, workers: int
) -> None:
    async with stage(certificates, routes, tmp_path, workers=workers) as here:
        before = der(here.certificate)
        other = certificates.server_files("localhost", "other.example")
        here.replace((here.certificate, other[1]))
        here.sidecar.program.send(signal.SIGHUP)
        lines = await here.sidecar.logged("TLS certificate cannot be used: the old one stays", workers)
        assert f"the private key in {here.key} (tls_key) is not that of the certificate" in str(lines[0]["reason"])
        assert {await here.served() for _ in range(2 * workers)} == {before}
        here.replace(other)
        await here.sidecar.logged("TLS certificate replaced", workers)
        assert {await here.served() for _ in range(2 * workers)} == {der(other[0])}


@pytest.mark.asyncio
@one_or_two
async def test_only_clients_with_a_certificate_are_served_where_that_is_set(
    certificates: Certificates, routes: Routes, tmp_path: Path, workers: int
) -> None:
    authority, *own = client_files(tmp_path / "own")
    _, *other = client_files(tmp_path / "other")
    flags = ("--tls-client-ca", authority)
    async with stage(certificates, routes, tmp_path, *flags, workers=workers) as here:
        url = f"{here.url}/svc/hello"
        curl = ("curl", "-sS", "--cacert", str(here.ca_file), "-o", "/dev/null", "-w", "%{http_code}")
        assert await run(*curl, "-f", "--cert", str(own[0]), "--key", str(own[1]), url) == "200"
        for pair in ((), ("--cert", str(other[0]), "--key", str(other[1]))):
            with pytest.raises(AssertionError, match=r"curl: \(\d+\)"):
                await run(*curl, *pair, url)
        lines = await here.sidecar.logged("TLS handshake failed")
        assert "peer did not return a certificate" in str(lines[0]["reason"])


@pytest.mark.asyncio
@one_or_two
@pytest.mark.parametrize(
    ("certificate", "key", "what"),
    [
        ("other", "key", "is not that of the certificate in"),
        ("empty", "key", "holds no PEM certificate"),
        ("certificate", "empty", "holds no private key in PEM form"),
        ("broken", "key", "cannot be used: one of the two is damaged"),
        ("certificate", "none", "No such file or directory"),
    ],
)
async def test_files_that_cannot_be_used_stop_the_start_with_one_sentence(
    certificates: Certificates, tmp_path: Path, certificate: str, key: str, what: str, workers: int
) -> None:
    good = certificates.server_files("localhost")
    (tmp_path / "empty").write_text("")
    (tmp_path / "broken").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    files = {"certificate": good[0], "key": good[1], "other": certificates.server_files("localhost", "b.example")[0]}
    paths = [str(files.get(name, tmp_path / name)) for name in (certificate, key)]
    argv: Sequence[str] = [
        *(sys.executable, "-m", "proxy", "serve", "--upstream", "https://svc.run.app", "--workers", str(workers)),
        *("--listen", "127.0.0.1:0", "--admin", "off", "--tls-listen", "127.0.0.1:0"),
        *("--tls-certificate", paths[0], "--tls-key", paths[1]),
    ]
    async with program("serve", argv) as child:
        assert await child.ended() == 2
        (said,) = [line for line in child.lines if what in line]
        assert any(name in said for name in ("tls_certificate", "tls_key", "--tls-key"))
        assert not any("Traceback" in line for line in child.lines)


@pytest.mark.asyncio
async def test_a_client_that_says_nothing_or_no_tls_ends_alone(
    certificates: Certificates, routes: Routes, tmp_path: Path
) -> None:
    async with stage(certificates, routes, tmp_path) as here:
        _, silent = await asyncio.open_connection("localhost", here.port)
        reader, plain = await asyncio.open_connection("localhost", here.port)
        plain.write(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
        await reader.read()
        plain.close()
        _, gone = await asyncio.open_connection("localhost", here.port)
        gone.transport.abort()
        await run("curl", "-sSf", "--cacert", str(here.ca_file), f"{here.url}/svc/hello")
        await here.sidecar.logged("TLS handshake failed.*http request")
        lines = await here.sidecar.end()
        assert not [line for line in lines if line["severity"] == "ERROR"]
        silent.close()
