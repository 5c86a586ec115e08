"""Restate's request identity: proof that a request comes from a Restate server with a known key. Pure.

A restate-server with `request-identity-private-key-pem-file` signs each request: `x-restate-signature-scheme` is `v1`,
and `x-restate-jwt-v1` is a JWT (RFC 7519) that is signed by Ed25519 (`EdDSA`, RFC 8037). Its header names the key
(`kid`), its claims are the path without the deployment's prefix (`aud`) and the time: `nbf` is `iat` − 60 s, `exp` is
`iat` + 60 s, unless Restate's configuration says otherwise. The rules are those of Restate's SDKs, which verify the
same fields, so that a request that passes here passes there.

The signature covers neither host, method, fields nor content: it says who asks, and for what.
"""

from __future__ import annotations

import binascii
import json
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

__all__ = ["JWT_FIELD", "SCHEME_FIELD", "Unverified", "Verifier", "check_key", "is_signed_for", "public_octets"]

SCHEME_FIELD: Final = b"x-restate-signature-scheme"
"""Request field that says how the request is signed: `v1`, or `unsigned`."""
JWT_FIELD: Final = b"x-restate-jwt-v1"
"""Request field with the JWT."""

_PREFIX: Final = "publickeyv1_"
_ALPHABET: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_KEY_OCTETS: Final = 32
_MOST_KEY_CHARACTERS: Final = 44
"""Of 32 octets in base58."""

# The y coordinates of the points of small order on Curve25519 in Edwards form. Anybody can sign for such a key.
_PRIME: Final = 2**255 - 19
_ORDER_8: Final = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
_SMALL_ORDER: Final = frozenset((0, 1, _PRIME - 1, _ORDER_8, _PRIME - _ORDER_8))

# Restate's names are percent-encoded on the wire, so that each is one segment; only the name of a serde may be several.
_SIGNED_PATH: Final = re.compile(rb"/invoke/[^/]*/[^/]*\Z|/discover\Z|/serdes/[^/]+/(?:encode|decode)/.+", re.DOTALL)

_MOST_JWT_OCTETS: Final = 4_096
_MOST_KEPT: Final = 1_024

_URL_SAFE: Final = bytes.maketrans(b"-_", b"+/")

_ONLY_SIGNED: Final = "only requests that your Restate has signed are taken (restate_identity_keys)"


class Unverified(Exception):
    """A request is not signed as it must be; `str()` is the sentence for a person, without a part of the signature."""

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(text)
        self.reason = reason
        """What is wrong with it, in a word or two; there are few reasons."""


class _Claims(NamedTuple):
    aud: str
    not_before: float
    expires_at: float


