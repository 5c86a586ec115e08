"""What Google's front end does to every request, whatever the service: limits, reserved paths, error pages.

Read in Google's documentation and issues, not proven: the limit of 16 KiB (64 KiB is reported as well), which paths are
reserved, and the status of a request with the wrong method or `:scheme`.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

from proxy.emulator.responses import page
from proxy.emulator.verdicts import Verdict

__all__ = [
    "FIELD_SECTION_OCTETS",
    "Application",
    "Message",
    "Receive",
    "Scope",
    "Send",
    "check",
    "host_of",
    "host_of_url",
    "refusal_of",
    "refuse",
]

Scope: TypeAlias = MutableMapping[str, Any]
"""The scope of an ASGI connection."""
Message: TypeAlias = MutableMapping[str, Any]
"""One ASGI event."""
Receive: TypeAlias = Callable[[], Awaitable[Message]]
"""Returns the next event from the client."""
Send: TypeAlias = Callable[[Message], Awaitable[None]]
"""Sends an event to the client."""
Application: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
"""Any ASGI 3 application."""

FIELD_SECTION_OCTETS: Final = 16_384
"""About the limit of Google's front end: names, values and 32 octets for each field (RFC 9113, 6.5.2)."""

RESERVED: Final = re.compile(rb"/_ah/.*|/eventlog|/healthz", re.DOTALL)
"""Paths that never reach a container."""

REFUSED_METHODS: Final = frozenset({"TRACE", "CONNECT"})

INVALID_TOKEN: Final = b'Bearer error="invalid_token" error_description="The access token could not be verified"'

TEXTS: Final = {
    400: "Your client has issued a malformed or illegal request.",
    401: "Your client does not hold a token that this service accepts.",
    403: "Your client does not have permission to get this page from this server.",
    404: "The requested URL was not found on this server.",
    405: "The request method is inappropriate for this URL.",
    431: "Your client issued a request whose header fields are too large.",
}


def check(scope: Scope, field_section_octets: int) -> Verdict:
    """Return the result of the checks that need no service: size of the fields, method, reserved paths."""
    target = scope.get("raw_path") or scope["path"].encode()
    octets = sum(len(name) + len(value) + 32 for name, value in [*scope["headers"], (b":path", target)])
    if octets + len(scope.get("query_string", b"")) > field_section_octets:
        return Verdict.TOO_LARGE
    if scope.get("method") in REFUSED_METHODS:
        return Verdict.METHOD
    return Verdict.RESERVED_PATH if RESERVED.fullmatch(target) else Verdict.ACCEPTED


def host_of(fields: Iterable[tuple[bytes, bytes]]) -> str | None:
    """Return the host of a request in lower case, without port; None if it has none, two, or an invalid one."""
    hosts = {bytes(value) for name, value in fields if bytes(name).lower() == b"host"}
    return host_of_url(f"//{hosts.pop().decode('latin-1')}") if len(hosts) == 1 else None


def host_of_url(url: str | None) -> str | None:
    """Return the host of a URL in lower case, without port and brackets; None if it has none."""
    try:
        return urlsplit(url or "").hostname
    except ValueError:
        return None


def refusal_of(status: int) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Return fields and content of the front end's own response with this status."""
    body = page(status, TEXTS[status]).encode()
    fields = [(b"content-type", b"text/html; charset=UTF-8"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        fields.append((b"www-authenticate", INVALID_TOKEN))
    return fields, body


async def refuse(status: int, scope: Scope, send: Send) -> None:
    """Send the front end's own response with this status; a WebSocket is closed."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close"})
        return
    fields, body = refusal_of(status)
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})
