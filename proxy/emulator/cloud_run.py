"""The front end of Cloud Run as ASGI middleware: only requests with a valid token reach the application.

Which field is checked, and what the application gets::

    X-Serverless-Authorization   Authorization   checked        passed on
    present                      any             the first      the first without its signature, the second unchanged
    absent                       present         the second     the second without its signature
    absent                       absent          –              nothing: 403

Before these checks, it responds with 404 to a host that is not the service's, and does what `front_end` describes.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from h2.errors import ErrorCodes

from proxy.emulator import front_end, iap
from proxy.emulator.front_end import Application, Message, Receive, Scope, Send
from proxy.emulator.google import GCLOUD_CLIENT, Google, is_service_account
from proxy.emulator.http2 import STREAM_CONTROL, StreamControl
from proxy.emulator.jwts import Flaw, TokenRefused, check_times, parse
from proxy.emulator.limits import FIELD_SECTION_OCTETS
from proxy.emulator.members import includes
from proxy.emulator.model import PendingFault
from proxy.emulator.service_faults import RESPONSES, ServiceFault, apply_fault, respond
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
REQUEST_TIMEOUT_SECONDS: Final = 300.0
"""Cloud Run's default."""

FORCED: Final = {ServiceFault.DENIED: Verdict.NOT_INVOKER, ServiceFault.REJECTED: Verdict.SIGNATURE}
REGION: Final = re.compile(r"https://[^.]+\.([a-z0-9-]{2,})\.run\.app(?::\d+)?")
"""The URL of a service that contains its region."""

DEFAULT_REGION: Final = "europe-west1"
BEARER: Final = re.compile(r"bearer ([!-~]+)", re.IGNORECASE)


