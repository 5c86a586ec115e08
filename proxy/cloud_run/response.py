"""What came back to a request, and what can be read off it. Pure."""

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
    """What came back. Fields and body have no repr."""

    status: int
    fields: Mapping[str, str] = field(repr=False)
    """By lower-case name; of repeated ones the last."""
    body: bytes = field(repr=False)

    @property
    def from_sdk(self) -> bool:
        """Whether a Restate SDK answered, so that the request did reach the container."""
        return "x-restate-server" in self.fields

    @property
    def is_redirect(self) -> bool:
        """Whether it sends the caller elsewhere, which tells nothing about who may call."""
        return 300 <= self.status < 400

    @property
    def redirect_target(self) -> str:
        """Where it redirects to, without query, to be shown."""
        where = self.fields.get("location", "").partition("?")[0].partition("#")[0]
        if not where:
            return "nowhere"
        return where if plain(where) is not None else "a place that is not shown"

    @property
    def redirect_host(self) -> str:
        """The host that it redirects to, in lower case; `""` where it names none."""
        try:
            return (self.is_redirect and urlsplit(self.fields.get("location", "")).hostname) or ""
        except ValueError:
            return ""

    @property
    def from_iap(self) -> bool:
        """Whether Identity-Aware Proxy answered, before Cloud Run looked at any token.

        It marks what it answers, and sends whoever has not signed in to Google's sign-in page.
        """
        if "x-goog-iap-generated-response" in self.fields:
            return True
        return self.redirect_host == _SIGN_IN_HOST

    def excerpt(self) -> str:
        """Return the beginning of a text body, without mark-up and fit to be shown; `""` for any other body."""
        kind = self.fields.get("content-type", "text/plain")
        if not kind.startswith(("text/", "application/json")):
            return ""
        return one_line(text_of(self.body))
