"""A temporary certificate authority, so that programs under test verify TLS exactly as with Google."""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

__all__ = ["Certificates", "write_secret"]

LIFETIME = datetime.timedelta(days=30)
CLOCK_SKEW_ALLOWANCE = datetime.timedelta(hours=1)


class Certificates:
    """A certificate authority. Its key is only in memory."""

    def __init__(self, directory: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.ca_file: Path = directory / "ca.pem"
        """The authority's certificate in PEM, for `SSL_CERT_FILE` and the like."""
        self._directory = directory
        self._certificate = certificate
        self._key = key
        self._issued: dict[tuple[str, ...], tuple[Path, Path]] = {}
        self._untrusted: Certificates | None = None

    @classmethod
    def create(cls, directory: Path) -> Certificates:
        """Return a new authority, with its certificate in `directory`/ca.pem; the directory is created if missing."""
        directory.mkdir(parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        name = _common_name("emulated Google, throw-away authority")
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        certificate = (
            _builder(name, name, key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(authority=True), critical=True)
            .add_extension(identifier, critical=False)
            .sign(key, hashes.SHA256())
        )
        authority = cls(directory, certificate, key)
        authority.ca_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return authority

    def server_files(self, *names: str) -> tuple[Path, Path]:
        """Return the paths of a server's certificate chain and of its key, both PEM.

        `names` are DNS names or IP literals. They become the certificate's subject alternative names, in this order.
        The same names give the same files. Raises ValueError without names.
        """
        if not names:
            raise ValueError("A server certificate needs at least one name")
        if names not in self._issued:
            self._issued[names] = self._issue(names)
        return self._issued[names]

    def server_context(self, *names: str) -> ssl.SSLContext:
        """Return the context of a server with these names (`server_files`)."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*self.server_files(*names))
        return context

    def untrusted(self) -> Certificates:
        """Return another authority, which no client trusts; its files are in the directory `untrusted`."""
        if self._untrusted is None:
            self._untrusted = Certificates.create(self._directory / "untrusted")
        return self._untrusted

    def _issue(self, names: tuple[str, ...]) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            _builder(_common_name(names[0]), self._certificate.subject, key.public_key())
            .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        stem = f"server-{len(self._issued) + 1}-{re.sub(r'[^A-Za-z0-9.-]', '_', names[0])[:60]}"
        chain_file = self._directory / f"{stem}.pem"
        chain_file.write_bytes(
            certificate.public_bytes(serialization.Encoding.PEM)
            + self._certificate.public_bytes(serialization.Encoding.PEM)
        )
        key_file = self._directory / f"{stem}.key"
        write_secret(
            key_file,
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
        )
        return chain_file, key_file


def write_secret(file: Path, content: bytes) -> None:
    """Write a file that only its owner can read (mode 0600); an existing file is replaced."""
    file.unlink(missing_ok=True)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW_ALLOWANCE)
        .not_valid_after(now + LIFETIME)
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _common_name(name: str) -> x509.Name:
    # A common name has at most 64 characters (RFC 5280, appendix A.1). Clients only check the alternative names.
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name.strip("[]")))
    except ValueError:
        return x509.DNSName(name)
