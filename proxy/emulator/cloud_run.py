"""The front end of Cloud Run as ASGI middleware: only requests with a valid token reach the application.

Which field is checked, and what the application gets::

    X-Serverless-Authorization   Authorization   checked        passed on
    present                      any             the first      the first without its signature, the second unchanged
    absent                       present         the second     the second without its signature
    absent                       absent          –              nothing: 403

Before these checks, it responds with 404 to a host that is not the service's and to paths that Cloud Run reserves, and
with 431 if the fields are too large.
"""

from __future__ import annotations

import enum
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias
from urllib.parse import urlsplit

from proxy.emulator.google import GCLOUD_CLIENT, Google, is_service_account
from proxy.emulator.jwts import Flaw, TokenRefused, check_times, parse
from proxy.emulator.model import unique_id
from proxy.emulator.responses import page

__all__ = ["SIGNATURE_REMOVED", "Application", "CloudRun", "RequestRecord", "Verdict", "read_claims"]

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
"""Any ASGI 3 application."""

SIGNATURE_REMOVED: Final = "SIGNATURE_REMOVED_BY_GOOGLE"
"""Replaces the signature of the token that the application gets."""

ISSUERS: Final = frozenset({"accounts.google.com", "https://accounts.google.com"})
SKEW_SECONDS: Final = 5
MAX_RECORDED_STREAMS: Final = 100_000
SERVERLESS_AUTHORIZATION: Final = b"x-serverless-authorization"
AUTHORIZATION: Final = b"authorization"
BEARER: Final = re.compile(r"bearer ([!-~]+)", re.IGNORECASE)

FIELD_SECTION_OCTETS: Final = 16_384
"""About the limit of Google's front end: names, values and 32 octets for each field (RFC 9113, 6.5.2)."""

RESERVED: Final = re.compile(rb"/_ah/.*|/eventlog|/healthz", re.DOTALL)
"""Paths that never reach a container."""

INVALID_TOKEN: Final = b'Bearer error="invalid_token" error_description="The access token could not be verified"'


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
    NOT_INVOKER = "not an invoker"
    UNKNOWN_HOST = "unknown host"
    RESERVED_PATH = "reserved path"
    TOO_LARGE = "fields too large"

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


class RequestRecord(NamedTuple):
    """One request that reached Cloud Run."""

    method: str
    """Upper case; `WEBSOCKET` for a WebSocket."""
    path: str
    """The decoded path, without the query."""
    verdict: Verdict
    """The result of the check."""


