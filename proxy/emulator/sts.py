"""The token exchange: subject tokens of identity providers, and refresh tokens of a workforce pool."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import unquote

from aiohttp import web

from proxy.emulator.federation import SUBJECT_TYPES, SubjectRefused, UnknownProvider
from proxy.emulator.google import Google
from proxy.emulator.grants import GrantRefused, access_token_body, client_credentials, read_form, read_scopes
from proxy.emulator.model import SCOPE
from proxy.emulator.responses import web_page

__all__ = ["TokenExchange"]

GRANT: Final = "urn:ietf:params:oauth:grant-type:token-exchange"
ACCESS_TOKEN_TYPE: Final = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105 – a name
REQUIRED: Final = ("audience", "scope", "subject_token")
KNOWN: Final = frozenset(
    {
        "grant_type",
        "requested_token_type",
        "subject_token_type",
        "options",
        # Ignored here; Go sends them in the form.
        "client_id",
        "client_secret",
        *REQUIRED,
    }
)


class TokenExchange:
    """The API of sts.googleapis.com (RFC 8693)."""

    def __init__(self, google: Google) -> None:
        self._google = google

    async def handle(self, request: web.BaseRequest, *, expired: bool) -> web.Response:
        """Return the response to one request."""
        if request.path not in ("/v1/token", "/v1/oauthtoken", "/v1/introspect") or request.method != "POST":
            return web_page(404, "There is no such method.")
        try:
            # ProtoJSON: names may be in camel case, or as in forms.
            form = {_snake_case(name): value for name, value in (await read_form(request)).items()}
            if request.path == "/v1/token":
                return web.json_response(self._exchange(form, expired=expired))
            client = client_credentials(request, form)
            if request.path == "/v1/introspect":
                return web.json_response(self._introspect(form, client))
            return web.json_response(self._refresh(form, client, expired=expired))
        except GrantRefused as exc:
            return exc.response()

    def _exchange(self, form: Mapping[str, str], *, expired: bool) -> dict[str, object]:
        if form.get("grant_type") != GRANT:
            raise GrantRefused("unsupported_grant_type", "The grant_type is not token-exchange.")
        unknown = form.keys() - KNOWN
        if unknown:
            raise GrantRefused("invalid_request", f"Unknown or unsupported: {', '.join(sorted(unknown))}")
        if form.get("requested_token_type") != ACCESS_TOKEN_TYPE:
            raise GrantRefused("invalid_request", "The requested_token_type is not that of an access token.")
        if form.get("subject_token_type") not in SUBJECT_TYPES:
            raise GrantRefused("invalid_request", "The subject_token_type is missing or unknown.")
        for name in REQUIRED:
            if not form.get(name):
                raise GrantRefused("invalid_request", f"The field {name} is required.")
        _check_options(form.get("options"))
        scopes = read_scopes(form["scope"])
        try:
            principal = self._google.federation.exchange(
                form["audience"], form["subject_token_type"], form["subject_token"]
            )
        except UnknownProvider:
            raise GrantRefused(
                "invalid_target",
                'The target service indicated by the "audience" parameters is invalid. This might either be because '
                "the pool or provider is disabled or deleted or because it doesn't exist.",
            ) from None
        except SubjectRefused as exc:
            raise GrantRefused("invalid_grant", str(exc)) from None
        token, expires = self._google.access_token(principal, scopes, expired=expired)
        return access_token_body(token, expires - self._google.clock()) | {"issued_token_type": ACCESS_TOKEN_TYPE}

    def _refresh(self, form: Mapping[str, str], client: tuple[str, str], *, expired: bool) -> dict[str, object]:
        if form.get("grant_type") != "refresh_token":
            raise GrantRefused("unsupported_grant_type", "The grant_type is not refresh_token.")
        member = self._google.workforce_member(form.get("refresh_token", ""))
        if member is None:
            raise GrantRefused("invalid_grant", "The refresh token is expired or revoked.")
        if client != (member["client_id"], member["client_secret"]):
            raise GrantRefused("invalid_client", "The OAuth client was not found.", 401)
        token, expires = self._google.access_token(member["principal"], (SCOPE,), expired=expired)
        return access_token_body(token, expires - self._google.clock())

    def _introspect(self, form: Mapping[str, str], client: tuple[str, str]) -> dict[str, object]:
        """Return the principal of an access token (RFC 7662); `gcloud auth login --cred-file` requests it."""
        if not all(client):
            raise GrantRefused("invalid_client", "The OAuth client is not authenticated.", 401)
        access = self._google.access(form.get("token", ""))
        if access is None:
            return {"active": False}
        return {
            "active": True,
            "client_id": client[0],
            "exp": int(access.expires_at),
            "iss": "https://sts.googleapis.com/",
            "scope": " ".join(sorted(access.scopes)),
            "sub": access.principal,
            "username": access.principal,
        }


def _snake_case(name: str) -> str:
    return re.sub(r"[A-Z]", lambda match: f"_{match[0].lower()}", name)


def _check_options(options: str | None) -> None:
    try:
        right = options is None or json.loads(unquote(options)).keys() <= {"userProject"}
    except (ValueError, AttributeError, RecursionError):
        right = False
    if not right:
        raise GrantRefused("invalid_request", "The options have to be a JSON object with a userProject.")
