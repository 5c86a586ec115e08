"""The emulator's control endpoints, for demos and tests in another process.

::

    POST /emulator/faults   {"endpoint": "iam", "fault": "server-error", "times": 3}   204; fault null: no fault,
                                                                                      times null: all requests
    GET  /emulator/state    the numbers of calls, mints and streams, and the active faults
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, Final

from aiohttp import web

from proxy.emulator.cloud_run import CloudRun
from proxy.emulator.google import Google
from proxy.emulator.model import ENDPOINTS, Fault

__all__ = ["Control"]

FAULTS: Final = {fault.value: fault for fault in Fault}


class Control:
    """The handler of the paths below `/emulator/`, for `GoogleServer(control=…)`."""

    def __init__(self, google: Google, cloud_run: CloudRun) -> None:
        self._google = google
        self._cloud_run = cloud_run

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Return the response to one request."""
        if (request.method, request.path) == ("GET", "/emulator/state"):
            return web.json_response(self.state())
        if (request.method, request.path) == ("POST", "/emulator/faults"):
            return await self._faults(request)
        return _refused(404, "There are GET /emulator/state and POST /emulator/faults.")

    def state(self) -> dict[str, Any]:
        """Return `calls`, `mints` and `faults` by endpoint and `streams` by verdict, as JSON data."""
        mints = Counter(mint.endpoint for mint in self._google.mints)
        faults = self._google.faults()
        return {
            "calls": {endpoint: self._google.calls[endpoint] for endpoint in ENDPOINTS},
            "mints": {endpoint: mints[endpoint] for endpoint in ENDPOINTS},
            "streams": {verdict.value: count for verdict, count in self._cloud_run.verdicts.items()},
            "faults": {endpoint: {"fault": fault.value, "times": times} for endpoint, (fault, times) in faults.items()},
        }

    async def _faults(self, request: web.BaseRequest) -> web.Response:
        # A web page in a browser on this machine can send any other type without a CORS preflight.
        if request.content_type != "application/json":
            return _refused(415, "The content-type has to be application/json.")
        try:
            wanted = json.loads(await request.text())
        except ValueError:
            return _refused(400, "The content is not JSON.")
        if not isinstance(wanted, dict) or not wanted.keys() <= {"endpoint", "fault", "times"}:
            return _refused(400, "An object with endpoint, fault and times is expected.")
        endpoint, name, times = wanted.get("endpoint"), wanted.get("fault"), wanted.get("times")
        if endpoint not in ENDPOINTS:
            return _refused(400, f"The endpoint is one of {', '.join(ENDPOINTS)}.")
        if name is not None and (not isinstance(name, str) or name not in FAULTS):
            return _refused(400, f"The fault is null or one of {', '.join(FAULTS)}.")
        if times is not None and (isinstance(times, bool) or not isinstance(times, int) or times < 0):
            return _refused(400, "The times are null or a number from 0.")
        self._google.fail(endpoint, None if name is None else FAULTS[name], times=times)
        return web.Response(status=204)


def _refused(status: int, sentence: str) -> web.Response:
    return web.json_response({"error": sentence}, status=status)
