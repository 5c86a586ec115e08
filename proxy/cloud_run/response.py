"""One response, and which party sent it: a Restate SDK, Identity-Aware Proxy, or another server. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from proxy.quoting import one_line, plain, text_of

__all__ = ["Response"]

_SIGN_IN_HOST: Final = "accounts.google.com"


@dataclass(frozen=True, slots=True)
class Response:
    """A response. The repr shows neither fields nor body."""

    status: int
    """HTTP status, 100 to 599."""
    fields: Mapping[str, str] = field(repr=False)
    """Values by lower-case name; the last one of a repeated field."""
    body: bytes = field(repr=False)
    """The content, or the beginning of it."""

    @property
    def from_sdk(self) -> bool:
        """True if a Restate SDK sent the response: the request reached the container."""
        return "x-restate-server" in self.fields

    @property
    def is_redirect(self) -> bool:
        """True for any 3xx status. A redirect does not show whether the service is private."""
        return 300 <= self.status < 400

    @property
    def redirect_target(self) -> str:
        """The redirect's location without query and fragment, safe to print."""
        location = self.fields.get("location", "").partition("?")[0].partition("#")[0]
        if not location:
            return "nowhere"
        return location if plain(location) is not None else "a place that is not shown"

    @property
    def redirect_host(self) -> str:
        """The redirect's host in lower case; `""` if the location names no host, or there is no redirect."""
        try:
            return (self.is_redirect and urlsplit(self.fields.get("location", "")).hostname) or ""
        except ValueError:
            return ""

    @property
    def from_iap(self) -> bool:
        """True if Identity-Aware Proxy sent the response, before Cloud Run checked a token.

        IAP marks its responses, and redirects a caller without a session to Google's sign-in page.
        """
        if "x-goog-iap-generated-response" in self.fields:
            return True
        return self.redirect_host == _SIGN_IN_HOST

    def excerpt(self) -> str:
        """Return the beginning of a text body as one line without mark-up and tokens; `""` for any other body."""
        kind = self.fields.get("content-type", "text/plain")
        if not kind.startswith(("text/", "application/json")):
            return ""
        return one_line(text_of(self.body))
