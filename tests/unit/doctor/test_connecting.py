from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from proxy.connection.budget import Budget
from proxy.connection.flusher import Flusher
from proxy.doctor.connecting import ConnectionCheck, ConnectionResult, certificate_details
from proxy.doctor.report import Outcome, Step
from proxy.emulator import Certificates
from proxy.http2.engine import Limits
from proxy.http2.portable.engine import PortableEngine
from proxy.network.resolver import Resolver
from proxy.routes import Origin
from proxy.upstream.connection import Timing
from proxy.upstream.connector import Connector
from tests.support.peers.sockets import server, server_context

SHORT = 0.3


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates.create(tmp_path_factory.mktemp("certificates"))


def reacher(ca: Path | None = None, seconds: float = 10.0) -> ConnectionCheck:
    connector = Connector(
        lambda handler: PortableEngine(client=True, limits=Limits(), handler=handler),
        Budget(1 << 20),
        Flusher(asyncio.get_running_loop()),
        timing=Timing(),
        upstream_ca=ca,
        connect_timeout_seconds=seconds,
    )
    return ConnectionCheck(connector, Resolver(), ca, seconds)


async def reached(
    origin: Origin, ca: Path | None = None, seconds: float = 10.0, ahead: float = 0.0
) -> ConnectionResult:
    """Connect, and close the connection."""
    found = await reacher(ca, seconds).connect(origin, time.time() + ahead)
    if found.connection is not None:
        found.connection.abort()
        await found.connection.gone
    return found


def by_name(found: ConnectionResult) -> dict[str, Step]:
    assert [step.name for step in found.steps] == ["dns", "tcp", "tls", "http2"]
    return {step.name: step for step in found.steps}


def outcomes(found: ConnectionResult) -> list[str]:
    return [step.outcome.value for step in found.steps]


