"""The OAuth token endpoint: signed assertions of key files, and users' refresh tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from aiohttp import web

from proxy.emulator.answers import web_page
from proxy.emulator.google import TOKEN_ENDPOINT, Google, NoSuchAccount
from proxy.emulator.grants import GrantRefused, access_answer, read_form
from proxy.emulator.jwts import TokenRefused, check_times, parse
from proxy.emulator.model import SCOPE, unique_id

__all__ = ["OAuth"]

JWT_BEARER: Final = "urn:ietf:params:oauth:grant-type:jwt-bearer"
ASSERTION_LIFE_SECONDS: Final = 3600
ASSERTION_SKEW_SECONDS: Final = 60
USER_SCOPES: Final = ("openid", "https://www.googleapis.com/auth/userinfo.email", SCOPE)


class OAuth:
    """Answers as oauth2.googleapis.com does."""

    def __init__(self, google: Google) -> None:
        self._google = google

    async def answer(self, request: web.BaseRequest, *, expired: bool) -> web.Response:
        """Return the answer to one request."""
        if request.path != "/token" or request.method != "POST":
            return web_page(404, "There is no such method.")
        try:
            form = await read_form(request)
            grant = form.get("grant_type", "")
            if grant == JWT_BEARER:
                return web.json_response(self._by_assertion(form, expired=expired))
            if grant == "refresh_token":
                return web.json_response(self._by_refresh_token(form, expired=expired))
            raise GrantRefused("unsupported_grant_type", f"Invalid grant_type: {grant}")
        except GrantRefused as exc:
            return exc.answer()

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
        raise GrantRefused("invalid_scope", "Invalid OAuth scope or ID token audience provided.")

    def _assertion(self, assertion: str) -> dict[str, Any]:
        try:
            token = parse(assertion)
            email = token.claims.get("iss")
            keys = self._google.keys_of(email if isinstance(email, str) else "")
            claims = token.verified(keys)
        except NoSuchAccount:
            raise GrantRefused("invalid_grant", "Invalid grant: account not found") from None
        except TokenRefused as exc:
            raise GrantRefused("invalid_grant", f"Invalid JWT Signature: {exc.flaw.value}.") from None
        if claims.get("aud") != TOKEN_ENDPOINT:
            raise GrantRefused("invalid_grant", "Invalid JWT: Failed audience check.")
        try:
            issued, expires = check_times(claims, self._google.clock(), skew_seconds=ASSERTION_SKEW_SECONDS)
        except TokenRefused as exc:
            raise GrantRefused("invalid_grant", f"Invalid JWT: check your iat and exp: {exc.flaw.value}.") from None
        if not 0 < expires - issued <= ASSERTION_LIFE_SECONDS:
            raise GrantRefused("invalid_grant", "Invalid JWT: Token must be a short-lived token (60 minutes).")
        if claims.get("sub", email) != email:
            raise GrantRefused("unauthorized_client", "Client is unauthorized to retrieve tokens for a user.", 401)
        return claims

    def _by_refresh_token(self, form: Mapping[str, str], *, expired: bool) -> dict[str, object]:
        user = self._google.user(form.get("refresh_token", ""))
        if user is None:
            raise GrantRefused("invalid_grant", "Token has been expired or revoked.")
        if (form.get("client_id"), form.get("client_secret")) != (user["client_id"], user["client_secret"]):
            raise GrantRefused("invalid_client", "The OAuth client was not found.", 401)
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
        return access_answer(token, expires - self._google.clock())
