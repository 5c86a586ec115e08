"""HTTP as this room sees it: how a call is made, and what may be told of its answer. Pure.

An answer with status 200 holds a secret, so nothing of it is ever quoted. Of other answers only the message of a JSON
error is, on one line of bounded length.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from proxy.errors import Failure, MintRefused, TokenMalformed, TokenUnavailable

__all__ = [
    "Bearer",
    "BlockingSend",
    "Reply",
    "Send",
    "bearer",
    "clock_remark",
    "complaint",
    "host_of",
    "read_object",
    "reasons",
    "refusal",
]

_COMPLAINT_CHARACTERS: Final = 300

# A JWT or a Google access token, should a message ever quote one.
_SECRET: Final = re.compile(r"(?:eyJ|ya29\.)[\w.~+/=-]{8,}")

# RFC 6750, 2.1.
_B68_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*")

_SKEW_SECONDS: Final = 30.0

_PASSING: Final = frozenset({408, 425, 429})


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer. Fields and body have no repr."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    """Looked up without regard to case."""
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Bearer:
    """What authorises a call to a Google API. Its fields have no repr."""

    headers: Mapping[str, str] = field(repr=False)
    """`authorization`, and `x-goog-user-project` where there is a quota project; names in lower case."""
    expires_at: float
    """In seconds since the epoch."""
    principal: str | None = None
    """Whose it is, where that came with it: an e-mail."""


class Send(Protocol):
    """Makes one HTTP call, follows no redirect, and returns whatever was answered.

    Raises TokenUnavailable when nobody answered, or not to the end, and TokenTimeout when it took too long; neither
    quotes anything that was received.
    """

    async def __call__(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> Reply: ...  # pragma: no cover


class BlockingSend(Protocol):
    """`Send` for a thread that may wait."""

    def __call__(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> Reply: ...  # pragma: no cover


def host_of(url: str) -> str:
    """Return the host of a URL, to be named in a sentence."""
    return urlsplit(url).hostname or "the endpoint"


def bearer(
    access_token: object, expires_at: float, quota_project: str | None = None, principal: str | None = None
) -> Bearer:
    """Return the headers that carry an access token; TokenMalformed unless it can stand in one (RFC 6750, 2.1)."""
    if not isinstance(access_token, str) or not _B68_TOKEN.fullmatch(access_token):
        raise TokenMalformed("Google answered 200 without an access token")
    headers = {"authorization": f"Bearer {access_token}"}
    if quota_project:
        headers["x-goog-user-project"] = quota_project
    return Bearer(headers, expires_at, principal)


def read_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object that `body` is, or an empty one if it is none."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def complaint(reply: Reply) -> str:
    """Return the message of a JSON error on one line of at most 300 characters, or `""`.

    Both shapes are read: `{"error": {"message"}}` of Google's APIs, `{"error", "error_description"}` of OAuth 2.0
    (RFC 6749, 5.2).
    """
    if reply.status == 200:
        return ""
    document = read_object(reply.body)
    error, description = document.get("error"), document.get("error_description")
    if isinstance(error, dict):
        text = error.get("message")
    elif isinstance(error, str) and isinstance(description, str):
        text = f"{error}: {description}"
    else:
        text = error
    if not isinstance(text, str):
        return ""
    line = " ".join("".join(mark if mark.isprintable() else " " for mark in text).split())
    return _SECRET.sub("[not shown]", line)[:_COMPLAINT_CHARACTERS]


def reasons(reply: Reply) -> set[str]:
    """Return the machine-readable reasons in a Google API's error (google.rpc.ErrorInfo), or OAuth's error code."""
    error = read_object(reply.body).get("error")
    if isinstance(error, str):
        return {error}
    details = error.get("details") if isinstance(error, dict) else None
    if not isinstance(details, list):
        return set()
    found = [detail.get("reason") for detail in details if isinstance(detail, dict)]
    return {reason for reason in found if isinstance(reason, str)}


def clock_remark(reply: Reply, now: float) -> str:
    """Return what to say of our clock when the answer's `date` differs by more than 30 s from `now`, else `""`."""
    try:
        date = parsedate_to_datetime(reply.headers.get("date", "")).timestamp()
    except (ValueError, OverflowError):
        return ""
    ahead = now - date
    if abs(ahead) <= _SKEW_SECONDS:
        return ""
    return f"the clock of this machine is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} Google's; set it"


def refusal(what: str, reply: Reply, advice: str = "") -> Failure:
    """Return the failure for an answer other than 200: TokenUnavailable if it passes by itself, else MintRefused."""
    said = complaint(reply)
    text = f"{what} answered {reply.status}" + (f" ({said})" if said else "")
    if 400 <= reply.status < 500 and reply.status not in _PASSING:
        return MintRefused(f"{text}{advice and f': {advice}'}")
    return TokenUnavailable(text)
