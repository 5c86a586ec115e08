"""Identity-Aware Proxy (IAP) in front of a Cloud Run service.

It runs before the check of the invoker, reads `Proxy-Authorization` and `Authorization`, and calls the service with a
token of its own in `X-Serverless-Authorization`, so that one of the caller has no effect::

    token of the caller                                          result
    none                                                         302 to the sign-in page; 401 for XMLHttpRequest
    an ID token for an OAuth client that may call                passes
    a JWT that an account signed itself, for the URL or URL/*    passes
    an ID token for another audience, as Cloud Run's             401
    of somebody without roles/iap.httpsResourceAccessor          403

All its own responses have `x-goog-iap-generated-response: true`.

Documented by Google: both fields, both kinds of tokens, the clients that have to be allowed, XMLHttpRequest, what the
container gets, and that the account of IAP has to be an invoker. Reported by users, who measured it: 302 with "empty
token", and the texts of 401. Best knowledge: the page of 403, and the text for an expired token.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from proxy.emulator.assertions import check_lifetime, claims_of_account
from proxy.emulator.front_end import Send
from proxy.emulator.google import ISSUER, Google, NoSuchAccount
from proxy.emulator.jwts import Flaw, TokenRefused, check_times, parse
from proxy.emulator.members import includes
from proxy.emulator.model import unique_id
from proxy.emulator.responses import page
from proxy.emulator.service_faults import respond

__all__ = ["Admitted", "Gate", "Refused", "account_of"]

SIGN_IN: Final = "https://accounts.google.com/o/oauth2/v2/auth?client_id=emulated.apps.googleusercontent.com"
"""Where a caller without a token is redirected."""

MARK: Final = (b"x-goog-iap-generated-response", b"true")
SKEW_SECONDS: Final = 30
ASSERTION_SECONDS: Final = 600
OWN: Final = frozenset({b"x-goog-iap-jwt-assertion", b"x-serverless-authorization", b"proxy-authorization"})
"""Fields of a caller that do not reach the container."""

TEXTS: Final[Mapping[Flaw, str]] = {
    Flaw.MALFORMED: "Unable to parse JWT",
    Flaw.ALGORITHM: "JWT signature is invalid",
    Flaw.UNKNOWN_KEY: "JWT signature is invalid",
    Flaw.SIGNATURE: "JWT signature is invalid",
    Flaw.AUDIENCE: "Invalid bearer token. Invalid JWT audience.",
    Flaw.CLAIMS: "JWT 'email' claim isn't a string",
}

Fields = list[tuple[bytes, bytes]]


class Refused(Exception):
    """The request does not pass."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        """HTTP status of the response."""

    async def send(self, send: Send) -> None:
        """Send the response."""
        fields: Fields = [MARK]
        if self.status == 302:
            nonce = f"GCP_IAP_XSRF_NONCE_{secrets.token_urlsafe(16)}=1; path=/; Secure; HttpOnly"
            fields += [(b"location", SIGN_IN.encode()), (b"set-cookie", nonce.encode())]
        text = page(403, str(self)) if self.status == 403 else f"Invalid IAP credentials: {self}"
        await respond(send, self.status, text, "text/html; charset=UTF-8", *fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """A request that passes."""

    fields: Fields
    """Its fields, with IAP's own token for the service instead of the caller's."""
    added: Fields
    """Fields about the caller, for the container."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """IAP in front of one service."""

    google: Google
    """The emulated Google."""
    resource: str
    """The service: `/projects/NUMBER/locations/REGION/services/NAME`, the audience of assertions."""
    url: str
    """URL of the service, the audience of IAP's own token."""
    urls: Collection[str]
    """URLs of the service, without path, which a JWT that an account signed itself may be for."""
    clients: Collection[str]
    """OAuth clients whose ID tokens are accepted."""
    accessors: Collection[str]
    """Members with roles/iap.httpsResourceAccessor."""

    def admit(self, fields: Iterable[tuple[bytes, bytes]], path: str) -> Admitted:
        """Return the request as it passes; raises Refused."""
        lower = [(bytes(name).lower(), bytes(value)) for name, value in fields]
        claims = self._caller(dict(lower), path)
        email, number = claims["email"], claims["sub"]
        if self.google.is_disabled(number) or not (
            "allUsers" in self.accessors or includes(self.accessors, claims, self.google.groups)
        ):
            raise Refused(403, "You don't have access.")
        now = int(self.google.clock())
        names = {"aud": self.resource, "azp": self.resource, "iss": "https://cloud.google.com/iap", "email": email}
        times = {"iat": now, "exp": now + ASSERTION_SECONDS}
        identity = {"sub": f"accounts.google.com:{number}", "identity_source": "GOOGLE"}
        assertion = self.google.iap_key.sign(names | times | identity)
        token, _ = self.google.id_token(account_of(self.google), self.url)
        kept = [(name, value) for name, value in lower if name not in OWN]
        return Admitted(
            fields=[*kept, (b"x-serverless-authorization", b"Bearer " + token.encode())],
            added=[
                (b"x-goog-iap-jwt-assertion", assertion.encode()),
                (b"x-goog-authenticated-user-email", f"accounts.google.com:{email}".encode()),
                (b"x-goog-authenticated-user-id", f"accounts.google.com:{number}".encode()),
            ],
        )

    def _caller(self, fields: Mapping[bytes, bytes], path: str) -> dict[str, Any]:
        """Return `sub` and `email` of the caller."""
        proxy, own = (_bearer(fields.get(name, b"")) for name in (b"proxy-authorization", b"authorization"))
        if proxy:
            try:
                return self._verified(proxy, path)
            except TokenRefused:
                pass  # then Authorization counts
        if not own:
            background = fields.get(b"x-requested-with", b"").lower() == b"xmlhttprequest"
            raise Refused(401 if background else 302, "empty token")
        try:
            return self._verified(own, path)
        except TokenRefused as exc:
            text = TEXTS.get(exc.flaw, f"Invalid bearer token. {exc.flaw.value}.")
            raise Refused(401, text) from None

    def _verified(self, token: str, path: str) -> dict[str, Any]:
        claims = parse(token).claims
        if claims.get("iss") in (ISSUER, ISSUER.removeprefix("https://")):
            claims = parse(token).verified(self.google.certificates())
            if claims.get("aud") not in self.clients:
                raise TokenRefused(Flaw.AUDIENCE)
            check_times(claims, self.google.clock(), skew_seconds=SKEW_SECONDS)
            if not isinstance(claims.get("email"), str):
                raise TokenRefused(Flaw.CLAIMS)
            return claims
        try:
            claims = claims_of_account(self.google, token)
        except NoSuchAccount:
            raise TokenRefused(Flaw.SIGNATURE) from None
        account = claims["iss"]
        urls = {f"{url}{end}" for url in self.urls for end in ("", "/", "/*", path)}
        if claims.get("aud") not in urls:
            raise TokenRefused(Flaw.AUDIENCE)
        check_lifetime(claims, self.google.clock())
        if claims.get("sub") != account:
            raise TokenRefused(Flaw.CLAIMS)
        return {"sub": unique_id(account), "email": account}


def account_of(google: Google) -> str:
    """Return the account with which IAP calls services; it has to be an invoker."""
    number = google.project_number(google.project_of(google.metadata_account))
    return f"service-{number}@gcp-sa-iap.iam.gserviceaccount.com"


def _bearer(value: bytes) -> str:
    scheme, _, token = value.decode("latin-1").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""
