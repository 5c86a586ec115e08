"""What Google's front end does to every request, whatever the service: limits, reserved paths, fields, error pages.

It replaces what a caller says about itself (`x-forwarded-…`, `forwarded`, `x-goog-authenticated-user-…`) and continues
its trace with a span of its own. It sets `date`, `server`, `alt-svc` and `x-cloud-trace-context` of each response.

Read in Google's documentation and issues, not proven: the limit of 16 KiB (64 KiB is reported as well), which paths are
reserved, and the status of a request with the wrong method or `:scheme`.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from email.utils import formatdate
from typing import Any, Final, NamedTuple, TypeAlias
from urllib.parse import urlsplit

from proxy.emulator.responses import page
from proxy.emulator.verdicts import Verdict

__all__ = [
    "Application",
    "Message",
    "Receive",
    "Scope",
    "Send",
    "Trace",
    "check",
    "host_of",
    "host_of_url",
    "passed_on",
    "refusal_of",
    "refuse",
    "with_own_fields",
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

RESERVED: Final = re.compile(rb"/_ah/.*|/eventlog|/healthz", re.DOTALL)
"""Paths that never reach a container."""

REFUSED_METHODS: Final = frozenset({"TRACE", "CONNECT"})

REPLACED: Final = re.compile(
    rb"x-forwarded-.*|forwarded|traceparent|x-cloud-trace-context|x-goog-authenticated-user-.*"
)
"""Fields of requests that the front end sets or removes."""

SET_IN_RESPONSES: Final = frozenset({b"date", b"server", b"alt-svc", b"x-cloud-trace-context"})
TRACEPARENT: Final = re.compile(rb"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})")
CLOUD_TRACE: Final = re.compile(rb"(?!0{32})([0-9a-f]{32})(?:/[0-9]+)?(?:;o=([01]))?")
"""Google's own field: trace, decimal span, and whether it is sampled; without that, Google decides."""

INVALID_TOKEN: Final = b'Bearer error="invalid_token" error_description="The access token could not be verified"'

TEXTS: Final = {
    400: "Your client has issued a malformed or illegal request.",
    401: "Your client does not hold a token that this service accepts.",
    403: "Your client does not have permission to get this page from this server.",
    404: "The requested URL was not found on this server.",
    405: "The request method is inappropriate for this URL.",
    431: "Your client issued a request whose header fields are too large.",
}


class Trace(NamedTuple):
    """The trace of a request, and a span of the front end.

    It is that of the caller's `traceparent`, or else of its `x-cloud-trace-context`; a new one if neither is valid.
    """

    trace_id: str
    """32 hexadecimal digits."""
    span_id: str
    """16 hexadecimal digits."""
    flags: str
    """Two hexadecimal digits; `01`: sampled."""

    @classmethod
    def of(cls, fields: Iterable[tuple[bytes, bytes]]) -> Trace:
        """Return the trace of a request with these fields."""
        lower = [(bytes(name).lower(), bytes(value)) for name, value in fields]
        for name, pattern in ((b"traceparent", TRACEPARENT), (b"x-cloud-trace-context", CLOUD_TRACE)):
            values = [value for known, value in lower if known == name]
            match = pattern.fullmatch(values[0]) if len(values) == 1 else None
            if match is not None:
                return cls(match[1].decode(), secrets.token_hex(8), f"{int(match[2] or b'1', 16):02x}")
        return cls(secrets.token_hex(16), secrets.token_hex(8), "01")


def passed_on(
    fields: Iterable[tuple[bytes, bytes]], trace: Trace, client: tuple[str, int] | None
) -> list[tuple[bytes, bytes]]:
    """Return the fields of a request as the container gets them; names in lower case. `client` is the caller."""
    host = client[0] if client else "127.0.0.1"
    quoted = f'"[{host}]"' if ":" in host else f'"{host}"'
    sampled = int(trace.flags, 16) & 1
    own = {
        "x-forwarded-for": host,
        "x-forwarded-proto": "https",
        "forwarded": f"for={quoted};proto=https",
        "traceparent": f"00-{trace.trace_id}-{trace.span_id}-{trace.flags}",
        "x-cloud-trace-context": f"{trace.trace_id}/{int(trace.span_id, 16)};o={sampled}",
    }
    kept = [(name, value) for name, value in fields if REPLACED.fullmatch(name) is None]
    return [*kept, *((name.encode(), value.encode()) for name, value in own.items())]


def with_own_fields(send: Send, now: float, trace: Trace) -> Send:
    """Return a `send` that adds the front end's fields to a response; `now` is the time in seconds since the epoch."""

    async def send_with_fields(message: Message) -> None:
        if message["type"] == "http.response.start":
            kept = [(name, value) for name, value in message.get("headers", ()) if name.lower() not in SET_IN_RESPONSES]
            message = {**message, "headers": [*kept, *_own_fields(now, trace)]}
        await send(message)

    return send_with_fields


def _own_fields(now: float, trace: Trace) -> list[tuple[bytes, bytes]]:
    return [
        (b"x-cloud-trace-context", f"{trace.trace_id};o={int(trace.flags, 16) & 1}".encode()),
        (b"date", formatdate(now, usegmt=True).encode()),
        (b"server", b"Google Frontend"),
        (b"alt-svc", b'h3=":443"; ma=2592000,h3-29=":443"; ma=2592000'),
    ]


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


def refusal_of(
    status: int, request: Iterable[tuple[bytes, bytes]], now: float
) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Return all fields and the content of the front end's own response to a request with these fields."""
    fields, body = _refusal(status)
    return [*fields, *_own_fields(now, Trace.of(request))], body


def _refusal(status: int) -> tuple[list[tuple[bytes, bytes]], bytes]:
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
    fields, body = _refusal(status)
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})
