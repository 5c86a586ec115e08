"""Error responses in Google's formats (API errors, OAuth errors, web pages), and faults."""

from __future__ import annotations

import asyncio
import html
import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from aiohttp import web

from proxy.emulator.model import Endpoint, Fault
from proxy.emulator.sockets import reset_on_close

__all__ = ["FLAVOR", "api_error", "apply_fault", "oauth_error", "page", "web_page"]

STATUS_NAMES: Final = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
}
FLAVOR: Final = "Metadata-Flavor"
"""Name of the field that requests to a metadata server and its responses must have; the value is Google."""

FAULT_STATUS: Final = {Fault.TOO_MANY_REQUESTS: 429, Fault.SERVER_ERROR: 500, Fault.DENIED: 403}


REJECTED_STATUS: Final[Mapping[Endpoint, int]] = {
    "metadata": 404, "iam": 401, "oauth": 400, "sts": 400, "projects": 401, "keys": 404, "aws": 401, "azure": 400,
}  # fmt: skip


def page(status: int, text: str) -> str:
    """Return an error page in HTML, as Google's front ends send it."""
    title = f"{status} {HTTPStatus(status).phrase}"
    return (
        "<!doctype html>\n<html lang=en>\n<head><meta charset=utf-8>"
        f"<title>{title}</title></head>\n<body><h1>{title}</h1>\n<p>{html.escape(text)}</p></body>\n</html>\n"
    )


def web_page(status: int, text: str) -> web.Response:
    """Return a response with `page(status, text)`; status 200 is possible."""
    return web.Response(status=status, text=page(status, text), content_type="text/html", charset="utf-8")


def api_error(
    status: int, message: str, *, reason: str | None = None, metadata: Mapping[str, str] | None = None
) -> web.Response:
    """Return an error response of a Google API; `reason` and `metadata` become its ErrorInfo detail (google.rpc)."""
    error: dict[str, object] = {"code": status, "message": message, "status": STATUS_NAMES[status]}
    if reason is not None:
        error["details"] = [
            {
                "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                "reason": reason,
                "domain": "iam.googleapis.com" if reason.startswith("IAM") else "googleapis.com",
                "metadata": dict(metadata or {}),
            }
        ]
    fields = {"www-authenticate": 'Bearer realm="https://accounts.google.com/"'} if status == 401 else None
    return web.Response(
        status=status, text=json.dumps({"error": error}, indent=2), content_type="application/json", headers=fields
    )


def oauth_error(error: str, description: str, *, status: int = 400) -> web.Response:
    """Return an error response of a token endpoint (RFC 6749, 5.2)."""
    return web.json_response({"error": error, "error_description": description}, status=status)


def _refusal(endpoint: Endpoint, status: int) -> web.Response:
    if endpoint in ("iam", "projects") and status == 429:
        service = {"iam": "iamcredentials.googleapis.com", "projects": "cloudresourcemanager.googleapis.com"}[endpoint]
        return api_error(
            429,
            f"Quota exceeded for quota metric 'Requests' and limit 'Requests per minute' of service '{service}'.",
            reason="RATE_LIMIT_EXCEEDED",
            metadata={"service": service, "quota_limit": "RequestsPerMinutePerProject", "quota_location": "global"},
        )
    if endpoint in ("iam", "projects"):
        return api_error(status, "The emulator was told to refuse this request.")
    if endpoint in ("metadata", "aws", "keys"):
        response = web_page(status, "The emulator was told to refuse this request.")
        if endpoint == "metadata":
            response.headers[FLAVOR] = "Google"
        return response
    names = {400: "invalid_grant", 403: "access_denied", 429: "rate_limit_exceeded", 500: "internal_failure"}
    return oauth_error(names[status], "The emulator was told to refuse this request.", status=status)


async def apply_fault(
    fault: Fault, endpoint: Endpoint, request: web.BaseRequest, *, slow_seconds: float
) -> web.Response | None:
    """Apply a fault to a request. Return the response, or None if the endpoint should send its normal one."""
    if fault in FAULT_STATUS:
        return _refusal(endpoint, FAULT_STATUS[fault])
    if fault is Fault.REJECTED:
        return _refusal(endpoint, REJECTED_STATUS[endpoint])
    if fault is Fault.JUNK:
        flavor = {FLAVOR: "Google"} if endpoint == "metadata" else None
        return web.Response(text='{"token": not-a-token', content_type="text/plain", headers=flavor)
    if fault is Fault.HTML:
        return web_page(200, "Sign in to this network to continue.")
    if fault is Fault.SLOW:
        await asyncio.sleep(slow_seconds)
    if fault is Fault.RESET and request.transport is not None:
        reset_on_close(request.transport.get_extra_info("socket"))
        request.transport.abort()
    if fault in (Fault.HANG, Fault.RESET):
        # The server cancels this task when the connection closes and when the server shuts down.
        await asyncio.get_running_loop().create_future()
    return None