class Blunt(asyncio.Protocol):
    """A server's end of a connection that does one action only."""

    def __init__(self, act: Callable[[asyncio.Transport], None]) -> None:
        self._act = act
        self.transport: asyncio.Transport
        self.closed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._act(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set_result(None)


@asynccontextmanager
async def listening(act: Callable[[asyncio.Transport], None], tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Run a server on a free port; yield the port."""
    made: list[Blunt] = []

    def accept() -> Blunt:
        made.append(Blunt(act))
        return made[-1]

    accepting = await asyncio.get_running_loop().create_server(accept, "127.0.0.1", 0, ssl=tls)
    try:
        yield accepting.sockets[0].getsockname()[1]
    finally:
        accepting.close()
        for one in made:
            if hasattr(one, "transport"):
                one.transport.abort()
                await one.closed


def silent(transport: asyncio.Transport) -> None:
    """Send nothing."""


def rude(transport: asyncio.Transport) -> None:
    transport.close()


@pytest.mark.asyncio
async def test_https_shows_address_certificate_and_streams(certificates: Certificates) -> None:
    tls = server_context(*certificates.server_files("127.0.0.1"))
    async with server(tls) as far:
        found = await reached(Origin("https", "127.0.0.1", far.port), certificates.ca_file)
    steps = by_name(found)
    assert outcomes(found) == ["ok"] * 4
    assert steps["dns"].details == {"addresses": ["127.0.0.1"]}
    assert steps["tcp"].details["address"] == f"127.0.0.1:{far.port}"
    assert steps["tls"].details["version"] == "TLSv1.3"
    assert steps["http2"].text == "ALPN h2, 1000 streams a connection"


@pytest.mark.asyncio
async def test_http_skips_tls() -> None:
    async with server() as far:
        found = await reached(Origin("http", "127.0.0.1", far.port))
    assert outcomes(found) == ["ok", "ok", "skipped", "ok"]
    assert by_name(found)["http2"].text.startswith("prior knowledge")


@pytest.mark.asyncio
async def test_http_to_a_server_without_http2_fails_in_http2() -> None:
    def greets(transport: asyncio.Transport) -> None:
        transport.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        transport.close()

    async with listening(greets) as port:
        found = await reached(Origin("http", "127.0.0.1", port))
    assert outcomes(found) == ["ok", "ok", "skipped", "failed"]
    assert by_name(found)["http2"].code == "upstream-not-http2"


@pytest.mark.asyncio
async def test_a_certificate_that_expires_soon_is_a_warning(certificates: Certificates) -> None:
    tls = server_context(*certificates.server_files("127.0.0.1"))
    async with server(tls) as far:
        found = await reached(Origin("https", "127.0.0.1", far.port), certificates.ca_file, ahead=25 * 86_400)
    step = by_name(found)["tls"]
    assert (step.outcome, step.code) == (Outcome.WARNING, "certificate-expires-soon")
    assert step.remedy
    assert "expires in 4 days" in step.remedy


@pytest.mark.asyncio
async def test_a_certificate_for_another_name_does_not_verify(certificates: Certificates) -> None:
    tls = server_context(*certificates.server_files("elsewhere.example.com"))
    async with server(tls) as far:
        found = await reached(Origin("https", "127.0.0.1", far.port), certificates.ca_file)
    step = by_name(found)["tls"]
    assert outcomes(found) == ["ok", "ok", "failed", "skipped"]
    assert "must have a name that the certificate is made out to" in step.text
    assert step.remedy == "Check the host name of the url; set upstream_ca for a private authority."


@pytest.mark.parametrize(("code", "asked"), [(9, True), (10, True), (19, False)])
@pytest.mark.asyncio
async def test_a_certificate_outside_its_validity_suggests_a_wrong_clock(
    code: int, asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cause = ssl.SSLCertVerificationError(1, "no")
    cause.verify_code, cause.verify_message = code, "certificate has expired"

    async def open_tls(protocol: object, connected: socket.socket, *_: object) -> None:
        connected.close()
        raise cause

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        monkeypatch.setattr("proxy.upstream.connector.open_tls", open_tls)
        step = by_name(await reached(Origin("https", "127.0.0.1", port)))["tls"]
    assert "does not verify: certificate has expired" in step.text
    assert step.remedy
    assert ("clock" in step.remedy) is asked


@pytest.mark.asyncio
async def test_a_file_of_authorities_that_is_not_there_is_named(
    certificates: Certificates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = server_context(*certificates.server_files("127.0.0.1"))
    steps = []
    for named in (tmp_path / "nope.pem", tmp_path, Certificates.create(tmp_path).ca_file):
        monkeypatch.setenv("SSL_CERT_FILE", str(named))
        async with server(tls) as far:
            steps.append(by_name(await reached(Origin("https", "127.0.0.1", far.port)))["tls"])
    assert [step.code for step in steps] == ["upstream-tls-failed"] * 3
    missing, folder, readable = steps
    begin = f"SSL_CERT_FILE names '{tmp_path}"
    assert missing.text == f"{begin}/nope.pem', which cannot be used: No such file or directory"
    assert folder.text == f"{begin}', which cannot be used: it is not a regular file"
    assert {missing.remedy, folder.remedy} == {"Put the trusted certificates there (PEM), or unset SSL_CERT_FILE."}
    assert readable.remedy == "Check the host name of the url; set upstream_ca for a private authority."


@pytest.mark.parametrize(("alpn", "chosen"), [(["http/1.1"], "http/1.1"), ([], None)])
@pytest.mark.asyncio
async def test_tls_without_h2_still_shows_the_certificate(
    certificates: Certificates, alpn: list[str], chosen: str | None
) -> None:
    tls = server_context(*certificates.server_files("127.0.0.1"), alpn=alpn)
    async with listening(silent, tls) as port:
        found = await reached(Origin("https", "127.0.0.1", port), certificates.ca_file)
    steps = by_name(found)
    assert outcomes(found) == ["ok", "ok", "ok", "failed"]
    assert steps["tls"].details["issuer"] == "emulated Google, throw-away authority"
    assert (steps["http2"].code, steps["http2"].details) == ("upstream-not-http2", {"alpn": chosen})


@pytest.mark.asyncio
async def test_a_server_that_closes_the_connection_fails_after_tcp() -> None:
    async with listening(rude) as port:
        found = await reached(Origin("https", "127.0.0.1", port))
    assert outcomes(found)[:2] == ["ok", "ok"]
    assert "failed" in outcomes(found)[2:]


@pytest.mark.asyncio
async def test_a_silent_server_fails_in_tls_at_the_deadline() -> None:
    async with listening(silent) as port:
        found = await reached(Origin("https", "127.0.0.1", port), seconds=SHORT)
    assert outcomes(found) == ["ok", "ok", "failed", "skipped"]
    assert by_name(found)["tls"].code == "upstream-connect-timeout"


@contextmanager
def full() -> Iterator[int]:
    """A port with a full accept queue, so that connecting to it never finishes (Linux)."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = []
        for _ in range(4):
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
            waiting.append(one)
        try:
            yield listener.getsockname()[1]
        finally:
            for one in waiting:
                one.close()


@pytest.mark.asyncio
async def test_a_connection_without_answer_fails_in_tcp_at_the_deadline() -> None:
    with full() as port:
        found = await reached(Origin("https", "127.0.0.1", port), seconds=SHORT)
    step = by_name(found)["tcp"]
    assert (step.outcome, step.code) == (Outcome.FAILED, "tcp-timeout")
    assert step.remedy
    assert "firewalls" in step.remedy


@pytest.mark.asyncio
async def test_a_refused_connection_fails_in_tcp() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    found = await reached(Origin("https", "127.0.0.1", port))
    assert outcomes(found) == ["ok", "failed", "skipped", "skipped"]
    assert "Connection refused" in by_name(found)["tcp"].text


@pytest.mark.asyncio
async def test_an_unknown_name_fails_in_dns() -> None:
    found = await reached(Origin("https", "nowhere.invalid", 443))
    assert outcomes(found) == ["failed", "skipped", "skipped", "skipped"]
    assert by_name(found)["dns"].code == "dns-failed"


def test_an_issuer_without_a_name_is_shown_as_such() -> None:
    details = certificate_details({"issuer": (), "notAfter": "Jan  2 00:00:00 1970 GMT"}, 0.0)
    assert details == {
        "issuer": "an issuer without a name",
        "expires_at": "1970-01-02T00:00:00Z",
        "remaining_days": 1,
    }
    issuer = ((("countryName", "US"),), (("organizationName", "Google Trust Services"),), (("commonName", "WR2"),))
    named = certificate_details({"issuer": issuer, "notAfter": "Jan  2 00:00:00 1970 GMT"}, 0.0)
    assert named["issuer"] == "Google Trust Services, WR2"
