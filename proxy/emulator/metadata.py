"""The metadata server: ID tokens and access tokens of the machine's account, over HTTP without TLS.

The metadata is a tree. A path that ends in `/` lists a directory; `?recursive=true` returns its subtree as JSON.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from aiohttp import web

from proxy.emulator.google import UNIVERSE, Google
from proxy.emulator.model import SCOPE, unique_id
from proxy.emulator.responses import FLAVOR, web_page

__all__ = ["MetadataServer"]

ROOT: Final = "/computeMetadata/v1/"
DEFAULT_SCOPES: Final = (SCOPE,)
ZONE: Final = "europe-west1-b"
INSTANCE: Final = "emulated-instance"

Leaf: TypeAlias = str | int | list[str]
Directory: TypeAlias = Mapping[str, "Leaf | Directory | ValueHandler"]
ValueHandler: TypeAlias = Callable[..., web.Response]
"""Makes the response of a path from the request; not part of recursive listings."""


class MetadataServer:
    """The metadata server. It returns a cached token until that is about to expire."""

    def __init__(self, google: Google) -> None:
        self._google = google
        self._id_tokens: dict[tuple[str, ...], tuple[str, float]] = {}
        self._access_tokens: dict[tuple[str, ...], tuple[str, float]] = {}

    async def handle(self, request: web.BaseRequest, *, expired: bool) -> web.Response:
        """Return the response to one request; every response has `Metadata-Flavor: Google`."""
        response = self._handle(request, expired=expired)
        response.headers[FLAVOR] = "Google"
        response.headers["Server"] = "Metadata Server for VM"
        return response

    def _handle(self, request: web.BaseRequest, *, expired: bool) -> web.Response:
        if request.headers.getall(FLAVOR, []) != ["Google"]:
            return web_page(403, "The field Metadata-Flavor: Google is missing.")
        if "X-Forwarded-For" in request.headers:
            return web_page(403, "Forwarded requests (X-Forwarded-For) are refused.")
        if request.method not in ("GET", "HEAD"):
            return web_page(405, "Only GET is allowed.")
        path = request.path
        if path in ("/", "/computeMetadata", "/computeMetadata/"):
            return _text("0.1/\ncomputeMetadata/\n" if path == "/" else "v1/\n")
        if not f"{path}/".startswith(ROOT):
            return web_page(404, "There is no such path.")
        return self._value(path[len(ROOT) :], request, expired=expired)

    def _value(self, path: str, request: web.BaseRequest, *, expired: bool) -> web.Response:
        found: Leaf | Directory | ValueHandler | None = self._tree()
        for name in filter(None, path.split("/")):
            found = found.get(name) if isinstance(found, Mapping) else None
        if found is None or (path.endswith("/") and not isinstance(found, Mapping)):
            return web_page(404, "There is no such path, or no such service account.")
        if callable(found):
            return found(request, expired=expired)
        if not isinstance(found, Mapping):
            return _leaf(found, request)
        if request.query.get("recursive", "").lower() == "true":
            return web.json_response(_recursive(found))
        # Google redirects a directory without the slash; Node's probe of `instance` follows the redirect.
        if not request.path.endswith("/"):
            return web.Response(status=301, headers={"Location": f"{request.path}/"})
        return _text(
            "".join(f"{name}/\n" if isinstance(value, Mapping) else f"{name}\n" for name, value in found.items())
        )

    def _tree(self) -> Directory:
        google, email = self._google, self._google.metadata_account
        project = google.project_of(email)
        account: Directory = {
            "aliases": ["default"],
            "email": email,
            "identity": self._identity,
            "scopes": list(DEFAULT_SCOPES),
            "token": self._token,
        }
        number = google.project_number(project)
        return {
            "instance": {
                "attributes": {},
                "hostname": f"{INSTANCE}.{ZONE}.c.{project}.internal",
                "id": int(unique_id("instance")[:19]),
                "machine-type": f"projects/{number}/machineTypes/e2-small",
                "name": INSTANCE,
                "service-accounts": {"default": account, email: account},
                "zone": f"projects/{number}/zones/{ZONE}",
            },
            "project": {"attributes": {}, "numeric-project-id": number, "project-id": project},
            "universe": {"universe-domain": UNIVERSE, "universe_domain": UNIVERSE},
        }

    def _identity(self, request: web.BaseRequest, *, expired: bool) -> web.Response:
        audiences = request.query.getall("audience", [])
        if len(audiences) != 1 or not audiences[0]:
            return web_page(400, "One non-empty audience parameter is required.")
        form = request.query.get("format", "standard")
        if form not in ("standard", "full"):
            return web_page(400, "The format parameter is neither standard nor full.")
        google, audience = self._google, audiences[0]
        cache_key = (google.metadata_account, audience, form)
        token, expires = self._id_tokens.get(cache_key, ("", 0.0))
        if expired or not self._fresh(expires):
            token, expires = google.id_token(
                "metadata",
                google.metadata_account,
                audience,
                claims={"google": {"compute_engine": self._instance()}} if form == "full" else None,
                with_email=form == "full",
                expired=expired,
            )
        if not expired:
            self._id_tokens[cache_key] = (token, expires)
        google.record_mint("metadata", google.metadata_account, audience, expires)
        return _text(token)

    def _token(self, request: web.BaseRequest, *, expired: bool) -> web.Response:
        google = self._google
        scopes = tuple(scope for scope in request.query.get("scopes", "").split(",") if scope) or DEFAULT_SCOPES
        cache_key = (google.metadata_account, *scopes)
        token, expires = self._access_tokens.get(cache_key, ("", 0.0))
        if expired or not self._fresh(expires) or google.access(token) is None:
            token, expires = google.access_token(google.metadata_account, scopes, expired=expired)
        if not expired:
            self._access_tokens[cache_key] = (token, expires)
        remaining = max(0, int(expires - google.clock()))
        return web.json_response({"access_token": token, "expires_in": remaining, "token_type": "Bearer"})

    def _fresh(self, expires: float) -> bool:
        return expires - self._google.clock() > self._google.metadata_min_remaining_seconds

    def _instance(self) -> dict[str, Any]:
        project = self._google.project_of(self._google.metadata_account)
        return {
            "project_id": project,
            "project_number": self._google.project_number(project),
            "zone": ZONE,
            "instance_id": unique_id("instance")[:19],
            "instance_name": INSTANCE,
            "instance_creation_timestamp": 1_700_000_000,
            "instance_confidentiality": 0,
        }


def _leaf(value: Leaf, request: web.BaseRequest) -> web.Response:
    if request.query.get("alt", "").lower() == "json":
        return web.json_response(value)
    return _text("".join(f"{entry}\n" for entry in value) if isinstance(value, list) else str(value))


def _recursive(directory: Directory) -> dict[str, Any]:
    """Return the directory as JSON: names in camel case, e-mail addresses as they are."""
    return {
        name if "@" in name else re.sub(r"[-_](.)", lambda match: match[1].upper(), name): (
            _recursive(value) if isinstance(value, Mapping) else value
        )
        for name, value in directory.items()
        if not callable(value)
    }


def _text(value: str) -> web.Response:
    return web.Response(text=value, content_type="application/text")
