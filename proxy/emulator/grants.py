"""What the token endpoints have in common: a form, an access token as answer, and a refusal (RFC 6749, 5)."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from proxy.emulator.answers import oauth_error

__all__ = ["GrantRefused", "access_answer", "read_form"]

FORM: Final = "application/x-www-form-urlencoded"


class GrantRefused(Exception):
    """A grant is not given: OAuth's error code, a description, and the status that goes with it."""

    def __init__(self, error: str, description: str, status: int = 400) -> None:
        super().__init__(description)
        self.error = error
        self.status = status

    def answer(self) -> web.Response:
        """Return the answer that says so."""
        return oauth_error(self.error, str(self), status=self.status)


async def read_form(request: web.BaseRequest) -> dict[str, str]:
    """Return the fields of a posted form, each of which is there once; raises GrantRefused."""
    if request.content_type != FORM:
        raise GrantRefused("invalid_request", f"The content-type is not {FORM}.")
    form: dict[str, str] = {}
    for name, value in (await request.post()).items():
        if name in form or not isinstance(value, str):
            raise GrantRefused("invalid_request", f"OAuth 2 parameters can only have a single value: {name}")
        form[name] = value
    return form


def access_answer(token: str, remaining_seconds: float) -> dict[str, object]:
    """Return what a token endpoint says with an access token (RFC 6749, 5.1)."""
    return {"access_token": token, "expires_in": max(0, round(remaining_seconds)), "token_type": "Bearer"}
