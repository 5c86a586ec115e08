"""IAM Credentials: ID tokens and access tokens of a service account, for callers with the permission."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from aiohttp import web

from proxy.emulator.bearers import authenticate, quota_refusal
from proxy.emulator.google import Google, NoSuchAccount
from proxy.emulator.model import SCOPE, Access, Permission, are_scopes
from proxy.emulator.responses import api_error, web_page

__all__ = ["IamCredentials"]

PATH: Final = re.compile(r"/v1/projects/([^/]+)/serviceAccounts/([^/:]+):(generateIdToken|generateAccessToken)")
LOCATIONS: Final = re.compile(
    r"/v1/(?:projects/-/serviceAccounts/(?P<account>[^/:]+)"
    r"|projects/[0-9]+/locations/global/workloadIdentityPools/[^/]+"
    r"|locations/global/workforcePools/[^/]+)/allowedLocations"
)
DELEGATE: Final = re.compile(r"projects/-/serviceAccounts/([^/:]+)")
SCOPES: Final = frozenset({SCOPE, "https://www.googleapis.com/auth/iam"})
MAX_LIFETIME_SECONDS: Final = 3600
SERVICE: Final = "iamcredentials.googleapis.com"
AUDIENCES: Final = frozenset({f"https://{SERVICE}/", f"https://{SERVICE}/google.iam.credentials.v1.IAMCredentials"})
"""The allowed values of `aud` in a self-signed JWT."""

EVERYWHERE: Final = {"locations": [], "encodedLocations": "0x0"}
"""The response for an account that may be used from all locations."""


class _InvalidArgument(Exception):
    pass


class _Disabled(Exception):
    pass


class _Denied(Exception):
    def __init__(self, permission: Permission) -> None:
        super().__init__(permission.value)
        self.permission = permission


class IamCredentials:
    """The API of iamcredentials.googleapis.com."""

    def __init__(self, google: Google) -> None:
        self._google = google

    async def handle(self, request: web.BaseRequest, *, expired: bool) -> web.Response:
        """Return the response to one request."""
        match = PATH.fullmatch(request.path) if request.method == "POST" else None
        locations = LOCATIONS.fullmatch(request.path) if request.method == "GET" else None
        if match is None and locations is None:
            return web_page(404, "There is no such method.")
        access = authenticate(self._google, request, AUDIENCES)
        if access is None:
            return api_error(401, "A valid OAuth 2 access token is required as bearer.")
        refusal = _scopes_refusal(access) or quota_refusal(self._google, request, SERVICE, access)
        if refusal is not None:
            return refusal
        try:
            if match is None:
                return self._locations(locations)
            project, name, action = match.groups()
            if project != "-":
                raise _InvalidArgument("The project in the resource name must be the wildcard '-'")
            body = _object(await request.read())
            if action == "generateIdToken":
                return self._id_token(access, name, body, expired=expired)
            return self._access_token(access, name, body, expired=expired)
        except _InvalidArgument as exc:
            return api_error(400, str(exc))
        except NoSuchAccount as exc:
            return api_error(404, f"Not found; Gaia id not found for email {exc}")
        except _Disabled as exc:
            return api_error(403, f"Service account {exc} is disabled.")
        except _Denied as exc:
            return api_error(
                403,
                f"Permission '{exc.permission.value}' denied on resource (or it may not exist).",
                reason="IAM_PERMISSION_DENIED",
                metadata={"permission": exc.permission.value},
            )

    def _locations(self, match: re.Match[str] | None) -> web.Response:
        """Return that no location is forbidden; Rust's client requests it, and google-auth if configured."""
        if match is not None and match["account"] is not None:
            self._google.account(match["account"])
        return web.json_response(EVERYWHERE)

    def _id_token(self, access: Access, name: str, body: dict[str, Any], *, expired: bool) -> web.Response:
        fields = _fields(
            body, audience=_string, includeEmail=_boolean, delegates=_delegates, useEmailAzp=_boolean,
            organizationNumberIncluded=_boolean,
        )  # fmt: skip
        audience = fields.get("audience")
        if not audience:
            raise _InvalidArgument("Invalid value at 'audience': it is required")
        email = self._target(access, name, fields.get("delegates", []), Permission.GET_OPEN_ID_TOKEN)
        token, expires = self._google.id_token(
            email,
            audience,
            claims={"azp": email} if fields.get("useEmailAzp") else None,
            with_email=fields.get("includeEmail", False),
            expired=expired,
        )
        self._google.record_mint("iam", email, audience, expires)
        return web.json_response({"token": token})

    def _access_token(self, access: Access, name: str, body: dict[str, Any], *, expired: bool) -> web.Response:
        fields = _fields(body, scope=_strings, lifetime=_lifetime, delegates=_delegates)
        if not fields.get("scope"):
            raise _InvalidArgument("Invalid value at 'scope': it is required")
        if not are_scopes(fields["scope"]):
            raise _InvalidArgument("Invalid value at 'scope': one of them is not a scope of Google's")
        email = self._target(access, name, fields.get("delegates", []), Permission.GET_ACCESS_TOKEN)
        lifetime = min(fields.get("lifetime", MAX_LIFETIME_SECONDS), self._google.token_lifetime_seconds)
        token, expires = self._google.access_token(email, fields["scope"], lifetime_seconds=lifetime, expired=expired)
        expire_time = datetime.datetime.fromtimestamp(int(expires), datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return web.json_response({"accessToken": token, "expireTime": expire_time})

    def _target(self, access: Access, name: str, delegates: list[str], permission: Permission) -> str:
        """Return the target's e-mail if each link of the chain caller → delegates → target is granted."""
        target = self._google.account(name)
        caller = access.principal
        for delegate in map(self._google.account, delegates):
            self._demand(caller, Permission.IMPLICIT_DELEGATION, delegate)
            caller = delegate
        self._demand(caller, permission, target)
        if target in self._google.disabled:
            raise _Disabled(target)
        return target

    def _demand(self, caller: str, permission: Permission, target: str) -> None:
        if not self._google.has_permission(caller, permission, target):
            raise _Denied(permission)


def _scopes_refusal(access: Access) -> web.Response | None:
    if access.scopes & SCOPES:
        return None
    return api_error(403, "Request had insufficient authentication scopes.", reason="ACCESS_TOKEN_SCOPE_INSUFFICIENT")


def _object(content: bytes) -> dict[str, Any]:
    try:
        body = json.loads(content.decode())
    except (ValueError, RecursionError):
        raise _InvalidArgument("Invalid JSON payload received") from None
    if not isinstance(body, dict):
        raise _InvalidArgument("Invalid JSON payload received: an object is expected")
    return body


def _fields(body: Mapping[str, Any], **readers: Callable[[str, Any], Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for written, value in body.items():
        # ProtoJSON: the name may be that of the .proto file, and a null means that the field is missing.
        name = re.sub(r"_([a-z])", lambda match: match[1].upper(), written)
        if name not in readers:
            raise _InvalidArgument(f'Invalid JSON payload received. Unknown name "{written}": Cannot find field.')
        if value is not None:
            fields[name] = readers[name](name, value)
    return fields


def _string(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _InvalidArgument(f"Invalid value at '{name}' (TYPE_STRING)")
    return value


def _boolean(name: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    # Google also accepts these two strings, and google-auth sends them.
    if value in ("true", "false"):
        return bool(value == "true")
    raise _InvalidArgument(f"Invalid value at '{name}' (TYPE_BOOL)")


def _strings(name: str, value: Any) -> list[str]:
    if not isinstance(value, list):
        raise _InvalidArgument(f"Invalid value at '{name}': a list is expected")
    return [_string(f"{name}[{index}]", entry) for index, entry in enumerate(value)]


def _delegates(name: str, value: Any) -> list[str]:
    matches = [DELEGATE.fullmatch(entry) for entry in _strings(name, value)]
    if None in matches:
        raise _InvalidArgument(f"Invalid value at '{name}': projects/-/serviceAccounts/{{account}} is expected")
    return [match[1] for match in matches if match is not None]


def _lifetime(name: str, value: Any) -> int:
    match = re.fullmatch(r"([0-9]{1,9})(?:\.[0-9]{1,9})?s", _string(name, value))
    if match is None or not 0 < int(match[1]) <= MAX_LIFETIME_SECONDS:
        raise _InvalidArgument(f"Invalid value at '{name}': from 1s to {MAX_LIFETIME_SECONDS}s is expected")
    return int(match[1])
