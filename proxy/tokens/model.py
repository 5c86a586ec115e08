"""The values of this room: what a token is for, and a token. Pure."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from proxy.errors import TokenMalformed

__all__ = ["Token", "TokenKey", "read_claims"]


class TokenKey(NamedTuple):
    """What a token is minted for; the key of the cache."""

    impersonate: str | None
    """E-mail of the service account to impersonate, or None for the ambient identity."""
    delegates: tuple[str, ...]
    """E-mails of the chain from the ambient identity to `impersonate`, nearest first."""
    audience: str
    """The `aud` claim: what Cloud Run compares, to the letter."""


@dataclass(frozen=True, slots=True)
class Token:
    """A Google-signed ID token. Its value has no repr."""

    key: TokenKey
    authorization: bytes = field(repr=False)
    """The whole field value: `Bearer <JWT>`."""
    expires_at: float
    """`exp`, in seconds since the epoch."""
    principal: str | None
    """The `email` claim, or `sub`; None if it has neither."""


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
    except (binascii.Error, ValueError):
        raise TokenMalformed("the answer to the mint is not a JWT (its claims are not base64url JSON)") from None
    if not isinstance(claims, dict):
        raise TokenMalformed("the answer to the mint is not a JWT (its claims are not a JSON object)")
    expiry = claims.get("exp")
    if isinstance(expiry, bool) or not isinstance(expiry, int | float):
        raise TokenMalformed("the minted token has no numeric `exp` claim")
    return claims
