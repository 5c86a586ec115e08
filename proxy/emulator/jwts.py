"""JSON Web Tokens as Google signs and verifies them: RS256, for IAP ES256; compact form, strict parsing (RFC 7515)."""

from __future__ import annotations

import base64
import enum
import functools
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeGuard

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from google.auth import crypt, jwt

__all__ = ["EcKey", "Flaw", "Key", "TokenRefused", "Unverified", "check_times", "parse"]

_LATEST: Final = 1 << 37
"""Seconds since the epoch, more than 4,000 years: neither infinite nor NaN, and a time that Python has."""


class Flaw(enum.Enum):
    """Why a token is refused, in the order of the checks."""

    MALFORMED = "it is not a signed JWT"
    ALGORITHM = "its algorithm is not RS256"
    UNKNOWN_KEY = "its key id is unknown"
    SIGNATURE = "its signature does not verify"
    CLAIMS = "a claim is missing or of the wrong type"
    ISSUER = "its issuer is not Google"
    AUDIENCE = "it is for another audience"
    EXPIRED = "it has expired"
    TOO_EARLY = "it was issued in the future"
    LIFETIME = "it is valid for longer than an hour"


class TokenRefused(Exception):
    """A token is not accepted. The text does not contain the token."""

    def __init__(self, flaw: Flaw) -> None:
        super().__init__(f"The token is not accepted: {flaw.value}")
        self.flaw = flaw
        """The reason."""


class _SigningKey:
    """A key with its id, and what signs with it (a subclass sets that)."""

    _signer: crypt.Signer

    def __init__(self, public: rsa.RSAPublicKey | ec.EllipticCurvePublicKey, id_characters: int) -> None:
        self.public_pem: str = public.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        ).decode()
        """The public half in PEM."""
        self.key_id: str = hashlib.sha256(self.public_pem.encode()).hexdigest()[:id_characters]
        """The `kid` in the header of its tokens."""

    def sign(self, claims: Mapping[str, object]) -> str:
        """Return the claims as a signed token in compact form."""
        token: bytes = jwt.encode(self._signer, dict(claims))  # type: ignore[no-untyped-call]  # google-auth
        return token.decode("ascii")


class Key(_SigningKey):
    """An RSA signing key."""

    def __init__(self) -> None:
        self._private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        super().__init__(self._private.public_key(), 40)
        self._signer = crypt.RSASigner(self._private, key_id=self.key_id)  # type: ignore[no-untyped-call]  # google-auth

    def private_pem(self) -> str:
        """Return the private half as in Google's key files: PKCS #8, PEM, not encrypted."""
        return self._private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode()


class EcKey(_SigningKey):
    """A signing key of IAP: ES256, P-256."""

    def __init__(self) -> None:
        private = ec.generate_private_key(ec.SECP256R1())
        super().__init__(private.public_key(), 6)
        self._signer = crypt.ES256Signer(private, key_id=self.key_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unverified:
    """A well-formed token whose signature is not verified yet."""

    header: dict[str, Any]
    """The JOSE header."""
    claims: dict[str, Any]
    """The claims, not to be trusted yet."""
    signed: bytes = field(repr=False)
    """The octets that the signature covers."""
    signature: bytes = field(repr=False)
    """The decoded signature."""

    def verified(self, keys: Mapping[str, str], *, key_id_optional: bool = False) -> dict[str, Any]:
        """Return the claims if one of `keys` (id → public half in PEM) signed them; raises TokenRefused otherwise.

        With `key_id_optional`, a token without `kid` may be signed with any of the keys.
        """
        if self.header.get("alg") != "RS256" or "crit" in self.header:
            raise TokenRefused(Flaw.ALGORITHM)
        key_id = self.header.get("kid")
        if key_id is None and key_id_optional:
            candidates = list(keys.values())
        elif isinstance(key_id, str) and key_id in keys:
            candidates = [keys[key_id]]
        else:
            raise TokenRefused(Flaw.UNKNOWN_KEY)
        if not any(_verifier(public_pem).verify(self.signed, self.signature) for public_pem in candidates):
            raise TokenRefused(Flaw.SIGNATURE)
        return self.claims


def parse(token: str) -> Unverified:
    """Parse a token in compact form; raises TokenRefused if it is malformed."""
    parts = token.split(".")
    if len(parts) != 3:
        raise TokenRefused(Flaw.MALFORMED)
    header, claims, signature = parts
    return Unverified(
        header=_object(header),
        claims=_object(claims),
        signed=f"{header}.{claims}".encode("ascii"),
        signature=_octets(signature),
    )


def check_times(claims: Mapping[str, Any], now: float, *, skew_seconds: float) -> tuple[float, float]:
    """Return `iat` and `exp` if `now` is between them, within the skew; raises TokenRefused otherwise."""
    issued, expires = claims.get("iat"), claims.get("exp")
    if not _is_time(issued) or not _is_time(expires):
        raise TokenRefused(Flaw.CLAIMS)
    if expires <= now - skew_seconds:
        raise TokenRefused(Flaw.EXPIRED)
    if issued > now + skew_seconds:
        raise TokenRefused(Flaw.TOO_EARLY)
    return issued, expires


def _is_time(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LATEST


def _object(segment: str) -> dict[str, Any]:
    try:
        value = json.loads(_octets(segment))
    except (ValueError, RecursionError):
        raise TokenRefused(Flaw.MALFORMED) from None
    if not isinstance(value, dict):
        raise TokenRefused(Flaw.MALFORMED)
    return value


def _octets(segment: str) -> bytes:
    # urlsafe_b64decode silently drops characters outside its alphabet, so the alphabet is checked first.
    if not re.fullmatch(r"[A-Za-z0-9_-]+", segment) or len(segment) % 4 == 1:
        raise TokenRefused(Flaw.MALFORMED)
    return base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))


@functools.lru_cache(maxsize=64)
def _verifier(public_pem: str) -> Any:
    return crypt.RSAVerifier.from_string(public_pem)  # type: ignore[no-untyped-call]  # google-auth
