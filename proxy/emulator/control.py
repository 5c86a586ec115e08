"""The emulator's control endpoints: what can be changed while it runs.

::

    GET  /emulator/state      the numbers of calls, mints and streams, the active faults, and all that can be changed
    POST /emulator/faults     {"endpoint": "iam", "fault": "server-error", "times": 3}   fault null: no fault,
                                                                                        times null: all requests
                              {"endpoint": "cloud-run", "service": "greeter", "fault": "no-instance"}
    POST /emulator/services   {"service": "greeter", "invokers": ["user:a@example.com"], "audiences": ["greeter"],
                               "iap": false, "iap_accessors": ["user:a@example.com"], "iap_clients": ["1-a.apps.…"],
                               "http2": true, "request_timeout_seconds": 300, "max_requests": null,
                               "cold_start_seconds": 0}
    POST /emulator/grants     {"caller": "a@…", "target": "b@…", "role": "openIdTokenCreator"}   role null: revoke
    POST /emulator/groups     {"group": "team@…", "members": ["a@…"]}                            members null: no group
    POST /emulator/projects   {"project": "shop", "users": ["a@…"]}                              users null: everybody
    POST /emulator/accounts   {"account": "a@…", "disabled": true}
    POST /emulator/apis       {"api": "iamcredentials.googleapis.com", "disabled": true}
    POST /emulator/clock      {"ahead_seconds": -300}
    POST /emulator/google     {"token_lifetime_seconds": 60, "propagation_seconds": 120, "slow_seconds": 2,
                               "accept_disabled_accounts": false}

A field that is not given keeps its value. `service` may be left out if there is only one. The response is 204.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from aiohttp import web

from proxy.emulator.cloud_run import CloudRun
from proxy.emulator.description import (
    CALLER,
    DURATION,
    FLAG,
    MAX_LIFETIME_SECONDS,
    MOST_COUNT,
    MOST_SECONDS,
    POSITIVE_DURATION,
    ROLES,
    is_caller,
    is_email,
    is_flag,
    is_member,
    is_number,
    is_principal,
    whole,
)
from proxy.emulator.google import Google
from proxy.emulator.model import ENDPOINTS, Fault
from proxy.emulator.service_faults import ServiceFault
from proxy.emulator.services import Services

__all__ = ["Control"]

FAULTS: Final = {fault.value: fault for fault in Fault}
SERVICE_FAULTS: Final = {fault.value: fault for fault in ServiceFault}
RECENT_REQUESTS: Final = 20
_Check = Callable[[Any], bool]


def _or_none(is_valid: _Check) -> _Check:
    return lambda value: value is None or is_valid(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _list_of(is_valid: _Check) -> _Check:
    return lambda value: isinstance(value, list) and all(_is_text(entry) and is_valid(entry) for entry in value)


MEMBERS: Final = (_list_of(is_member), "a list of members, such as user:a@example.com, group:a@example.com or allUsers")
TEXTS: Final = (_list_of(_is_text), "a list of texts")
COUNT: Final = (_or_none(whole(0, MOST_COUNT)[0]), f"null or a whole number from 0 to {MOST_COUNT:,}")
EMAILS: Final = (_or_none(_list_of(is_email)), "null or a list of e-mail addresses")
PRINCIPALS: Final = (
    _or_none(_list_of(is_principal)),
    "null or a list of e-mail addresses and federated principals",
)

SERVICE_FIELDS: Final[Mapping[str, tuple[_Check, str]]] = {
    "invokers": MEMBERS,
    "audiences": TEXTS,
    "iap": FLAG,
    "iap_accessors": MEMBERS,
    "iap_clients": TEXTS,
    "http2": FLAG,
    "request_timeout_seconds": POSITIVE_DURATION,
    "max_requests": COUNT,
    "cold_start_seconds": DURATION,
}
"""What can be changed of a service, and of which form it is."""

ATTRIBUTES: Final = {"audiences": "custom_audiences"}
"""Attributes of a `CloudRun` that have another name here."""

GOOGLE_FIELDS: Final[Mapping[str, tuple[_Check, str]]] = {
    "token_lifetime_seconds": whole(1, MAX_LIFETIME_SECONDS),
    "propagation_seconds": DURATION,
    "slow_seconds": DURATION,
    "accept_disabled_accounts": FLAG,
}
"""What can be changed of Google as a whole, and of which form it is."""


class _Invalid(Exception):
    pass


class Control:
    """The handler of the paths below `/emulator/`, for `GoogleServer(control=…)`."""

    def __init__(self, google: Google, *services: CloudRun | Services) -> None:
        self._google = google
        self._applications: Sequence[CloudRun | Services] = services
        self._services = [
            service for one in services for service in (one.services if isinstance(one, Services) else (one,))
        ]
        self._changes: dict[str, Callable[[dict[str, Any]], None]] = {
            "/emulator/faults": self._faults,
            "/emulator/services": self._service_changes,
            "/emulator/grants": self._grants,
            "/emulator/accounts": lambda wanted: _toggle(wanted, "account", google.disabled),
            "/emulator/apis": lambda wanted: _toggle(wanted, "api", google.disabled_apis),
            "/emulator/clock": self._clock,
            "/emulator/groups": self._groups_changes,
            "/emulator/projects": self._projects,
            "/emulator/google": self._google_changes,
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
            wanted = json.loads((await request.read()).decode())
        except (ValueError, RecursionError):
            return _refused(400, "The content is not JSON.")
        try:
            if not isinstance(wanted, dict):
                raise _Invalid("The content has to be a JSON object.")
            change(wanted)
        except _Invalid as exc:
            return _refused(400, str(exc))
        return web.Response(status=204)

    def state(self) -> dict[str, Any]:
        """Return what was counted and what can be changed, as JSON data.

        `calls`, `mints` and `faults` are by endpoint, `streams` by verdict, `services` by name. `requests` has the last
        20 of each service, oldest first, and `grants` what is in effect.
        """
        google = self._google
        mints = Counter(mint.endpoint for mint in self._google.mints)
        streams: Counter[str] = Counter()
        for application in self._applications:
            streams.update({verdict.value: count for verdict, count in application.verdicts.items()})
        return {
            "calls": {endpoint: self._google.calls[endpoint] for endpoint in ENDPOINTS},
            "mints": {endpoint: mints[endpoint] for endpoint in ENDPOINTS},
            "streams": dict(streams),
            "faults": {name: state for name, fault in google.pending_faults.items() if (state := fault.state())},
            "services": {service.name: _state_of(service) for service in self._services},
            "requests": [
                {"service": service.name, "method": record.method, "path": record.path, "result": record.verdict.value}
                for service in self._services
                for record in service.streams[-RECENT_REQUESTS:]
            ],
            "grants": [
                {"caller": caller, "target": target, "permissions": permissions}
                for caller, target, permissions in google.grants()
            ],
            "groups": {group: sorted(members) for group, members in google.groups.items()},
            "projects": {project: sorted(users) for project, users in google.project_users.items()},
            "disabled_accounts": sorted(google.disabled),
            "disabled_apis": sorted(google.disabled_apis),
            "google": {name: getattr(google, name) for name in GOOGLE_FIELDS},
            "clock": {"ahead_seconds": google.ahead_seconds},
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
        if not COUNT[0](times):
            raise _Invalid(f"The times are {COUNT[1]}.")
        fault = None if name is None else known[name]
        if endpoint == "cloud-run":
            self._service(wanted).fail(fault, times=times)
        else:
            self._google.fail(endpoint, fault, times=times)

    def _service_changes(self, wanted: dict[str, Any]) -> None:
        _only(wanted, {"service", *SERVICE_FIELDS})
        service = self._service(wanted)
        changes = {name: value for name, value in wanted.items() if name != "service"}
        _check(changes, SERVICE_FIELDS)
        for name, value in changes.items():
            if name == "invokers":
                service.set_invokers(value)
            else:
                setattr(service, ATTRIBUTES.get(name, name), tuple(value) if isinstance(value, list) else value)

    def _groups_changes(self, wanted: dict[str, Any]) -> None:
        _only(wanted, {"group", "members"})
        if not is_email(wanted.get("group")) or "members" not in wanted:
            raise _Invalid("The group (an e-mail address) and members are required.")
        _check({"members": wanted["members"]}, {"members": EMAILS})
        _replace(self._google.groups, wanted["group"], wanted["members"])

    def _projects(self, wanted: dict[str, Any]) -> None:
        _only(wanted, {"project", "users"})
        if not _is_text(wanted.get("project")) or "users" not in wanted:
            raise _Invalid("The project (its id) and users are required.")
        project = self._google.project(wanted["project"])
        if project is None:
            raise _Invalid("There is no such project: the projects are those of the accounts.")
        _check({"users": wanted["users"]}, {"users": PRINCIPALS})
        _replace(self._google.project_users, project, wanted["users"])

    def _google_changes(self, wanted: dict[str, Any]) -> None:
        _only(wanted, set(GOOGLE_FIELDS))
        _check(wanted, GOOGLE_FIELDS)
        for name, value in wanted.items():
            setattr(self._google, name, value)

    def _grants(self, wanted: dict[str, Any]) -> None:
        _only(wanted, {"caller", "target", "role"})
        caller, target, role = (wanted.get(name) for name in ("caller", "target", "role"))
        if not (isinstance(caller, str) and is_caller(caller) and isinstance(target, str) and is_email(target)):
            raise _Invalid(f"The caller ({CALLER}) and the target (an e-mail address) are required.")
        if role is None:
            self._google.forbid_impersonation(caller, target)
            return
        if not isinstance(role, str) or role not in ROLES:
            raise _Invalid(f"The role is null or one of {', '.join(ROLES)}.")
        self._google.allow_impersonation(caller, target, ROLES[role])

    def _clock(self, wanted: dict[str, Any]) -> None:
        _only(wanted, {"ahead_seconds"})
        if not is_number(wanted.get("ahead_seconds")):
            raise _Invalid(f"The field ahead_seconds is a number from -{MOST_SECONDS:,} to {MOST_SECONDS:,}.")
        self._google.ahead_seconds = wanted["ahead_seconds"]

    def _service(self, wanted: Mapping[str, Any]) -> CloudRun:
        names = [service.name for service in self._services]
        name = wanted.get("service", names[0] if len(names) == 1 else None)
        if name not in names:
            raise _Invalid(f"The service is one of {', '.join(names)}.")
        return self._services[names.index(name)]


def _state_of(service: CloudRun) -> dict[str, Any]:
    return {
        "url": service.url,
        "invokers": sorted(service.invokers),
        "fault": service.pending_fault.state(),
        **{
            name: _listed(getattr(service, ATTRIBUTES.get(name, name))) for name in SERVICE_FIELDS if name != "invokers"
        },
    }


def _listed(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else value


def _check(changes: Mapping[str, Any], fields: Mapping[str, tuple[_Check, str]]) -> None:
    for name, value in changes.items():
        is_valid, form = fields[name]
        if not is_valid(value):
            raise _Invalid(f"The field {name} is {form}.")


def _toggle(wanted: Mapping[str, Any], name: str, disabled: set[str]) -> None:
    _only(wanted, {name, "disabled"})
    if not _is_text(wanted.get(name)) or not is_flag(wanted.get("disabled")):
        raise _Invalid(f"The {name} and disabled (true or false) are required.")
    (disabled.add if wanted["disabled"] else disabled.discard)(wanted[name])


def _replace(table: dict[str, set[str]], name: str, members: list[str] | None) -> None:
    if members is None:
        table.pop(name, None)
    else:
        table[name] = set(members)


def _only(wanted: Mapping[str, Any], known: set[str]) -> None:
    unknown = sorted(wanted.keys() - known)
    if unknown:
        raise _Invalid(f"There is no field {', '.join(unknown)}; there are {', '.join(sorted(known))}.")


def _refused(status: int, sentence: str) -> web.Response:
    return web.json_response({"error": sentence}, status=status)
