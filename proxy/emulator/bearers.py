"""What all Google APIs check first: the bearer of a request, and its quota project."""

from __future__ import annotations

from collections.abc import Collection

from aiohttp import web

from proxy.emulator.assertions import self_signed_access
from proxy.emulator.google import Google, is_service_account
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


def quota_refusal(google: Google, request: web.BaseRequest, service: str, access: Access) -> web.Response | None:
    """Return the error of a request whose project may not be used or has not enabled the API; None without error.

    The project is that of `x-goog-user-project`, or else that of the caller.
    """
    named = request.headers.getall("x-goog-user-project", [])
    for name in named:
        project = google.project(name)
        users = google.project_users.get(project or "")
        own = is_service_account(access.principal) and google.project_of(access.principal) == project
        if project is None or (users is not None and access.principal not in users and not own):
            return api_error(
                403,
                f"Caller does not have required permission to use project {name}. Grant the caller the "
                "roles/serviceusage.serviceUsageConsumer role, or a custom role with the serviceusage.services.use "
                "permission.",
                reason="USER_PROJECT_DENIED",
                metadata={"service": service, "consumer": f"projects/{name}"},
            )
    if service not in google.disabled_apis:
        return None
    number = google.project_number((google.project(named[0]) if named else None) or google.project_of(access.principal))
    return api_error(
        403,
        f"{service} has not been used in project {number} before or it is disabled. Enable it by visiting "
        f"https://console.developers.google.com/apis/api/{service}/overview?project={number} then retry.",
        reason="SERVICE_DISABLED",
        metadata={"service": service, "consumer": f"projects/{number}"},
    )
