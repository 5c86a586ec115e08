"""Failures of Cloud Run itself, on demand: what its front end sends when no container takes a request.

The texts of 429, 500, 502, 503 and 504 were read in issues and documentation of Cloud Run, not proven.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Mapping
from typing import Final

from h2.errors import ErrorCodes

from proxy.emulator.front_end import Send
from proxy.emulator.http2 import StreamControl

__all__ = ["RESPONSES", "ServiceFault", "apply_fault", "respond"]


class ServiceFault(enum.Enum):
    """A failure of a Cloud Run service on demand; the value is its name for `/emulator/faults`."""

    TOO_MANY_REQUESTS = "too-many-requests"
    """429: all instances are busy."""
    NO_INSTANCE = "no-instance"
    """503: no instance took the request, as when the container does not start."""
    SERVER_ERROR = "server-error"
    """500 of the front end."""
    PROTOCOL_ERROR = "protocol-error"
    """502: the container and Cloud Run do not agree on HTTP/2."""
    TIMEOUT = "timeout"
    """504: the request timeout of the service has passed."""
    DENIED = "denied"
    """403 of the front end."""
    REJECTED = "rejected"
    """401 of the front end."""
    IAP = "iap"
    """Identity-Aware Proxy is in front of the service, and nobody passes it."""
    HANG = "hang"
    """No response."""
    SLOW = "slow"
    """The normal response, after `Google.slow_seconds`; a cold start."""
    STREAM_RESET = "stream-reset"
    """The stream is reset with INTERNAL_ERROR."""
    STREAM_REFUSED = "stream-refused"
    """The stream is reset with REFUSED_STREAM: the request was not processed."""
    GO_AWAY = "go-away"
    """The connection ends with GOAWAY in two steps; the request gets the normal response."""
    DROP = "drop"
    """The TCP connection is reset."""


RESPONSES: Final[Mapping[ServiceFault, tuple[int, str, str]]] = {
    ServiceFault.TOO_MANY_REQUESTS: (429, "Rate exceeded.", "text/html; charset=UTF-8"),
    ServiceFault.NO_INSTANCE: (503, "Service Unavailable", "text/plain"),
    ServiceFault.SERVER_ERROR: (500, "Internal Server Error", "text/plain"),
    ServiceFault.PROTOCOL_ERROR: (
        502,
        "upstream connect error or disconnect/reset before headers. reset reason: protocol error",
        "text/plain",
    ),
    ServiceFault.TIMEOUT: (504, "upstream request timeout", "text/plain"),
}
"""Status, content and its type of the faults that are responses."""

RESETS: Final = {
    ServiceFault.STREAM_RESET: ErrorCodes.INTERNAL_ERROR,
    ServiceFault.STREAM_REFUSED: ErrorCodes.REFUSED_STREAM,
}


async def respond(send: Send, status: int, text: str, kind: str, *fields: tuple[bytes, bytes]) -> None:
    """Send a whole response."""
    body = text.encode()
    head = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode()), *fields]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})


async def apply_fault(fault: ServiceFault, stream: StreamControl | None, send: Send, *, slow_seconds: float) -> bool:
    """Apply a fault to a request. Return False if the service should still send its normal response.

    `DENIED`, `REJECTED` and `IAP` are not applied here. Without a `stream`, a fault of the connection has no effect.
    """
    if fault in RESPONSES:
        await respond(send, *RESPONSES[fault])
    elif fault is ServiceFault.HANG:
        await asyncio.get_running_loop().create_future()
    elif fault is ServiceFault.SLOW:
        await asyncio.sleep(slow_seconds)
        return False
    elif stream is None:
        return False
    elif fault is ServiceFault.GO_AWAY:
        await stream.go_away()
        return False
    elif fault is ServiceFault.DROP:
        stream.reset_connection()
    else:
        await stream.reset(RESETS[fault])
    return True
