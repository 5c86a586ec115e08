"""Signs requests as a restate-server with a private key does."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

__all__ = ["SigningKey", "base58", "base64url"]

_ALPHABET: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


class SigningKey:
    """A private key, random or made of a seed, and its public half as Restate writes it."""

    def __init__(self, seed: bytes = b"") -> None:
        self.private = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(seed or os.urandom(32)).digest())
        self.public = f"publickeyv1_{base58(self.private.public_key().public_bytes_raw())}"

    def write(self, path: Path) -> Path:
        """Write the private key as a PEM file for restate-server."""
        path.write_bytes(self.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return path

    def jwt(self, path: str, *, at: float | None = None, header: dict[str, Any] | None = None, **claims: Any) -> str:
        """Return a JWT for this path, signed at a time (now by default); None as a claim or in `header` omits it."""
        issued = int(time.time() if at is None else at)
        whole = {"aud": path, "exp": issued + 60, "iat": issued, "nbf": issued - 60, **claims}
        head = {"typ": "JWT", "alg": "EdDSA", "kid": self.public, **(header or {})}
        parts = [{key: value for key, value in part.items() if value is not None} for part in (head, whole)]
        signed = ".".join(base64url(json.dumps(part).encode()) for part in parts)
        return f"{signed}.{base64url(self.private.sign(signed.encode()))}"

    def fields(self, path: str, *, at: float | None = None, **claims: Any) -> dict[str, str]:
        """Return the fields of a signed request."""
        return {"x-restate-signature-scheme": "v1", "x-restate-jwt-v1": self.jwt(path, at=at, **claims)}


def base58(octets: bytes) -> str:
    """Return octets in the alphabet of Bitcoin."""
    number, digits = int.from_bytes(octets), ""
    while number:
        number, digit = divmod(number, len(_ALPHABET))
        digits = _ALPHABET[digit] + digits
    return _ALPHABET[0] * (len(octets) - len(octets.lstrip(b"\0"))) + digits


def base64url(octets: bytes) -> str:
    """Return octets in base64url without padding."""
    return base64.urlsafe_b64encode(octets).decode().rstrip("=")
