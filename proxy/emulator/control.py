"""The emulator's control endpoints: what can be changed while it runs.

::

    GET  /emulator/state      the numbers of calls, mints and streams, the active faults, the services
    POST /emulator/faults     {"endpoint": "iam", "fault": "server-error", "times": 3}   fault null: no fault,
                                                                                        times null: all requests
                              {"endpoint": "cloud-run", "service": "greeter", "fault": "no-instance"}
    POST /emulator/services   {"service": "greeter", "invokers": ["user:a@example.com"], "iap": false, "http2": true,
                               "request_timeout_seconds": 300, "max_requests": null, "cold_start_seconds": 0}
    POST /emulator/grants     {"caller": "a@…", "target": "b@…", "role": "openIdTokenCreator"}   role null: revoke
    POST /emulator/accounts   {"account": "a@…", "disabled": true}
    POST /emulator/apis       {"api": "iamcredentials.googleapis.com", "disabled": true}
    POST /emulator/clock      {"ahead_seconds": -300}

A field that is not given keeps its value. `service` may be left out if there is only one. The response is 204.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from aiohttp import web

from proxy.emulator.cloud_run import CloudRun
from proxy.emulator.description import ROLES
from proxy.emulator.google import Google
from proxy.emulator.model import ENDPOINTS, Fault
from proxy.emulator.service_faults import ServiceFault
from proxy.emulator.services import Services

__all__ = ["Control"]

FAULTS: Final = {fault.value: fault for fault in Fault}
SERVICE_FAULTS: Final = {fault.value: fault for fault in ServiceFault}
_Check = Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


SERVICE_FIELDS: Final[Mapping[str, tuple[_Check, str]]] = {
    "invokers": (lambda value: isinstance(value, list) and all(map(_is_text, value)), "a list of members"),
    "iap": (_is_flag, "true or false"),
    "http2": (_is_flag, "true or false"),
    "request_timeout_seconds": (lambda value: _is_number(value) and value > 0, "a number above 0"),
    "max_requests": (_is_count, "null or a number from 0"),
    "cold_start_seconds": (lambda value: _is_number(value) and value >= 0, "a number from 0"),
}
"""What can be changed of a service, and of which form it is."""


class _Invalid(Exception):
    pass


class Control:
    """The handler of the paths below `/emulator/`, for `GoogleServer(control=…)`."""

    def __init__(self, google: Google, *services: CloudRun | Services) -> None:
        self._google = google
        self._groups: Sequence[CloudRun | Services] = services
        self._services = [
            service for group in services for service in (group.services if isinstance(group, Services) else (group,))
        ]
        self._changes: dict[str, Callable[[dict[str, Any]], None]] = {
            "/emulator/faults": self._faults,
            "/emulator/services": self._service_changes,
            "/emulator/grants": self._grants,
            "/emulator/accounts": self._accounts,
            "/emulator/apis": self._apis,
            "/emulator/clock": self._clock,
        }

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Return the response to one request."""
        if (request.method, request.path) == ("GET", "/emulator/state"):
            return web.json_response(self.state())
        change = self._changes.get(request.path) if request.method == "POST" else None
        if change is None:
            return _refused(404, f"There are GET /emulator/state and POST {', '.join(self._changes)}.")
        # A web page in a browser on this machine can send any other type without a CORS preflight.
        if request.content_type != "application/json":
            return _refused(415, "The content-type has to be application/json.")
        try:
            wanted = json.loads(await request.text())
        except ValueError:
            return _refused(400, "The content is not JSON.")
        try:
            if not isinstance(wanted, dict):
                raise _Invalid("The content has to be a JSON object.")
            change(wanted)
        except _Invalid as exc:
            return _refused(400, str(exc))
        return web.Response(status=204)

    def state(self) -> dict[str, Any]:
        """Return `calls`, `mints` and `faults` by endpoint, `streams` by verdict, `services` by name, as JSON data."""
        mints = Counter(mint.endpoint for mint in self._google.mints)
        faults = self._google.faults()
        streams: Counter[str] = Counter()
        for group in self._groups:
            streams.update({verdict.value: count for verdict, count in group.verdicts.items()})
        return {
            "calls": {endpoint: self._google.calls[endpoint] for endpoint in ENDPOINTS},
            "mints": {endpoint: mints[endpoint] for endpoint in ENDPOINTS},
            "streams": dict(streams),
            "faults": {endpoint: {"fault": fault.value, "times": times} for endpoint, (fault, times) in faults.items()},
            "services": {service.name: _state_of(service) for service in self._services},
        }

    def _faults(self, wanted: dict[str, Any]) -> None:
        endpoint, name, times = wanted.get("endpoint"), wanted.get("fault"), wanted.get("times")
        if endpoint not in (*ENDPOINTS, "cloud-run"):
            raise _Invalid(f"The endpoint is one of {', '.join(ENDPOINTS)}, cloud-run.")
        more = {"service"} if endpoint == "cloud-run" else set()
        _only(wanted, {"endpoint", "fault", "times"} | more)
        known: Mapping[str, Any] = SERVICE_FAULTS if endpoint == "cloud-run" else FAULTS
        if name is not None and (not isinstance(name, str) or name not in known):
            raise _Invalid(f"The fault is null or one of {', '.join(known)}.")
        if not _is_count(times):
            raise _Invalid("The times are null or a number from 0.")
        fault = None if name is None else known[name]
        if endpoint == "cloud-run":
            self._service(wanted).fail(fault, times=times)
        else:
            self._google.fail(endpoint, fault, times=times)

    def _service_changes(self, wanted: dict[str, Any]) -> None:
        _only(wanted, {"service", *SERVICE_FIELDS})
        service = self._service(wanted)
        changes = {name: value for name, value in wanted.items() if name != "service"}
        for name, value in changes.items():
            right, form = SERVICE_FIELDS[name]
            if not right(value):
                raise _Invalid(f"The field {name} is {form}.")
        for name, value in changes.items():
            if name == "invokers":
                service.set_invokers(value)
            else:
                setattr(service, name, value)

    def _grants(self, wanted: dict[str, Any]) -> None:
        _only(wanted, {"caller", "target", "role"})
        caller, target, role = (wanted.get(name) for name in ("caller", "target", "role"))
        if not isinstance(caller, str) or not isinstance(target, str) or not caller or not target:
            raise _Invalid("The caller and the target are required.")
        if role is None:
            self._google.forbid_impersonation(caller, target)
            return
        if not isinstance(role, str) or role not in ROLES:
            raise _Invalid(f"The role is null or one of {', '.join(ROLES)}.")
        try:
            self._google.allow_impersonation(caller, target, ROLES[role])
        except ValueError:
            raise _Invalid("The target is not an e-mail address.") from None

    def _accounts(self, wanted: dict[str, Any]) -> None:
        self._toggle(wanted, "account", self._google.disabled)

    def _apis(self, wanted: dict[str, Any]) -> None:
        self._toggle(wanted, "api", self._google.disabled_apis)

    def _toggle(self, wanted: dict[str, Any], name: str, disabled: set[str]) -> None:
        _only(wanted, {name, "disabled"})
        if not _is_text(wanted.get(name)) or not _is_flag(wanted.get("disabled")):
            raise _Invalid(f"The {name} and disabled (true or false) are required.")
        (disabled.add if wanted["disabled"] else disabled.discard)(wanted[name])

    def _clock(self, wanted: dict[str, Any]) -> None:
        _only(wanted, {"ahead_seconds"})
        if not _is_number(wanted.get("ahead_seconds")):
            raise _Invalid("The field ahead_seconds is a number.")
        self._google.ahead_seconds = wanted["ahead_seconds"]

    def _service(self, wanted: Mapping[str, Any]) -> CloudRun:
        names = [service.name for service in self._services]
        name = wanted.get("service", names[0] if len(names) == 1 else None)
        if name not in names:
            raise _Invalid(f"The service is one of {', '.join(names)}.")
        return self._services[names.index(name)]


def _state_of(service: CloudRun) -> dict[str, Any]:
    fault = service.fault
    return {
        "url": service.url,
        "invokers": sorted(service.invokers),
        "fault": None if fault is None else {"fault": fault[0].value, "times": fault[1]},
        **{name: getattr(service, name) for name in SERVICE_FIELDS if name != "invokers"},
    }


def _only(wanted: Mapping[str, Any], known: set[str]) -> None:
    unknown = sorted(wanted.keys() - known)
    if unknown:
        raise _Invalid(f"There is no field {', '.join(unknown)}; there are {', '.join(sorted(known))}.")


def _refused(status: int, sentence: str) -> web.Response:
    return web.json_response({"error": sentence}, status=status)
