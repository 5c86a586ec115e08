"""Certificates and contexts of TLS clients."""

from __future__ import annotations

import datetime
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

__all__ = ["client_context", "client_files"]


def client_files(folder: Path) -> tuple[Path, Path, Path]:
    """Return new PEM files for mTLS: an authority's certificate, and the certificate and key of a client of it."""
    folder.mkdir()
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority of clients")])
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a client")])
    now = datetime.datetime.now(datetime.UTC)

    def issue(name: x509.Name, public: ec.EllipticCurvePublicKey, *, ca: bool) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(authority)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        return builder.sign(authority_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    files = folder / "authority.pem", folder / "client.pem", folder / "client.key"
    files[0].write_bytes(issue(authority, authority_key.public_key(), ca=True))
    files[1].write_bytes(issue(subject, key.public_key(), ca=False))
    files[2].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files


def client_context(ca_file: Path) -> ssl.SSLContext:
    """Return the context of a client that trusts this authority, and offers h2."""
    context = ssl.create_default_context(cafile=str(ca_file))
    context.set_alpn_protocols(["h2"])
    return context
