"""Resource Manager: the id of a project, which google-auth requests for the project of a workload identity pool."""

from __future__ import annotations

import re
from typing import Final

from aiohttp import web

from proxy.emulator.bearers import authenticate, quota_refusal
from proxy.emulator.google import Google
from proxy.emulator.responses import api_error, web_page

__all__ = ["ResourceManager"]

PATH: Final = re.compile(r"/v1/projects/([^/:]+)")
SERVICE: Final = "cloudresourcemanager.googleapis.com"


class ResourceManager:
    """The method `projects.get` of cloudresourcemanager.googleapis.com; every caller may read every project."""

    def __init__(self, google: Google) -> None:
        self._google = google

    async def handle(self, request: web.BaseRequest, *, expired: bool) -> web.Response:
        """Return the response to one request; `expired` has no effect, since it contains no token."""
        match = PATH.fullmatch(request.path)
        if match is None or request.method != "GET":
            return web_page(404, "There is no such method.")
        access = authenticate(self._google, request, (f"https://{SERVICE}/",))
        if access is None:
            return api_error(401, "A valid OAuth 2 access token is required as bearer.")
        refusal = quota_refusal(self._google, request, SERVICE, access)
        if refusal is not None:
            return refusal
        project = self._google.project(match[1])
        if project is None:
            return api_error(403, "The caller does not have permission")
        return web.json_response(
            {"projectNumber": match[1] if match[1].isdecimal() else str(self._google.project_number(project)),
             "projectId": project, "lifecycleState": "ACTIVE", "name": project}
        )  # fmt: skip
