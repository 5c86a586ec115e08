from __future__ import annotations

import datetime
import ipaddress
import json
import ssl
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from proxy.tokens.google import GoogleMint
from tests.unit.tokens.fake_google import GOOGLE_NAMES, FakeGoogle
from tests.unit.tokens.source_stage import Bench

KEY_ACCOUNT = "key@project.iam.gserviceaccount.com"


@dataclass(frozen=True)
class Authority:
    """A certificate authority for one test run, and a server certificate with Google's names."""

    ca_file: Path
    server: ssl.SSLContext
    expired: ssl.SSLContext
    not_yet_valid: ssl.SSLContext


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    is_ca: bool,
    valid_days: tuple[int, int] = (-2, 1),
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(days=valid_days[0]))
        .not_valid_after(now + datetime.timedelta(days=valid_days[1]))
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if is_ca:
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        builder = builder.add_extension(usage, critical=True)
    else:
        names: list[x509.GeneralName] = [x509.DNSName(google_name) for google_name in GOOGLE_NAMES]
        names.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def _pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    folder = tmp_path_factory.mktemp("tls")
    ca_key, server_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca = _certificate("test authority", ca_key, "test authority", ca_key, is_ca=True)
    (folder / "ca.pem").write_bytes(ca.public_bytes(serialization.Encoding.PEM))

    def server(first_day: int, last_day: int) -> ssl.SSLContext:
        certificate = _certificate(
            "server", server_key, "test authority", ca_key, is_ca=False, valid_days=(first_day, last_day)
        )
        file = folder / f"server{first_day}.pem"
        file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + _pem(server_key))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        return context

    return Authority(folder / "ca.pem", server(-2, 1), server(-3, -1), server(1, 2))


@pytest.fixture(scope="session")
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture
def key_info(rsa_key: rsa.RSAPrivateKey) -> dict[str, Any]:
    """The content of a service account's key file."""
    return {
        "type": "service_account",
        "project_id": "project",
        "private_key_id": "k1",
        "private_key": _pem(rsa_key).decode(),
        "client_email": KEY_ACCOUNT,
        "token_uri": "https://oauth2.googleapis.com/token",
    }


@pytest.fixture
def user_info() -> dict[str, Any]:
    """The content of gcloud's file of user credentials."""
    return {
        "type": "authorized_user",
        "client_id": "id.apps.googleusercontent.com",
        "client_secret": "client-secret-of-the-app",
        "refresh_token": "1//refresh-token-of-the-user",
        "account": "user@example.com",
    }


@pytest_asyncio.fixture
async def google(
    authority: Authority,
    rsa_key: rsa.RSAPrivateKey,
    user_info: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[FakeGoogle]:
    """A running Google, whose names resolve through `google.names()` and whose certificate is trusted."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca_file))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    fake = FakeGoogle()
    fake.keys[KEY_ACCOUNT] = rsa_key.public_key()
    fake.users[user_info["refresh_token"]] = "user@example.com"
    fake.secrets |= set(_pem(rsa_key).decode().splitlines()[1:-1]) | {
        user_info["refresh_token"],
        user_info["client_secret"],
    }
    await fake.start(authority.server)
    yield fake
    await fake.stop()


@dataclass
class Home:
    """Where a mint runs: an environment, and a home folder that can hold credential files."""

    folder: Path
    environment: dict[str, str]

    def file(self, content: object, name: str = "credentials.json") -> Path:
        """Write a file that `GOOGLE_APPLICATION_CREDENTIALS` names."""
        path = self.folder / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        self.environment["GOOGLE_APPLICATION_CREDENTIALS"] = str(path)
        return path


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path, {"HOME": str(tmp_path)})


@pytest_asyncio.fixture
async def mint(google: FakeGoogle, home: Home) -> AsyncIterator[GoogleMint]:
    """A mint in `home` that sees `google`."""
    made = GoogleMint(environment=home.environment, resolver=google.names())
    yield made
    await made.close()


@pytest_asyncio.fixture
async def bench() -> AsyncIterator[Bench]:
    """A token source on fake time."""
    made = Bench()
    yield made
    await made.source.close()


@pytest.fixture
def log_lines() -> Iterator[list[Any]]:
    """What was logged through structlog."""
    with structlog.testing.capture_logs() as lines:
        yield lines


@pytest.fixture
def told() -> Callable[[BaseException], str]:
    """Return everything that a traceback with all its chains would show of an exception."""

    def text(exc: BaseException) -> str:
        return "".join(traceback.format_exception(exc)) + repr(exc.args)

    return text
