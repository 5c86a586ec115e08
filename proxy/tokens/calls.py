"""HTTP calls for tokens: the interface of the client, and what may be repeated of an answer. Pure.

An answer with status 2xx has a secret in it, so nothing of it is ever quoted. Of any other answer, the message of a
JSON error or else the text is quoted, on one line of bounded length and without the secrets of the request.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from proxy.clock_skew import NEGLIGIBLE_SKEW_SECONDS, read_date, skew_in_words, skew_seconds
from proxy.errors import CredentialsInvalid, Failure, MintRefused, TokenMalformed, TokenUnavailable
from proxy.quoting import one_line, plain, quoted, text_of

__all__ = [
    "Bearer",
    "BlockingSend",
    "NoDescriptor",
    "NotConnected",
    "Reply",
    "Send",
    "bearer",
    "clock_remark",
    "date_of",
    "error_message",
    "error_reasons",
    "failure_of_reply",
    "host_of",
    "in_parentheses",
    "read_object",
]

_COMPLAINT_CHARACTERS: Final = 500

# RFC 6750, 2.1.
_B68_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*")

# Ids are in lower case; old ones begin with the domain of an organisation and a colon. Numbers are accepted, too.
_PROJECT: Final = re.compile(r"[a-z0-9][a-z0-9.:-]{0,99}")

_TRANSIENT: Final = frozenset({408, 425, 429})

# Errors of OAuth that google-auth, too, expects to pass, and that come with 400.
_TRANSIENT_REASONS: Final = frozenset({"internal_failure", "server_error", "temporarily_unavailable"})


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer. Fields and body have no repr."""

    status: int
    """The status code."""
    headers: Mapping[str, str] = field(repr=False)
    """Looked up without regard to case."""
    body: bytes = field(repr=False)
    """The content; that of an error answer may be cut."""
    secrets: tuple[str, ...] = field(default=(), repr=False)
    """Secrets of the request, which the answer may repeat (`quoting.secrets_of_request`)."""


class NoDescriptor(TokenUnavailable):
    """The limit of open files is reached on this machine, which says nothing about the server."""


class NotConnected(TokenUnavailable):
    """No address, or no connection."""


@dataclass(frozen=True, slots=True)
class Bearer:
    """Authorisation of calls to Google APIs. Its fields have no repr."""

    headers: Mapping[str, str] = field(repr=False)
    """`authorization`, and `x-goog-user-project` where there is a quota project; names in lower case."""
    expires_at: float
    """In seconds since the epoch."""
    principal: str | None = None
    """Its e-mail, where the answer had that."""


class Send(Protocol):
    """Makes one HTTP call, follows no redirect, and returns the answer.

    Raises NotConnected without a connection, TokenUnavailable without a complete answer, and TokenTimeout after its
    deadline; none quotes anything that was received. The body of an error answer may be cut.
    """

    async def __call__(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> Reply: ...  # pragma: no cover


class BlockingSend(Protocol):
    """`Send` for a thread that may block."""

    def __call__(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> Reply: ...  # pragma: no cover


def host_of(url: str) -> str:
    """Return the host of a URL, to be named in a sentence."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "the endpoint"
    # As it was written: `hostname` is in lower case, in which a token does not look like one.
    return parts.hostname if parts.hostname and plain(parts.netloc) is not None else "the endpoint"


def bearer(
    access_token: object, expires_at: float, quota_project: str | None = None, principal: str | None = None
) -> Bearer:
    """Return the headers that carry an access token.

    Raises TokenMalformed for an invalid access token (RFC 6750, 2.1), CredentialsInvalid for an invalid quota project.
    """
    if quota_project and not _PROJECT.fullmatch(quota_project):
        raise CredentialsInvalid(
            "the quota project (GOOGLE_CLOUD_QUOTA_PROJECT, or quota_project_id in the credential file) must be the id "
            f"of a project, and is {quoted(quota_project)}"
        )
    if not isinstance(access_token, str) or not _B68_TOKEN.fullmatch(access_token):
        raise TokenMalformed("Google answered 200 without an access token")
    headers = {"authorization": f"Bearer {access_token}"}
    if quota_project:
        headers["x-goog-user-project"] = quota_project
    return Bearer(headers, expires_at, principal)


def read_object(body: bytes) -> dict[str, Any]:
    """Return `body` parsed as a JSON object; an empty one if it is anything else."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def error_message(reply: Reply) -> str:
    """Return the error message of an answer, on one line of at most 500 characters; `""` for 2xx.

    The message of a JSON error is read in the shapes of Google's APIs (`{"error": {"message"}}`), of OAuth 2.0
    (`{"error", "error_description"}`, RFC 6749, 5.2) and of AWS (`{"message"}`); any other text as it is, a page
    without its mark-up.
    """
    if 200 <= reply.status < 300:
        return ""
    return one_line(_message(read_object(reply.body)) or text_of(reply.body), _COMPLAINT_CHARACTERS, reply.secrets)


def in_parentheses(reply: Reply, who: str = "") -> str:
    """Return ` (who: message)`, the error message of an answer for the end of a clause; `""` if it has none."""
    said = error_message(reply)
    return f" ({who and f'{who}: '}{said})" if said else ""


def _message(document: Mapping[str, Any]) -> str:
    error, description = document.get("error"), document.get("error_description")
    if isinstance(error, str) and isinstance(description, str):
        return f"{error}: {description}"
    nested = error if isinstance(error, dict) else document.get("Error")
    within = nested if isinstance(nested, dict) else document
    found = (within.get("message"), within.get("Message"), error)
    return next((text for text in found if isinstance(text, str)), "")


def error_reasons(reply: Reply) -> set[str]:
    """Return the machine-readable reasons in a Google API's error (google.rpc.ErrorInfo), or OAuth's error code."""
    error = read_object(reply.body).get("error")
    if isinstance(error, str):
        return {error}
    details = error.get("details") if isinstance(error, dict) else None
    if not isinstance(details, list):
        return set()
    found = [detail.get("reason") for detail in details if isinstance(detail, dict)]
    return {reason for reason in found if isinstance(reason, str)}


def date_of(reply: Reply) -> float | None:
    """Return when it was sent by the sender's clock, in seconds since the epoch; None if it does not say."""
    return read_date(reply.headers.get("date"))


def clock_remark(reply: Reply, now: float) -> str:
    """Return a remark on our clock if the answer's `date` differs by more than 30 s from `now`, else `""`."""
    skew = skew_seconds(reply.headers.get("date"), now)
    if skew is None or abs(skew) <= NEGLIGIBLE_SKEW_SECONDS:
        return ""
    return skew_in_words(skew, "Google's")


def failure_of_reply(what: str, reply: Reply, advice: str = "") -> Failure:
    """Return the failure for an answer other than 200: TokenUnavailable if it is transient, else MintRefused."""
    text = f"{what} answered {reply.status}{in_parentheses(reply)}"
    transient = reply.status in _TRANSIENT or error_reasons(reply) & _TRANSIENT_REASONS
    if 400 <= reply.status < 500 and not transient:
        return MintRefused(f"{text}{advice and f': {advice}'}")
    if not 400 <= reply.status < 600:
        return TokenUnavailable(text)
    # It was reached: the remedy of the kind, which is about the way to it, would mislead.
    look = "raise its quota" if reply.status == 429 else "see whether that server has an incident"
    return TokenUnavailable(text, remedy=f"if it does not end by itself, {look}")
