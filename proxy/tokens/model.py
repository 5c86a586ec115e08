"""What a token is minted for, and the token. Pure."""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

from proxy.clock_skew import NEGLIGIBLE_SKEW_SECONDS
from proxy.errors import TokenMalformed
from proxy.routes import Route

__all__ = ["Token", "TokenKey", "is_account", "read_claims", "token_from_jwt"]

# A JWT in compact form (RFC 7515, 3.1). Its value becomes an HTTP field, so no other octet may pass.
_COMPACT: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")

# E-mail or unique number of a service account. It becomes a segment of a URL's path, so no `/`, `:`, `%`, `?` or `#`.
_ACCOUNT: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*)@[A-Za-z0-9](?:[A-Za-z0-9.-]*)|[0-9]{5,30}")

_LAST_SECOND: Final = 253_402_300_799
"""The end of the year 9999, beyond which no calendar goes."""


class TokenKey(NamedTuple):
    """What a token is minted for; the key of the cache."""

    impersonate: str | None
    """E-mail of the service account to impersonate, or None for the identity of the credentials."""
    delegates: tuple[str, ...]
    """E-mails of the chain from the identity of the credentials to `impersonate`, nearest first."""
    audience: str
    """The `aud` claim: what Cloud Run compares, to the letter."""

    @classmethod
    def for_route(cls, route: Route) -> TokenKey:
        """Return the key of the tokens that a route's requests are signed with."""
        return cls(route.impersonate, route.delegates, route.audience)


@dataclass(frozen=True, slots=True)
class Token:
    """A Google-signed ID token. Its value has no repr."""

    key: TokenKey
    """What it was minted for."""
    authorization: bytes = field(repr=False)
    """The whole field value: `Bearer <JWT>`."""
    expires_at: float
    """`exp`, in seconds since the epoch."""
    principal: str | None
    """The `email` claim, or `sub`; None if it has neither, or one that cannot be shown."""
    issued_at: float | None = None
    """`iat`, in seconds since the epoch; None if it has none."""
    dated_at: float | None = None
    """When it was issued by the issuer's clock (`date` of that answer), in seconds since the epoch; None if unknown."""
    clock_ahead_seconds: float = 0.0
    """How far this machine's clock was ahead of Google's then; negative if behind, 0 if right or unknown."""
    generation: int = 0
    """The generation of the credentials that it was minted from; each change begins another."""

    @property
    def local_expiry(self) -> float:
        """What this machine's clock will show when the token expires, in seconds since the epoch."""
        return self.expires_at + self.clock_ahead_seconds

    def after_clock_step(self, seconds: float) -> Token:
        """Return the token as it may be used after this machine's clock was set by so many seconds.

        Nobody knows whether the clock was right before, or is now, or whether the machine slept, which looks like a
        step forward. So `local_expiry` is the earliest that any of these allows.
        """
        return replace(self, clock_ahead_seconds=min(0.0, self.clock_ahead_seconds + min(0.0, seconds)))


def read_claims(jwt: str) -> dict[str, Any]:
    """Return the claims of a JWT without verifying it.

    Raises TokenMalformed, never with any part of the token in its text, unless there are three non-empty segments
    whose second is a JSON object with a numeric `exp`.
    """
    segments = jwt.split(".")
    if len(segments) != 3 or not all(segments):
        raise TokenMalformed("the answer to the mint is not a JWT (three segments expected)")
    payload = segments[1]
    try:
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        raise TokenMalformed("the answer to the mint is not a JWT (its claims are not base64url JSON)") from None
    if not isinstance(claims, dict):
        raise TokenMalformed("the answer to the mint is not a JWT (its claims are not a JSON object)")
    expiry = claims.get("exp")
    if isinstance(expiry, bool) or not isinstance(expiry, int | float):
        raise TokenMalformed("the minted token has no numeric `exp` claim")
    if not 0 < expiry <= _LAST_SECOND:
        raise TokenMalformed("the `exp` claim of the minted token is no time (seconds since 1970 expected)")
    return claims


def token_from_jwt(key: TokenKey, jwt: str, dated_at: float | None = None) -> Token:
    """Return the token that was minted for `key`; `dated_at` is the `date` of the answer that it was in.

    That date is ignored if the token was issued after it: a token would be used long after its end by such a clock.

    Raises TokenMalformed, as `read_claims` does, and for a character that a JWT cannot have: the value goes into
    an HTTP field.
    """
    claims = read_claims(jwt)
    if not _COMPACT.fullmatch(jwt):
        raise TokenMalformed("the answer to the mint is not a JWT (characters that are not base64url)")
    name = claims.get("email") or claims.get("sub")
    issued = claims.get("iat")
    issued_at = float(issued) if isinstance(issued, int | float) and 0 < issued <= _LAST_SECOND else None
    if dated_at is not None and issued_at is not None and dated_at < issued_at - NEGLIGIBLE_SKEW_SECONDS:
        dated_at = None
    return Token(
        key=key,
        authorization=b"Bearer " + jwt.encode("ascii"),
        expires_at=float(claims["exp"]),
        principal=name if isinstance(name, str) and name.isprintable() else None,
        issued_at=issued_at,
        dated_at=dated_at,
    )


def is_account(name: str) -> bool:
    """Return whether `name` can be the e-mail, or the unique number, of a service account."""
    return len(name) <= 320 and _ACCOUNT.fullmatch(name) is not None
