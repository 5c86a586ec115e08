"""Converts the fields of an HTTP/1.1 request to HTTP/2 (RFC 9113, 8.2.2). Pure."""

from __future__ import annotations

from typing import Final

from proxy.http2.events import Fields
from proxy.http2.policy.fields import CONNECTION_SPECIFIC

__all__ = ["from_http1"]

_CONNECTION_SPECIFIC: Final = CONNECTION_SPECIFIC | {b"http2-settings"}


def from_http1(method: bytes, path: bytes, lines: list[tuple[bytes, bytes]]) -> Fields:
    """Return the HTTP/2 head of an HTTP/1.1 request (RFC 9113, 8.2.2): names in lower case, hop-by-hop fields removed.

    `te` is kept only with the value `trailers`. `expect` is removed, because the listener has answered it.
    `authorization` and `cookie` are marked never-indexed, as HTTP/2 clients commonly do.
    """
    lowered = [(name.lower(), value) for name, value in lines]
    nominated = {
        token.strip().lower() for name, value in lowered if name == b"connection" for token in value.split(b",")
    }
    dropped = _CONNECTION_SPECIFIC | nominated | {b"expect", b"host"}
    if any(name == b"transfer-encoding" for name, _ in lowered):
        # Transfer-Encoding overrides content-length (RFC 9112, 6.3).
        dropped |= {b"content-length"}
    authority = next((value for name, value in lowered if name == b"host"), b"")
    head: Fields = [
        (b":method", method, False),
        (b":scheme", b"http", False),
        (b":authority", authority, False),
        (b":path", path, False),
    ]
    for name, value in lowered:
        if name in dropped or (name == b"te" and value.strip().lower() != b"trailers"):
            continue
        head.append((name, value, name in (b"authorization", b"cookie")))
    return head
