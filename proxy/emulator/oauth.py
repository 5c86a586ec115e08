"""The OAuth token endpoint: signed assertions of key files, and users' refresh tokens."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from aiohttp import web

from proxy.emulator.assertions import check_lifetime, claims_of_account
from proxy.emulator.google import TOKEN_ENDPOINT, Google, NoSuchAccount
from proxy.emulator.grants import GrantRefused, access_token_body, client_credentials, read_form, read_scopes
from proxy.emulator.jwts import TokenRefused
from proxy.emulator.model import SCOPE, unique_id
from proxy.emulator.responses import web_page

__all__ = ["OAuth"]

JWT_BEARER: Final = "urn:ietf:params:oauth:grant-type:jwt-bearer"
USER_SCOPES: Final = (
    "openid",
    "https://www.googleapis.com/auth/userinfo.email",
    SCOPE,
    "https://www.googleapis.com/auth/sqlservice.login",
)
"""The scopes that `gcloud auth application-default login` requests."""


class OAuth:
    """The API of oauth2.googleapis.com."""

    def __init__(self, google: Google) -> None:
        self._google = google

    async def handle(self, request: web.BaseRequest, *, expired: bool) -> web.Response:
        """Return the response to one request."""
        if request.path != "/token" or request.method != "POST":
            return web_page(404, "There is no such method.")
        try:
            form = await read_form(request)
            grant = form.get("grant_type", "")
            if grant == JWT_BEARER:
                audiences = (TOKEN_ENDPOINT, f"https://{request.host}/token")
                return web.json_response(self._by_assertion(form, audiences, expired=expired))
            if grant == "refresh_token":
                client = client_credentials(request, form)
                return web.json_response(self._by_refresh_token(form, client, expired=expired))
            raise GrantRefused("unsupported_grant_type", f"Invalid grant_type: {grant}")
        except GrantRefused as exc:
            return exc.response()

    def _by_assertion(self, form: Mapping[str, str], audiences: Collection[str], *, expired: bool) -> dict[str, object]:
        """Return an ID token if the assertion (RFC 7523) has `target_audience`, else an access token for its `scope`.

        With both claims, `scope` is ignored: Node's client always sends it.
        """
        claims = self._assertion(form.get("assertion", ""), audiences)
        email = claims["iss"]
        audience, scope = claims.get("target_audience", ""), claims.get("scope", "")
        if not isinstance(audience, str) or not isinstance(scope, str):
            raise GrantRefused("invalid_scope", "Invalid OAuth scope or ID token audience provided.")
        if not audience:
            return self._access(email, read_scopes(scope), expired=expired)
        token, expires = self._google.id_token(email, audience, expired=expired)
        self._google.record_mint("oauth", email, audience, expires)
        return {"id_token": token}

    def _assertion(self, assertion: str, audiences: Collection[str]) -> dict[str, Any]:
        """Return the claims of a valid assertion. Its `aud` is one of `audiences`."""
        try:
            claims = claims_of_account(self._google, assertion)
        except NoSuchAccount:
            raise GrantRefused("invalid_grant", "Invalid grant: account not found") from None
        except TokenRefused as exc:
            raise GrantRefused("invalid_grant", f"Invalid JWT Signature: {exc.flaw.value}.") from None
        if claims["iss"] in self._google.disabled:
            raise GrantRefused("invalid_grant", "Invalid grant: account disabled")
        if claims.get("aud") not in audiences:
            raise GrantRefused("invalid_grant", "Invalid JWT: Failed audience check.")
        try:
            check_lifetime(claims, self._google.clock())
        except TokenRefused as exc:
            raise GrantRefused(
                "invalid_grant",
                "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe. "
                f"Check your iat and exp values in the JWT claim: {exc.flaw.value}.",
            ) from None
        if claims.get("sub", claims["iss"]) != claims["iss"]:
            raise GrantRefused("unauthorized_client", "Client is unauthorized to retrieve tokens for a user.", 401)
        return claims

    def _by_refresh_token(
        self, form: Mapping[str, str], client: tuple[str, str], *, expired: bool
    ) -> dict[str, object]:
        user = self._google.user(form.get("refresh_token", ""))
        if user is None or user["email"] in self._google.disabled:
            raise GrantRefused("invalid_grant", "Token has been expired or revoked.")
        if client != (user["client_id"], user["client_secret"]):
            raise GrantRefused("invalid_client", "The OAuth client was not found.", 401)
        scopes = read_scopes(form.get("scope") or " ".join(USER_SCOPES))
        if not set(scopes) <= set(USER_SCOPES):
            raise GrantRefused("invalid_scope", "Some requested scopes were not granted at sign-in.")
        body = self._access(user["email"], scopes, expired=expired) | {"scope": " ".join(scopes)}
        if "openid" in scopes:
            # Its audience is the client. Cloud Run accepts it only if that is the client of gcloud itself.
            claims = {"sub": unique_id(user["email"]), "azp": user["client_id"]}
            token, expires = self._google.id_token(user["email"], user["client_id"], claims=claims, expired=expired)
            self._google.record_mint("oauth", user["email"], user["client_id"], expires)
            body["id_token"] = token
        return body

    def _access(self, principal: str, scopes: list[str], *, expired: bool) -> dict[str, object]:
        token, expires = self._google.access_token(principal, scopes, expired=expired)
        return access_token_body(token, expires - self._google.clock())