class CloudRun:
    """ASGI middleware for any application: checks the token of every request as Cloud Run does.

    `google` is the emulated Google, or the keys that verify its tokens (key id → public key, PEM). `url` is the
    service's URL; a token's audience has to be exactly this URL or one of `custom_audiences`, or for a user the OAuth
    client of gcloud. `invokers` are the e-mails of accounts and users with `roles/run.invoker`.
    `field_section_octets` limits the fields of a request. Lifespan events are passed on.
    """

    def __init__(
        self,
        app: Application,
        google: Google | Mapping[str, str],
        *,
        url: str | None = None,
        custom_audiences: Sequence[str] = (),
        invokers: Collection[str],
        field_section_octets: int = FIELD_SECTION_OCTETS,
    ) -> None:
        self.url = url
        """The service's URL; if None, `CloudRunServer` sets it to its own on entry."""
        self.custom_audiences = tuple(custom_audiences)
        self.invokers = set(invokers)
        """The accounts that may call; can be changed between requests."""
        self.field_section_octets = field_section_octets
        self.hosts: frozenset[str] = frozenset()
        """Host names of the service besides that of its URL, without port; empty: every host is accepted.

        `CloudRunServer` sets it to the names of its certificate on entry.
        """
        self.streams: list[RequestRecord] = []
        """All requests, oldest first; at 100,000 the older half is dropped."""
        self.verdicts: Counter[Verdict] = Counter()
        """The number of requests by verdict; never reset."""
        self._app = app
        self._google = google

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        verdict, fields = self._check_front_end(scope), list(scope["headers"])
        if verdict is Verdict.ACCEPTED:
            verdict, fields = self._authenticate(scope["headers"])
        self._record(scope, verdict)
        if verdict.status is None:
            await self._app({**scope, "headers": fields}, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        else:
            await _refuse(verdict.status, send)

    def _record(self, scope: Scope, verdict: Verdict) -> None:
        self.verdicts[verdict] += 1
        if len(self.streams) >= MAX_RECORDED_STREAMS:
            del self.streams[: MAX_RECORDED_STREAMS // 2]
        self.streams.append(RequestRecord(scope.get("method", "WEBSOCKET"), scope["path"], verdict))

    def _check_front_end(self, scope: Scope) -> Verdict:
        """Return the result of the checks that precede the check of the token."""
        fields = scope["headers"]
        target = scope.get("raw_path") or scope["path"].encode()
        octets = sum(len(name) + len(value) + 32 for name, value in [*fields, (b":path", target)])
        if octets + len(scope.get("query_string", b"")) > self.field_section_octets:
            return Verdict.TOO_LARGE
        hosts = {bytes(value) for name, value in fields if bytes(name).lower() == b"host"}
        if self.hosts and (len(hosts) != 1 or _host_name(hosts.pop()) not in self.hosts | {_name_of_url(self.url)}):
            return Verdict.UNKNOWN_HOST
        return Verdict.RESERVED_PATH if RESERVED.fullmatch(target) else Verdict.ACCEPTED

    def _authenticate(self, fields: Collection[tuple[bytes, bytes]]) -> tuple[Verdict, list[tuple[bytes, bytes]]]:
        """Check the token. Return the result, and the fields for the application, changed only if accepted."""
        lower = [(bytes(name).lower(), bytes(value)) for name, value in fields]
        names = {name for name, _ in lower}
        checked = SERVERLESS_AUTHORIZATION if SERVERLESS_AUTHORIZATION in names else AUTHORIZATION
        values = [value for name, value in lower if name == checked]
        if not values:
            return Verdict.NO_TOKEN, lower
        try:
            token = _bearer(values)
            claims = self._verified(token)
        except TokenRefused as exc:
            return VERDICT_OF[exc.flaw], lower
        if claims["sub"] not in map(unique_id, self.invokers):
            return Verdict.NOT_INVOKER, lower
        unsigned = f"Bearer {token.rpartition('.')[0]}.{SIGNATURE_REMOVED}".encode("ascii")
        return Verdict.ACCEPTED, [(name, unsigned if name == checked else value) for name, value in lower]

    def _verified(self, token: str) -> dict[str, Any]:
        now = self._google.clock() if isinstance(self._google, Google) else time.time()
        keys = self._google.certificates() if isinstance(self._google, Google) else self._google
        claims = parse(token).verified(keys)
        if not isinstance(claims.get("sub"), str):
            raise TokenRefused(Flaw.CLAIMS)
        issuer, audience = claims.get("iss"), claims.get("aud")
        if not isinstance(issuer, str) or issuer not in ISSUERS:
            raise TokenRefused(Flaw.ISSUER)
        audiences = {self.url, *self.custom_audiences} | ({GCLOUD_CLIENT} if _is_of_user(claims) else set())
        if not isinstance(audience, str) or audience not in audiences:
            raise TokenRefused(Flaw.AUDIENCE)
        check_times(claims, now, skew_seconds=SKEW_SECONDS)
        return claims


def _is_of_user(claims: Mapping[str, Any]) -> bool:
    email = claims.get("email")
    return isinstance(email, str) and not is_service_account(email)


def read_claims(value: bytes) -> dict[str, Any]:
    """Return the claims of a field value as an application behind Cloud Run gets it; raises TokenRefused.

    Nothing is verified: the front end has verified the token and removed its signature.
    """
    token = _bearer([value])
    return parse(token.removesuffix(SIGNATURE_REMOVED) + "AA").claims


def _host_name(host: bytes) -> str | None:
    """Return the host of a Host field in lower case; None if it is invalid."""
    return _name_of_url(f"//{host.decode('latin-1')}")


def _name_of_url(url: str | None) -> str | None:
    try:
        return urlsplit(url or "").hostname
    except ValueError:
        return None


def _bearer(values: Sequence[bytes]) -> str:
    match = BEARER.fullmatch(values[0].decode("latin-1")) if len(values) == 1 else None
    if match is None:
        raise TokenRefused(Flaw.MALFORMED)
    return match[1]


async def _refuse(status: int, send: Send) -> None:
    text = {
        401: "Your client does not hold a token that this service accepts.",
        403: "Your client does not have permission to get this page from this server.",
        404: "The requested URL was not found on this server.",
        431: "Your client issued a request whose header fields are too large.",
    }[status]
    body = page(status, text).encode()
    fields = [(b"content-type", b"text/html; charset=UTF-8"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        fields.append((b"www-authenticate", INVALID_TOKEN))
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})
