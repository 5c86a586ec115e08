"""A token taken apart, for people: everything but what makes it valid. Pure."""

from __future__ import annotations

import base64
import binascii
import json
from datetime import UTC, datetime
from typing import Any

from proxy.tokens.model import Token, read_claims

__all__ = ["claims_of", "decode_token", "format_duration", "format_time", "jwt_of"]


def jwt_of(token: Token) -> str:
    """Return the token itself, a secret."""
    return token.authorization.removeprefix(b"Bearer ").decode("ascii")


def claims_of(token: Token) -> dict[str, Any]:
    """Return its claims; the signature is not among them."""
    return read_claims(jwt_of(token))


def decode_token(token: Token, now: float) -> dict[str, Any]:
    """Return header and claims as they are, and beside them the expiry as people read it."""
    return {
        "header": _header(jwt_of(token)),
        "claims": claims_of(token),
        "expires_at": format_time(token.expires_at),
        "remaining_seconds": round(token.local_expiry - now),
    }


def format_time(seconds: float) -> str:
    """Return a time as RFC 3339 has it, in UTC: `2026-01-31T12:00:00Z`."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def format_duration(seconds: float) -> str:
    """Return `59 min`, `90 s`."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _header(jwt: str) -> dict[str, Any]:
    segment = jwt.partition(".")[0]
    try:
        header = json.loads(base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        return {}
    return header if isinstance(header, dict) else {}
