"""Requests to a `CloudRun` without a server: an application that records them, and claims of a valid token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from proxy.emulator import CloudRun
from proxy.emulator.model import unique_id
from tests.support.emulated import AUDIENCE, CALLER, Clock

__all__ = ["ADDED", "Application", "bearer", "call", "claims"]

ADDED = [b"x-forwarded-for", b"x-forwarded-proto", b"forwarded", b"traceparent", b"x-cloud-trace-context"]
"""What the front end adds to a request."""


class Application:
    """An ASGI application that records its requests."""

    def __init__(self) -> None:
        self.scopes: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body"})


async def call(
    cloud_run: CloudRun,
    fields: Sequence[tuple[bytes, bytes]],
    kind: str = "http",
    path: str = "/invoke",
    method: str = "POST",
) -> list[Any]:
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError("the front end reads no content")

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": kind, "path": path, "headers": list(fields)}
    await cloud_run(scope | ({"method": method} if kind == "http" else {}), receive, send)
    return sent


def claims(clock: Clock, **changes: object) -> dict[str, object]:
    number = unique_id(CALLER)
    times = {"iat": int(clock.now), "exp": int(clock.now) + 3600}
    claims = {"iss": "https://accounts.google.com", "aud": AUDIENCE, "azp": number, "sub": number} | times | changes
    return {name: value for name, value in claims.items() if value is not None}


def bearer(token: str) -> bytes:
    return b"Bearer " + token.encode()