class CloudRun:
    """ASGI middleware for any application: checks the token of every request as Cloud Run does.

    `url` and `other_urls` are the service's URLs; `tags` are names of traffic tags, each of which has a host of its own
    for every URL; `domains` are custom domains. A token's audience has to be exactly one of the URLs or of
    `custom_audiences`, or for a user the OAuth client of gcloud. `invokers` are the e-mails of accounts and users with
    `roles/run.invoker`. The other arguments are attributes, which can be changed between requests. Lifespan events are
    passed on.
    """

    def __init__(
        self,
        app: Application,
        google: Google,
        *,
        url: str | None = None,
        other_urls: Sequence[str] = (),
        tags: Sequence[str] = (),
        domains: Sequence[str] = (),
        custom_audiences: Sequence[str] = (),
        invokers: Collection[str],
        name: str = "service",
        http2: bool = True,
        iap: bool = False,
        iap_accessors: Collection[str] = (),
        iap_clients: Sequence[str] = (),
        request_timeout_seconds: float = REQUEST_TIMEOUT_SECONDS,
        max_requests: int | None = None,
        cold_start_seconds: float = 0.0,
    ) -> None:
        self.name = name
        """Its name, for `/emulator/`."""
        self.http2 = http2
        """Whether it is deployed with `--use-http2`; if not, a container that speaks only HTTP/2 cannot be reached."""
        self.iap = iap
        """Whether Identity-Aware Proxy is in front of it."""
        self.iap_accessors = set(iap_accessors)
        """Who passes Identity-Aware Proxy: members with roles/iap.httpsResourceAccessor."""
        self.iap_clients = tuple(iap_clients)
        """OAuth clients whose ID tokens Identity-Aware Proxy accepts."""
        self.request_timeout_seconds = request_timeout_seconds
        """The time for a whole request and its response."""
        self.max_requests = max_requests
        """Number of requests at a time that all its instances take together (429 for more); None: no limit."""
        self.cold_start_seconds = cold_start_seconds
        """How long the first request waits while no other one is open."""
        self.url = url
        """The service's URL; if None, `CloudRunServer` sets it to its own on entry."""
        self.other_urls = tuple(other_urls)
        """Further URLs, each of which is an audience as well."""
        self.tags = tuple(tags)
        self.domains = tuple(domains)
        self.custom_audiences = tuple(custom_audiences)
        self._invokers = set(invokers)
        self.field_section_octets = FIELD_SECTION_OCTETS
        """Size of a request's fields; a larger request gets 431. `CloudRunServer` sets it to its own limit."""
        self.hosts: frozenset[str] = frozenset()
        """Hosts besides `names` that are accepted, without port; empty: every host. Set by `CloudRunServer`."""
        self.streams: list[RequestRecord] = []
        """All requests, oldest first; at 100,000 the older half is dropped."""
        self.verdicts: Counter[Verdict] = Counter()
        """The number of requests by verdict; never reset."""
        self._next_invokers: tuple[float, set[str]] | None = None
        self.pending_fault: PendingFault[ServiceFault] = PendingFault()
        self._open = 0
        self.app = app
        """The application."""
        self._google = google

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        trace = front_end.Trace.of(scope["headers"])
        send = front_end.with_own_fields(send, self.now(), trace)
        state = scope.get("state", {})
        stream: StreamControl | None = state.pop(STREAM_CONTROL, None)
        verdict, fields, added, refusal = self._check_front_end(scope), list(scope["headers"]), [], None
        if verdict is Verdict.ACCEPTED and (gate := self._gate()) is not None:
            try:
                admitted = gate.admit(fields, scope["path"])
                fields, added = admitted.fields, admitted.added
            except iap.Refused as exc:
                verdict, refusal = Verdict.IAP, exc
        if verdict is Verdict.ACCEPTED:
            verdict, fields = self._authenticate(fields)
        # After the check of the token, as with a service whose containers fail. A WebSocket has refusals only.
        failing = scope["type"] == "http" or self.pending_fault.fault in FORCED
        fault = self.pending_fault.take() if verdict is Verdict.ACCEPTED and failing else None
        if fault is not None:
            verdict = FORCED.get(fault, verdict)
        self.record(scope.get("method", "WEBSOCKET"), scope["path"], verdict)
        if refusal is not None and scope["type"] == "http":
            await refusal.send(send)
            return
        if verdict.status is not None:
            await front_end.refuse(verdict.status, scope, send)
            return
        fields = front_end.passed_on(fields, trace, scope.get("client")) + added
        if scope["type"] == "websocket":
            await self.app({**scope, "headers": fields}, receive, send)
        elif fault is None or not await apply_fault(fault, stream, send, slow_seconds=self._google.slow_seconds):
            await self._run({**scope, "headers": fields}, receive, send, stream)

    async def _run(self, scope: Scope, receive: Receive, send: Send, stream: StreamControl | None) -> None:
        """Pass a request to the container, within the limits of the service."""
        if not self.http2:
            await respond(send, *RESPONSES[ServiceFault.PROTOCOL_ERROR])
            return
        if self.max_requests is not None and self._open >= self.max_requests:
            await respond(send, *RESPONSES[ServiceFault.TOO_MANY_REQUESTS])
            return
        cold = not self._open
        started = False

        async def note(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        self._open += 1
        limit = asyncio.timeout(self.request_timeout_seconds)
        try:
            async with limit:
                if cold and self.cold_start_seconds:
                    await asyncio.sleep(self.cold_start_seconds)
                await self.app(scope, receive, note)
        except TimeoutError:
            if not limit.expired():
                raise
            if not started:
                await respond(send, *RESPONSES[ServiceFault.TIMEOUT])
            elif stream is not None:
                await stream.reset(ErrorCodes.INTERNAL_ERROR)
        finally:
            self._open -= 1

    @property
    def invokers(self) -> set[str]:
        """Who may call, as in IAM policies: e-mails with or without `user:`, `serviceAccount:` or `group:`,
        `domain:…`, `allUsers`, `allAuthenticatedUsers`; can be changed between requests.
        """
        if self._next_invokers is not None and self._next_invokers[0] <= self.now():
            self.invokers = self._next_invokers[1]
        return self._invokers

    @invokers.setter
    def invokers(self, members: set[str]) -> None:
        self._invokers, self._next_invokers = members, None

    def set_invokers(self, members: Collection[str]) -> None:
        """Replace the invokers, after `Google.propagation_seconds`."""
        seconds = self._google.propagation_seconds
        self._next_invokers = (self.now() + seconds if seconds else -math.inf, set(members))

    def fail(self, fault: ServiceFault | None, *, times: int | None = None) -> None:
        """Apply the fault to the next `times` requests (None: to all); fault None removes the active one."""
        self.pending_fault.set(fault, times)

    def _gate(self) -> iap.Gate | None:
        """Return IAP if it is in front of the service; while it is a fault, nobody passes it."""
        failing = self.pending_fault.fault is ServiceFault.IAP
        if not (self.iap or failing):
            return None
        if failing:
            self.pending_fault.take()
        return iap.Gate(
            google=self._google,
            resource=self.resource,
            url=self.url or "",
            urls=() if failing else {self.url or "", *self.other_urls, *(f"https://{name}" for name in self.names)},
            clients=() if failing else self.iap_clients,
            accessors=() if failing else self.iap_accessors,
        )

    def now(self) -> float:
        """Return the time of the emulated Google, in seconds since the epoch."""
        return self._google.clock()

    @property
    def resource(self) -> str:
        """Its name for Identity-Aware Proxy, with the number of its project."""
        google = self._google
        number = google.project_number(google.project_of(google.metadata_account))
        region = REGION.fullmatch(self.url or "")
        return f"/projects/{number}/locations/{region[1] if region else DEFAULT_REGION}/services/{self.name}"

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
        if "allUsers" in self.invokers:
            return Verdict.ACCEPTED, lower
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
        if self._google.is_disabled(claims["sub"]):
            return Verdict.DISABLED, lower
        if not includes(self.invokers, claims, self._google.groups):
            return Verdict.NOT_INVOKER, lower
        unsigned = f"Bearer {token.rpartition('.')[0]}.{SIGNATURE_REMOVED}".encode("ascii")
        return Verdict.ACCEPTED, [(name, unsigned if name == checked else value) for name, value in lower]

    def _verified(self, token: str) -> dict[str, Any]:
        claims = parse(token).verified(self._google.certificates())
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
        check_times(claims, self.now(), skew_seconds=SKEW_SECONDS)
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