class Verifier:
    """Verifies requests with some public keys. Raises ValueError for a key that `check_key` refuses.

    Restate signs requests of one second, path and caller alike, so that some are verified by a look-up: up to a limit,
    JWTs with a good signature are kept. Path and time are compared for each request.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        # Not at the top: with `cryptography` come some 5 MiB, which a sidecar without keys does not need.
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        self._invalid_signature = InvalidSignature
        self._keys = {key: Ed25519PublicKey.from_public_bytes(public_octets(key)) for key in keys}
        self._kept: dict[bytes, _Claims] = {}

    def verify(self, head: list[tuple[bytes, bytes, bool]], path: bytes, now: float) -> None:
        """Return if the request with this head is signed for this path, with a prefix or without; `now` is wall time.

        Raises Unverified.
        """
        schemes, tokens = [], []
        for name, value, _ in head:
            if name == JWT_FIELD:
                tokens.append(value)
            elif name == SCHEME_FIELD:
                schemes.append(value)
        if schemes != [b"v1"]:
            raise _wrong_scheme(schemes)
        if len(tokens) != 1:
            raise _malformed(f"the request has {len(tokens) or 'no'} x-restate-jwt-v1")
        token = tokens[0]
        claims = self._kept.get(token)
        if claims is None:
            claims = self._verified_claims(token)
            if len(self._kept) >= _MOST_KEPT:
                self._kept.clear()
            self._kept[token] = claims
        _check(claims, path, now)

    def _verified_claims(self, token: bytes) -> _Claims:
        """Return the claims of a JWT whose signature is good. Raises Unverified."""
        if len(token) > _MOST_JWT_OCTETS:
            raise _malformed(f"x-restate-jwt-v1 is longer than {_MOST_JWT_OCTETS} octets")
        signed, _, signature = token.rpartition(b".")
        encoded_header, _, encoded_claims = signed.partition(b".")
        try:
            header, claims = json.loads(_decoded(encoded_header)), json.loads(_decoded(encoded_claims))
            signature = _decoded(signature)
        except (ValueError, RecursionError):  # Not chained: the error could quote the field.
            raise _malformed("x-restate-jwt-v1 is no JWT") from None
        if not isinstance(header, dict) or header.get("alg") != "EdDSA" or "crit" in header:
            raise _malformed("x-restate-jwt-v1 is not signed by EdDSA")
        if not any(self._is_good(key, signature, signed) for key in self._candidates(header.get("kid"))):
            raise Unverified("the signature in x-restate-jwt-v1 is wrong", "bad-signature")
        return _claims(claims)

    def _candidates(self, kid: Any) -> list[Ed25519PublicKey]:
        """Return the keys that may have signed; all of them where the JWT names none. Raises Unverified."""
        if kid is None:
            return list(self._keys.values())
        if not isinstance(kid, str) or kid not in self._keys:
            raise Unverified(
                f"the request is signed with {_shown(kid)}, which is not in restate_identity_keys; add it if it is "
                "that of your Restate",
                "unknown-key",
            )
        return [self._keys[kid]]

    def _is_good(self, key: Ed25519PublicKey, signature: bytes, signed: bytes) -> bool:
        try:
            key.verify(signature, signed)
        except self._invalid_signature:
            return False
        return True


def check_key(key: str) -> str:
    """Return a public key as it is. Raises ValueError that says what is wrong with it, and does not quote it."""
    public_octets(key)
    return key


def public_octets(key: str) -> bytes:
    """Return the 32 octets of a public key as Restate writes it: `publickeyv1_` and base58. Raises ValueError."""
    if not key.startswith(_PREFIX):
        raise ValueError(
            f"must begin with {_PREFIX}: it is the public key that restate-server logs at its start (kid=…), not a "
            "file and not the private key"
        )
    digits = key.removeprefix(_PREFIX)
    if len(digits) > _MOST_KEY_CHARACTERS or any(digit not in _ALPHABET for digit in digits):
        raise ValueError(f"is no public key: base58 of {_KEY_OCTETS} octets must stand behind {_PREFIX}")
    number = 0
    for digit in digits:
        number = number * len(_ALPHABET) + _ALPHABET.index(digit)
    zeros = len(digits) - len(digits.lstrip(_ALPHABET[0]))
    decoded = bytes(zeros) + number.to_bytes((number.bit_length() + 7) // 8)
    if len(decoded) != _KEY_OCTETS:
        raise ValueError(f"is no public key: it has {len(decoded)} octets behind {_PREFIX}, and must have 32")
    if (int.from_bytes(decoded, "little") & (1 << 255) - 1) % _PRIME in _SMALL_ORDER:
        raise ValueError("is no safe public key: anybody can sign for it")
    return decoded


def is_signed_for(path: bytes, signed: bytes) -> bool:
    """Return True if `signed`, an `aud` claim, is this path without the deployment's prefix and without the query.

    Where the path is of a kind that is known, its prefix is, too: a signature for `/discover` must not do for the
    handler `/invoke/Greeter/discover`. Otherwise the prefix is whatever stands before `signed`.
    """
    path = path.partition(b"?")[0]
    known = _SIGNED_PATH.search(path)
    if known is not None:
        return known[0] == signed
    return signed.startswith(b"/") and signed != b"/" and path.endswith(signed)


def _check(claims: _Claims, path: bytes, now: float) -> None:
    """Raise Unverified if the claims are those of another path or time."""
    if not is_signed_for(path, claims.aud.encode(errors="surrogatepass")):
        raise Unverified("the signature in x-restate-jwt-v1 is for another path", "wrong-path")
    if not claims.not_before <= now:
        raise Unverified(
            "the signature in x-restate-jwt-v1 is not valid yet: compare the clocks of Restate and of this machine",
            "not-yet-valid",
        )
    if not now < claims.expires_at:
        raise Unverified(
            "the signature in x-restate-jwt-v1 has expired: compare the clocks of Restate and of this machine",
            "expired",
        )


def _claims(claims: Any) -> _Claims:
    if not isinstance(claims, dict) or not isinstance(claims.get("aud"), str):
        raise _malformed("x-restate-jwt-v1 has no path (aud)")
    times = [claims.get(name) for name in ("nbf", "iat", "exp")]
    if any(type(time) not in (int, float) for time in times):
        raise _malformed("x-restate-jwt-v1 has no time (nbf, iat, exp)")
    return _Claims(claims["aud"], claims["nbf"], claims["exp"])


def _decoded(part: bytes) -> bytes:
    """Return base64url without padding (RFC 7515, 2) decoded. Raises ValueError for anything else."""
    if b"+" in part or b"/" in part or b"=" in part:
        raise ValueError
    return binascii.a2b_base64(part.translate(_URL_SAFE) + b"=" * (-len(part) % 4), strict_mode=True)


def _wrong_scheme(schemes: list[bytes]) -> Unverified:
    if not schemes:
        return Unverified(f"the request has no x-restate-signature-scheme: {_ONLY_SIGNED}", "missing")
    if schemes == [b"unsigned"]:
        return Unverified(
            f"Restate has not signed the request: {_ONLY_SIGNED}; give restate-server a key "
            "(request-identity-private-key-pem-file)",
            "unsigned",
        )
    return _malformed("x-restate-signature-scheme is not v1")


def _malformed(what: str) -> Unverified:
    return Unverified(f"{what}: {_ONLY_SIGNED}", "malformed")


def _shown(kid: Any) -> str:
    """Return the name of a key for a sentence; only a public key is quoted."""
    try:
        return check_key(kid) if isinstance(kid, str) else "a key without a name"
    except ValueError:
        return "a key of another kind"
