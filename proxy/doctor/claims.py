"""The parts of a token that may be shown: header, claims and lifetime, not the signature. Pure."""

from __future__ import annotations

import base64
import binascii
import json
from datetime import UTC, datetime
from typing import Any

from proxy.tokens.model import Token, read_claims

__all__ = ["claims_of", "decode_token", "format_duration", "format_time", "jwt_of"]


def jwt_of(token: Token) -> str:
    """Return the token without `Bearer`. It is a secret."""
    return token.authorization.removeprefix(b"Bearer ").decode("ascii")


def claims_of(token: Token) -> dict[str, Any]:
    """Return the claims of the token."""
    return read_claims(jwt_of(token))


def decode_token(token: Token, now: float) -> dict[str, Any]:
    """Return `header`, `claims`, `expires_at` (RFC 3339) and `remaining_seconds` as JSON data.

    A header that is not a JSON object becomes `{}`.
    """
    return {
        "header": _header(jwt_of(token)),
        "claims": claims_of(token),
        "expires_at": format_time(token.expires_at),
        "remaining_seconds": round(token.local_expiry - now),
    }


def format_time(seconds: float) -> str:
    """Return a time in seconds since the epoch as RFC 3339 in UTC: `2026-01-31T12:00:00Z`."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def format_duration(seconds: float) -> str:
    """Return seconds below two minutes, else minutes: `90 s`, `59 min`."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _header(jwt: str) -> dict[str, Any]:
    segment = jwt.partition(".")[0]
    try:
        header = json.loads(base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        return {}
    return header if isinstance(header, dict) else {}
