"""JWTs signed with a service account's key: assertions for the token endpoint (RFC 7523), and bearers (AIP-4111).

Deviations of Google's own clients are accepted: a missing `kid` (Node), an `iat` 10 s early and an `exp` 10 s late
(Rust), claims that are null or empty (Rust, Go).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from proxy.emulator.google import Google, NoSuchAccount
from proxy.emulator.jwts import Flaw, TokenRefused, check_times, parse
from proxy.emulator.model import SCOPE, Access

__all__ = ["check_lifetime", "claims_of_account", "self_signed_access"]

MAX_LIFETIME_SECONDS: Final = 3600
SKEW_SECONDS: Final = 60


def claims_of_account(google: Google, token: str) -> dict[str, Any]:
    """Return the claims of a token that a key of the account in `iss` signed, without null and empty ones.

    Raises TokenRefused and NoSuchAccount.
    """
    unverified = parse(token)
    issuer = unverified.claims.get("iss")
    keys = google.keys_of(issuer if isinstance(issuer, str) else "")
    claims = unverified.verified(keys, key_id_optional=True)
    return {name: value for name, value in claims.items() if value not in (None, "")}


def check_lifetime(claims: Mapping[str, Any], now: float) -> None:
    """Raise TokenRefused unless the token is valid at `now` and its lifetime is at most an hour, within the skew."""
    issued, expires = check_times(claims, now, skew_seconds=SKEW_SECONDS)
    if not 0 < expires - issued <= MAX_LIFETIME_SECONDS + SKEW_SECONDS:
        raise TokenRefused(Flaw.LIFETIME)


def self_signed_access(google: Google, token: str, audiences: Collection[str]) -> Access | None:
    """Return the access that a self-signed JWT grants as the bearer of an API; None if the API does not accept it.

    It needs an `aud` that is one of `audiences`, or a `scope` and no `aud`. Without a `scope` it has all scopes.
    """
    try:
        claims = claims_of_account(google, token)
        check_lifetime(claims, google.clock())
    except (TokenRefused, NoSuchAccount):
        return None
    audience, scope = claims.get("aud"), claims.get("scope", "" if "aud" in claims else None)
    if "aud" in claims and not (isinstance(audience, str) and audience in audiences):
        return None
    if not isinstance(scope, str):
        return None
    if claims.get("sub") != claims["iss"] or claims["iss"] in google.disabled:
        return None
    scopes = frozenset(scope.split()) or frozenset({SCOPE})
    return Access(principal=claims["iss"], scopes=scopes, expires_at=claims["exp"])
