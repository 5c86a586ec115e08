"""The result of a request to Cloud Run: accepted, or refused by the front end or by the check of its token."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final, NamedTuple

from proxy.emulator.jwts import Flaw

__all__ = ["VERDICT_OF", "RequestRecord", "Verdict"]


class Verdict(enum.Enum):
    """The result of checking a request."""

    ACCEPTED = "accepted"
    NO_TOKEN = "no token"  # noqa: S105 – a word
    MALFORMED = "malformed"
    UNKNOWN_KEY = "unknown key"
    SIGNATURE = "bad signature"
    ISSUER = "wrong issuer"
    AUDIENCE = "wrong audience"
    EXPIRED = "expired"
    TOO_EARLY = "issued in the future"
    IAP = "refused by IAP"
    DISABLED = "account disabled"
    NOT_INVOKER = "not an invoker"
    UNKNOWN_HOST = "unknown host"
    RESERVED_PATH = "reserved path"
    TOO_LARGE = "fields too large"
    METHOD = "method refused"
    SCHEME = "wrong scheme"

    @property
    def status(self) -> int | None:
        """HTTP status of the refusal; None if accepted."""
        return STATUS_OF.get(self, 401)


STATUS_OF: Final[Mapping[Verdict, int | None]] = {
    Verdict.ACCEPTED: None,
    Verdict.NO_TOKEN: 403,
    Verdict.NOT_INVOKER: 403,
    Verdict.UNKNOWN_HOST: 404,
    Verdict.RESERVED_PATH: 404,
    Verdict.TOO_LARGE: 431,
    Verdict.METHOD: 405,
    Verdict.SCHEME: 400,
}
"""All others are 401: the token is not accepted."""

VERDICT_OF: Final[Mapping[Flaw, Verdict]] = {
    Flaw.MALFORMED: Verdict.MALFORMED,
    Flaw.ALGORITHM: Verdict.MALFORMED,
    Flaw.CLAIMS: Verdict.MALFORMED,
    Flaw.UNKNOWN_KEY: Verdict.UNKNOWN_KEY,
    Flaw.SIGNATURE: Verdict.SIGNATURE,
    Flaw.ISSUER: Verdict.ISSUER,
    Flaw.AUDIENCE: Verdict.AUDIENCE,
    Flaw.EXPIRED: Verdict.EXPIRED,
    Flaw.TOO_EARLY: Verdict.TOO_EARLY,
}
"""The verdict on a token with this flaw."""


class RequestRecord(NamedTuple):
    """One request that reached Cloud Run."""

    method: str
    """Upper case; `WEBSOCKET` for a WebSocket."""
    path: str
    """The decoded path, without the query."""
    verdict: Verdict
    """The result of the check."""
