"""Common parts of the token endpoints (RFC 6749): form, client, scopes, success and error responses."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any, Final

from aiohttp import web

from proxy.emulator.model import are_scopes
from proxy.emulator.responses import oauth_error

__all__ = ["GrantRefused", "access_token_body", "client_credentials", "read_form", "read_scopes"]

FORM: Final = "application/x-www-form-urlencoded"
JSON: Final = frozenset({"application/json", "text/json"})


class GrantRefused(Exception):
    """A grant is refused: OAuth's error name, a description, and the HTTP status."""

    def __init__(self, error: str, description: str, status: int = 400) -> None:
        super().__init__(description)
        self.error = error
        self.status = status

    def response(self) -> web.Response:
        """Return the error response."""
        return oauth_error(self.error, str(self), status=self.status)


async def read_form(request: web.BaseRequest) -> dict[str, str]:
    """Return the fields of the posted form or JSON object; raises GrantRefused, also if a field is repeated.

    JSON fields that are null are omitted.
    """
    if request.content_type in JSON:
        return _text_fields(await request.read())
    if request.content_type != FORM:
        raise GrantRefused("invalid_request", f"The content-type is neither {FORM} nor application/json.")
    try:
        posted = await request.post()
    except (ValueError, LookupError):  # it is not of its charset, or that is unknown
        raise GrantRefused("invalid_request", "The content cannot be decoded.") from None
    form: dict[str, str] = {}
    for name, value in posted.items():
        if name in form or not isinstance(value, str):
            raise GrantRefused("invalid_request", f"OAuth 2 parameters can only have a single value: {name}")
        form[name] = value
    return form


def client_credentials(request: web.BaseRequest, form: Mapping[str, str]) -> tuple[str, str]:
    """Return id and secret of the OAuth client, from Authorization: Basic or from the form (RFC 6749, 2.3.1).

    Both are empty if there is no client.
    """
    values = request.headers.getall("Authorization", [])
    if not values:
        return form.get("client_id", ""), form.get("client_secret", "")
    scheme, _, encoded = values[0].partition(" ") if len(values) == 1 else ("", "", "")
    # The Rust client uses the URL-safe alphabet without padding.
    standard = encoded.replace("-", "+").replace("_", "/")
    try:
        client, _, secret = (
            base64.b64decode(standard + "=" * (-len(standard) % 4), validate=True).decode().partition(":")
        )
    except (binascii.Error, ValueError):
        return "", ""
    return (client, secret) if scheme.lower() == "basic" else ("", "")


def read_scopes(text: str) -> list[str]:
    """Return the scopes of a field; raises GrantRefused if there are none, or one that Google does not have."""
    scopes = text.split()
    if not scopes or not are_scopes(scopes):
        raise GrantRefused("invalid_scope", "Invalid OAuth scope or ID token audience provided.")
    return scopes


def access_token_body(token: str, remaining_seconds: float) -> dict[str, object]:
    """Return the body of a response with an access token (RFC 6749, 5.1)."""
    return {"access_token": token, "expires_in": max(0, round(remaining_seconds)), "token_type": "Bearer"}


def _text_fields(content: bytes) -> dict[str, str]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError
        return dict(pairs)

    try:
        fields = json.loads(content, object_pairs_hook=once)
    except (ValueError, RecursionError):
        fields = None
    present = {name: value for name, value in fields.items() if value is not None} if isinstance(fields, dict) else None
    if present is None or not all(isinstance(value, str) for value in present.values()):
        raise GrantRefused("invalid_request", "The content has to be a JSON object of strings without repeated names.")
    return present
