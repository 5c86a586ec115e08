"""The front end of Cloud Run as ASGI middleware: only requests with a valid token reach the application.

Which field is checked, and what the application gets::

    X-Serverless-Authorization   Authorization   checked        passed on
    present                      any             the first      the first without its signature, the second unchanged
    absent                       present         the second     the second without its signature
    absent                       absent          –              nothing: 403

Before these checks, it responds with 404 to a host that is not the service's, and does what `front_end` describes.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from proxy.emulator import front_end
from proxy.emulator.front_end import FIELD_SECTION_OCTETS, Application, Message, Receive, Scope, Send
from proxy.emulator.google import GCLOUD_CLIENT, Google, is_service_account
from proxy.emulator.jwts import Flaw, TokenRefused, check_times, parse
from proxy.emulator.model import unique_id
from proxy.emulator.verdicts import VERDICT_OF, RequestRecord, Verdict

__all__ = [
    "SIGNATURE_REMOVED",
    "Application",
    "CloudRun",
    "Message",
    "Receive",
    "RequestRecord",
    "Scope",
    "Send",
    "Verdict",
    "read_claims",
]

SIGNATURE_REMOVED: Final = "SIGNATURE_REMOVED_BY_GOOGLE"
"""Replaces the signature of the token that the application gets."""

ISSUERS: Final = frozenset({"accounts.google.com", "https://accounts.google.com"})
SKEW_SECONDS: Final = 5
MAX_RECORDED_STREAMS: Final = 100_000
SERVERLESS_AUTHORIZATION: Final = b"x-serverless-authorization"
AUTHORIZATION: Final = b"authorization"
BEARER: Final = re.compile(r"bearer ([!-~]+)", re.IGNORECASE)


class CloudRun:
    """ASGI middleware for any application: checks the token of every request as Cloud Run does.

    `google` is the emulated Google, or the keys that verify its tokens (key id → public key, PEM). `url` and
    `other_urls` are the service's URLs; `tags` are names of traffic tags, each of which has a host of its own for every
    URL; `domains` are custom domains. A token's audience has to be exactly one of the URLs or of `custom_audiences`, or
    for a user the OAuth client of gcloud. `invokers` are the e-mails of accounts and users with `roles/run.invoker`.
    `field_section_octets` limits the fields of a request. Lifespan events are passed on.
    """

    def __init__(
        self,
        app: Application,
        google: Google | Mapping[str, str],
        *,
        url: str | None = None,
        other_urls: Sequence[str] = (),
        tags: Sequence[str] = (),
        domains: Sequence[str] = (),
        custom_audiences: Sequence[str] = (),
        invokers: Collection[str],
        field_section_octets: int = FIELD_SECTION_OCTETS,
    ) -> None:
        self.url = url
        """The service's URL; if None, `CloudRunServer` sets it to its own on entry."""
        self.other_urls = tuple(other_urls)
        """Further URLs, each of which is an audience as well."""
        self.tags = tuple(tags)
        self.domains = tuple(domains)
        self.custom_audiences = tuple(custom_audiences)
        self.invokers = set(invokers)
        """The accounts that may call; can be changed between requests."""
        self.field_section_octets = field_section_octets
        self.hosts: frozenset[str] = frozenset()
        """Host names that are accepted besides those of `names`, without port; empty: every host is accepted.

        `CloudRunServer` sets it on entry.
        """
        self.streams: list[RequestRecord] = []
        """All requests, oldest first; at 100,000 the older half is dropped."""
        self.verdicts: Counter[Verdict] = Counter()
        """The number of requests by verdict; never reset."""
        self.app = app
        """The application."""
        self._google = google

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        verdict, fields = self._check_front_end(scope), list(scope["headers"])
        if verdict is Verdict.ACCEPTED:
            verdict, fields = self._authenticate(scope["headers"])
        self.record(scope.get("method", "WEBSOCKET"), scope["path"], verdict)
        if verdict.status is None:
            await self.app({**scope, "headers": fields}, receive, send)
        else:
            await front_end.refuse(verdict.status, scope, send)

    @property
    def names(self) -> frozenset[str]:
        """The host names of the service: those of its URLs, also with each traffic tag, and its custom domains."""
        hosts = {host for url in (self.url, *self.other_urls) if (host := front_end.host_of_url(url)) is not None}
        tagged = {f"{tag}---{host}" for tag in self.tags for host in hosts}
        return frozenset(hosts | tagged | {domain.lower() for domain in self.domains})

    def record(self, method: str, path: str, verdict: Verdict) -> None:
        """Record one request and the result of its checks."""
        self.verdicts[verdict] += 1
        if len(self.streams) >= MAX_RECORDED_STREAMS:
            del self.streams[: MAX_RECORDED_STREAMS // 2]
        self.streams.append(RequestRecord(method, path, verdict))

    def _check_front_end(self, scope: Scope) -> Verdict:
        """Return the result of the checks that precede the check of the token."""
        verdict = front_end.check(scope, self.field_section_octets)
        if verdict in (Verdict.TOO_LARGE, Verdict.METHOD) or not self.hosts:
            return verdict
        return verdict if front_end.host_of(scope["headers"]) in self.hosts | self.names else Verdict.UNKNOWN_HOST

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
        audiences = {self.url, *self.other_urls, *self.custom_audiences} | (
            {GCLOUD_CLIENT} if _is_of_user(claims) else set()
        )
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


def _bearer(values: Sequence[bytes]) -> str:
    match = BEARER.fullmatch(values[0].decode("latin-1")) if len(values) == 1 else None
    if match is None:
        raise TokenRefused(Flaw.MALFORMED)
    return match[1]
