"""Connecting, on real sockets and real TLS: what works, and the sentence for each thing that does not."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import re
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from h2.settings import SettingCodes

from proxy.connection.budget import Budget
from proxy.connection.protocol import Flusher
from proxy.emulator import Certificates
from proxy.errors import (
    UpstreamConnectFailed,
    UpstreamConnectionLost,
    UpstreamConnectTimeout,
    UpstreamNotHttp2,
    UpstreamTlsFailed,
)
from proxy.http2.choice import EngineFactory
from proxy.http2.engine import Limits
from proxy.http2.portable.engine import PortableEngine
from proxy.routes import Origin
from proxy.upstream.connection import Timing, UpstreamConnection
from proxy.upstream.connector import Connector, tls_context
from tests.support.peers.engines import each_bare_engine
from tests.support.peers.raw import REQUEST
from tests.support.peers.sockets import server, server_context
from tests.unit.upstream.stage import Receiver

Conversation = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


def connector(make: EngineFactory = PortableEngine, **options: Any) -> Connector:
    return Connector(
        lambda handler: make(client=True, limits=Limits(), handler=handler),
        Budget(1 << 20),
        Flusher(asyncio.get_running_loop()),
        timing=Timing(),
        **options,
    )


async def left(connection: UpstreamConnection) -> None:
    """Close a connection and see it gone."""
    connection.retire("the test is over")
    await connection.gone


@asynccontextmanager
async def listening(conversation: Conversation) -> AsyncIterator[int]:
    """Listen on a free port and have this conversation on each connection; what it leaves open is closed."""
    over: list[asyncio.Event] = []

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        over.append(asyncio.Event())
        try:
            await conversation(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()
            over[-1].set()

    accepting = await asyncio.start_server(converse, "127.0.0.1", 0)
    async with accepting:
        yield accepting.sockets[0].getsockname()[1]
        for event in over:
            await event.wait()


# ---- what works


@each_bare_engine
@pytest.mark.asyncio
async def test_a_connection_over_tls_is_ready_when_it_is_returned(
    make: EngineFactory, certificates: Certificates
) -> None:
    tls = server_context(*certificates.server_files("localhost"))
    asked_for: list[str | None] = []
    tls.sni_callback = lambda _, name, __: asked_for.append(name)
    async with server(tls, settings={SettingCodes.MAX_CONCURRENT_STREAMS: 7}) as far:
        connection = await connector(make, upstream_ca=certificates.ca_file).connect(
            Origin("https", "localhost", far.port)
        )
        assert connection.count_free_streams() == 7
        assert asked_for == ["localhost"]
        assert connection.transport is not None
        assert connection.transport.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
        receiver = Receiver()
        connection.open(REQUEST, True, receiver)
        peer, _, fields, ended = await far.request()
        assert (b":path", b"/invoke/Greeter/greet") in fields
        assert ended
        peer.go_away(0)
        await connection.gone
        assert receiver.told == [("unprocessed",)]


@each_bare_engine
@pytest.mark.asyncio
async def test_plain_http_upstreams_speak_http2_from_the_first_octet(make: EngineFactory) -> None:
    async with server() as far:
        connection = await connector(make).connect(Origin("http", "127.0.0.1", far.port))
        assert connection.count_free_streams() == 1000
        assert connection.transport is not None
        assert connection.transport.get_extra_info("ssl_object") is None
        await left(connection)


# ---- verification


def test_verification_is_never_off(certificates: Certificates) -> None:
    for ca in (None, certificates.ca_file):
        context = tls_context(ca)
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.check_hostname
        assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


def test_upstream_ca_is_added_to_the_system_authorities(
    certificates: Certificates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = Certificates.create(tmp_path / "system")
    monkeypatch.setenv("SSL_CERT_FILE", str(system.ca_file))
    trusted = tls_context(certificates.ca_file).get_ca_certs(binary_form=True)
    for file in (system.ca_file, certificates.ca_file):
        assert ssl.PEM_cert_to_DER_cert(file.read_text()) in trusted


@pytest.mark.asyncio
async def test_a_certificate_of_an_unknown_authority_is_refused_and_the_flag_named(certificates: Certificates) -> None:
    async with server(server_context(*certificates.server_files("127.0.0.1"))) as far:
        origin = Origin("https", "127.0.0.1", far.port)
        with pytest.raises(UpstreamTlsFailed, match="--upstream-ca") as failure:
            await connector().connect(origin)
        assert str(origin) in str(failure.value)
        assert not far.peers, "no octet of HTTP was sent"


@pytest.mark.asyncio
async def test_where_an_authority_was_given_and_is_another_its_file_is_named(
    certificates: Certificates, tmp_path: Path
) -> None:
    other = Certificates.create(tmp_path / "other")
    async with server(server_context(*certificates.server_files("127.0.0.1"))) as far:
        with pytest.raises(UpstreamTlsFailed, match=re.escape(str(other.ca_file))):
            await connector(upstream_ca=other.ca_file).connect(Origin("https", "127.0.0.1", far.port))


@pytest.mark.parametrize(("host", "names"), [("localhost", ["127.0.0.1"]), ("127.0.0.1", ["localhost", "127.0.0.2"])])
@pytest.mark.asyncio
async def test_a_certificate_for_another_name_is_refused_and_the_url_named(
    certificates: Certificates, host: str, names: list[str]
) -> None:
    async with server(server_context(*certificates.server_files(*names))) as far:
        with pytest.raises(UpstreamTlsFailed, match=f"not valid for '{host}'; the url of the route must") as failure:
            await connector(upstream_ca=certificates.ca_file).connect(Origin("https", host, far.port))
        assert "--upstream-ca" not in str(failure.value)


def issue(folder: Path, *, days: tuple[int, int], usage: x509.ObjectIdentifier) -> tuple[Path, ssl.SSLContext]:
    """Return the file of an authority, and a server's context with a certificate that is good between these days."""
    now = datetime.datetime.now(datetime.UTC)
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "throw-away authority")])
    usages = {True: (False,) * 5 + (True, True, False, False), False: (True,) + (False,) * 8}

    def build(name: x509.Name, owner: ec.EllipticCurvePrivateKey, days: tuple[int, int], *, ca: bool) -> Any:
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(ca_name)
            .public_key(owner.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + datetime.timedelta(days[0]))
            .not_valid_after(now + datetime.timedelta(days[1]))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.KeyUsage(*usages[ca]), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(owner.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        )

    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    authority = build(ca_name, ca_key, (-100, 100), ca=True).sign(ca_key, hashes.SHA256())
    leaf = (
        build(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "leaf")]), key, days, ca=False)
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "ca.pem").write_bytes(authority.public_bytes(pem))
    (folder / "leaf.pem").write_bytes(leaf.public_bytes(pem))
    (folder / "leaf.key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "ca.pem", server_context(folder / "leaf.pem", folder / "leaf.key")


SERVER, CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH


@pytest.mark.parametrize(
    ("days", "usage", "remedy"),
    [
        ((-20, -10), SERVER, "expired; renew it, and see that this machine's clock is right"),
        ((10, 20), SERVER, "not yet valid; see that this machine's clock is right"),
        ((-10, 10), CLIENT, "purpose; it, or the certificate of its authority, has to be reissued"),
    ],
    ids=["expired", "not-yet", "purpose"],
)
@pytest.mark.asyncio
async def test_an_expired_certificate_is_not_blamed_on_the_authority(
    tmp_path: Path, days: tuple[int, int], usage: x509.ObjectIdentifier, remedy: str
) -> None:
    ca_file, tls = issue(tmp_path, days=days, usage=usage)
    async with server(tls) as far:
        with pytest.raises(UpstreamTlsFailed, match=remedy) as failure:
            await connector(upstream_ca=ca_file).connect(Origin("https", "127.0.0.1", far.port))
        assert "--upstream-ca" not in str(failure.value)


@pytest.mark.parametrize("content", [None, "not a certificate\n", ""], ids=["missing", "junk", "empty"])
@pytest.mark.asyncio
async def test_an_authority_that_cannot_be_used_is_named_before_anything_is_sent(
    tmp_path: Path, content: str | None
) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UpstreamTlsFailed, match=re.escape(f"{file} (upstream_ca) cannot be used")):
        await connector(upstream_ca=file).connect(Origin("https", "127.0.0.1", 9))


