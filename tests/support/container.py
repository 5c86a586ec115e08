"""What runs inside the emulated Cloud Run service sees: a note of every request that reached the container."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from proxy.emulator.cloud_run import SIGNATURE_REMOVED, Application, Receive, Scope, Send, read_claims

__all__ = ["Recorder", "Seen"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One request as the container saw it."""

    method: str
    path: str
    http_version: str
    tokens: int
    """How many `x-serverless-authorization` lines there were."""
    claims: dict[str, Any]
    """The claims of the first of them; empty without one."""
    signature_removed: bool
    """Whether the front end had taken its signature away, as it does with a token that it verified."""
    authorization: tuple[str, ...]
    """Every `authorization` value, as it came."""
    fields: dict[str, str] = field(repr=False)
    """All fields by name; of one that came twice the last."""

    @classmethod
    def of(cls, scope: Scope) -> Seen:
        """Return the note for a request."""
        lines = [(bytes(name).decode().lower(), bytes(value).decode("latin-1")) for name, value in scope["headers"]]
        tokens = [value for name, value in lines if name == "x-serverless-authorization"]
        return cls(
            method=scope["method"],
            path=scope["path"],
            http_version=scope["http_version"],
            tokens=len(tokens),
            claims=read_claims(tokens[0].encode()) if tokens else {},
            signature_removed=bool(tokens) and tokens[0].endswith(f".{SIGNATURE_REMOVED}"),
            authorization=tuple(value for name, value in lines if name == "authorization"),
            fields=dict(lines),
        )


class Recorder:
    """ASGI middleware that notes each request and passes it on; `tell` is told at once."""

    def __init__(self, app: Application, tell: Callable[[Seen], None] | None = None) -> None:
        self.seen: list[Seen] = []
        self.refusals_left = 0
        """So many of the next invocations find no instance: 503 without `retry-after`, and not noted."""
        self.app = app
        """The application behind; may be replaced, as by a new revision."""
        self._tell = tell
        self._arrived = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self.refusals_left and "/invoke/" in scope["path"]:
            self.refusals_left -= 1
            await send({"type": "http.response.start", "status": 503, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"no available instance"})
            return
        if scope["type"] == "http":
            seen = Seen.of(scope)
            self.seen.append(seen)
            self._arrived.set()
            if self._tell:
                self._tell(seen)
        await self.app(scope, receive, send)

    async def reached_by(self, service: str) -> None:
        """Return when an invocation of the service has arrived."""
        while not self.invocations(service):
            self._arrived.clear()
            await self._arrived.wait()

    def invocations(self, service: str) -> list[Seen]:
        """Return what was seen of the invocations of a service, oldest first."""
        return [seen for seen in self.seen if f"/invoke/{service}/" in seen.path]

    def discoveries(self) -> list[Seen]:
        """Return what was seen of discoveries, oldest first."""
        return [seen for seen in self.seen if seen.path.endswith("/discover")]
