"""The token endpoints: signed assertions of key files, users' refresh tokens, and the exchange of federated tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from aiohttp import web

from proxy.emulator.answers import oauth_error, web_page
from proxy.emulator.google import TOKEN_ENDPOINT, Google, NoSuchAccount
from proxy.emulator.jwts import TokenRefused, check_times, parse
from proxy.emulator.model import SCOPE, unique_id

__all__ = ["OAuth", "TokenExchange"]

JWT_BEARER: Final = "urn:ietf:params:oauth:grant-type:jwt-bearer"
TOKEN_EXCHANGE: Final = "urn:ietf:params:oauth:grant-type:token-exchange"  # noqa: S105 – a name
ACCESS_TOKEN_TYPE: Final = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105 – a name
SUBJECT_TYPES: Final = frozenset(
    {
        "urn:ietf:params:oauth:token-type:jwt",
        "urn:ietf:params:oauth:token-type:id_token",
        "urn:ietf:params:oauth:token-type:saml2",
        "urn:ietf:params:aws:token-type:aws4_request",
    }
)
ASSERTION_LIFE_SECONDS: Final = 3600
ASSERTION_SKEW_SECONDS: Final = 60
USER_SCOPES: Final = ("openid", "https://www.googleapis.com/auth/userinfo.email", SCOPE)


class _Refused(Exception):
    def __init__(self, error: str, description: str, status: int = 400) -> None:
        super().__init__(description)
        self.error = error
        self.status = status


class OAuth:
    """Answers as oauth2.googleapis.com does."""

    def __init__(self, google: Google) -> None:
        self._google = google

    async def answer(self, request: web.BaseRequest, *, expired: bool) -> web.Response:
        """Return the answer to one request."""
        if request.path != "/token" or request.method != "POST":
            return web_page(404, "There is no such method.")
        try:
            form = await _form(request)
            grant = form.get("grant_type", "")
            if grant == JWT_BEARER:
                return web.json_response(self._by_assertion(form, expired=expired))
            if grant == "refresh_token":
                return web.json_response(self._by_refresh_token(form, expired=expired))
            raise _Refused("unsupported_grant_type", f"Invalid grant_type: {grant}")
        except _Refused as exc:
            return oauth_error(exc.error, str(exc), status=exc.status)

    def _by_assertion(self, form: Mapping[str, str], *, expired: bool) -> dict[str, object]:
        """RFC 7523 as Google has it: the claim `target_audience` asks for an ID token, `scope` for an access token."""
        claims = self._assertion(form.get("assertion", ""))
        email = claims["iss"]
        audience, scope = claims.get("target_audience"), claims.get("scope")
        if isinstance(audience, str) and audience and scope is None:
            token, expires = self._google.id_token("oauth", email, audience, expired=expired)
            self._google.record("oauth", email, audience, expires)
            return {"id_token": token}
        if isinstance(scope, str) and scope.split() and audience is None:
            return self._access(email, scope.split(), expired=expired)
        raise _Refused("invalid_scope", "Invalid OAuth scope or ID token audience provided.")

    def _assertion(self, assertion: str) -> dict[str, Any]:
        try:
            token = parse(assertion)
            email = token.claims.get("iss")
            keys = self._google.keys_of(email if isinstance(email, str) else "")
            claims = token.verified(keys)
        except NoSuchAccount:
            raise _Refused("invalid_grant", "Invalid grant: account not found") from None
        except TokenRefused as exc:
            raise _Refused("invalid_grant", f"Invalid JWT Signature: {exc.flaw.value}.") from None
        if claims.get("aud") != TOKEN_ENDPOINT:
            raise _Refused("invalid_grant", "Invalid JWT: Failed audience check.")
        try:
            issued, expires = check_times(claims, self._google.clock(), skew_seconds=ASSERTION_SKEW_SECONDS)
        except TokenRefused as exc:
            raise _Refused("invalid_grant", f"Invalid JWT: check your iat and exp: {exc.flaw.value}.") from None
        if not 0 < expires - issued <= ASSERTION_LIFE_SECONDS:
            raise _Refused("invalid_grant", "Invalid JWT: Token must be a short-lived token (60 minutes).")
        if claims.get("sub", email) != email:
            raise _Refused("unauthorized_client", "Client is unauthorized to retrieve tokens for a user.", 401)
        return claims

    def _by_refresh_token(self, form: Mapping[str, str], *, expired: bool) -> dict[str, object]:
        user = self._google.user(form.get("refresh_token", ""))
        if user is None:
            raise _Refused("invalid_grant", "Token has been expired or revoked.")
        if (form.get("client_id"), form.get("client_secret")) != (user["client_id"], user["client_secret"]):
            raise _Refused("invalid_client", "The OAuth client was not found.", 401)
        scopes = form.get("scope", "").split() or list(USER_SCOPES)
        answer = self._access(user["email"], scopes, expired=expired) | {"scope": " ".join(scopes)}
        if "openid" in scopes:
            # Its audience is the client, so Cloud Run does not take it: the trap that real credentials set, too.
            claims = {"sub": unique_id(user["email"]), "azp": user["client_id"]}
            token, expires = self._google.id_token(
                "oauth", user["email"], user["client_id"], claims=claims, expired=expired
            )
            self._google.record("oauth", user["email"], user["client_id"], expires)
            answer["id_token"] = token
        return answer

    def _access(self, principal: str, scopes: list[str], *, expired: bool) -> dict[str, object]:
        token, expires = self._google.access_token(principal, scopes, expired=expired)
        return _bearer(token, expires - self._google.clock())


class TokenExchange:
    """Answers as sts.googleapis.com does to subject tokens that `Google.trust_subject` was told of (RFC 8693)."""

    def __init__(self, google: Google) -> None:
        self._google = google

    async def answer(self, request: web.BaseRequest, *, expired: bool) -> web.Response:
        """Return the answer to one request."""
        if request.path != "/v1/token" or request.method != "POST":
            return web_page(404, "There is no such method.")
        try:
            return web.json_response(self._exchange(await _form(request), expired=expired))
        except _Refused as exc:
            return oauth_error(exc.error, str(exc), status=exc.status)

    def _exchange(self, form: Mapping[str, str], *, expired: bool) -> dict[str, object]:
        if form.get("grant_type") != TOKEN_EXCHANGE:
            raise _Refused("unsupported_grant_type", "The grant_type is not token-exchange.")
        if form.get("requested_token_type") != ACCESS_TOKEN_TYPE:
            raise _Refused("invalid_request", "The requested_token_type is not that of an access token.")
        if form.get("subject_token_type") not in SUBJECT_TYPES:
            raise _Refused("invalid_request", "The subject_token_type is missing or unknown.")
        for name in ("audience", "scope", "subject_token"):
            if not form.get(name):
                raise _Refused("invalid_request", f"The field {name} is required.")
        principal = self._google.subject(form["audience"], form["subject_token"])
        if principal is None:
            raise _Refused("invalid_grant", "The audience has no provider that trusts this subject token.")
        token, expires = self._google.access_token(principal, form["scope"].split(), expired=expired)
        return _bearer(token, expires - self._google.clock()) | {"issued_token_type": ACCESS_TOKEN_TYPE}


async def _form(request: web.BaseRequest) -> dict[str, str]:
    if request.content_type != "application/x-www-form-urlencoded":
        raise _Refused("invalid_request", "The content-type is not application/x-www-form-urlencoded.")
    form: dict[str, str] = {}
    for name, value in (await request.post()).items():
        if name in form or not isinstance(value, str):
            raise _Refused("invalid_request", f"OAuth 2 parameters can only have a single value: {name}")
        form[name] = value
    return form


def _bearer(token: str, remaining_seconds: float) -> dict[str, object]:
    return {"access_token": token, "expires_in": max(0, round(remaining_seconds)), "token_type": "Bearer"}
