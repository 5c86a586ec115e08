"""What all Google APIs check first: the bearer of a request, and its quota project."""

from __future__ import annotations

from collections.abc import Collection

from aiohttp import web

from proxy.emulator.assertions import self_signed_access
from proxy.emulator.google import Google
from proxy.emulator.model import Access
from proxy.emulator.responses import api_error

__all__ = ["authenticate", "quota_refusal"]


def authenticate(google: Google, request: web.BaseRequest, audiences: Collection[str]) -> Access | None:
    """Return the access of the request's bearer: a valid access token, or a self-signed JWT for one of the audiences.

    None unless there is exactly one valid bearer.
    """
    values = request.headers.getall("Authorization", [])
    if len(values) != 1:
        return None
    scheme, _, token = values[0].partition(" ")
    if scheme.lower() != "bearer":
        return None
    return google.access(token) or self_signed_access(google, token, audiences)


def quota_refusal(google: Google, request: web.BaseRequest, service: str) -> web.Response | None:
    """Return the error for a quota project (`x-goog-user-project`) that does not exist; None if there is no error.

    Every caller may use every project that exists.
    """
    wrong = [name for name in request.headers.getall("x-goog-user-project", []) if google.project(name) is None]
    if not wrong:
        return None
    return api_error(
        403,
        f"Caller does not have required permission to use project {wrong[0]}. Grant the caller the "
        "roles/serviceusage.serviceUsageConsumer role, or a custom role with the serviceusage.services.use permission.",
        reason="USER_PROJECT_DENIED",
        metadata={"service": service, "consumer": f"projects/{wrong[0]}"},
    )
