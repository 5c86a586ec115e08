"""The metadata server: identity and access tokens of the machine's own account, over plain HTTP."""

from __future__ import annotations

from typing import Any, Final

from aiohttp import web

from proxy.emulator.answers import FLAVOR, web_page
from proxy.emulator.google import UNIVERSE, Google
from proxy.emulator.model import SCOPE, unique_id

__all__ = ["MetadataServer"]

ROOT: Final = "/computeMetadata/v1/"
DEFAULT_SCOPES: Final = (SCOPE,)


class MetadataServer:
    """Answers as the metadata server does: it keeps handing out the token it has until that one is old."""

    def __init__(self, google: Google) -> None:
        self._google = google
        self._id_tokens: dict[tuple[str, ...], tuple[str, float]] = {}
        self._access_tokens: dict[tuple[str, ...], tuple[str, float]] = {}

    async def answer(self, request: web.BaseRequest, *, expired: bool) -> web.Response:
        """Return the answer to one request; every one of them says `Metadata-Flavor: Google`."""
        response = self._answer(request, expired=expired)
        response.headers[FLAVOR] = "Google"
        response.headers["Server"] = "Metadata Server for VM"
        return response

    def _answer(self, request: web.BaseRequest, *, expired: bool) -> web.Response:
        if request.headers.getall(FLAVOR, []) != ["Google"]:
            return web_page(403, "The field Metadata-Flavor: Google is missing.")
        if "X-Forwarded-For" in request.headers:
            return web_page(403, "A request that was forwarded (X-Forwarded-For) is not answered.")
        if request.method not in ("GET", "HEAD"):
            return web_page(405, "Only GET is answered here.")
        path = request.path
        if path in ("/", "/computeMetadata", "/computeMetadata/"):
            return _text("0.1/\ncomputeMetadata/\n" if path == "/" else "v1/\n")
        if not path.startswith(ROOT):
            return web_page(404, "There is no such path.")
        return self._value(path.removeprefix(ROOT), request, expired=expired)

    def _value(self, path: str, request: web.BaseRequest, *, expired: bool) -> web.Response:
        google = self._google
        if path in ("universe/universe-domain", "universe/universe_domain"):
            return _text(UNIVERSE)
        if path == "project/project-id":
            return _text(google.project_of(google.metadata_account))
        if path == "project/numeric-project-id":
            return _text(str(self._project_number()))
        for account in ("default", google.metadata_account):
            prefix = f"instance/service-accounts/{account}/"
            if path.startswith(prefix):
                return self._of_account(path.removeprefix(prefix), request, expired=expired)
        return web_page(404, "There is no such path, or no such service account.")

    def _of_account(self, path: str, request: web.BaseRequest, *, expired: bool) -> web.Response:
        if path == "identity":
            return self._identity(request, expired=expired)
        if path == "token":
            return self._token(request, expired=expired)
        if path == "email":
            return _text(self._google.metadata_account)
        if path == "scopes":
            return _text("".join(f"{scope}\n" for scope in DEFAULT_SCOPES))
        if path == "" and request.query.get("recursive", "").lower() == "true":
            return web.json_response(
                {"aliases": ["default"], "email": self._google.metadata_account, "scopes": list(DEFAULT_SCOPES)}
            )
        if path == "":
            return _text("aliases\nemail\nidentity\nscopes\ntoken\n")
        return web_page(404, "There is no such path.")

    def _identity(self, request: web.BaseRequest, *, expired: bool) -> web.Response:
        audiences = request.query.getall("audience", [])
        if len(audiences) != 1 or not audiences[0]:
            return web_page(400, "One non-empty audience parameter is required.")
        form = request.query.get("format", "standard")
        if form not in ("standard", "full"):
            return web_page(400, "The format parameter is neither standard nor full.")
        google, audience = self._google, audiences[0]
        token, expires = self._id_tokens.get((audience, form), ("", 0.0))
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
            self._id_tokens[audience, form] = (token, expires)
        google.record("metadata", google.metadata_account, audience, expires)
        return _text(token)

    def _token(self, request: web.BaseRequest, *, expired: bool) -> web.Response:
        google = self._google
        scopes = tuple(scope for scope in request.query.get("scopes", "").split(",") if scope) or DEFAULT_SCOPES
        token, expires = self._access_tokens.get(scopes, ("", 0.0))
        if expired or not self._fresh(expires) or google.access(token) is None:
            token, expires = google.access_token(google.metadata_account, scopes, expired=expired)
        if not expired:
            self._access_tokens[scopes] = (token, expires)
        remaining = max(0, int(expires - google.clock()))
        return web.json_response({"access_token": token, "expires_in": remaining, "token_type": "Bearer"})

    def _fresh(self, expires: float) -> bool:
        return expires - self._google.clock() > self._google.metadata_keeps_until_seconds

    def _project_number(self) -> int:
        return int(unique_id(self._google.project_of(self._google.metadata_account))[:12])

    def _instance(self) -> dict[str, Any]:
        return {
            "project_id": self._google.project_of(self._google.metadata_account),
            "project_number": self._project_number(),
            "zone": "europe-west1-b",
            "instance_id": unique_id("instance")[:19],
            "instance_name": "emulated-instance",
            "instance_creation_timestamp": 1_700_000_000,
            "instance_confidentiality": 0,
        }


def _text(value: str) -> web.Response:
    return web.Response(text=value, content_type="application/text")
