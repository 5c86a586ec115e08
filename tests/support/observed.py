"""An exchange as observers see it, for tests of observers alone."""

from __future__ import annotations

from dataclasses import dataclass, field

from proxy.http2.events import FieldLine, Fields

__all__ = ["Observed"]


@dataclass(frozen=True, eq=False)
class Observed:
    """What `ObservedExchange` promises; the defaults are a successful POST."""

    method: bytes = b"POST"
    path: bytes = b"/greeter/invoke"
    upstream_path: FieldLine | None = (b":path", b"/invoke", False)
    fields: Fields = field(default_factory=list)
    status: int = 200
    attempts: int = 1
    failure_code: str = ""
    principal: str | None = None
    response_done: bool = False
    request_octets: int = 0
    response_octets: int = 0
