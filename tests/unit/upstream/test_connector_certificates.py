"""The certificate of an upstream is always verified, and an error sentence says why one is refused."""

from __future__ import annotations

import datetime
import ipaddress
import re
import shutil
import ssl
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from proxy.emulator import Certificates
from proxy.errors import UpstreamTlsFailed
from proxy.routes import Origin
from proxy.upstream.connection import Timing
from proxy.upstream.connector import tls_context
from tests.support.peers.sockets import server, server_context
from tests.unit.upstream.connecting import connector, left


def test_verification_is_never_off(certificates: Certificates) -> None:
    for ca in (None, certificates.ca_file):
        context = tls_context(ca)
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.check_hostname
        assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
        assert context.options & ssl.OP_NO_RENEGOTIATION, "RFC 9113, 9.2.1"


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
async def test_a_missing_file_of_the_system_is_named_and_trusted_once_it_has_come(
    certificates: Certificates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "bundle.pem"
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    connecting = connector()
    async with server(server_context(*certificates.server_files("127.0.0.1"))) as far:
        origin = Origin("https", "127.0.0.1", far.port)
        for _ in range(2):
            with pytest.raises(UpstreamTlsFailed, match=f"SSL_CERT_FILE names .*{bundle.name}.*No such file"):
                await connecting.connect(origin)
        shutil.copy(certificates.ca_file, bundle)
        await left(await connecting.connect(origin))


@pytest.mark.parametrize("which", ["system", "upstream_ca"])
@pytest.mark.asyncio
async def test_a_file_that_is_replaced_is_read_again_after_a_certificate_that_does_not_verify(
    certificates: Certificates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    bundle = tmp_path / "bundle.pem"
    other = Certificates.create(tmp_path / "other")
    shutil.copy(other.ca_file, bundle)
    if which == "system":
        monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    connecting = connector(upstream_ca=bundle if which == "upstream_ca" else None)
    far_tls, other_tls = (server_context(*ca.server_files("127.0.0.1")) for ca in (certificates, other))
    async with server(far_tls) as far, server(other_tls) as trusted:
        origin, good = Origin("https", "127.0.0.1", far.port), Origin("https", "127.0.0.1", trusted.port)
        for _ in range(2):
            with pytest.raises(UpstreamTlsFailed, match="does not verify"):
                await connecting.connect(origin)
        bundle.unlink()
        await left(await connecting.connect(good))  # What was read is used while there is nothing else.
        shutil.copy(certificates.ca_file, bundle)
        await left(await connecting.connect(origin))


@pytest.mark.parametrize("which", ["system", "upstream_ca"])
@pytest.mark.asyncio
async def test_an_authority_that_was_removed_from_its_file_is_not_trusted_after_the_settings_were_read_again(
    certificates: Certificates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    bundle = tmp_path / "bundle.pem"
    shutil.copy(certificates.ca_file, bundle)
    if which == "system":
        monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    upstream_ca = bundle if which == "upstream_ca" else None
    connecting = connector(upstream_ca=upstream_ca)
    async with server(server_context(*certificates.server_files("127.0.0.1"))) as far:
        origin = Origin("https", "127.0.0.1", far.port)
        await left(await connecting.connect(origin))
        shutil.copy(Certificates.create(tmp_path / "other").ca_file, bundle)
        await left(await connecting.connect(origin))
        connecting.change(timing=Timing(), upstream_ca=upstream_ca, upstream_proxy=None, connect_timeout_seconds=5.0)
        with pytest.raises(UpstreamTlsFailed, match="does not verify"):
            await connecting.connect(origin)


@pytest.mark.asyncio
async def test_another_upstream_ca_holds_at_once_and_the_one_before_no_more(
    certificates: Certificates, tmp_path: Path
) -> None:
    other = Certificates.create(tmp_path / "other")
    connecting = connector(upstream_ca=other.ca_file)

    def change(upstream_ca: Path) -> None:
        connecting.change(timing=Timing(), upstream_ca=upstream_ca, upstream_proxy=None, connect_timeout_seconds=5.0)

    async with server(server_context(*certificates.server_files("127.0.0.1"))) as far:
        origin = Origin("https", "127.0.0.1", far.port)
        with pytest.raises(UpstreamTlsFailed, match=re.escape(str(other.ca_file))):
            await connecting.connect(origin)
        change(certificates.ca_file)
        await left(await connecting.connect(origin))
        change(tmp_path / "nowhere.pem")
        with pytest.raises(UpstreamTlsFailed, match=r"nowhere\.pem \(upstream_ca\) cannot be used"):
            await connecting.connect(origin)


@pytest.mark.asyncio
async def test_authorities_that_have_not_changed_are_read_once(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path | None] = []

    def reading(upstream_ca: Path | None) -> ssl.SSLContext:
        read.append(upstream_ca)
        return tls_context(upstream_ca)

    monkeypatch.setattr("proxy.upstream.connector.tls_context", reading)
    connecting = connector()
    async with server(server_context(*certificates.server_files("127.0.0.1"))) as far:
        for _ in range(3):
            with pytest.raises(UpstreamTlsFailed, match="does not verify"):
                await connecting.connect(Origin("https", "127.0.0.1", far.port))
    assert read == [None]


@pytest.mark.asyncio
async def test_a_machine_without_authorities_is_told_to_install_them(
    certificates: Certificates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty.pem").touch()
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "empty.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "nowhere"))
    async with server(server_context(*certificates.server_files("127.0.0.1"))) as far:
        with pytest.raises(UpstreamTlsFailed, match="does not verify: this machine has no trusted") as failure:
            await connector().connect(Origin("https", "127.0.0.1", far.port))
    assert "ca-certificates" in failure.value.remedy


@pytest.mark.asyncio
async def test_the_file_of_a_wrong_upstream_ca_is_named(certificates: Certificates, tmp_path: Path) -> None:
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
        ((10, 20), SERVER, "not yet valid.*; see that this machine's clock is right"),
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
async def test_an_unusable_upstream_ca_is_reported_before_anything_is_sent(tmp_path: Path, content: str | None) -> None:
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