@pytest.mark.asyncio
async def test_other_tls_setup_errors_are_not_blamed_on_upstream_ca(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "nowhere" / "keys.log"))
    with pytest.raises(UpstreamTlsFailed, match="TLS cannot be set up: No such file") as failure:
        await connector().connect(Origin("https", "127.0.0.1", 9))
    assert "upstream_ca" not in str(failure.value)


# ---- HTTP/2, or not


@pytest.mark.parametrize("alpn", [["http/1.1"], []], ids=["http/1.1", "none"])
@pytest.mark.asyncio
async def test_a_peer_that_does_not_choose_h2_is_reported_and_closed(
    certificates: Certificates, alpn: list[str]
) -> None:
    async with server(server_context(*certificates.server_files("127.0.0.1"), alpn=alpn)) as far:
        with pytest.raises(UpstreamNotHttp2, match="gcloud run deploy --use-http2"):
            await connector(upstream_ca=certificates.ca_file).connect(Origin("https", "127.0.0.1", far.port))


@pytest.mark.asyncio
async def test_a_peer_that_refuses_alpn_is_reported() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(bytes.fromhex("15 0303 0002 02 78"))  # fatal alert: no_application_protocol (RFC 7301, 3.2)
        await reader.read()

    async with listening(refuse) as port:
        with pytest.raises(UpstreamNotHttp2, match=r"\(ALPN h2\).*--use-http2"):
            await connector().connect(Origin("https", "127.0.0.1", port))


