"""The metadata server: ID tokens and access tokens of the machine's account, over HTTP without TLS.

The metadata is a tree. A path that ends in `/` lists a directory; `?recursive=true` returns its subtree as JSON.

With `Google.pod` it is the metadata server of a GKE node. Its errors are plain text, and it has tokens of the account
in the pod's annotation if the pod's Kubernetes account has `roles/iam.workloadIdentityUser` on that account. Without
the annotation it has access tokens of the Kubernetes account itself, and no ID tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from aiohttp import web

from proxy.emulator.google import UNIVERSE, Google
from proxy.emulator.model import SCOPE, Permission, unique_id
from proxy.emulator.responses import FLAVOR, web_page

__all__ = ["MetadataServer"]

ROOT: Final = "/computeMetadata/v1/"
DEFAULT_SCOPES: Final = (SCOPE,)
REGION: Final = "europe-west1"
ZONE: Final = f"{REGION}-b"
INSTANCE: Final = "emulated-instance"
CLUSTER: Final = "emulated-cluster"
ANNOTATION: Final = "iam.gke.io/gcp-service-account"
MIN_REMAINING_SECONDS: Final = 300
"""With less than this left, a cached token is replaced; serverless metadata servers wait until 240."""

Leaf: TypeAlias = str | int | list[str]
Directory: TypeAlias = Mapping[str, "Leaf | Directory | ValueHandler"]
ValueHandler: TypeAlias = Callable[..., web.Response]
"""Makes the response of a path from the request; not part of recursive listings."""


class _Refused(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class MetadataServer:
    """The metadata server. It returns a cached token until that is about to expire."""

    def __init__(self, google: Google) -> None:
        self._google = google
        self._id_tokens: dict[tuple[str, ...], tuple[str, float]] = {}
        self._access_tokens: dict[tuple[str, ...], tuple[str, float]] = {}

    async def handle(self, request: web.BaseRequest, *, expired: bool) -> web.Response:
        """Return the response to one request; every response has `Metadata-Flavor: Google`."""
        try:
            response = self._handle(request, expired=expired)
        except _Refused as exc:
            response = self._refusal(exc.status, str(exc))
        response.headers[FLAVOR] = "Google"
        response.headers["Server"] = "Metadata Server for VM" if self._google.pod is None else "GKE Metadata Server"
        return response

    def _refusal(self, status: int, text: str) -> web.Response:
        if self._google.pod is None:
            return web_page(status, text)
        return web.Response(status=status, text=f"{text}\n", content_type="text/plain", charset="utf-8")

    def _handle(self, request: web.BaseRequest, *, expired: bool) -> web.Response:
        # The root answers without it: that is how Google's documentation and clients find out where they run.
        if request.path != "/" and request.headers.getall(FLAVOR, []) != ["Google"]:
            raise _Refused(403, "The field Metadata-Flavor: Google is missing.")
        if "X-Forwarded-For" in request.headers:
            raise _Refused(403, "Forwarded requests (X-Forwarded-For) are refused.")
        if request.method not in ("GET", "HEAD"):
            raise _Refused(405, "Only GET is allowed.")
        path = request.path
        if path in ("/", "/computeMetadata", "/computeMetadata/"):
            return _text("0.1/\ncomputeMetadata/\n" if path == "/" else "v1/\n")
        if not f"{path}/".startswith(ROOT):
            raise _Refused(404, "There is no such path.")
        return self._value(path[len(ROOT) :], request, expired=expired)

    def _value(self, path: str, request: web.BaseRequest, *, expired: bool) -> web.Response:
        found: Leaf | Directory | ValueHandler | None = self._tree()
        for name in filter(None, path.split("/")):
            found = found.get(name) if isinstance(found, Mapping) else None
        if found is None or (path.endswith("/") and not isinstance(found, Mapping)):
            raise _Refused(404, "There is no such path, or no such service account.")
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
        google, email = self._google, self._email()
        project = google.project_of(google.metadata_account)
        account: Directory = {
            "aliases": ["default"],
            "email": email,
            "identity": self._identity,
            "scopes": list(DEFAULT_SCOPES),
            "token": self._token,
        }
        number = google.project_number(project)
        instance: Directory = {
            "attributes": {},
            "hostname": f"{INSTANCE}.{ZONE}.c.{project}.internal",
            "id": int(unique_id("instance")[:19]),
            "machine-type": f"projects/{number}/machineTypes/e2-small",
            "name": INSTANCE,
            "region": f"projects/{number}/regions/{REGION}",
            "service-accounts": {"default": account, email: account},
            "zone": f"projects/{number}/zones/{ZONE}",
        }
        if google.pod is not None:
            cluster: Directory = {"cluster-location": REGION, "cluster-name": CLUSTER}
            shown = ("hostname", "id", "service-accounts", "zone")
            instance = {"attributes": cluster, **{name: instance[name] for name in shown}}
        return {
            "instance": instance,
            "project": {"attributes": {}, "numeric-project-id": number, "project-id": project},
            "universe": {"universe-domain": UNIVERSE, "universe_domain": UNIVERSE},
        }

    def _email(self) -> str:
        """Return the e-mail of the default account; for a pod without the annotation, the name of its pool."""
        pod = self._google.pod
        if pod is None:
            return self._google.metadata_account
        return pod.annotation or f"{self._google.project_of(self._google.metadata_account)}.svc.id.goog"

    def _principal(self, permission: Permission, kind: str) -> str:
        """Return the principal that tokens are for; raises _Refused unless the pod may have them."""
        google, pod = self._google, self._google.pod
        if self._email() in google.disabled:
            raise _Refused(403, "The service account is disabled.")
        if pod is None:
            return google.metadata_account
        names = google.pod_names(pod)
        if pod.annotation is None:
            if permission is Permission.GET_ACCESS_TOKEN:
                return names[0]
            raise _Refused(
                404,
                f"The Kubernetes service account {pod.namespace}/{pod.name} is linked to no Google service account, "
                f"which identity tokens need: it lacks the annotation {ANNOTATION}=ACCOUNT.",
            )
        if not any(google.has_permission(name, permission, pod.annotation) for name in names):
            raise _Refused(
                403,
                f"Unable to generate {kind} token; IAM returned 403 Forbidden: Permission '{permission.value}' denied "
                "on resource (or it may not exist).\nThis error could be caused by a missing IAM policy binding on "
                "the target IAM service account.",
            )
        return pod.annotation

    def _identity(self, request: web.BaseRequest, *, expired: bool) -> web.Response:
        audiences = request.query.getall("audience", [])
        if len(audiences) != 1 or not audiences[0]:
            raise _Refused(400, "One non-empty audience parameter is required.")
        form = request.query.get("format", "standard")
        if form not in ("standard", "full"):
            raise _Refused(400, "The format parameter is neither standard nor full.")
        google, audience = self._google, audiences[0]
        email = self._principal(Permission.GET_OPEN_ID_TOKEN, "identity")
        machine = form == "full" and google.pod is None
        cache_key = (email, audience, form)
        token, expires = self._id_tokens.get(cache_key, ("", 0.0))
        if expired or not self._fresh(expires):
            token, expires = google.id_token(
                email,
                audience,
                claims={"google": {"compute_engine": self._instance()}} if machine else None,
                with_email=form == "full",
                expired=expired,
            )
        if not expired:
            self._id_tokens[cache_key] = (token, expires)
        google.record_mint("metadata", email, audience, expires)
        return _text(token)

    def _token(self, request: web.BaseRequest, *, expired: bool) -> web.Response:
        google = self._google
        scopes = tuple(scope for scope in request.query.get("scopes", "").split(",") if scope) or DEFAULT_SCOPES
        principal = self._principal(Permission.GET_ACCESS_TOKEN, "access")
        cache_key = (principal, *scopes)
        token, expires = self._access_tokens.get(cache_key, ("", 0.0))
        if expired or not self._fresh(expires) or google.access(token) is None:
            token, expires = google.access_token(principal, scopes, expired=expired)
        if not expired:
            self._access_tokens[cache_key] = (token, expires)
        remaining = max(0, int(expires - google.clock()))
        return web.json_response({"access_token": token, "expires_in": remaining, "token_type": "Bearer"})

    def _fresh(self, expires: float) -> bool:
        return expires - self._google.clock() > MIN_REMAINING_SECONDS

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
    """Return the directory as JSON: names in camel case, those of accounts as they are."""
    return {
        name if "." in name else re.sub(r"[-_](.)", lambda match: match[1].upper(), name): (
            _recursive(value) if isinstance(value, Mapping) else value
        )
        for name, value in directory.items()
        if not callable(value)
    }


def _text(value: str) -> web.Response:
    return web.Response(text=value, content_type="application/text")
