"""The default application behind the emulated Cloud Run: its response describes the request."""

from __future__ import annotations

import json
from typing import Any

from proxy.emulator.cloud_run import read_claims
from proxy.emulator.front_end import Receive, Scope, Send
from proxy.emulator.jwts import TokenRefused

__all__ = ["echo"]


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Respond with JSON: `method`, `path`, `query`, `http_version`, `fields` (pairs), `octets` of content, `claims`."""
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
        return
    if scope["type"] != "http":
        await send({"type": "websocket.close"})
        return
    octets, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        octets += len(message.get("body", b""))
        more = message.get("more_body", False)
    fields = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
    seen = {
        "method": scope["method"],
        "path": scope["path"],
        "query": scope["query_string"].decode("latin-1"),
        "http_version": scope["http_version"],
        "fields": fields,
        "octets": octets,
        "claims": _claims(scope["headers"]),
    }
    body = json.dumps(seen, indent=2).encode() + b"\n"
    head = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": body})


def _claims(fields: list[tuple[bytes, bytes]]) -> dict[str, Any] | None:
    by_name = dict(fields)
    for name in (b"x-serverless-authorization", b"authorization"):
        if name in by_name:
            try:
                return read_claims(by_name[name])
            except TokenRefused:
                return None
    return None


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