@pytest.mark.asyncio
async def test_a_plain_http1_peer_is_reported() -> None:
    async def http1(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(64)
        writer.write(b"HTTP/1.1 505 HTTP Version Not Supported\r\ncontent-length: 0\r\n\r\n")
        await reader.read()

    async with listening(http1) as port:
        with pytest.raises(UpstreamNotHttp2, match="--use-http2"):
            await connector().connect(Origin("http", "127.0.0.1", port))


@pytest.mark.asyncio
async def test_a_plain_peer_behind_an_https_url_is_reported() -> None:
    async def http1(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(64)
        writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
        await reader.read()

    async with listening(http1) as port:
        with pytest.raises(UpstreamTlsFailed, match="check that it is an https:// service, and its port"):
            await connector().connect(Origin("https", "127.0.0.1", port))


@pytest.mark.asyncio
async def test_a_tls_peer_behind_an_http_url_is_no_usable_connection(certificates: Certificates) -> None:
    async with server(server_context(*certificates.server_files("127.0.0.1"))) as far:
        with pytest.raises((UpstreamNotHttp2, UpstreamConnectionLost), match="HTTP/2"):
            await connector().connect(Origin("http", "127.0.0.1", far.port))


# ---- peers that fail


@pytest.mark.asyncio
async def test_a_refused_connection_is_reported() -> None:
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(
            UpstreamConnectFailed, match=rf"https://127\.0\.0\.1:{port} .*\(Connection refused\); check"
        ):
            await connector().connect(Origin("https", "127.0.0.1", port))


@pytest.mark.asyncio
async def test_a_name_that_does_not_resolve_is_named() -> None:
    with pytest.raises(UpstreamConnectFailed, match=r"the host name of https://nowhere\.invalid does not resolve"):
        await connector(connect_timeout_seconds=30.0).connect(Origin("https", "nowhere.invalid", 443))


@pytest.mark.parametrize("how", ["closes", "resets"])
@pytest.mark.asyncio
async def test_a_peer_that_ends_in_the_middle_of_the_handshake_is_named(how: str) -> None:
    async def end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        if how == "resets":
            option = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)

    async with listening(end) as port:
        with pytest.raises(UpstreamConnectFailed, match=rf"https://127\.0\.0\.1:{port} cannot be connected to \(\w+"):
            await connector().connect(Origin("https", "127.0.0.1", port))


@pytest.mark.parametrize("scheme", ["https", "http"])
@pytest.mark.asyncio
async def test_a_silent_peer_is_closed_at_the_deadline(scheme: str) -> None:
    left_behind = asyncio.get_running_loop().create_future()

    async def nothing(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        left_behind.set_result(await reader.read())

    async with listening(nothing) as port:
        with pytest.raises(UpstreamConnectTimeout, match=r"was not connected within 0\.2 s"):
            await connector(connect_timeout_seconds=0.2).connect(Origin(scheme, "127.0.0.1", port))
        await left_behind


@pytest.mark.asyncio
async def test_settings_that_do_not_come_after_the_handshake_meet_the_deadline_too(certificates: Certificates) -> None:
    left_behind = asyncio.get_running_loop().create_future()

    async def nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            left_behind.set_result(await reader.read())
        except ConnectionError:
            left_behind.set_result(b"")
        writer.close()

    tls = server_context(*certificates.server_files("127.0.0.1"))
    async with await asyncio.start_server(nothing, "127.0.0.1", 0, ssl=tls) as accepting:
        port = accepting.sockets[0].getsockname()[1]
        with pytest.raises(UpstreamConnectTimeout, match="SETTINGS"):
            await connector(connect_timeout_seconds=1.0, upstream_ca=certificates.ca_file).connect(
                Origin("https", "127.0.0.1", port)
            )
        await left_behind


@pytest.mark.asyncio
async def test_a_peer_that_ends_before_its_settings_is_named() -> None:
    async def end(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read(64)

    async with listening(end) as port:
        with pytest.raises(UpstreamConnectionLost, match=r"ended before it was usable .*; check the url of the route"):
            await connector().connect(Origin("http", "127.0.0.1", port))


@pytest.mark.parametrize("scheme", ["https", "http"])
@pytest.mark.asyncio
async def test_a_cancelled_connect_leaves_nothing_behind(scheme: str) -> None:
    arrived, left_behind = asyncio.Event(), asyncio.Event()

    async def nothing(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read(1)
        arrived.set()
        await reader.read()
        left_behind.set()

    async with listening(nothing) as port:
        dial = asyncio.get_running_loop().create_task(connector().connect(Origin(scheme, "127.0.0.1", port)))
        await arrived.wait()
        dial.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dial
        await left_behind.wait()
